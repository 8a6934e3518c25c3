"""Learning-rate curves: pure functions of the finished updates, or of the training time."""

from __future__ import annotations

import math

from pretrain.config.settings import DecayShape, ScheduleSettings


def learning_rate(
    step: int, settings: ScheduleSettings, peak: float, elapsed_s: float = 0.0
) -> float:
    """Rate of the update after `step` finished updates since start_step, which took `elapsed_s`.

    Linear warm-up, then peak * (what is left / what was left at the start of the decay) ** power.
    The end is total_steps updates, or budget_hours. With decay_fraction the rate stays at its peak
    before the decay (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395), whose shape may be
    1 - sqrt (Hägele et al. 2024, arXiv 2405.18392). Two quirks of published code are settings:
    decay_from_step_0 (google-research/bert, optimization.py; NVIDIA's schedulers.py) starts the
    decay line at step 0, so that the rate drops where the warm-up ends; without it the curve is
    continuous. count_from_1 (NVIDIA) gives the first update number 1; Google's is 0, with rate 0 in
    a warm-up.
    """
    if step < 0:
        raise ValueError(f"the number of finished updates is {step}; it must be 0 or more")
    done: float = settings.start_step + step + int(settings.count_from_1)
    if settings.budget_hours is not None:
        done = elapsed_s
    warmup, total = settings.warmup, settings.total
    if done < warmup:
        return peak * done / warmup
    left = min(1.0, max(0.0, (total - done) / settings.decay))
    if settings.decay_shape is DecayShape.one_minus_sqrt:
        return peak * (1 - math.sqrt(1 - left))
    share: float = left**settings.power
    return peak * share


def is_over(step: int, settings: ScheduleSettings, elapsed_s: float = 0.0) -> bool:
    """Whether training ends after `step` updates that took `elapsed_s`."""
    last_step = settings.last_step
    return elapsed_s >= settings.total if last_step is None else step >= last_step
