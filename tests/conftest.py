"""What several tests share."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from data_prep.core.objectives import Pairing

# tests/pretrain, without an __init__.py, must not be taken for the package of that name
sys.path.insert(0, str(Path(__file__).parents[1]))
# one thread per process: ranks are forked from this process, and an OpenMP pool does not survive it
os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples in every run, and no time limit an example: the machine may be busy
hypothesis.settings.register_profile("project", derandomize=True, deadline=None)
hypothesis.settings.load_profile("project")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch sees none")


@pytest.fixture(scope="session")
def sample_dirs(
    sample_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Pairing], Path]:
    """The sample corpus by its pairing; each is made when first asked for."""
    from pretrain.config.settings import DataSettings, MaskMode
    from pretrain.data.corpus import prepare_sample

    @functools.cache
    def of(pairing: Pairing) -> Path:
        if pairing is Pairing.nsp:
            return sample_dir
        folder = tmp_path_factory.mktemp("sample") / pairing.name
        shutil.copytree(sample_dir, folder, ignore=shutil.ignore_patterns("len*"))
        prepare_sample(DataSettings(str(folder), 128, pairing, MaskMode.static))
        return folder

    return of


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus, prepared at 128 tokens by the jobs themselves."""
    from pretrain.config.settings import DataSettings, MaskMode
    from pretrain.data.corpus import prepare_sample

    folder = tmp_path_factory.mktemp("sample") / "sample"
    prepare_sample(
        DataSettings(str(folder), seq_len=128, pairs=Pairing.nsp, masking=MaskMode.static)
    )
    return folder
