"""Compilation of the layers and the loss.

A layer is compiled once per shape of a micro-batch and serves all layers: seconds, where the whole
model would take minutes. The loss over the vocabulary is compiled because its logits would
otherwise go through memory five times. The embeddings are not: compiled, they sum their gradients
in an order that differs from run to run.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_prep.core.caches import is_private, use_private_compile_caches
from data_prep.core.config import SettingsError
from pretrain.config.settings import Compile, EngineSettings, Precision

if TYPE_CHECKING:
    from pretrain.model.bert import BertForPreTraining

BACKEND = "inductor"
# Programs per layer before torch gives up. A phase has 16 shapes in training and one in evaluation,
# one for each later phase, and a few for rare micro-batches (`data.static_shapes`).
MOST_SHAPES = 64


def resolve_compile(settings: EngineSettings, device: torch.device) -> Compile:
    """Resolve `auto`: true on a GPU with a compiler unless ZeRO 3, otherwise false.

    Raises SettingsError if compilation is asked for and there is no compiler.
    """
    if settings.compile is Compile.auto:
        is_worth_it = device.type == "cuda" and settings.zero_stage < 3
        return Compile.true if is_worth_it and _has_compiler() else Compile.false
    if settings.compile is Compile.true and not _has_compiler():
        raise SettingsError(
            "engine.compile=true needs a C++ compiler, and there is none; install g++ (apt-get "
            "install g++), name one in the variable CXX, or set engine.compile=false"
        )
    return settings.compile


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
    for layer in model.layers:
        layer.compile(fullgraph=one_graph, **how)
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


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
