"""What several tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest

# tests/pretrain, without an __init__.py, must not be taken for the package of that name
sys.path.insert(0, str(Path(__file__).parents[1]))
# one thread per process: ranks are forked from this process, and an OpenMP pool does not survive it
os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples in every run, and no time limit an example: the machine may be busy
hypothesis.settings.register_profile("project", derandomize=True, deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus, prepared at 128 tokens by the jobs themselves."""
    from pretrain.prepared import prepare_sample
    from pretrain.settings import DataSettings, Masking

    folder = tmp_path_factory.mktemp("sample") / "sample"
    prepare_sample(DataSettings(dir=str(folder), seq_len=128, masking=Masking.static))
    return folder
