"""The hardware of a plan: typed settings whose values, with their sources, lie in conf/cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.config.settings import ModelSettings


@dataclass
class ClusterSettings:
    """Nodes of GPUs, all alike; a machine without GPUs is one node of one "GPU", its cores."""

    gpu: str | None  # None: no hardware is named, and nothing else is read
    is_cpu: bool
    has_bf16: bool  # bfloat16, which engine.precision=auto takes where it is there
    nodes: int
    gpus_per_node: int
    memory_gib: float  # of a GPU
    reserved_gib: float  # of it, for the driver, the collectives and gaps between tensors
    peak_tflops: dict[str, float]  # of matrix products: fp32, half (bfloat16 and float16), others
    gemm_share: dict[str, float]  # of that peak reached by matrix products of BERT's sizes
    bandwidth_gb_s: float  # of a GPU's memory
    bandwidth_share: float  # of it, reached
    link_gb_s: float  # between the GPUs of a node, each way: what an all-reduce reaches
    link_latency_us: float
    network_gb_s: float  # a GPU's part of its node's network, each way
    network_share: float  # of it, that an all-reduce reaches
    network_latency_us: float
    step_ms: float  # of every step, whatever its size
    update_ns: float  # of a parameter and step, for the host
    call_us: float  # of an operator, forward or backward, for the host that asks for it
    sequence_us: float  # of one sequence's attention in a layer, forward and backward, for the host
    usd_per_gpu_hour: float
    watts_per_gpu: float  # with its part of the node


def measured(cluster: ClusterSettings, model: ModelSettings, vocab_size: int) -> ClusterSettings:
    """`cluster` as it is, or, where its rates are left open (conf/cluster/local.yaml), measured here."""
    if any(cluster.peak_tflops.values()):
        return cluster
    from pretrain.planning.calibrate import measure

    return measure(cluster, model, vocab_size)
