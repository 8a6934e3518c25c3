"""What several tests share."""

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from data_prep.core.objectives import Pairing

# tests/pretrain, without an __init__.py, must not be taken for the package of that name
sys.path.insert(0, str(Path(__file__).parents[1]))
# one thread per process: ranks are forked from this process, and an OpenMP pool does not survive it
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a shell lets its background jobs ignore Ctrl-C, and so would the commands that tests interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# the same examples in every run, and no time limit an example: the machine may be busy
hypothesis.settings.register_profile("project", derandomize=True, deadline=None)
hypothesis.settings.load_profile("project")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch sees none")


@pytest.fixture(scope="session")
def sample_dirs(session_dir: Path, sample_dir: Path) -> Callable[[Pairing], Path]:
    """The sample corpus by its pairing; each is made when first asked for."""

    @functools.cache
    def of(pairing: Pairing) -> Path:
        folder = session_dir / f"sample-{pairing.name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                shutil.copytree(sample_dir, folder, ignore=shutil.ignore_patterns("len*"))
            _prepare(folder, pairing)
        return folder

    return of


@pytest.fixture(scope="session")
def sample_dir(session_dir: Path) -> Path:
    """The sample corpus, prepared at 128 tokens by the jobs themselves."""
    folder = session_dir / f"sample-{Pairing.nsp.name}"
    with FileLock(f"{folder}.lock"):
        _prepare(folder, Pairing.nsp)
    return folder


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this session share; whoever writes there holds a lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def _prepare(folder: Path, pairing: Pairing) -> None:
    """Prepare what is not there yet."""
    from pretrain.config.settings import DataSettings, MaskMode
    from pretrain.data.corpus import prepare_sample

    prepare_sample(DataSettings(str(folder), seq_len=128, pairs=pairing, masking=MaskMode.static))
