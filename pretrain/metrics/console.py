"""The terminal: progress bar, metrics and events."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.model.fill_mask import Guesses


BAR = "{n_fmt}/{total_fmt}{postfix} |{bar}| ETA {remaining}"  # too wide: cut off on the right

BAR_WITHOUT_END = "{n_fmt}{postfix} |{bar}| {elapsed}"

LINE_EVERY_S = 10.0  # in a batch job's log a line of progress at most so often


class Screen:
    """A progress bar on a terminal; in a batch job plain lines, one in ten seconds at most."""

    def __init__(self, first_step: int, total_steps: int | None) -> None:
        """`total_steps` is None where the clock ends the run, and not a number of steps."""
        from tqdm import tqdm

        self._total_steps, self._first_step, self._started = total_steps, first_step, time.time()
        self._is_terminal = sys.stderr.isatty()
        self._last_line = 0.0
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            bar_format=BAR if total_steps is not None else BAR_WITHOUT_END,
            disable=not self._is_terminal,
        )

    def record(self, step: int, figures: Mapping[str, float | str]) -> None:
        text = _readable(figures)
        if self._is_terminal:
            if any(name.startswith("eval/") for name in figures):
                self._bar.write(f"step {step:,}  {text}", file=sys.stderr)
            else:
                self._bar.set_postfix_str(text, refresh=False)
                self._bar.update(step - self._bar.n)
            return
        is_due = time.time() - self._last_line >= LINE_EVERY_S or step == self._total_steps
        if is_due or any(name.startswith("eval/") for name in figures):
            self._last_line = time.time()
            if self._total_steps is None:
                print(f"step {step:,}  {text}", file=sys.stderr)
                return
            done = max(1, step - self._first_step)
            left_s = (self._last_line - self._started) / done * (self._total_steps - step)
            eta = datetime.timedelta(seconds=round(left_s))
            print(f"step {step:,}/{self._total_steps:,}  {text}  ETA {eta}", file=sys.stderr)

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        if kind in SHOWN_EVENTS:
            short = {k: f"{len(v)} of them" if k == "examples" else v for k, v in facts.items()}
            text = " ".join(f"{name}={value}" for name, value in short.items())
            self._bar.write(f"{kind.replace('_', ' ')}: {text}", file=sys.stderr)

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        pass  # shown at the run's end, by the exported model

    def close(self) -> None:
        self._bar.close()


SHOWN_EVENTS = (
    "resumed",
    "rewound",
    "phase",
    "stopped",
    "skipped_step",
    "overflow",
    "spike",
    "checkpoint_failed",
)

SHOWN = {
    "train/mlm_loss": "MLM {:.3f}",
    "train/mlm_accuracy": "({:.1%})",
    "train/nsp_loss": "NSP {:.3f}",
    "train/nsp_accuracy": "({:.1%})",
    "train/sop_loss": "SOP {:.3f}",
    "train/sop_accuracy": "({:.1%})",
    "perf/tokens_per_second": "{:,.0f} tokens/s",
    "perf/training_hours": "{:.2f} h",
    "eval/mlm_loss": "held-out MLM {:.3f}",
    "eval/mlm_accuracy": "({:.1%})",
    "eval/nsp_loss": "NSP {:.3f}",
    "eval/nsp_accuracy": "({:.1%})",
    "eval/sop_loss": "SOP {:.3f}",
    "eval/sop_accuracy": "({:.1%})",
}


def _readable(figures: Mapping[str, float | str]) -> str:
    return " ".join(form.format(figures[name]) for name, form in SHOWN.items() if name in figures)
