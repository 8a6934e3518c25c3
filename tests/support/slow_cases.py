"""Cases of a parametrised test, of which all but a few are slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(fast: Collection[tuple[Any, ...]], cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The cases, each marked slow unless it is one of `fast`."""
    cases = list(cases)
    assert all(case in cases for case in fast), "a fast case that is no case"
    return [c if c in fast else pytest.param(*c, marks=pytest.mark.slow) for c in cases]
