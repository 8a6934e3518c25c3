"""Private functions of torch and DeepSpeed that this project calls or replaces, as they are known.

If one of these fails after an update, stay with the version that it names, until the caller is
changed.
"""

import inspect

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups

from pretrain.engine.zero1 import LeanZero
from pretrain.model.attention import FA3_MODULE

STAY = "stay with torch 2.13 to 2.15 and deepspeed 0.19.8 (pyproject.toml)"


def test_torchs_flash_operators_take_what_attention_passes() -> None:
    """pretrain/model/attention.py calls the first by position; autograd derives the second."""
    forward = torch.ops.aten._flash_attention_forward.default._schema
    names = [(a.name, str(a.type)) for a in forward.arguments if not a.kwarg_only]
    assert names == [
        ("query", "Tensor"), ("key", "Tensor"), ("value", "Tensor"),
        ("cum_seq_q", "Optional[Tensor]"), ("cum_seq_k", "Optional[Tensor]"), ("max_q", "int"),
        ("max_k", "int"), ("dropout_p", "float"), ("is_causal", "bool"),
        ("return_debug_mask", "bool"),
    ], STAY  # fmt: skip
    assert all(a.has_default_value() for a in forward.arguments if a.kwarg_only), STAY
    assert forward.returns[0].name == "output", STAY
    assert hasattr(torch.ops.aten, "_flash_attention_backward"), STAY


REPLACED = [
    name
    for name, value in vars(LeanZero).items()
    if inspect.isfunction(value) and hasattr(DeepSpeedZeroOptimizer, name)
]


@pytest.mark.parametrize("name", REPLACED)
def test_a_method_of_deepspeed_that_is_replaced_takes_the_same_arguments(name: str) -> None:
    theirs = inspect.signature(getattr(DeepSpeedZeroOptimizer, name)).parameters
    ours = inspect.signature(getattr(LeanZero, name)).parameters
    assert list(ours) == list(theirs), STAY
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()], STAY


def test_deepspeed_is_pinned_to_the_version_whose_class_is_swapped() -> None:
    """In another one a method may be gone, and ours would no longer be called."""
    assert deepspeed.__version__ == "0.19.8", STAY
    assert {"reduce_gradients", "step"} <= set(REPLACED)


def test_deepspeed_takes_the_group_of_its_shards_from_where_it_is_put() -> None:
    """pretrain/engine/deepspeed_setup.py sets it, because DeepSpeed's own has no time-out."""
    assert "_WORLD_GROUP is None" in inspect.getsource(groups._clone_world_group), STAY


def test_torch_knows_flash_attention_3_by_this_name_and_module() -> None:
    """pretrain/model/attention.py activates it, where the module is installed."""
    from torch.nn import attention as torchs
    from torch.nn.attention import _fa3

    activate = inspect.signature(torchs.activate_flash_attention_impl)
    assert list(activate.parameters) == ["impl"], STAY
    assert "FA3" in torchs.list_flash_attention_impls(), STAY
    module = inspect.signature(_fa3.register_flash_attention_fa3).parameters["module_path"]
    assert module.default == FA3_MODULE, STAY
