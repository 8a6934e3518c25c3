"""Learning-rate curves: pure functions of the number of finished updates."""

from __future__ import annotations

from pretrain.settings import ScheduleSettings


def learning_rate(step: int, settings: ScheduleSettings, peak: float) -> float:
    """Rate of the update that follows `step` finished updates: linear warm-up, linear decay to 0.

    Counted as google-research/bert does (optimization.py): in a warm-up the first update has rate
    0. With decay_from_step_0 (Google's curve) the decay line starts at step 0, so the rate drops by
    warmup / total_steps of the peak where the warm-up ends; without it the curve is continuous.
    From total_steps on the rate is 0.
    """
    if step < 0:
        raise ValueError(f"the number of finished updates is {step}; it must be 0 or more")
    warmup, total = settings.warmup, settings.total_steps
    if step < warmup:
        return peak * step / warmup
    start = 0 if settings.decay_from_step_0 else warmup
    return peak * max(0.0, (total - step) / (total - start))
