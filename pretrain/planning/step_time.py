"""The cost of a training step: floating-point operations, bytes moved, bytes sent, seconds.

A step of a rank takes

    matrix products / (peak x share) + bytes / (bandwidth x share) + communication + a fixed part

If the host launches kernels more slowly than the device computes them, the host's time counts.
Counts come from the model's own code, rates from conf/cluster, which names their sources. Only
settings are imported: a plan needs no torch and no GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.config.settings import (
    ClusterSettings,
    Compile,
    EngineSettings,
    ModelSettings,
    OptimizerName,
    Precision,
    Shard,
)
from pretrain.model.flops import Lengths, flops, layer_parameters, linear_flops
from pretrain.optim.buckets import BUCKET_ELEMENTS

# Bytes per token, layer and unit of the hidden size, read and written outside matrix products:
# forward and backward passes of attention, GELU (4 units wide), two dropouts, sums and LayerNorms,
# the biases' gradients, and joining the attention of the sequences.
LAYER_BYTES = {"half": 182, "fp32": 364}
# on top: the sum of the layers is fp32 and copied to bfloat16 before each product
AUTOCAST_BYTES = 84
# The same of compiled layers, counted in the code that is generated for an H100: the kernels, and
# attention with 24. Casts of weights are in WEIGHT_BYTES. test_cuda_path.py counts them again.
COMPILED_LAYER_BYTES = 142
COMPILED_AUTOCAST_BYTES = 40  # on top
# engine.fp8 on top, counted in the same way: casts and maxima, and those of weights, per parameter
# of the layers and micro-batch
FP8_LAYER_BYTES = 76
FP8_WEIGHT_BYTES = 6
LOGIT_BYTES = 34  # per logit: written, copied to fp32, log-softmax, arg max, and their gradients
WEIGHT_BYTES = 12  # per parameter and micro-batch: working copy read or made, gradient added
CAST_BYTES = 12  # on top where autocast has no working copies: weight and gradient are cast
UPDATE_BYTES = {
    OptimizerName.adamw: 40,
    OptimizerName.bert_adam: 40,
    OptimizerName.lamb: 64,
    OptimizerName.muon: 40,
    OptimizerName.plugin: 40,  # as AdamW
}
# Share of the matrix products that hides communication: about the least with which MLPerf's run on
# 3,472 H100 is predicted within 15 % (-14.8 %)
OVERLAP = 0.67
LAYER_CALLS = 60  # operators per layer, forward and backward, without attention


@dataclass(frozen=True)
class Program:
    """What differs between implementations of one model."""

    arithmetic: str  # of matrix products: a key of cluster.peak_tflops
    layer_bytes: float
    score_bytes: float  # per attention score, if scores go through memory; 0: one kernel
    sent_bytes: float  # per parameter and step, one way; an all-reduce counts twice
    update_bytes: int  # per parameter, read and written by clipping and the optimizer
    is_sharded: bool  # each rank updates its share of the parameters
    is_recomputing: bool
    attends_per_sequence: bool  # attention is one call per sequence, not one for all
    # shares of the communication, each with the share of the matrix products that can hide it
    hiding: tuple[tuple[float, float], ...] = ()
    weight_bytes: float = WEIGHT_BYTES
    in_buckets: bool = False  # those of optim/buckets.py: nothing hides the embeddings' own
    is_within_nodes: bool = False  # sharded: each node holds the whole state
    across_bytes: float = 0  # then, in place of `sent_bytes`: those between nodes
    trims: bool = False  # the last layer computes only the positions that the heads read
    in_fp8: bool = False  # the products of the layers' weights


def our_program(
    engine: EngineSettings,
    optimizer: OptimizerName,
    micro_steps: int,
    recomputes: bool,
    attends_per_sequence: bool = False,
    embedded: float = 0.0,
) -> Program:
    """This project's program: what pretrain.model.bert and DeepSpeed do.

    `attends_per_sequence`: the answer of the function of that name. `embedded`: the share of the
    parameters that the embeddings have.
    """
    precision, stage = engine.precision, engine.zero_stage
    is_autocast = precision is Precision.bf16_autocast
    is_fp32 = precision is Precision.fp32
    layer_bytes, autocast_bytes = LAYER_BYTES["fp32" if is_fp32 else "half"], AUTOCAST_BYTES
    # Of fp32, and of code with a call per sequence, they are not counted
    if engine.compile is Compile.true and not (is_fp32 or attends_per_sequence):
        layer_bytes, autocast_bytes = COMPILED_LAYER_BYTES, COMPILED_AUTOCAST_BYTES
    weight_bytes = WEIGHT_BYTES + (CAST_BYTES if is_autocast and stage not in (1, 2) else 0)
    if engine.fp8:
        layer_bytes += FP8_LAYER_BYTES
    return Program(
        arithmetic="fp32" if is_fp32 else "half",
        layer_bytes=layer_bytes + (autocast_bytes if is_autocast else 0),
        score_bytes=0,
        sent_bytes=_sent_bytes(stage, precision, micro_steps, embedded),
        weight_bytes=weight_bytes + (FP8_WEIGHT_BYTES * (1 - embedded) if engine.fp8 else 0),
        update_bytes=UPDATE_BYTES[optimizer],
        is_sharded=stage > 0,
        is_recomputing=recomputes,
        attends_per_sequence=attends_per_sequence,
        hiding=_hiding(stage, precision, micro_steps, embedded, engine.shard is Shard.node),
        in_buckets=stage in (1, 2),
        is_within_nodes=engine.shard is Shard.node,
        across_bytes=2 * _bytes_of(stage, precision, embedded)[1],  # gradients: an all-reduce
        trims=engine.trim_last_layer,
        in_fp8=engine.fp8,
    )


def attends_per_sequence(
    model: ModelSettings, precision: Precision, cluster: ClusterSettings | None
) -> bool:
    """Whether attention is one call per sequence, and not one for all.

    A GPU has a kernel for all whose heads take multiples of 16 bytes, flash or memory-efficient.
    See `kernel_of` in pretrain/model/attention.py; its trial on the GPU is assumed to succeed.
    """
    itemsize = 4 if precision is Precision.fp32 else 2
    head_bytes = itemsize * (model.hidden_size // model.num_attention_heads)
    return cluster is not None and (cluster.is_cpu or head_bytes % 16 != 0)


def _sent_bytes(stage: int, precision: Precision, micro_steps: int, embedded: float) -> float:
    """Bytes per parameter that a step sends one way (scripts/bench/scaling.py counts them)."""
    weight, gradient = _bytes_of(stage, precision, embedded)
    if stage == 3:  # gathered and reduce-scattered with every micro-batch
        return (weight + gradient) * micro_steps
    if stage == 0:  # all-reduced
        return 2 * gradient
    return gradient * (micro_steps if stage == 2 else 1) + weight


def _bytes_of(stage: int, precision: Precision, embedded: float) -> tuple[float, int]:
    """Bytes of a weight that is gathered and of a gradient that is reduced.

    In bf16 the weights are gathered in 16 bits, and the gradients reduced in 32. So they are in
    autocast at ZeRO 1 and 2, but for the embeddings.
    """
    weight: float = 2 if precision in (Precision.bf16, Precision.fp16) else 4
    if precision is Precision.bf16_autocast and stage in (1, 2):
        weight = 2 + 2 * embedded
    return weight, 2 if precision is Precision.fp16 else 4


def _hiding(
    stage: int, precision: Precision, micro_steps: int, embedded: float, is_within_nodes: bool
) -> tuple[tuple[float, float], ...]:
    """What hides behind what at ZeRO 1 and 2 (engine/zero1.py): see `Program.hiding`.

    Gradients are reduced during the backward pass of the last micro-batch (of each, at ZeRO 2),
    two thirds of its products; weights are gathered during the forward pass of the first.
    """
    if stage not in (1, 2):
        return ()
    weight, gradient = _bytes_of(stage, precision, embedded)
    reductions = micro_steps if stage == 2 else 1
    if is_within_nodes:  # the gathers are short: as if the reductions' window had to hide them
        return ((1.0, OVERLAP * 2 / 3 / micro_steps),)
    weights = weight / (weight + gradient * reductions)
    return (
        (1 - weights, OVERLAP * 2 / 3 * reductions / micro_steps),
        (weights, OVERLAP / 3 / micro_steps),
    )


def embedded_share(model: ModelSettings, num_parameters: int) -> float:
    """Share of the parameters outside the layers: the embeddings, and the heads, which are few."""
    return 1 - model.num_hidden_layers * layer_parameters(model) / num_parameters


def _buckets(model: ModelSettings, num_parameters: int) -> tuple[int, float]:
    """Number of buckets, and the share of the parameters that the last one has: the embeddings."""
    if num_parameters <= BUCKET_ELEMENTS:
        return 1, 1.0
    embedded = embedded_share(model, num_parameters)
    return 1 + math.ceil((1 - embedded) * num_parameters / BUCKET_ELEMENTS), embedded


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step of a rank, by part."""

    products: float  # matrix products
    memory: float  # all other work on activations and weights
    update: float
    communication: float  # the part that nothing hides
    fixed: float
    waiting: float  # for a host that launches kernels more slowly than they run

    @property
    def total(self) -> float:
        """Seconds of the whole."""
        return math.fsum(vars(self).values())


def step(
    model: ModelSettings,
    vocab_size: int,
    num_parameters: int,
    lengths: Lengths,
    cluster: ClusterSettings,
    program: Program,
    sequences: float,
    micro_steps: int,
    gpus: int,
) -> Step:
    """A step of `sequences` per rank, in `micro_steps` micro-batches, on `gpus` ranks."""
    bandwidth = 1e9 * cluster.bandwidth_gb_s * cluster.bandwidth_share
    rate = 1e12 * cluster.peak_tflops[program.arithmetic] * cluster.gemm_share[program.arithmetic]
    counted = flops(model, vocab_size, lengths, program.is_recomputing, program.trims)
    if program.in_fp8:  # as much of its peak as in 16 bits
        layers = linear_flops(model, lengths, program.is_recomputing, program.trims)
        counted -= layers * (1 - cluster.peak_tflops["half"] / cluster.peak_tflops["fp8"])
    products = sequences * counted / rate
    moved = model.num_hidden_layers * (
        program.layer_bytes * model.hidden_size * lengths.mean
        + program.score_bytes * model.num_attention_heads * lengths.mean_square
    )
    again = 4 / 3 if program.is_recomputing else 1
    moved = sequences * (again * moved + LOGIT_BYTES * vocab_size * lengths.masked)
    moved += micro_steps * program.weight_bytes * num_parameters
    memory = moved / bandwidth
    shards = gpus if program.is_sharded else 1
    if program.is_within_nodes:
        shards = min(gpus, cluster.gpus_per_node)
    update = program.update_bytes * num_parameters / shards / bandwidth
    update += 1e-9 * cluster.update_ns * num_parameters
    num_buckets, last = 1, 0.0
    if program.in_buckets:
        num_buckets, last = _buckets(model, num_parameters)
    communication = communication_s(program, num_parameters, cluster, gpus, num_buckets)
    hidden_s = math.fsum(
        min(share * (1 - last) * communication, of_products * products)
        for share, of_products in program.hiding
    )
    calls_us = LAYER_CALLS * micro_steps * cluster.call_us
    calls_us += cluster.sequence_us * sequences if program.attends_per_sequence else 0
    host = again * 1e-6 * model.num_hidden_layers * calls_us
    waiting = host if cluster.is_cpu else max(0.0, host - products - memory)
    return Step(products, memory, update, communication - hidden_s, 1e-3 * cluster.step_ms, waiting)


def communication_s(
    program: Program,
    num_parameters: int,
    cluster: ClusterSettings,
    gpus: int,
    num_buckets: int = 1,
) -> float:
    """Seconds of a step's collectives: two for each bucket, and the norm.

    One way (a reduce-scatter or an all-gather; an all-reduce is both) moves (g - 1) / g of the
    bytes over the links of a node's g GPUs, and (n - 1) / n of a GPU's g-th part over the network
    of n nodes. An all-reduce is rings inside a node and trees between nodes. NCCL has no trees for
    the buckets' reduce-scatters and all-gathers: they are rings of all GPUs that share the state.
    """
    if gpus == 1:
        return 0.0
    inside = min(gpus, cluster.gpus_per_node)
    nodes = -(-gpus // inside)
    link = 1e9 * cluster.link_gb_s
    network = 1e9 * cluster.network_gb_s * cluster.network_share
    across_bytes = program.across_bytes if program.is_within_nodes else program.sent_bytes
    per_parameter = program.sent_bytes * (inside - 1) / inside / link
    per_parameter += across_bytes * (nodes - 1) / nodes / inside / network
    ring = (inside - 1) * cluster.link_latency_us
    tree = math.ceil(math.log2(nodes)) * cluster.network_latency_us
    bucket = 2 * (ring + tree)
    if program.in_buckets and not program.is_within_nodes:
        bucket = 2 * (nodes * ring + (nodes - 1) * cluster.network_latency_us)
    return num_parameters * per_parameter + 1e-6 * (num_buckets * bucket + ring + tree)
