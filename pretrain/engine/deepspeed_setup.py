"""Start of DeepSpeed: quiet, on this machine's device, with the settings it needs.

Only this file imports DeepSpeed, which looks for its device on import; others import from here.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from data_prep.core.config import SettingsError
from pretrain.config.settings import EngineSettings, Precision
from pretrain.distributed.device import cuda_is_usable
from pretrain.distributed.ranks import Ranks

if not cuda_is_usable():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise it guesses, and prints that
import deepspeed
import deepspeed.ops
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups as process_groups
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
)

if os.environ.get("DS_ACCELERATOR") == "cpu":
    # otherwise it compiles C++ for an inference op, which takes 2 minutes
    deepspeed.ops.__compatible_ops__ = {}
deepspeed.utils.logger.setLevel("ERROR")
# DeepSpeed calls collectives by names that torch has deprecated
warnings.filterwarnings("ignore", category=FutureWarning, module="torch|deepspeed")

__all__ = [
    "DeepSpeedZeroOptimizer", "GatheredParameters", "deepspeed_config", "get_accelerator",
    "lazy_init_hp_params_optimizer_state", "resolve_precision", "safe_get_local_fp32_param",
    "safe_get_local_optimizer_state", "start_deepspeed",
]  # fmt: skip


def resolve_precision(settings: EngineSettings, device: torch.device) -> Precision:
    """Resolve `auto` for this hardware; any other precision stays as it is.

    Raises SettingsError if the hardware lacks the precision, before a model is built.
    """
    precision = settings.precision
    is_cuda = device.type == "cuda"
    has_bf16 = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision is Precision.auto:
        precision = Precision.bf16_autocast if has_bf16 else Precision.fp32
    if settings.fp8 and precision is Precision.fp32:
        raise SettingsError(
            "engine.fp8=true needs bfloat16, and engine.precision=auto is fp32 on this device; set "
            "engine.precision=bf16 or engine.fp8=false"
        )
    if is_cuda and not has_bf16 and precision in (Precision.bf16, Precision.bf16_autocast):
        major, minor = torch.cuda.get_device_capability(device)
        raise SettingsError(
            f"engine.precision={precision.value} needs a GPU with bfloat16, and "
            f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) has none; "
            "set engine=fp16"
        )
    if precision is Precision.fp16 and not get_accelerator().is_fp16_supported():
        raise SettingsError(
            "engine.precision=fp16 needs a GPU; set engine.precision=fp32 on this machine"
        )
    low = precision in (Precision.bf16, Precision.fp16)
    assert settings.zero_stage > 0 or not low, "config.checks.check refuses this"
    return precision


def deepspeed_config(
    precision: Precision, stage: int, max_grad_norm: float, num_parameters: int
) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # for its own counters; batches come from outside
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {
            # for its ZeRO 1 in bf16 DeepSpeed has another optimizer, which LeanZero does not know
            "stage": 2 if stage == 1 and precision is Precision.bf16 else stage,
            "reduce_bucket_size": num_parameters,  # of ZeRO 3; its default is 5e8
            # ZeRO 1 and 2 have engine/zero1.py's buffers, ZeRO 3 its own
            "contiguous_gradients": stage == 3,
        },
        # this timer waits for the device before and after each micro-batch
        "timers": {"throughput": {"enabled": False}},
        "zero_allow_untested_optimizer": True,  # BertAdam is elementwise; LAMB knows its pieces
    }
    if precision is Precision.bf16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # of one rank's own sums
        # otherwise the ranks' sums are rounded to 8 bits at each hop: 1 % off at 128 ranks
        config["communication_data_type"] = "fp32"
    elif precision is Precision.bf16_autocast:
        # no module is listed as safe, so that gradients are reduced in fp32
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    elif precision is Precision.fp16:
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 1,  # halved at every overflow
            "min_loss_scale": 1,
        }
    return config


def start_deepspeed(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
    ranks: Ranks,
    timeout_minutes: float,
    group: Any,
) -> Any:
    """Call deepspeed.initialize silently, on the existing process group.

    ZeRO shards among the ranks of `group`.
    """
    os.environ["LOCAL_RANK"] = str(ranks.device.index or 0)  # DeepSpeed reads its device from it
    timeout = timedelta(minutes=timeout_minutes)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        deepspeed.init_distributed(
            torch.distributed.get_backend(),
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timeout,
        )
        process_groups._WORLD_GROUP = group  # otherwise it makes one, without our time-out
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine
