"""Predict with a BERT folder. Its config.json decides what is predicted.

    python -m scripts.predict model=DIR [TEXT ...] [--pair TEXT] [--file FILE] [--top N]
        [--embed cls|mean] [--json]

fine-tuned on labels     the class and all probabilities, or the number
fine-tuned on questions  the span that answers TEXT in the pair
fine-tuned on tags       one tag per word; spaces separate words
pretrained               tokens for each [MASK], and whether the pair follows TEXT
--embed                  one vector per text, with any of these models: hidden states of the last
                         layer, of [CLS] or their mean
--pair                   the second text of every TEXT
--top                    number of tokens for each [MASK]; default: 5
--json                   one object per line

Without TEXT, the lines of --file or of standard input are read. A TAB separates text and pair.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.core.command import as_typed, status_of
from data_prep.core.config import SettingsError
from data_prep.core.printable import printable, shortened
from scripts.finetuning import tables
from scripts.finetuning.answers import best_answers
from scripts.finetuning.job import Features, Notes
from scripts.finetuning.labels import tag_of
from scripts.finetuning.models import checked, load_model, load_tokenizer, num_entries, rows_beyond
from scripts.finetuning.qa import Question, Windows
from scripts.finetuning.settings import InputError, Start
from scripts.finetuning.tagging import Pieces, predicted_tags

BATCH = 32  # texts; questions and tags: windows
WINDOW = 384  # most tokens of a window over a long text
STRIDE = 128  # tokens from one window to the next
LONGEST_QUESTION, LONGEST_ANSWER = 64, 30  # tokens
N_BEST = 20  # starts and ends tried per window
MASKED = ("BertForPreTraining", "BertForMaskedLM")

Record = dict[str, Any]


@dataclass(frozen=True)
class Input:
    place: str
    text: str
    pair: str | None


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    longest: int  # tokens: the model's positions

    @property
    def window(self) -> int:
        return min(WINDOW, self.longest)

    def outputs(self, features: Sequence[Features]) -> Any:
        """The model's outputs for one padded batch."""
        padded = self.tokenizer.pad(list(features), return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            return self.model(**padded)

    def logits(self, features: Sequence[Features], *names: str) -> list[list[np.ndarray]]:
        """These outputs of the model, each for any number of features."""
        found: list[list[np.ndarray]] = [[] for _ in names]
        for at in range(0, len(features), BATCH):
            outputs = self.outputs(features[at : at + BATCH])
            for values, name in zip(found, names, strict=True):
                values += list(outputs[name].float().cpu().numpy())
        return found

    def encoded(self, inputs: Sequence[Input]) -> list[Features]:
        """Features of texts or pairs, cut at the model's last position, with a note on stderr."""
        found = []
        for one in inputs:
            encoded = self.tokenizer(
                one.text, one.pair, truncation=True, max_length=self.longest, verbose=False
            )
            if encoded.encodings[0].overflowing:
                sys.stderr.write(f"{one.place}: cut at {self.longest} tokens\n")
            found.append({name: encoded[name] for name in ("input_ids", "token_type_ids")})
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 with a message if something cannot be used."""
    try:
        given = _arguments(sys.argv[1:] if argv is None else argv)
        for record, line in predict(Path(given.model), _inputs(given), given.embed, given.top):
            print(json.dumps(record, ensure_ascii=False) if given.json else line, flush=True)
    except SettingsError as error:
        sys.stderr.write(as_typed(f"scripts.predict: {error}\n"))
        return 2
    return 0


def predict(
    folder: Path, inputs: Iterable[Input], embed: str | None = None, top: int = 5
) -> Iterator[tuple[Record, str]]:
    """The prediction for each input, as a record and as a line. Raises SettingsError."""
    config = checked(folder)
    class_name = (config.architectures or ["BertModel"])[0]
    if embed is None and class_name not in (*PREDICT, *MASKED):
        raise InputError(
            f"{folder / 'config.json'}: a {shortened(class_name, 80)} predicts nothing; use "
            "--embed, or fine-tune it"
        )
    class_name = "BertModel" if embed else class_name
    tokenizer = load_tokenizer(folder)
    entries = num_entries(tokenizer)
    model, new = load_model(class_name, folder, Start.pretrained, {}, entries)
    if new and not embed:
        raise InputError(f"{folder} lacks the weights of {', '.join(new)}; write it again")
    if rows := rows_beyond(folder, tokenizer):
        sys.stderr.write(f"{folder}: {rows:,} rows beyond the vocabulary left out\n")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = Loaded(model.to(device).eval(), tokenizer, config.max_position_embeddings)
    top = min(top, entries)
    stream = iter(inputs)
    how = partial(_embedded, how=embed) if embed else PREDICT.get(class_name)
    while batch := list(itertools.islice(stream, BATCH)):
        yield from (how or partial(_filled, top=top))(loaded, batch)


def _classified(loaded: Loaded, inputs: list[Input]) -> Iterator[tuple[Record, str]]:
    logits = loaded.outputs(loaded.encoded(inputs)).logits.float().cpu()
    names = loaded.model.config.id2label
    for one, logits_K in zip(inputs, logits, strict=True):
        if len(logits_K) == 1:
            number = logits_K.item()
            yield _of(one) | {"number": number}, f"{number:.3f}\t{_shown(one)}"
            continue
        shares = {names[k]: share for k, share in enumerate(logits_K.softmax(-1).tolist())}
        ranked = sorted(shares.items(), key=lambda item: -item[1])
        line = "  ".join(f"{printable(name)} {share:.1%}" for name, share in ranked)
        yield (
            _of(one) | {"label": ranked[0][0], "probabilities": shares},
            f"{line}\t{_shown(one)}",
        )


def _answered(loaded: Loaded, inputs: list[Input]) -> Iterator[tuple[Record, str]]:
    cut = Windows(loaded.tokenizer, loaded.window, STRIDE, LONGEST_QUESTION)
    cuts, contexts = [], {}
    for number, one in enumerate(inputs):
        if one.pair is None or not one.pair.strip():
            raise InputError(
                f"{one.place}: a question without a text to answer it; add --pair TEXT, "
                "or a TAB and the text after the question"
            )
        contexts[str(number)] = one.pair
        question = Question(one.place, str(number), one.text, one.pair, [])
        cuts += cut.for_answering(question, Notes())
    starts, ends = loaded.logits([each for each, _ in cuts], "start_logits", "end_logits")
    windows = [window for _, window in cuts]
    best = best_answers(starts, ends, windows, contexts, N_BEST, LONGEST_ANSWER)
    config = loaded.model.config
    bound = getattr(config, "no_answer_threshold", 0.0)
    for number, one in enumerate(inputs):
        first, odds = best.spans[str(number)][0], best.null_odds[str(number)]
        record = _of(one) | {
            "answer": first.text, "start": first.start, "end": first.end,
            "probability": first.probability,
        }  # fmt: skip
        where = f"characters {first.start} to {first.end}"
        line = f"{printable(first.text)}  ({first.probability:.1%}, {where})"
        if getattr(config, "has_no_answer", False):
            record |= {"has_answer": odds <= bound, "no_answer_odds": odds}
            line = line if odds <= bound else f"no answer  (otherwise: {line})"
        yield record, f"{line}\t{printable(one.text)}"


def _tagged(loaded: Loaded, inputs: list[Input]) -> Iterator[tuple[Record, str]]:
    cut = Pieces(loaded.tokenizer, loaded.window, STRIDE)
    sentences = [one.text.split() for one in inputs]
    cuts = [each for number, words in enumerate(sentences) for each in cut.of(words, number)]
    (logits,) = loaded.logits([features for features, _ in cuts], "logits")
    place = "id2label of its config.json"
    names = [tag_of(name, {}, place) for _, name in sorted(loaded.model.config.id2label.items())]
    sizes = [len(words) for words in sentences]
    found = predicted_tags(logits, [piece for _, piece in cuts], sizes, names)
    for one, words, tags in zip(inputs, sentences, found, strict=True):
        line = " ".join(
            word if tag == "O" else f"{word}/{tag}" for word, tag in zip(words, tags, strict=True)
        )
        yield _of(one) | {"words": words, "tags": tags}, printable(line)


def _filled(loaded: Loaded, inputs: list[Input], top: int) -> Iterator[tuple[Record, str]]:
    """Tokens for each [MASK], and for a pair whether B follows A."""
    tokenizer = loaded.tokenizer
    features = loaded.encoded(inputs)
    answer = loaded.outputs(features)
    logits = answer["prediction_logits"] if "prediction_logits" in answer else answer["logits"]
    follows = answer.get("seq_relationship_logits")
    for number, (one, feature) in enumerate(zip(inputs, features, strict=True)):
        record, parts = _of(one), []
        is_mask = torch.tensor(feature["input_ids"]) == tokenizer.mask_token_id
        if positions := is_mask.nonzero().flatten().tolist():
            shares, ids = logits[number, positions].float().softmax(-1).topk(top)
            record["fills"] = []
            for top_ids, top_shares in zip(ids.tolist(), shares.tolist(), strict=True):
                fills = dict(zip(tokenizer.convert_ids_to_tokens(top_ids), top_shares, strict=True))
                record["fills"].append(
                    [{"token": token, "probability": share} for token, share in fills.items()]
                )
                parts.append(
                    ", ".join(f"{printable(token)} {share:.1%}" for token, share in fills.items())
                )
        if one.pair is not None and follows is not None:
            share = follows[number].float().softmax(-1)[0].item()  # 0: B follows A
            record["follows"] = share
            parts.append(f"B follows A {share:.1%}")
        if not parts:
            raise InputError(
                f"{one.place}: a pretrained model fills {tokenizer.mask_token} or, with an NSP "
                "head, predicts whether a second text follows (--pair, or after a TAB); --embed "
                "gives vectors"
            )
        yield record, "  |  ".join(parts) + f"\t{_shown(one)}"


def _embedded(loaded: Loaded, inputs: list[Input], how: str) -> Iterator[tuple[Record, str]]:
    """The last layer at [CLS], or its mean over all tokens of a text."""
    features = loaded.encoded(inputs)
    hidden_NLH: Tensor = loaded.outputs(features).last_hidden_state.float().cpu()
    for one, feature, hidden_LH in zip(inputs, features, hidden_NLH, strict=True):
        vector = hidden_LH[0] if how == "cls" else hidden_LH[: len(feature["input_ids"])].mean(0)
        record = _of(one) | {"embedding": vector.tolist()}
        yield record, json.dumps(record, ensure_ascii=False)


PREDICT: dict[str, Callable[[Loaded, list[Input]], Iterator[tuple[Record, str]]]] = {
    "BertForSequenceClassification": _classified,
    "BertForQuestionAnswering": _answered,
    "BertForTokenClassification": _tagged,
}


def _of(one: Input) -> Record:
    return {"text": one.text} if one.pair is None else {"text": one.text, "pair": one.pair}


def _shown(one: Input) -> str:
    return "\t".join(printable(text) for text in (one.text, one.pair) if text is not None)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        as_typed("python -m scripts.predict"),
        add_help=False,
    )
    parser.add_argument("model", help="model=DIR, a Hugging Face folder")
    parser.add_argument("text", nargs="*")
    parser.add_argument("--pair", help="the second text of every TEXT")
    parser.add_argument("--file", type=Path, help="one text per line; - is standard input")
    parser.add_argument("--embed", choices=("cls", "mean"), help="vectors of the last layer")
    parser.add_argument("--top", type=int, default=5, help="number of tokens for each [MASK]")
    parser.add_argument("--json", action="store_true", help="one object per line")
    given = parser.parse_intermixed_args(argv)  # texts may follow options
    given.model = given.model.removeprefix("model=")
    if given.top < 1:
        raise InputError(f"--top {given.top}: must be at least 1")
    return given


def _inputs(given: argparse.Namespace) -> Iterator[Input]:
    """The texts of the arguments, of the file or of standard input; none may be empty."""
    lines: Iterable[tuple[int, str]]
    if given.text:
        kind, lines = "text", enumerate(given.text, start=1)
    elif given.file is not None and str(given.file) != "-":
        if not given.file.is_file():
            raise InputError(f"there is no file {given.file}")
        kind, lines = f"{given.file}, line", tables.lines_of(given.file)
    else:
        kind, lines = "line", enumerate(_lines_of(sys.stdin.buffer), start=1)
    for number, line in lines:
        place = f"{kind} {number}"
        text, tab, pair = tables.text_in(line, place).partition("\t")
        if not text.strip():
            raise InputError(
                f"{place} has no text; every line is one text, or two separated by a TAB"
            )
        yield Input(place, text, pair if tab else given.pair)


def _lines_of(stream: BinaryIO) -> Iterator[str]:
    """Lines as they come, without a byte order mark. Raises InputError if one is not UTF-8."""
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {number} is not UTF-8 at byte {error.start}; convert the text before: "
                "iconv -f ENCODING -t utf-8, where ENCODING is utf-16, windows-1252 or latin1"
            ) from error
        yield line.removesuffix("\n").removesuffix("\r")


if __name__ == "__main__":
    sys.exit(status_of(main))
