"""Where the loss should be: the band of published runs, and the plateau that a sound run leaves.

A run outside warns once, with the known causes and what its own metrics show for each.
"""

from __future__ import annotations

import bisect
import functools
import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.core.files import read_json
from data_prep.core.objectives import Pairing
from pretrain.config.settings import Settings
from pretrain.run_folder.jsonl import readable_lines

if TYPE_CHECKING:
    from pretrain.metrics.monitor import Monitor

logger = logging.getLogger(__name__)

RECENT = 25  # records whose median is compared with the band
# Chosen, not measured: how much faster or slower (a factor of the steps), and how much better or
# worse (nats) other seeds and corpora may be. Single windows of the base run swing by 0.3.
TIME_SLACK, LOSS_SLACK = 1.3, 0.3
# Published runs left the loss of word frequencies within 2,000 updates (both below); twice as many
# is too long
PLATEAU_STEPS = 4_000
PLATEAU_NATS = 0.1  # a loss less than this below guessing by frequency means nothing is learnt yet


@dataclass(frozen=True)
class Curve:
    """A published run's loss, and the settings that a comparable run shares with it."""

    source: str
    metric: str  # that the points are of
    hidden_size: int
    num_layers: int
    global_batch: int
    learning_rate: float
    points: tuple[tuple[int, float, float], ...]  # step, lowest and highest loss, in nats

    def fits(self, settings: Settings) -> bool:
        """Whether a phase with these settings is comparable. Sequences may have any length."""
        model, optim = settings.model, settings.optim
        return (
            settings.data.pairs is Pairing.nsp
            and (model.hidden_size, model.num_hidden_layers) == (self.hidden_size, self.num_layers)
            and optim.global_batch == self.global_batch
            and optim.tokens_per_step is None
            and math.isclose(optim.learning_rate, self.learning_rate)
        )

    def band(self, step: float) -> tuple[float, float] | None:
        """Lowest and highest loss at `step`, interpolated in the logarithm of the step."""
        steps = [point[0] for point in self.points]
        if not steps[0] <= step <= steps[-1]:
            return None
        right = max(1, bisect.bisect_left(steps, step))
        (a, *before), (b, *after) = self.points[right - 1], self.points[right]
        share = math.log(step / a) / math.log(b / a)
        low, high = (x + share * (y - x) for x, y in zip(before, after, strict=True))
        return low, high

    def limits(self, step: int) -> tuple[float, float]:
        """Bounds of a sound run, slack included; infinite outside the curve."""
        later, earlier = self.band(step * TIME_SLACK), self.band(step / TIME_SLACK)
        return (
            -math.inf if later is None else later[0] - LOSS_SLACK,
            math.inf if earlier is None else earlier[1] + LOSS_SLACK,
        )


CURVES = (
    Curve(
        "BERT-base, books and Wikipedia at up to 512 tokens, lowest and highest means of 250 "
        "steps: dmlc/web-data, gluonnlp/logs/bert/bert_base_pretrain.log",
        "train/mlm_loss", 768, 12, 256, 1e-4,
        (
            (1_000, 7.02, 7.11), (2_000, 6.61, 6.82), (4_000, 6.25, 6.37), (6_000, 5.84, 6.36),
            (8_000, 5.62, 5.97), (9_000, 5.30, 5.78), (10_000, 4.69, 4.97), (12_000, 3.61, 3.96),
            (15_000, 2.79, 3.43), (20_000, 2.68, 3.02), (30_000, 2.40, 2.76), (50_000, 2.02, 2.55),
            (100_000, 1.52, 2.24), (200_000, 1.43, 2.11), (300_000, 1.34, 1.93),
            (500_000, 1.33, 1.91), (700_000, 1.34, 1.77), (900_000, 1.04, 1.90),
            (1_000_000, 1.12, 1.70),
        ),
    ),
    Curve(
        "BERT-large, first phase of the LAMB recipe, read off a chart to 0.1: "
        "NVIDIA/DeepLearningExamples, PyTorch/LanguageModeling/BERT, images/loss_curves.png",
        "train/loss", 1024, 24, 65_536, 6e-3,
        (
            (20, 9.6, 10.7), (50, 9.2, 9.7), (100, 8.7, 9.2), (150, 7.9, 8.5), (200, 7.6, 7.95),
            (300, 7.2, 7.5), (400, 7.0, 7.3), (500, 6.7, 7.0), (600, 6.4, 6.75), (650, 6.3, 6.6),
            (700, 5.65, 6.4), (750, 5.0, 5.5), (800, 4.65, 5.05), (900, 3.95, 4.4),
            (1_000, 3.4, 3.8), (1_250, 2.7, 3.05), (1_500, 2.3, 2.65), (2_000, 1.9, 2.25),
            (2_500, 1.7, 2.0), (3_000, 1.7, 1.9), (4_000, 1.55, 1.8), (5_000, 1.43, 1.7),
            (7_000, 1.3, 1.5),
        ),
    ),
)  # fmt: skip


def curve_for(settings: Settings) -> Curve | None:
    """The published curve for a phase's settings, or None.

    Curves begin at random weights, so a run with run.init_from has none.
    """
    if settings.run.init_from is not None:
        return None
    return next((curve for curve in CURVES if curve.fits(settings)), None)


class Expectation:
    """Compares a run's records with what is known. Only rank 0 has one."""

    def __init__(
        self, settings: Settings, run_folder: Path, frequency_loss: Callable[[], float]
    ) -> None:
        """`frequency_loss`: MLM loss of guessing by token frequency, on the run's own data."""
        self._settings = settings
        self._frequency_loss = functools.cache(frequency_loss)  # short runs never need it
        self._curve = curve_for(settings)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._recent_mlm: deque[float] = deque(maxlen=RECENT)
        events = readable_lines(run_folder / "events.jsonl")
        # of earlier starts, too: a run warns once
        self._warned = {e["what"] for e in events if e["event"] == "expectation"}

    def check(self, step: int, metrics: Mapping[str, float], monitor: Monitor) -> dict[str, float]:
        """Take a record of the first phase; the band's metrics, to be recorded with it.

        Warns, with the event "expectation", if the loss is not where it should be.
        """
        self._recent_mlm.append(metrics["train/mlm_loss"])
        if self._curve is not None:
            self._recent.append(metrics[self._curve.metric])
        kind, text = self._problem(step)
        if kind and kind not in self._warned:
            self._warned.add(kind)
            findings = self.findings(metrics)
            logger.warning("%s\n%s", text, "\n".join(f"  {line}" for line in findings))
            monitor.event("expectation", step=step, what=kind, text=text, findings=findings)
        band = None if self._curve is None else self._curve.band(step)
        return {} if band is None else {"band/low": band[0], "band/high": band[1]}

    def _problem(self, step: int) -> tuple[str, str]:
        """What is wrong, as the event's `what` and `text`; empty if nothing is."""
        if len(self._recent_mlm) < RECENT:
            return "", ""
        mlm_loss = statistics.median(self._recent_mlm)
        if step >= PLATEAU_STEPS and mlm_loss > self._frequency_loss() - PLATEAU_NATS:
            return "plateau", (
                f"after {step:,} steps the MLM loss, {mlm_loss:.2f}, is still that of guessing by "
                f"token frequency ({self._frequency_loss():.2f}); published runs left it within "
                "2,000 steps. Known causes, and what this run's metrics show:"
            )
        if self._curve is None:
            return "", ""
        loss, (low, high) = statistics.median(self._recent), self._curve.limits(step)
        if low <= loss <= high:
            return "", ""
        side = "above" if loss > high else "below"
        return side, (
            f"after {step:,} steps {self._curve.metric}, {loss:.2f}, is {side} the expected range, "
            f"{low:.2f} to {high:.2f} ({self._curve.source}; slack included). Known causes, and "
            "what this run's metrics show:"
        )

    def findings(self, metrics: Mapping[str, float]) -> list[str]:
        """The known causes, each with what the run's own data and gradients show."""
        settings = self._settings
        optim, curve = settings.optim, self._curve
        theirs = "" if curve is None else f"; the published run's peak is {curve.learning_rate:g}"
        clipped = "" if optim.max_grad_norm is None else f", clipped at {optim.max_grad_norm:g}"
        masked = metrics["data/masked_share"]
        lines = [
            f"repeated lines: {_repeated(settings)}",
            f"learning rate: {metrics['optim/learning_rate']:.3g} now, peak "
            f"{optim.learning_rate:g}{theirs}",
            f"masks: {masked:.1%} of the tokens are masked"
            + ("" if 0.1 <= masked <= 0.4 else "; 15 % is usual"),
            f"gradient: norm {metrics['optim/grad_norm']:.3g}{clipped}; "
            f"{metrics['optim/skipped_steps']:.0f} updates of this phase were skipped",
        ]
        task = settings.data.pairs.name
        if (accuracy := metrics.get(f"train/{task}_accuracy")) is not None:
            verdict = (
                "the pairs are learnt, so attention and segments work"
                if accuracy > 0.7
                else "a sound run learns the pairs first, this one has not: look at attention"
            )
            lines.append(f"attention: {task.upper()} accuracy {accuracy:.1%}; {verdict}")
        return lines


def _repeated(settings: Settings) -> str:
    audit = settings.data.folder / "audit" / str(settings.data.seq_len) / "audit.json"
    if not audit.exists():
        return (
            f"unknown, there is no {audit}: python -m data_prep.audit "
            f"data_dir={settings.data.dir} seq_len={settings.data.seq_len}"
        )
    share = read_json(audit)["corpus"]["splits"]["train"]["repeated_tokens_share"]
    return f"{share:.1%} of the tokens are in a sentence that occurred before"
