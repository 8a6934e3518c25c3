"""docs/pretrain_bert.ipynb runs from its first cell to its last, with its numbers for a CPU."""

import os
import sys
from pathlib import Path

import nbformat
import pytest

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOK = PROJECT / "docs/pretrain_bert.ipynb"


def test_the_notebook_holds_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in code if cell.outputs or cell.execution_count] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of the packages that run a notebook
def test_the_notebook_trains_and_exports_a_model(tmp_path: Path, monkeypatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    plot, table = (cell.outputs[-1]["data"] for cell in notebook.cells if "plt" in cell.source
                   or "fill(" in cell.source)  # fmt: skip
    assert "image/png" in plot
    assert "[MASK]" not in table["text/plain"]
    assert (tmp_path / "runs/notebook/export/model.safetensors").exists()
    assert (tmp_path / "bert.zip").exists()
