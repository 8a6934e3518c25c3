"""Prediction by what a folder is: classes, answers, tags, [MASK], next sentences, vectors."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scripts.finetuning.models import load_tokenizer
from scripts.predict import main


def with_head(bert: Path, target: Path, class_name: str, **config: Any) -> Path:
    """The folder's encoder with a head of random weights."""
    shutil.copytree(bert, target)
    torch.manual_seed(1)
    settings = transformers.BertConfig.from_pretrained(bert)
    settings.update(config)
    getattr(transformers, class_name).from_pretrained(bert, config=settings).save_pretrained(target)
    return target


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    assert main([*argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_classes_come_with_their_names_and_all_probabilities(bert, tmp_path, capsys) -> None:
    names = {0: "negative", 1: "positive"}
    folder = with_head(bert, tmp_path / "x", "BertForSequenceClassification", id2label=names)
    texts = ["a good film", "the film was bad and awful"]
    together = said(capsys, f"model={folder}", *texts)
    alone = [said(capsys, f"model={folder}", text)[0] for text in texts]
    for record, single in zip(together, alone, strict=True):
        assert record["probabilities"].keys() == {"negative", "positive"}
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert record["label"] == max(record["probabilities"], key=record["probabilities"].get)
        # the other texts of a batch do not change the prediction
        assert record["probabilities"] == pytest.approx(single["probabilities"], abs=1e-5)


def test_an_answer_is_a_span_of_its_text(bert, tmp_path, capsys) -> None:
    folder = with_head(bert, tmp_path / "x", "BertForQuestionAnswering")
    text = "Anna lives in Paris. " * 20  # longer than the model's 64 positions
    (record,) = said(capsys, f"model={folder}", "who lives in paris", "--pair", text)
    assert record["answer"]
    assert text[record["start"] : record["end"]] == record["answer"]


@pytest.mark.parametrize(("threshold", "has_answer"), [(1e9, True), (-1e9, False)])
def test_no_answer_is_decided_by_the_threshold_the_model_was_saved_with(
    bert, tmp_path, capsys, threshold, has_answer
) -> None:
    folder = with_head(
        bert, tmp_path / "x", "BertForQuestionAnswering", has_no_answer=True,
        no_answer_threshold=threshold,
    )  # fmt: skip
    (record,) = said(capsys, f"model={folder}", "who", "--pair", "anna lives in rome")
    assert record["has_answer"] is has_answer


def test_every_word_has_a_tag_in_its_order(bert, tmp_path, capsys) -> None:
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    folder = with_head(bert, tmp_path / "x", "BertForTokenClassification", id2label=names)
    words = ["anna", "x" * 80, *["rome"] * 90]
    (record,) = said(capsys, f"model={folder}", " ".join(words))
    assert record["words"] == words
    assert len(record["tags"]) == len(words)
    assert set(record["tags"]) <= set(names.values())


def test_a_pretrained_model_fills_every_mask_and_predicts_whether_b_follows_a(bert, capsys) -> None:
    (record,) = said(capsys, f"model={bert}", "the [MASK] is [MASK]", "--pair", "bob lives")
    assert [len(fills) for fills in record["fills"]] == [5, 5]
    model = transformers.BertForPreTraining.from_pretrained(bert).eval()
    tokenizer = load_tokenizer(bert)
    encoded = tokenizer("the [MASK] is [MASK]", "bob lives", return_tensors="pt")
    with torch.inference_mode():
        answer = model(**encoded)
    expected = answer.seq_relationship_logits.softmax(-1)[0, 0].item()
    assert record["follows"] == pytest.approx(expected, abs=1e-6)
    best = answer.prediction_logits[0, 2].argmax().item()
    assert record["fills"][0][0]["token"] == tokenizer.convert_ids_to_tokens(best)


def test_texts_may_come_before_or_after_options(bert, capsys) -> None:
    before = said(capsys, f"model={bert}", "a good film", "--embed", "mean")
    assert said(capsys, f"model={bert}", "--embed", "mean", "a good film") == before
    assert said(capsys, "--embed", "mean", f"model={bert}", "a good film") == before


@pytest.mark.parametrize("how", ["cls", "mean"])
def test_vectors_do_not_depend_on_the_batch(bert, how, capsys) -> None:
    texts = ["a good film", "the film was bad and awful and poor"]
    together = said(capsys, f"model={bert}", *texts, "--embed", how)
    (alone,) = said(capsys, f"model={bert}", texts[0], "--embed", how)
    assert len(alone["embedding"]) == 32
    assert together[0]["embedding"] == pytest.approx(alone["embedding"], abs=1e-5)


def test_lines_of_a_file_and_of_standard_input_are_read(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts").write_text("the film\tanna lives\n" * 40)
    from_file = said(capsys, f"model={bert}", "--file", str(tmp_path / "texts"))
    typed = io.BytesIO(b"\xef\xbb\xbf" + b"the film\tanna lives\r\n" * 40)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed))
    assert len(from_file) == 40
    assert said(capsys, f"model={bert}") == from_file
    assert from_file[0]["pair"] == "anna lives"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no mask"], "fills [MASK]"),
        (["good", " "], "text 2 has no text"),
        (["--file", "/nowhere"], "there is no file /nowhere"),
    ],
)
def test_what_cannot_be_answered_is_refused(bert, argv, message, capsys) -> None:
    assert main([f"model={bert}", *argv]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize("encoding", ["latin1", "utf-16"])
def test_a_text_that_is_not_utf_8_is_refused_with_its_line_and_a_cure(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, from_file: bool, encoding: str,
) -> None:  # fmt: skip
    raw = "the [MASK]\ncafé [MASK]\n".encode(encoding)
    (tmp_path / "texts").write_bytes(raw)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    given = ["--file", str(tmp_path / "texts")] if from_file else []
    assert main([f"model={bert}", *given]) == 2
    said = capsys.readouterr().err
    assert "line 2" in said or encoding == "utf-16"
    assert "iconv -f" in said
    assert encoding in said


@pytest.mark.parametrize("text", ["\udce9", "a \ud83d"])
def test_an_argument_that_is_no_text_is_refused(
    bert: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"model={bert}", text]) == 2
    assert "text 1: the text has half of a character" in capsys.readouterr().err


def test_more_candidates_than_entries_are_all(
    bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = said(capsys, f"model={bert}", "the [MASK]", "--top", "100000")
    assert len(record["fills"][0]) == 134
    assert main([f"model={bert}", "the [MASK]", "--top", "0"]) == 2


def test_names_and_texts_from_outside_are_printed_with_escapes(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {0: "\x1b[2J", 1: "ok"}
    folder = with_head(bert, tmp_path / "x", "BertForSequenceClassification", id2label=names)
    assert main([f"model={folder}", "a \x1b[1m film"]) == 0
    assert capsys.readouterr().out.replace("\t", "").rstrip("\n").isprintable()
