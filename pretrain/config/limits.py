"""What each setting of a run may be by itself, in words that a refusal shows.

What must fit together is in `checks`.
"""

from __future__ import annotations

from typing import Any

from data_prep.core.config import Limits
from pretrain.config.settings import AUTO, EVERY_RANK

MOST = 2**53  # as a float it is still exact
MOST_PROFILED = 100  # steps: their trace is held in memory, some megabytes per step
_COUNT = (lambda value: 1 <= value <= MOST, f"1 or more, and at most {MOST}")
_POSITIVE = (lambda value: value > 0, "more than 0")
_NOT_NEGATIVE = (lambda value: value >= 0, "0 or more")
_RATE = (lambda value: 0 <= value < 1, "[0, 1)")
_SHARE = (lambda value: 0 < value <= 1, "more than 0, and at most 1")
_MASKED = (lambda value: 0 < value < 1, "more than 0 and less than 1")
_SIZE = (lambda value: 1 <= value <= 2**20, f"from 1 to {2**20}")

LIMITS: Limits = {
    # One word of the counter-based generator's key
    "run.seed": (lambda value: 0 <= value < 2**32, f"from 0 to {2**32 - 1}"),
    "run.stop_after": (lambda value: value >= 1, "1 or more, or null for no limit"),
    "model.hidden_size": _SIZE,
    "model.num_hidden_layers": _SIZE,
    "model.num_attention_heads": _SIZE,
    "model.intermediate_size": _SIZE,
    "model.hidden_act": (lambda value: value in ("gelu", "gelu_new"), "gelu or gelu_new"),
    "model.hidden_dropout_prob": _RATE,
    "model.attention_probs_dropout_prob": _RATE,
    "model.max_position_embeddings": _SIZE,
    "model.type_vocab_size": _SIZE,
    "model.initializer_range": (
        lambda value: value == AUTO or (not isinstance(value, str) and value >= 0),
        "0 or more, or auto",
    ),
    "model.layer_norm_eps": _POSITIVE,
    "model.pad_vocab_size_multiple_of": _SIZE,
    "data.seq_len": _COUNT,
    "data.mixture": (
        lambda value: value and all(weight > 0 for weight in value.values()),
        "a weight above 0 for each source, as in {wikipedia:3,books:1}",
    ),
    "data.mixture_temperature": (
        lambda value: 0 <= value <= 1,
        "from 0 (equal shares) to 1 (shares by size)",
    ),
    "data.mask_rate": _MASKED,
    "data.mask_rate_end": _MASKED,
    "optim.global_batch": _COUNT,
    "optim.learning_rate": _POSITIVE,
    "optim.betas": (
        lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value),
        "two numbers in [0, 1)",
    ),
    "optim.eps": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.momentum": (lambda value: 0 <= value < 1, "[0, 1), or null without optim=muon"),
    "optim.matrix_rate": (lambda value: value > 0, "more than 0, or null without optim=muon"),
    "optim.newton_schulz_steps": (
        lambda value: 1 <= value < 100,
        "from 1 to 99, or null without optim=muon",
    ),
    "optim.max_grad_norm": (lambda value: value > 0, "more than 0, or null for no clipping"),
    "schedule.total_steps": _COUNT,
    "schedule.budget_hours": (
        lambda value: value > 0,
        "more than 0, or null for schedule.total_steps",
    ),
    "schedule.warmup_steps": _NOT_NEGATIVE,
    "schedule.warmup_fraction": _RATE,
    "schedule.decay_fraction": (
        lambda value: 0 < value <= 1,
        "more than 0 and at most 1, or null for a decay from the end of the warm-up",
    ),
    "schedule.start_step": _NOT_NEGATIVE,
    "schedule.power": (lambda value: value >= 0, "0 (constant) or more"),
    "engine.zero_stage": (lambda value: 0 <= value <= 3, "0, 1, 2 or 3"),
    # Positions in a micro-batch are int32
    "engine.tokens_per_micro_batch": (
        lambda value: 1 <= value < 2**31,
        f"from 1 to {2**31 - 1}",
    ),
    # torch's limit on a wait is in 64 bits of nanoseconds
    "engine.timeout_minutes": (
        lambda value: 0 < value <= 525_600,
        "more than 0, and at most 525600 (a year)",
    ),
    "data.stage_quota_gb": (lambda value: value > 0, "more than 0, or null for the free space"),
    "eval.every_steps": _COUNT,
    "eval.max_examples": (lambda value: value >= 1, "1 or more, or null for all"),
    "checkpoint.every_steps": _COUNT,
    "checkpoint.keep": _COUNT,
    "survival.max_skipped_steps": _COUNT,
    "survival.min_loss_scale": _COUNT,
    "survival.spike_window": _COUNT,
    "survival.spike_spreads": _POSITIVE,
    "survival.max_rewinds": _COUNT,
    "monitor.every_steps": _COUNT,
    "monitor.peak_tflops": (
        lambda value: value > 0,
        "more than 0, or null for the known peak of the device",
    ),
    "profile.steps": (
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] < value[0] + MOST_PROFILED,
        f"the first and the last of at most {MOST_PROFILED} steps, as in [10,13], or null for none",
    ),
    "profile.ranks": (lambda value: _are_ranks(value), "numbers of ranks, as in [0,8], or all"),
    "log.timeout_s": _POSITIVE,
    "export.timeout_s": _POSITIVE,
    "plan.vocab_size": (lambda value: 1 <= value < 2**31, f"from 1 to {2**31 - 1}"),
    "plan.lengths": (
        lambda value: all(len(means) == 2 and 0 < means[0] <= means[1] for means in value.values()),
        "two numbers for a length, the means of the tokens and of their squares",
    ),
    "cluster.nodes": _SIZE,
    "cluster.gpus_per_node": _SIZE,
}
# Read where a cluster is named; of this machine the plan measures what is 0
CLUSTER_LIMITS: Limits = {
    "cluster.bandwidth_share": _SHARE,
    "cluster.network_share": _SHARE,
    "cluster.link_gb_s": _POSITIVE,
    "cluster.network_gb_s": _POSITIVE,
    **{
        f"cluster.{name}": _NOT_NEGATIVE
        for name in (
            "memory_gib", "reserved_gib", "bandwidth_gb_s", "link_latency_us",
            "network_latency_us", "step_ms", "update_ns", "call_us", "sequence_us",
            "usd_per_gpu_hour", "watts_per_gpu",
        )
    },
}  # fmt: skip


def _are_ranks(value: Any) -> bool:
    """Whether a value of profile.ranks is `all` or a list of ranks."""
    if not isinstance(value, list):
        return bool(value == EVERY_RANK)
    return bool(value) and all(type(rank) is int and rank >= 0 for rank in value)
