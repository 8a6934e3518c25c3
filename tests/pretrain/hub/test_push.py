"""python -m pretrain.push: what the hub then has, what happens when it fails, what is refused.

The hub is a stand-in on this machine; huggingface_hub talks to it over HTTP, by LFS.
"""

import logging
import os
import shutil
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from damage import flip_a_bit
from huggingface_hub import constants, snapshot_download
from made_run import made_run
from model_samples import random_model, small_settings
from safetensors.torch import load
from writable_hub import TOKEN, Fault, Hub, writable_hub

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from pretrain.hub import repository
from pretrain.hub.contents import contents_of
from pretrain.push import main
from pretrain.training.export_run import export_run

# of huggingface_hub about its own call
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
WORDS = "the a cat dog mouse sat ran ate on in mat house garden and . ,".split()
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
MODEL = {
    "README.md", "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt", "origin.json", ".gitattributes",
}  # fmt: skip
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an export and checkpoints at 10 and 20."""
    model = random_model(small_settings(), len(TOKENS), seed=0).eval()
    folder = made_run(tmp_path_factory.mktemp("pushed"), model, TOKENS)
    export_run(folder)
    return folder


@pytest.fixture
def export(run: Path) -> Path:
    return run / "export"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, to which huggingface_hub goes with the right token and without pauses."""
    with writable_hub() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        address = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        no_pause = types.SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
        monkeypatch.setattr("huggingface_hub.utils._http.time", no_pause)
        yield server


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line of a push that ends with `status`."""

    def of(*typed: str, status: int = 2) -> str:
        assert main(typed) == status
        line = next(
            line for line in capsys.readouterr().err.splitlines() if "pretrain.push:" in line
        )
        assert TOKEN not in line
        return line

    return of


def test_stock_transformers_loads_the_run_and_its_checkpoints_from_the_hub(
    run, hub, tmp_path
) -> None:
    assert main([f"run={run}", "to=me/first"]) == 0
    repository = hub.repositories["models/me/first"]
    assert set(repository.branches) == {"main", "step-10", "step-20"}
    assert set(repository.branches["main"]) == MODEL | {"loss.svg"}
    assert set(repository.branches["step-10"]) == MODEL
    loaded = {}
    for revision in repository.branches:
        folder = snapshot_download(
            "me/first", revision=revision, endpoint=hub.url, local_dir=tmp_path / revision
        )
        model = transformers.BertForPreTraining.from_pretrained(folder)
        loaded[revision] = model.bert.pooler.dense.weight
        assert transformers.AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"]
    torch.testing.assert_close(loaded["main"], loaded["step-20"])
    torch.testing.assert_close(loaded["step-10"], loaded["step-20"] / 2)


def test_the_card_has_the_metrics_the_curves_and_an_example_that_loads_this_model(run, hub) -> None:
    main([f"run={run}", "to=me/first"])
    branches = hub.repositories["models/me/first"].branches
    card = branches["main"]["README.md"].decode()
    assert "| MLM loss (nats per masked token) | 2.0000 |" in card
    assert "![MLM loss over steps](loss.svg)" in card
    assert 'BertForPreTraining.from_pretrained("me/first")' in card
    assert branches["main"]["loss.svg"].startswith(b"<?xml")
    card = branches["step-10"]["README.md"].decode()
    assert 'from_pretrained("me/first", revision="step-10")' in card
    assert "| MLM loss (nats per masked token) | 1.0000 |" in card


def test_what_is_uploaded_of_a_run_has_no_path_of_this_machine(run, hub) -> None:
    assert main([f"run={run}", "to=me/first"]) == 0
    for branch in hub.repositories["models/me/first"].branches.values():
        assert "  dir: corpus\n" in branch["README.md"].decode()
        assert not [name for name, content in branch.items() if bytes(run.parents[1]) in content]


@pytest.mark.parametrize(("typed", "is_private"), [([], True), (["private=false"], False)])
def test_a_new_repository_is_private_unless_asked_otherwise(export, hub, typed, is_private) -> None:
    assert main([f"run={export}", "to=me/x", *typed]) == 0
    assert hub.repositories["models/me/x"].is_private is is_private


def test_what_the_hub_has_is_not_sent_again(run, hub, refused) -> None:
    hub.faults.append(Fault("PUT", "cut", times=99, after=1))  # the first file gets through
    line = refused(f"run={run}", "to=me/first", status=1)
    again = f"continue it with: python -m pretrain.push run={run} to=me/first"
    assert "the upload to me/first failed" in line
    assert line.endswith(again)
    branches = hub.repositories["models/me/first"].branches
    assert set(branches["main"]) == MODEL | {"loss.svg"}
    assert "model.safetensors" not in branches["step-10"]  # never that of another step
    hub.faults.clear()
    hub.log.clear()
    assert main(again.split()[6:]) == 0
    # main is there, and step-20 has the weights of main
    assert (hub.count("PUT"), hub.count("POST .*/commit/")) == (1, 2)
    branches = hub.repositories["models/me/first"].branches
    weights = {name: load(files["model.safetensors"]) for name, files in branches.items()}
    name = "bert.pooler.dense.weight"
    assert torch.equal(weights["step-10"][name] * 2, weights["step-20"][name])
    hub.log.clear()
    assert main(again.split()[6:]) == 0
    assert (hub.count("PUT"), hub.count("POST .*/commit/")) == (0, 0)


@pytest.mark.parametrize(
    "fault",
    [Fault("PUT", 503, times=3), Fault("PUT", "cut", times=2), Fault("preupload", 500, times=2),
     Fault("objects/batch", 429, times=2)],
    ids=lambda fault: f"{fault.pattern} {fault.answer}",
)  # fmt: skip
def test_a_hub_that_recovers_is_waited_for(export, hub, fault) -> None:
    hub.faults.append(fault)
    assert main([f"run={export}", "to=me/x"]) == 0
    assert hub.repositories["models/me/x"].branches["main"].keys() >= MODEL


@pytest.mark.parametrize(
    "fault",
    [Fault("PUT", 503, times=99), Fault("/commit/", 500, times=99), Fault("create", 502, times=99),
     Fault("/commit/", "cut", times=99), Fault("GET", "cut", times=99)],
    ids=lambda fault: f"{fault.pattern} {fault.answer}",
)  # fmt: skip
def test_a_hub_that_does_not_is_one_line_with_the_command_that_continues(
    export, hub, refused, fault
) -> None:
    hub.faults.append(fault)
    line = refused(f"run={export}", "to=me/x", "private=false", status=1)
    assert line.endswith(
        f"continue it with: python -m pretrain.push run={export} to=me/x private=false"
    )
    hub.faults.clear()
    assert main([f"run={export}", "to=me/x"]) == 0


def test_ctrl_c_is_one_line_with_the_command_that_continues(
    export, hub, monkeypatch, capsys
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repository, "push", interrupted)
    typed = [f"run={export}", "to=me/x", "overwrite=true"]
    assert status_of(lambda: main(typed)) == 130
    assert capsys.readouterr().err == (
        "pretrain.push: the upload to me/x was interrupted; continue it with: "
        f"python -m pretrain.push run={export} to=me/x overwrite=true\n"
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_named_with_the_cure_and_never_printed(
    export, hub, refused, status
) -> None:
    hub.faults.append(Fault("create", status, times=99, text=f"{TOKEN} may not write"))
    line = refused(f"run={export}", "to=me/x")
    assert "the hub refuses the token" in line
    assert "... may not write" in line
    assert "`hf auth login`" in line


def test_without_a_token_nothing_is_asked(export, hub, refused, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "there is no token for the hub; log in with `hf auth login`" in refused(
        f"run={export}", "to=me/x"
    )
    assert not hub.log


@pytest.mark.parametrize("name", ["x", "a/b/c", "me/", "me/a--b", "me/a b", "me/x.git"])
def test_a_name_that_no_repository_can_have_is_refused(export, hub, refused, name) -> None:
    assert f"to={name}: " in refused(f"run={export}", f"to={name}")
    assert not hub.log


def test_a_folder_of_another_kind_is_refused(hub, refused, tmp_path) -> None:
    assert "is no run (config.yaml), no exported model" in refused(f"run={tmp_path}", "to=me/x")
    assert not hub.log


def test_a_repository_of_another_model_is_left_as_it_is_unless_it_is_to_be_replaced(
    run, export, hub, refused
) -> None:
    assert main([f"run={export}", "to=me/x"]) == 0
    before = dict(hub.repositories["models/me/x"].branches["main"])
    line = refused(f"run={run}", "to=me/x", "checkpoints=false")
    assert "me/x holds files of export, which is another one than first" in line
    assert hub.repositories["models/me/x"].branches["main"] == before
    hub.repositories["models/me/x"].branches["main"] |= {"old.bin": b"1"}
    assert main([f"run={run}", "to=me/x", "checkpoints=false", "overwrite=true"]) == 0
    assert set(hub.repositories["models/me/x"].branches["main"]) == MODEL | {"loss.svg"}


def test_a_repository_that_was_filled_by_hand_is_refused(export, hub, refused) -> None:
    assert main([f"run={export}", "to=me/x"]) == 0
    del hub.repositories["models/me/x"].branches["main"]["origin.json"]
    assert "holds files that were not uploaded by this command; give another name" in refused(
        f"run={export}", "to=me/x"
    )


def test_a_damaged_checkpoint_is_left_out_and_named(run, tmp_path, caplog) -> None:
    model = random_model(small_settings(), len(TOKENS), seed=0).eval()
    folder = made_run(tmp_path, model, TOKENS)
    flip_a_bit(folder / "checkpoints/step-00000010/model.safetensors")
    with caplog.at_level(logging.WARNING):
        contents = contents_of(folder, "me/x")
    assert [branch.name for branch in contents.branches] == ["main", "step-20"]
    assert "step-00000010 is damaged and left out" in caplog.text
    assert contents.identity == contents_of(run, "me/x").identity  # when the run began


def test_an_export_that_is_older_than_the_last_checkpoint_is_named_with_its_cure(
    run, tmp_path, caplog
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(run, folder)
    contents_of(folder, "me/x")
    assert not caplog.text
    os.utime(folder / "export" / "model.safetensors", (0, 0))
    contents_of(folder, "me/x")
    assert "export is older than" in caplog.text
    assert f"python -m pretrain.export run={folder}, then this command again" in caplog.text


def test_without_a_name_the_message_says_what_is_missing(export, hub, refused) -> None:
    assert "to is missing; add to=OWNER/NAME (the repository, as in to=me/bert-small)" in refused(
        f"run={export}"
    )


def test_shards_are_a_data_set_with_their_card_and_vocabulary(run, hub, tmp_path) -> None:
    shards = tmp_path / "corpus" / "len64"
    for split in ("train", "heldout"):
        (shards / split).mkdir(parents=True)
        (shards / split / "00000.arrow").write_bytes(split.encode())
    write_json(shards / "manifest.json", {})
    with pytest.raises(SettingsError, match=r"no data set card; .*data_prep\.audit .*seq_len=64"):
        contents_of(shards, "me/shards")
    (shards / "README.md").write_text('load_dataset("FOLDER OF THIS FILE")')
    write_json(shards / "logs" / "job.json", {"command": f"data_dir={shards.parent}"})
    (shards.parent / "vocab").mkdir()
    (shards.parent / "vocab" / "vocab.txt").write_text("[PAD]\n")
    assert main([f"run={shards}", "to=me/shards"]) == 0
    files = hub.repositories["datasets/me/shards"].branches["main"]
    assert files["README.md"] == b'load_dataset("me/shards")'
    assert files["train/00000.arrow"] == b"train"
    assert not [name for name in files if name.startswith("logs")]
    assert files["vocab/vocab.txt"] == b"[PAD]\n"
    assert (shards / "README.md").read_text() == 'load_dataset("FOLDER OF THIS FILE")'
