"""A corpus that was copied, so that every file has another time, is the same corpus."""

import os
import pydoc_data.topics
import shutil
from pathlib import Path

import pytest
from made_corpora import run_inline

from data_prep import audit, build, collect, dedup, encode, status, vocab
from data_prep.core.job import load
from data_prep.executors import run
from data_prep.status import Stage
from pretrain.config.settings import DataSettings, MaskMode, Pairing
from pretrain.data.corpus import manifest_of

TEXTS = [text for text in pydoc_data.topics.topics.values() if len(text) > 2000][:30]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """texts/ and, through all jobs, data/."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (root / "texts" / f"{number}.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_processes", run_inline)
        for job in (collect, dedup, vocab, encode, build, audit):
            job.run(settings(root))
    return root


def settings(root: Path):
    source = ["+source=books", f"source.path={root / 'texts'}", "source.language=null"]
    return load([f"data_dir={root / 'data'}", *source, "heldout_fraction=0.3", "seq_len=64",
                 "vocab_size=600", "num_workers=1", "audit.most_repeated=1"])  # fmt: skip


def stages(root: Path) -> dict[str, Stage]:
    return {stage.name: stage for stage in status.stages_of(settings(root), 2e9)}


@pytest.fixture(params=["years ago", "in a year", "all at one moment"])
def restored(prepared: Path, request: pytest.FixtureRequest) -> Path:
    """The corpus in its place, as by rsync, tar or cp without -p."""
    kept = prepared.with_name("kept")
    (prepared / "data").rename(kept)
    shutil.copytree(kept, prepared / "data", copy_function=shutil.copyfile)
    shutil.rmtree(kept)
    for number, path in enumerate(sorted((prepared / "data").rglob("*"))):
        moment = {"years ago": 1e9 - number, "in a year": 2e9 + number}.get(request.param, 1.5e9)
        os.utime(path, (moment, moment))
    return prepared


def test_nothing_is_done_again(restored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def contents() -> dict[Path, bytes]:
        files = (path for path in restored.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    before = contents()
    done = {name: stage.state for name, stage in stages(restored).items()}
    assert set(done.values()) == {"done"}, done
    monkeypatch.setattr(run, "run_processes", lambda *_: pytest.fail("a task runs again"))
    monkeypatch.setattr(vocab, "train_vocab", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(dedup, "search", lambda *_: pytest.fail("compared again"))
    for job in (collect, dedup, vocab, encode, build):
        job.run(settings(restored))
    assert contents() == before


def test_training_accepts_it(restored: Path) -> None:
    data = DataSettings(str(restored / "data"), 64, Pairing.nsp, MaskMode.static)
    assert manifest_of(data).seq_len == 64
    assert status.out_of_date(restored / "data", 64) == []
