"""Matrix products of the layers in FP8, by torchao.

Before each product both matrices are scaled by their largest element and cast to 8 bits: weights
and inputs with 4 bits of exponent, gradients with 5. Weights, gradients and the optimizer stay as
they are. So do the heads, whose rows are few, and the decoder, whose matrix is tied.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from data_prep.core.config import SettingsError

if TYPE_CHECKING:
    from pretrain.model.bert import BertForPreTraining

CAPABILITY = (8, 9)  # of the first GPUs with FP8: Ada, then Hopper
MULTIPLE = 16  # elements of a row that the product takes


def use_fp8(model: BertForPreTraining, device: torch.device) -> None:
    """Let the layers' linear modules multiply in FP8; parameters and their names stay.

    On a CPU the products are emulated: the rounding is that of a GPU, the speed is not. Raises
    SettingsError if torchao, the hardware, or sizes that FP8 takes are missing.
    """
    or_without = "or set engine.fp8=false"
    is_cuda = device.type == "cuda"
    if is_cuda and (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        raise SettingsError(
            f"engine.fp8=true needs a GPU of compute capability {_dotted(CAPABILITY)} (Ada) or "
            f"more, and this one has {_dotted(found)}; {or_without}"
        )
    for name in ("hidden_size", "intermediate_size"):
        if (size := getattr(model.settings, name)) % MULTIPLE:
            raise SettingsError(
                f"engine.fp8=true takes sizes that are multiples of {MULTIPLE}, and model.{name} "
                f"is {size}; change it, {or_without}"
            )
    # kernels of torchao's own, which are not used, and whose loading it reports
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise SettingsError(
            f"engine.fp8=true needs torchao ({error}); pip install torchao, the extra `fp8`, "
            f"{or_without}"
        ) from None
    # uncompiled rows have any number of tokens
    config = Float8LinearConfig(emulate=not is_cuda, pad_inner_dim=True)
    for layer in model.layers:
        convert_to_float8_training(layer, config=config)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
