"""A tiny BERT folder for the tests of fine-tuning and prediction; copy it to change it."""

from pathlib import Path

import pytest
from tiny_bert import tiny_bert


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert") / "tiny")
