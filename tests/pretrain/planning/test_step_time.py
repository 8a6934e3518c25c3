"""Counts of a step's cost, against the model itself, published counts and loops."""

import dataclasses
import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_samples import random_batch
from torch.utils.flop_counter import FlopCounterMode

from data_prep.core.config import compose
from data_prep.core.objectives import Pairing
from pretrain.config.settings import (
    ClusterSettings,
    ModelSettings,
    OptimizerName,
    Precision,
    Settings,
    Shard,
)
from pretrain.model import attention
from pretrain.model.bert import BertForPreTraining
from pretrain.model.flops import Lengths, flops, parameters
from pretrain.planning.step_time import (
    OVERLAP,
    Program,
    attends_per_sequence,
    communication_s,
    embedded_share,
    our_program,
    step,
)


@functools.cache
def settings_of(*typed: str) -> Settings:
    return compose("config", Settings, typed)[0]


def model_of(name: str, multiple: int = 8) -> ModelSettings:
    model = settings_of(f"+model={name}").model
    return dataclasses.replace(model, pad_vocab_size_multiple_of=multiple)


def hardware(name: str = "dgx_a100") -> ClusterSettings:
    return settings_of("+model=large", f"cluster={name}").cluster


OURS = our_program(settings_of("+model=large").engine, OptimizerName.lamb, 1, False)


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize("pairs", list(Pairing))
def test_parameters_are_those_of_the_model(name: str, pairs: Pairing) -> None:
    with torch.device("meta"):
        model = BertForPreTraining(model_of(name, 64), 30_522, pairs)
    assert parameters(model_of(name, 64), 30_522, pairs) == model.num_parameters


@pytest.mark.parametrize(
    ("name", "lengths", "gigaflops"),
    [
        ("base", Lengths.full(128, 20), 69.93), ("large", Lengths.full(128, 20), 240.64),
        ("base", Lengths.full(512, 80), 301.45), ("large", Lengths.full(512, 80), 1020.54),
        ("large", Lengths(255.83, 98_826, 38.4), 500.15),
    ],
)  # fmt: skip
def test_flops_are_the_known_counts(name: str, lengths: Lengths, gigaflops: float) -> None:
    assert flops(model_of(name), 30_528, lengths) / 1e9 == pytest.approx(gigaflops, rel=1e-4)


def test_flops_of_linear_layers_are_those_that_torch_counts() -> None:
    settings, tokens, masked = model_of("tiny", 1), 96, 14
    model = BertForPreTraining(settings, 1000, Pairing.none)
    x = torch.ones(tokens, settings.hidden_size)
    with FlopCounterMode(display=False) as counter:
        for layer in model.layers:
            for linear in (layer.qkv, layer.attention_out, layer.feed_forward_in):
                linear(x)
            layer.feed_forward_out(torch.ones(tokens, settings.intermediate_size))
        model.mlm_head(x[:masked])
    forward = flops(settings, 1000, Lengths(tokens, 0, masked)) / 3
    without_pairs = forward - 2 * settings.hidden_size**2 - 4 * settings.hidden_size
    assert without_pairs == counter.get_total_flops()


@given(lengths=st.lists(st.integers(8, 512), min_size=1, max_size=20), layers=st.integers(1, 4))
def test_flops_at_means_are_the_mean_of_the_flops(lengths: list[int], layers: int) -> None:
    model = dataclasses.replace(model_of("base"), num_hidden_layers=layers)
    n = len(lengths)
    mean = Lengths(
        sum(lengths) / n, sum(x * x for x in lengths) / n, sum(x // 7 for x in lengths) / n
    )
    hidden, inner = model.hidden_size, model.intermediate_size
    total = 0.0
    for length in lengths:
        for _ in range(layers):
            total += 3 * 2 * length * (3 * hidden * hidden + hidden * hidden + 2 * hidden * inner)
            for _ in range(model.num_attention_heads):  # scores, and what they weigh
                total += 3 * 2 * 2 * length * length * (hidden // model.num_attention_heads)
        total += 3 * 2 * (length // 7) * (hidden * hidden + hidden * 1000)
        total += 3 * 2 * (hidden * hidden + 2 * hidden)
    assert n * flops(model, 1000, mean) == pytest.approx(total)


def test_flops_with_a_trimmed_last_layer_are_those_that_torch_counts() -> None:
    settings, lengths, masked = model_of("tiny"), [40, 56], [6, 8]
    model = BertForPreTraining(settings, 1000, Pairing.nsp)
    batch = random_batch(lengths, 1000, seed=1, masked=masked)
    counted = []
    for trims in (False, True):
        model.trim_last_layer = trims
        with FlopCounterMode(display=False) as counter:
            model.logits(batch)
        counted.append(counter.get_total_flops())
    mean = Lengths(48, 0, 7)
    whole, trimmed = (2 / 3 * flops(settings, 1000, mean, trims=how) for how in (False, True))
    assert counted[0] - counted[1] == pytest.approx(whole - trimmed)


def test_recomputation_costs_a_third_of_the_layers() -> None:
    model, lengths = model_of("large"), Lengths.full(128, 0)
    plain, again = (flops(model, 30_522, lengths, how) for how in (False, True))
    assert again / plain == pytest.approx(4 / 3, rel=1e-3)


@given(
    inside=st.integers(2, 16), nodes=st.integers(1, 12), size=st.integers(1, 10),
    sent=st.sampled_from([2.0, 4.0, 12.0]),
)  # fmt: skip
def test_communication_is_that_of_rings_step_by_step(inside, nodes, size, sent) -> None:
    cluster = dataclasses.replace(
        hardware(), gpus_per_node=inside, link_latency_us=0, network_latency_us=0
    )
    program = dataclasses.replace(OURS, sent_bytes=sent)
    count = size * 1_000_000
    seconds, piece = 0.0, sent * count / inside
    for _ in range(inside - 1):  # each GPU hands one piece on
        seconds += piece / (1e9 * cluster.link_gb_s)
    for _ in range(nodes - 1):  # and each node a part of the piece
        seconds += piece / nodes / (1e9 * cluster.network_gb_s * cluster.network_share)
    assert communication_s(program, count, cluster, inside * nodes) == pytest.approx(seconds)


def test_shards_within_a_node_send_each_gradient_twice_over_the_network_and_no_weight() -> None:
    engine = settings_of("+model=base", "engine=bf16", "engine.shard=node").engine
    nodes, inside, count = 4, 8, 10_000_000
    cluster = dataclasses.replace(hardware(), link_latency_us=0, network_latency_us=0)
    for stage, micro_steps, within in ((1, 1, 4 + 2), (1, 4, 4 + 2), (2, 4, 4 * 4 + 2)):
        own = dataclasses.replace(engine, zero_stage=stage)
        program = our_program(own, OptimizerName.adamw, micro_steps, False)
        links = within * count * (inside - 1) / inside / (1e9 * cluster.link_gb_s)
        network = 2 * 4 * count / inside * (nodes - 1) / nodes
        network /= 1e9 * cluster.network_gb_s * cluster.network_share
        seconds = communication_s(program, count, cluster, nodes * inside)
        assert seconds == pytest.approx(links + network)


def test_a_bucket_is_a_hop_per_gpu_or_with_shards_within_a_node_per_gpu_of_the_node() -> None:
    cluster = dataclasses.replace(
        hardware(), gpus_per_node=8, link_latency_us=1, network_latency_us=100
    )
    engine = settings_of("+model=base", "engine=bf16").engine
    for shard, hops in ((Shard.world, 2 * (4 * 7 + 300)), (Shard.node, 2 * (7 + 200))):
        own = dataclasses.replace(engine, shard=shard)
        program = our_program(own, OptimizerName.adamw, 1, False)
        one, two = (communication_s(program, 1, cluster, 32, buckets) for buckets in (1, 2))
        assert two - one == pytest.approx(1e-6 * hops)


def test_one_rank_sends_nothing_and_more_nodes_send_no_faster() -> None:
    times = [communication_s(OURS, 336_000_000, hardware(), n) for n in (1, 8, 16, 128, 1024)]
    assert times[0] == 0
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("stage", "micro_steps", "ways", "bf16_bytes"),
    [(1, 4, 2, 4 + 2), (2, 1, 2, 4 + 2), (2, 4, 5, 4 * 4 + 2), (3, 4, 8, 4 * (4 + 2))],
)
def test_what_is_sent_is_what_the_collectives_were_counted_as(
    stage, micro_steps, ways, bf16_bytes
) -> None:
    engine = dataclasses.replace(settings_of("+model=base", "engine=bf16").engine, zero_stage=stage)
    program = our_program(engine, OptimizerName.adamw, micro_steps, False)
    assert program.sent_bytes == bf16_bytes, "gradients in fp32, weights in 16 bits"
    fp32 = dataclasses.replace(engine, precision=Precision.fp32)
    assert our_program(fp32, OptimizerName.adamw, micro_steps, False).sent_bytes == 4 * ways
    autocast = dataclasses.replace(engine, precision=Precision.bf16_autocast)
    expected = 4 * ways if stage == 3 else bf16_bytes + 2 * 0.25
    program = our_program(autocast, OptimizerName.adamw, micro_steps, False, embedded=0.25)
    assert program.sent_bytes == expected, "embeddings are gathered in fp32"
    assert program.weight_bytes == (24 if stage == 3 else 12)


def took(
    program: Program, sequences: float = 64, micro_steps: int = 1, gpus: int = 8, **of: float
) -> float:
    cluster = dataclasses.replace(hardware(), **of)
    lengths = Lengths(256, 98_826, 38)
    return step(
        model_of("large"), 30_522, 336_000_000, lengths, cluster, program, sequences, micro_steps,
        gpus,
    ).total  # fmt: skip


def test_a_step_takes_longer_with_more_work_and_slower_hardware() -> None:
    base = took(OURS)
    assert took(OURS, sequences=128) > 1.5 * base
    assert took(OURS, bandwidth_gb_s=1000) > base
    assert took(OURS, gpus=1024) > base
    assert took(dataclasses.replace(OURS, is_recomputing=True)) > 1.2 * base
    assert took(OURS, call_us=2000) > 2 * base  # the host launches kernels too slowly
    assert took(OURS, gpus=1024) < took(dataclasses.replace(OURS, hiding=()), gpus=1024)
    assert math.isclose(took(OURS, call_us=0), base, rel_tol=0.5)


def test_the_host_asks_for_each_sequence_where_there_is_no_kernel_for_all() -> None:
    engine = settings_of("+model=large").engine
    assert took(OURS, sequence_us=800) == took(OURS)
    program = our_program(engine, OptimizerName.lamb, 1, False, attends_per_sequence=True)
    assert took(program, sequence_us=8000) > 2 * took(program, sequence_us=0)


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.fp16, Precision.bf16])
@pytest.mark.parametrize(("gpu", "capability"), [("dgx1_v100", (7, 0)), ("dgx_a100", (8, 0))])
def test_attention_is_planned_by_sequence_where_the_model_has_no_kernel_for_all(
    precision: Precision, gpu: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(attention, "_fault", lambda *_: "")
    dtypes = {Precision.fp16: torch.float16, Precision.bf16: torch.bfloat16}
    for heads in (16, 1024 // 12, 2):  # of 64, 12 and 512 numbers
        model = dataclasses.replace(model_of("large"), num_attention_heads=heads)
        given = dtypes.get(precision, torch.float32), 1024 // heads
        for device, cluster in (("cuda", gpu), ("cpu", "local")):
            if hardware(cluster).has_bf16 < (precision is Precision.bf16):
                continue  # refused
            kernel = attention.kernel_of.__wrapped__(torch.device(device), *given)
            planned = attends_per_sequence(model, precision, hardware(cluster))
            assert planned == (kernel is attention.Kernel.by_sequence)


@pytest.mark.parametrize(("sequences", "micro_steps"), [(64, 1), (64, 2), (4, 1), (16, 8)])
def test_all_but_the_embeddings_hides_behind_the_last_and_the_first_micro_batch(
    sequences: float, micro_steps: int
) -> None:
    """Of BERT-large at ZeRO 1 on 128 GPUs: gradients and weights are as many bytes."""
    model, lengths = model_of("large"), Lengths(256, 98_826, 38)
    engine = settings_of("+model=large").engine
    program = our_program(engine, OptimizerName.lamb, micro_steps, False)
    found = step(
        model, 30_522, 336_000_000, lengths, hardware(), program, sequences, micro_steps, 128
    )
    half = communication_s(program, 336_000_000, hardware(), 128, 14) / 2
    window = OVERLAP * found.products / micro_steps
    hidden = min(0.9 * half, window * 2 / 3) + min(0.9 * half, window / 3)
    assert found.communication == pytest.approx(2 * half - hidden, rel=0.03)


def test_fp8_halves_the_products_of_the_layers_weights_and_adds_its_casts() -> None:
    """BERT-large, 8,192 tokens on one H100."""
    model, tokens, lengths = model_of("large"), 8_192, Lengths.full(512, 77)
    engine, h100 = settings_of("+model=large", "engine=bf16").engine, hardware("dgx_h100")
    count = parameters(model, 30_522, Pairing.nsp)
    share = embedded_share(model, count)
    plain, fp8 = (
        step(
            model, 30_522, count, lengths, h100,
            our_program(
                dataclasses.replace(engine, fp8=how), OptimizerName.adamw, 1, False, embedded=share
            ),
            tokens / 512, 1, 1,
        )
        for how in (False, True)
    )  # fmt: skip
    of_layers = 24 * 3 * 2 * 12 * 1024**2 * tokens / (1e12 * 989 * h100.gemm_share["half"])
    assert plain.products - fp8.products == pytest.approx(of_layers / 2, rel=1e-3)
    casts = 24 * (76 * 1024 * tokens + 6 * 12.6e6) / (1e9 * 3350 * h100.bandwidth_share)
    assert fp8.memory - plain.memory == pytest.approx(casts, rel=1e-3)
    assert 0.012 < of_layers / 2 < 0.013, "as docs/performance.md says"
    assert 0.0055 < casts < 0.0065


def test_a_model_of_one_bucket_hides_nothing() -> None:
    tiny, lengths = model_of("tiny"), Lengths(64, 4096, 9)
    steps = [
        step(tiny, 1_000, 2_000_000, lengths, hardware(), program, 64, 1, 8).communication
        for program in (OURS, dataclasses.replace(OURS, hiding=()))
    ]
    assert steps[0] == steps[1] > 0
