"""Which parts of the model run as compiled code, and where.

A layer is compiled once for each shape of a micro-batch and serves as all layers: seconds, where
the whole model would take minutes. Beside the layers it is the loss over the vocabulary, whose
logits would otherwise go through memory five times. The embeddings stay as they are: compiled, they
add up their gradients in an order that differs from run to run.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from data_prep.core.config import SettingsError
from pretrain.config.settings import Compile, EngineSettings, Precision

if TYPE_CHECKING:
    from pretrain.model.bert import BertForPreTraining

BACKEND = "inductor"
MOST_SHAPES = 64  # of micro-batches, training and evaluation apart; a run has about ten


def resolve_compile(settings: EngineSettings, device: torch.device) -> Compile:
    """`auto` as what it stands for here: true on a GPU with a compiler but for ZeRO 3, else false.

    Raises SettingsError where code cannot be compiled here, though it is asked for.
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
    """From now on the layers and the loss of `model` run as compiled code.

    A layer is one graph where attention is one call, and more than MOST_SHAPES shapes are an error.
    Elsewhere attention is called between two graphs; torch warns of further shapes, and runs them
    uncompiled.
    """
    one_graph = device.type == "cuda" and precision is not Precision.fp32
    how: dict[str, Any] = {
        "backend": BACKEND, "dynamic": False, "recompile_limit": MOST_SHAPES,
    }  # fmt: skip
    for layer in model.layers:
        layer.compile(fullgraph=one_graph, **how)
    model.token_sums = torch.compile(model.token_sums, fullgraph=True, **how)


def uncompiled() -> AbstractContextManager[None]:
    """In this context compiled parts run as they are: for a batch of a shape that comes up rarely."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
