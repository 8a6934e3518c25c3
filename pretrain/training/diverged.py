"""How a run ends whose losses are no numbers any more. Imports no torch."""

from __future__ import annotations


class DivergedError(RuntimeError):
    """Every rank raises it at the same step; the message names step, reason and cure."""
