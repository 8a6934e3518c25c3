"""Cases of a parametrised test, of which all but a few are slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(fast: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases, each marked slow unless in `fast`; a tuple has the values of several arguments."""
    cases = list(cases)
    assert all(case in cases for case in fast), "a fast case that is no case"
    return [case if case in fast else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.slow)
