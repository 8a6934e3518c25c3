"""What a BERT folder predicts for texts: classes, answers, tags, words for [MASK], vectors."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.core.printable import printable, shortened
from scripts.finetuning.answers import best_answers
from scripts.finetuning.job import Features, Notes
from scripts.finetuning.labels import tag_of
from scripts.finetuning.models import checked, load_model, load_tokenizer, num_entries, rows_beyond
from scripts.finetuning.qa import Question, Windows
from scripts.finetuning.settings import InputError, Start
from scripts.finetuning.tagging import Pieces, predicted_tags
from scripts.prediction.inputs import Input

BATCH = 32  # texts; questions and tags: windows
WINDOW = 384  # most tokens of a window over a long text
STRIDE = 128  # tokens from one window to the next
LONGEST_QUESTION, LONGEST_ANSWER = 64, 30  # tokens
N_BEST = 20  # starts and ends tried per window
MASKED = ("BertForPreTraining", "BertForMaskedLM")

Record = dict[str, Any]


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
