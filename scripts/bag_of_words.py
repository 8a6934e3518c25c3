"""Measure the baseline of a task without an encoder: what its words alone predict.

    python -m scripts.bag_of_words +task=sst2 model=runs/x/export [SETTING=VALUE ...]

Arguments, sets and metrics are those of scripts.finetune_classification. Only the model's tokenizer
is read. The predictor is logistic regression, or ridge regression for a number, on the set of
WordPieces of each text. Of five strengths of regularization the best on the development set is
kept, as fine-tuning keeps the best epoch. out=FOLDER also writes results.json there.

{finetune.yaml}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from scripts.finetuning import classification, results
from scripts.finetuning.job import Features
from scripts.finetuning.models import load_tokenizer
from scripts.finetuning.settings import Kind, Settings, load

STRENGTHS = (100.0, 30.0, 10.0, 3.0, 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 with a message if something cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        settings = load(arguments, Kind.classification)
        strength, metrics = bag_of_words(settings)
    except SettingsError as error:
        sys.stderr.write(f"scripts.bag_of_words: {error}\n")
        return 2
    shown = "  ".join(f"{name} {value:.1f}" for name, value in metrics.items())
    print(f"{settings.task.name}  {shown}  (regularization {strength:g}, chosen on dev)")
    if settings.out is not None:
        write_json(settings.out_folder / results.FILE, _summary(settings, strength, metrics))
    return 0


def bag_of_words(settings: Settings) -> tuple[float, dict[str, float]]:
    """The best strength on the development set, and its metrics in percent on every set.

    Raises InputError as scripts.finetuning.classification.prepare does.
    """
    tokenizer = load_tokenizer(settings.model_folder)
    job = classification.prepare(settings, tokenizer)
    train = _which_words(job.train, len(tokenizer))
    labels = np.array([example["labels"] for example in job.train])
    tried: list[tuple[float, dict[str, float]]] = []
    for strength in STRENGTHS:
        if settings.task.is_regression:
            model: Any = Ridge(alpha=strength).fit(train, labels)
        else:
            model = LogisticRegression(C=1 / strength, max_iter=2000).fit(train, labels)
        metrics: dict[str, float] = {}
        for dev in job.dev:
            words = _which_words(dev.features, len(tokenizer))
            outputs = _logits(model, words, len(job.config.get("id2label", ())))
            metrics |= {f"{dev.name}_{name}": x for name, x in dev.score(outputs).items()}
        tried.append((strength, metrics))
    first = f"dev_{settings.task.metrics[0]}"
    return max(tried, key=lambda one: one[1][first])


def _summary(settings: Settings, strength: float, metrics: dict[str, float]) -> dict[str, Any]:
    """The content of results.json, with the names of `results.summary`."""
    return {
        "task": settings.task.name,
        "model": str(settings.model),
        "start": "words",
        "metrics": list(metrics),
        "figures": results.spread([metrics]),
        "seeds": [metrics],
        "chosen": {"regularization": strength},
        "chosen_on_dev": "the regularization, so its metrics are slightly optimistic",
    }


def _which_words(examples: list[Features], vocab_size: int) -> sparse.csr_matrix:
    """(examples, 2 * vocab_size): 1 if the first or the second text has the WordPiece."""
    rows, columns = [], []
    for row, example in enumerate(examples):
        ids = np.array(example["input_ids"]) + vocab_size * np.array(example["token_type_ids"])
        found = np.unique(ids)
        rows.append(np.full(found.size, row))
        columns.append(found)
    cells = np.concatenate(rows), np.concatenate(columns)
    return sparse.csr_matrix((np.ones(cells[0].size), cells), (len(examples), 2 * vocab_size))


def _logits(model: Any, words: sparse.csr_matrix, num_labels: int) -> np.ndarray:
    """(examples, labels), or (examples, 1) for a number, like a fine-tuned model's logits."""
    if num_labels == 0:
        return np.asarray(model.predict(words))[:, None]
    logits = np.full((words.shape[0], num_labels), -np.inf)  # for labels missing in the sample
    logits[:, model.classes_] = model.predict_log_proba(words)
    return logits


if __name__ == "__main__":
    sys.exit(status_of(main))
