"""The browser that shows our pages in tests."""

import shutil

import pytest


def chromium() -> str:
    """The path of chromium; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium: apt-get install chromium")
    return found
