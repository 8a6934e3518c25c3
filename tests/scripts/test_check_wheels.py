"""What installs from wheels is asked of uv for each Python and platform, and shown in a table."""

from pathlib import Path

import pytest

from scripts import check_wheels

# It knows one platform without a wheel, as uv words it
STAND_IN = """#!/bin/sh
case "$*" in *{python}*aarch64*--extra*)
    echo "error: No solution found when resolving dependencies" >&2
    echo "  cause: Because made==1.0 has no usable wheels and x depends on made==1.0 ..." >&2
    exit {status};;
esac
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def use(status: int, python: str = "3.14") -> None:
        program = tmp_path / "uv"
        program.write_text(STAND_IN.format(status=status, python=python))
        program.chmod(0o755)
        monkeypatch.setattr(check_wheels, "UV", program)

    return use


def test_a_package_without_a_wheel_is_named_in_its_row(uv, capsys) -> None:
    uv(status=1)
    assert check_wheels.main([]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(check_wheels.PYTHONS) * len(check_wheels.PLATFORMS) * 2
    [missing] = [row for row in rows if not row.endswith("from wheels")]
    assert missing.split() == [
        "Python", "3.14", "aarch64-manylinux_2_28", "all", "extras", "no", "wheel", "of",
        "made==1.0",
    ]  # fmt: skip


def test_without_an_index_it_is_skipped_with_the_reason(uv, capsys) -> None:
    uv(status=2)
    assert check_wheels.main(["python=3.14"]) == 0
    assert capsys.readouterr().out.startswith("skipped: the index cannot be reached (error: No so")


def test_one_python_can_be_asked_for(uv, capsys) -> None:
    uv(status=1)
    assert check_wheels.main(["python=3.12"]) == 0
    assert "3.14" not in capsys.readouterr().out


def test_another_python_is_refused(capsys) -> None:
    assert check_wheels.main(["python=3.9"]) == 2
    assert "python=3.11|3.12|3.13|3.14" in capsys.readouterr().err
