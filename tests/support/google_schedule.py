"""The learning-rate schedule of google-research/bert, optimization.py, in plain Python."""


def google(step: int, warmup: int, total: int, peak: float) -> float:
    """polynomial_decay to 0 with power 1, overwritten by the warm-up while it lasts."""
    decayed = (peak - 0.0) * (1 - min(step, total) / total) + 0.0
    is_warmup = 1.0 if step < warmup else 0.0
    warm = peak * (step / warmup) if warmup else 0.0
    return (1.0 - is_warmup) * decayed + is_warmup * warm
