"""Compilation of the layers and the loss.

A layer is compiled once per shape of a micro-batch and serves all layers: seconds, where the whole
model would take minutes. The loss over the vocabulary is compiled because its logits would
otherwise go through memory five times. The embeddings are not: compiled, they sum their gradients
in an order that differs from run to run.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_prep.core.caches import is_private, use_private_compile_caches
from pretrain.config.settings import Compile, EngineSettings, Precision

if TYPE_CHECKING:
    from pretrain.model.bert import BertForPreTraining

BACKEND = "inductor"
# Programs per layer before torch gives up. A phase has 16 shapes in training and one in evaluation,
# one for each later phase, and a few for rare micro-batches (`data.static_shapes`).
MOST_SHAPES = 64


def wants_compile(settings: EngineSettings, device: torch.device) -> bool:
    """Whether layers are to be compiled; `auto`: on a GPU, unless ZeRO 3."""
    if settings.compile is Compile.auto:
        return device.type == "cuda" and settings.zero_stage < 3
    return settings.compile is Compile.true


def compile_fault(device: torch.device) -> str:
    """Why this machine cannot compile a tiny kernel for `device` and run it, or "" if it can.

    A GPU's kernels need a C compiler and Python.h, a CPU's a C++ compiler and Python.h. They are
    needed at the first use, so nothing but a try finds out. It takes seconds, without the caches,
    which may hold this kernel and not those to come.
    """
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    def kernel(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + 1

    with (
        warnings.catch_warnings(action="ignore"),
        fresh_cache(),
        config.patch(compile_threads=1, cpp_cache_precompile_headers=False),
    ):
        try:
            torch.compile(kernel, backend=BACKEND)(torch.ones(8, device=device)).tolist()
        except Exception as error:  # noqa: BLE001  whatever is missing; the reason is returned
            return _first_reason(str(error)) or type(error).__name__
    return ""


def _first_reason(text: str) -> str:
    """The compiler's own error in torch's message, or the message's first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return (errors or lines or [""])[0]


def compile_parts(model: BertForPreTraining, precision: Precision, device: torch.device) -> None:
    """Compile the layers and the loss of `model`.

    If attention is one call, a layer is one graph, and more than MOST_SHAPES shapes are an error.
    Otherwise attention is called between two graphs; torch warns of further shapes and does not
    compile them.
    """
    _use_private_caches()
    one_graph = device.type == "cuda" and precision is not Precision.fp32
    how: dict[str, Any] = {
        "backend": BACKEND, "dynamic": False, "recompile_limit": MOST_SHAPES,
    }  # fmt: skip
    for layer in model.layers:  # without the layers' hooks, which wait for weights
        layer.forward = torch.compile(layer.forward, fullgraph=one_graph, **how)
    model.token_sums = torch.compile(model.token_sums, fullgraph=True, **how)


def _use_private_caches() -> None:
    """Keep compiled code, and the headers compiled into it, from folders of other users."""
    from torch._inductor import config
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    use_private_compile_caches()
    # torch precompiles headers into /tmp/torchinductor_USER, whatever the variable says. Without
    # them a first start takes 1.7 times as long.
    if not is_private(Path(default_cache_dir())):
        config.cpp_cache_precompile_headers = False


def uncompiled() -> AbstractContextManager[None]:
    """Run compiled parts as plain code in this context, for a batch of a rare shape."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
