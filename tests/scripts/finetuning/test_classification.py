"""Labels and numbers for texts: reading GLUE and tables, a training that learns, refusals."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import load_file, save_file
from shared_data import unpacked

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from scripts.finetuning import classification, models, trial
from scripts.finetuning.job import Job, Notes, sample_of
from scripts.finetuning.run import finetune, main
from scripts.finetuning.settings import InputError, Kind, Start, load, tasks

GOOD, BAD = ("good", "great", "fine"), ("bad", "awful", "poor")
QUICK = ["epochs=10", "learning_rate=1e-2", "batch_size=16", "max_length=16", "dropout=0"]


def reviews(folder: Path) -> list[str]:
    """train.tsv and dev.tsv with columns words and mood, and the settings that name them."""
    folder.mkdir(exist_ok=True)
    lines = [
        f"the {thing} was {word}\t{mood}"
        for thing in ("film", "city", "country", "a")
        for mood, words in (("positive", GOOD), ("negative", BAD))
        for word in words
    ]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join(["words\tmood", *lines]) + "\n")
    return [
        "+task=custom", f"task.folder={folder}", "task.train=train.tsv", "task.dev=dev.tsv",
        "task.text=words", "task.label=mood",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Those of the training of two seeds."""
    folder = tmp_path_factory.mktemp("reviews")
    return [*reviews(folder), f"model={bert}", f"out={folder / 'out'}", "seeds=2", *QUICK]


@pytest.fixture(scope="module")
def trained(arguments: list[str]) -> Path:
    """The results of two seeds."""
    assert main(Kind.classification, arguments) == 0
    return load(arguments).out_folder


@pytest.fixture(scope="module")
def results(trained: Path) -> dict[str, Any]:
    return dict(read_json(trained / "results.json"))


@pytest.fixture
def prepared(bert: Path, tmp_path: Path) -> Callable[..., Job]:
    """The reviews, read, with other settings and after `change` made a file of them."""

    def prepare(*overrides: str, **files: str) -> Job:
        arguments = [*reviews(tmp_path), f"model={bert}", "max_length=32", *overrides]
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text, encoding="utf-8")
        return classification.prepare(load(arguments), models.load_tokenizer(bert))

    return prepare


def test_it_learns_what_can_be_learned(results: dict[str, Any]) -> None:
    assert results["figures"]["dev_accuracy"]["mean"] > 95


def test_results_hold_every_seed_their_mean_and_that_dev_chose(results: dict[str, Any]) -> None:
    each = [seed["dev_accuracy"] for seed in results["seeds"]]
    assert [seed["seed"] for seed in results["seeds"]] == [1, 2]
    assert results["figures"]["dev_accuracy"]["mean"] == pytest.approx(sum(each) / 2)
    assert "epoch" in results["chosen_on_dev"]
    assert results["chosen"] == {"batch_size": 16, "learning_rate": 0.01, "epochs": 10.0}


def test_the_model_has_its_label_names_in_a_pipeline(trained: Path) -> None:
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(trained / "model"))
    labels = [found["label"] for found in classify(["the film was great", "the film was awful"])]
    assert labels == ["positive", "negative"]


def test_what_is_done_is_not_done_again(
    trained: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "results.json").read_text()
    assert main(Kind.classification, arguments) == 0
    assert capsys.readouterr().out.count("done before") == 2
    assert (trained / "results.json").read_text() == before


@pytest.mark.usefixtures("trained")
def test_results_of_other_settings_are_not_mixed_in(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(Kind.classification, [*arguments, "dropout=0.2"]) == 2
    assert "resume=false" in capsys.readouterr().err


@pytest.mark.parametrize(("start", "status"), [("random", 0), ("pretrained", 2)])
def test_only_a_random_start_holds_for_a_model_that_was_trained_further(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], start: str, status: int
) -> None:
    model = tmp_path / "model"
    shutil.copytree(bert, model)
    typed = [*reviews(tmp_path / "reviews"), f"model={model}", f"out={tmp_path / 'out'}", *QUICK]
    typed += [f"start={start}", "epochs=1"]
    assert main(Kind.classification, typed) == 0
    weights = load_file(model / "model.safetensors")
    save_file({name: value * 0.9 for name, value in weights.items()}, model / "model.safetensors")
    capsys.readouterr()
    assert main(Kind.classification, typed) == status
    assert ("done before" in capsys.readouterr().out) == (start == "random")


def test_a_folder_in_which_another_process_trains_is_refused(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*reviews(tmp_path), f"model={bert}", f"out={tmp_path / 'out'}", *QUICK]
    folder = tmp_path / "out/trials/batch-16-rate-0.01-epochs-10-seed-1"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(Kind.classification, arguments) == 2
    assert f"another process is training in {folder}" in capsys.readouterr().err
    assert main(Kind.classification, arguments) == 0


def test_a_killed_training_continues_to_the_same_metrics(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*reviews(tmp_path / "data"), f"model={bert}", *QUICK, "epochs=2", "dropout=0.1"]
    straight = finetune(load([*arguments, f"out={tmp_path / 'straight'}"]))
    killed = load([*arguments, f"out={tmp_path / 'killed'}"])
    calls = []

    def evaluate(self: trial.ScoringTrainer, *_: object, **__: object) -> dict[str, float]:
        calls.append(self.state.global_step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self)

    whole = trial.ScoringTrainer.evaluate
    monkeypatch.setattr(trial.ScoringTrainer, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        finetune(killed)
    resumed = finetune(killed)
    assert calls == [2, 4, 4]
    assert resumed["figures"] == straight["figures"]
    folders = [next((tmp_path / name).glob("trials/*/model")) for name in ("straight", "killed")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]


def test_the_grid_tries_all_with_one_seed_and_prints_it(bert: Path, tmp_path: Path) -> None:
    grid = ["grid.learning_rate=[1e-2,1e-9]", "epochs=6", "seeds=2"]
    arguments = [*reviews(tmp_path / "data"), f"model={bert}", *QUICK, *grid]
    results = finetune(load([*arguments, f"out={tmp_path / 'out'}"]))
    tried = [(one["learning_rate"], one["seed"]) for one in results["tried"]]
    assert tried == [(1e-2, 1), (1e-9, 1)]
    assert results["chosen"]["learning_rate"] == 1e-2
    kept = {path.parent.name for path in (tmp_path / "out/trials").glob("*/model")}
    assert {name.split("-rate-")[1].split("-")[0] for name in kept} == {"0.01"}
    assert [one["seed"] for one in results["seeds"]] == [1, 2]
    assert "rate" in results["chosen_on_dev"]


def test_the_paper_s_grid_has_18_points() -> None:
    grid = load(["+task=sst2", "model=x", "grid=paper"]).grid
    assert len(grid.batch_size) * len(grid.learning_rate) * len(grid.epochs) == 18


def test_cfg_prints_the_settings_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Kind.classification, ["+task=sst2", "model=x", "epochs=7", "--cfg"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.epochs, shown.task.hub.subset) == (7, "sst2")


@pytest.mark.parametrize("task", tasks())
def test_every_task_has_settings_that_hold(task: str) -> None:
    files = [f"task.{name}=x" for name in ("train", "dev")]
    if task == "custom":
        files += ["task.text=x", "task.label=x"]
    assert load([f"+task={task}", "model=x", *files]).task.name == task


@pytest.mark.parametrize(
    ("task", "folder", "rows", "first"),
    [
        ("sst2", "SST-2", (67_349, 872), "1"), ("cola", "CoLA", (8_551, 1_043), "1"),
        ("mrpc", "MRPC", (3_668, 408), "1"), ("rte", "RTE", (2_490, 277), "not_entailment"),
        ("stsb", "STS-B", (5_749, 1_500), "5"),
    ],
)  # fmt: skip
def test_the_files_of_glue_are_read_whole(
    bert: Path, tmp_path: Path, task: str, folder: str, rows: tuple[int, int], first: str
) -> None:
    files = unpacked(f"glue/{folder}", tmp_path)
    settings = load([f"+task={task}", f"task.folder={files}", f"model={bert}", "max_length=64"])
    train, dev = (
        list(classification._examples(settings.task, role, Notes())) for role in ("train", "dev")
    )
    assert (len(train), len(dev)) == rows
    assert train[0].label == first
    settings.max_train_examples = settings.max_dev_examples = 50
    job = classification.prepare(settings, models.load_tokenizer(bert))
    labels = {example["labels"] for example in job.train}
    assert (0 <= min(labels) < max(labels) <= 5) if task == "stsb" else labels == {0, 1}


@pytest.mark.parametrize(
    ("task", "lines", "example"),
    [
        ("sst2", ["sentence\tlabel", 'a "good" film \t1'], ('a "good" film ', None, "1")),
        ("cola", ["gj04\t1\t\tThe car honked."], ("The car honked.", None, "1")),
        (
            "mrpc", ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t7\t8\tone\ttwo"],
            ("one", "two", "0"),
        ),
        ("rte", ["index\tsentence1\tsentence2\tlabel", "0\tone\ttwo\tentailment"],
         ("one", "two", "entailment")),
        ("stsb", ["index\tsentence1\tsentence2\tscore", "0\tone\ttwo\t2.5"],
         ("one", "two", "2.5")),
    ],
)  # fmt: skip
def test_a_task_of_glue_reads_its_columns(
    tmp_path: Path, task: str, lines: list[str], example: tuple[str, str | None, str]
) -> None:
    (tmp_path / "train.tsv").write_text("\n".join([*lines, ""]))
    settings = load([f"+task={task}", f"task.folder={tmp_path}", "model=x"])
    (found,) = classification._examples(settings.task, "train", Notes())
    assert (found.text, found.pair, found.label) == example


def test_a_sample_is_drawn_from_the_whole_file_and_is_the_same_at_each_call() -> None:
    sample = sample_of(iter(range(10_000)), 100)
    assert len(set(sample)) == 100
    assert sample == sorted(sample) == sample_of(range(10_000), 100)
    assert 4_000 < sum(sample) / 100 < 6_000
    assert sample_of("abc", None) == sample_of("abc", 3) == sample_of("abc", 4) == ["a", "b", "c"]


def test_labels_are_those_of_the_whole_training_set_also_where_it_is_sampled(
    prepared: Callable[..., Job],
) -> None:
    rows = "words,mood\nword,a\nword,b\nword,c\nword,d\n"
    files = ["task.train=a.csv", "task.dev=a.csv"]
    job = prepared(*files, "max_train_examples=2", "max_dev_examples=3", a_csv=rows)
    assert list(job.config["label2id"]) == ["a", "b", "c", "d"]
    assert (len(job.train), len(job.dev[0].features)) == (2, 3)


def test_a_data_set_of_the_hub_s_library_is_read_with_its_label_names(
    bert: Path, tmp_path: Path
) -> None:
    from datasets import ClassLabel, Dataset

    rows = Dataset.from_dict({"sentence": ["good", "bad"], "label": [1, 0]})
    rows = rows.cast_column("label", ClassLabel(names=["negative", "positive"]))
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / f"{split}.parquet")
    hub = [f"task.hub.dataset={tmp_path}", "task.hub.subset=null"]
    settings = load(["+task=sst2", f"model={bert}", *hub, "max_length=32"])
    job = classification.prepare(settings, models.load_tokenizer(bert))
    assert [example["labels"] for example in job.train] == [1, 0]


def test_jsonl_and_quoted_csv_are_read(prepared: Callable[..., Job]) -> None:
    jsonl = (
        '{"words": "good\u2028film", "mood": "positive"}\n{"words": "bad", "mood": "negative"}\n'
    )
    quoted = 'words,mood\n"good, ""great""\nfilm",positive\nbad\u2028,negative\n'
    files = ["task.train=a.jsonl", "task.dev=b.csv", "task.quotes=true"]
    job = prepared(*files, a_jsonl=jsonl, b_csv=quoted)
    assert len(job.train) == len(job.dev[0].features) == 2
    assert len(job.dev[0].features[0]["input_ids"]) > 5


def test_numbers_are_scored_by_their_correlation(prepared: Callable[..., Job]) -> None:
    numbers = "words\tmood\ngood\t5\nfine\t3\nbad\t0.5\n"
    job = prepared(
        "task.is_regression=true", "task.metrics=[spearman,pearson]",
        train_tsv=numbers, dev_tsv=numbers,
    )  # fmt: skip
    assert job.config["num_labels"] == 1
    assert job.dev[0].score(np.array([[9.0], [2.0], [1.0]]))["spearman"] == 100
    assert job.dev[0].score(np.ones((3, 1)))["pearson"] == 0


HEAD = "words\tmood\n"


@pytest.mark.parametrize(
    ("overrides", "files", "words"),
    [
        (["task.text=sentence"], {}, ["train.tsv, line 2", "'sentence'", "'words'"]),
        ([], {"dev_tsv": HEAD + "good\tpositive\nfine\thappy\n"}, ["dev.tsv, line 3", "'happy'"]),
        (
            [], {"train_tsv": HEAD + "good\tpositive\nbad\n"},
            ["train.tsv, line 3", "skip_broken=true"],
        ),
        ([], {"train_tsv": HEAD + " \tpositive\n \tnegative\n"}, ["line 3", "task.text=COLUMN"]),
        ([], {"train_tsv": HEAD}, ["no rows"]),
        ([], {"train_tsv": HEAD + "good\tpositive\n"}, ["1 label"]),
        (["task.is_regression=true", "task.metrics=[pearson]"], {}, ["line 2", "'positive'"]),
        (["task.train=none.tsv"], {}, ["none.tsv", "task.folder"]),
        (["task.train=a.jsonl"], {"a_jsonl": "{]\n"}, ["a.jsonl, line 1"]),
        (["max_length=100"], {}, ["64 positions"]),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_its_place_before_training(
    bert: Path, tmp_path: Path, overrides: list[str], files: dict[str, str], words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = [*reviews(tmp_path), f"model={bert}", f"out={tmp_path / 'out'}", "max_length=32"]
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    assert main(Kind.classification, [*arguments, *overrides]) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == [], message
    assert not (tmp_path / "out").exists()


def test_rows_without_text_and_cut_ones_are_counted(prepared: Callable[..., Job]) -> None:
    train = HEAD + "good\tpositive\n \tnegative\n" + "bad " * 40 + "\tnegative\n"
    job = prepared(train_tsv=train)
    assert len(job.train) == 2
    assert [line.split(" (")[0] for line in job.notes.lines()] == [
        "1 row(s) without text left out", "1 text(s) cut at 32 tokens"
    ]  # fmt: skip
    assert "line 3" in job.notes.lines()[0]


def test_a_folder_with_pickled_weights_only_is_refused_without_reading_them(
    bert: Path, tmp_path: Path
) -> None:
    shutil.copytree(bert, tmp_path / "x", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "x/pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(SettingsError, match=r"pytorch_model\.bin alone.*can run code"):
        models.load_tokenizer(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "no Hugging Face folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not that of a BERT"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'),
            "'gpt2'",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "vocab.txt").unlink(), "no tokenizer"),
        (
            lambda folder: (folder / "vocab.txt").write_text(
                (folder / "vocab.txt").read_text() + "\n".join(f"new{n}" for n in range(9)) + "\n"
            ),
            "the tokenizer has",
        ),
    ],
)
def test_what_is_no_bert_folder_is_refused(
    bert: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "x"))
    change(folder)
    with pytest.raises(SettingsError, match=message):
        models.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("normalizer", "cure"),
    [
        ({"strip_accents": False}, {"strip_accents": False}),
        ({"lowercase": False}, {"do_lower_case": False, "strip_accents": None}),
        ({"handle_chinese_chars": False}, {"tokenize_chinese_chars": False}),
        ({"clean_text": False}, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ],
)
def test_a_normalizer_that_transformers_would_not_use_is_refused_with_a_cure_that_works(
    bert: Path, tmp_path: Path, normalizer: dict[str, Any], cure: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "x"))
    models.load_tokenizer(folder).save_pretrained(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["normalizer"] |= normalizer
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(InputError, match=r"write (\{.*\}) into that file") as refusal:
        models.load_tokenizer(folder)
    typed = json.loads(str(refusal.value).split("; write ")[1].removesuffix(" into that file"))
    assert set(typed) == set(cure)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | typed))
    its = json.loads(models.load_tokenizer(folder).backend_tokenizer.to_str())["normalizer"]
    for rule, value in normalizer.items():
        assert its[rule] == value


def test_weights_that_are_not_a_whole_bert_are_refused(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(bert, tmp_path / "x"))
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layer\.1\.output\.dense\.weight"):
        models.load_model("BertForSequenceClassification", folder, Start.pretrained, {}, 134)


def test_a_random_start_takes_no_weights(bert: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    pretrained, random = (
        models.load_model("BertModel", bert, start, {}, 134)[0].state_dict()[name]
        for start in Start
    )
    assert not pretrained.equal(random)


def test_a_loss_that_is_no_number_ends_the_training(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*reviews(tmp_path), f"model={bert}", f"out={tmp_path / 'out'}", *QUICK]
    assert main(Kind.classification, [*arguments, "learning_rate=1e15"]) == 2
    assert "the loss is nan; try a smaller learning_rate=" in capsys.readouterr().err
