"""The files of a data set of the Hugging Face hub, read where they are: nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.places import Place
from data_prep.sources.inputs.text_files import by_ending
from data_prep.stores.remote import network_errors

_TIMEOUT_S = 10
_FILE = re.compile(r"hf://(datasets/.+?@([^/]+)/(.+))")


def hub_files(
    source: SourceSettings, is_wanted: Callable[[str], bool], what: str
) -> tuple[tuple[list[Place], dict[str, list[str]]], dict[str, str]]:
    """The files of source.dataset's subset and split, what is not read, and the hub's commit.

    source.revision pins the commit, and the files' URLs hold it. Raises SettingsError if the hub
    does not answer or the data set has no such split.
    """
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    try:
        with network_errors(f"hf://datasets/{source.dataset}"):
            # First, since a hub that does not answer is otherwise asked for half a minute
            huggingface_hub.HfApi().dataset_info(str(source.dataset), timeout=_TIMEOUT_S)
            builder = datasets.load_dataset_builder(
                source.dataset, source.subset, revision=source.revision
            )
            splits = builder.config.data_files or {}
            urls = [match for url in splits.get(source.split, []) if (match := _FILE.match(url))]
            commit = urls[0][2] if urls else ""
            system = huggingface_hub.HfFileSystem()
            root = f"datasets/{source.dataset}@{commit}"
            infos: Any = system.find(root, detail=True) if urls else {}
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        # As the hub names its files: 20231101.en/train-00000-of-00041.parquet, data/en-00000-...
        files_of = f"{source.subset}/*" if source.subset else f"*/{source.split}[-/]*"
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise SettingsError(
            f"the data set {source.dataset} at revision {source.revision} cannot be listed "
            f"({why}); check the name, the network and HF_TOKEN. On a machine with a network, "
            f"fetch its files by: hf download {source.dataset} --repo-type dataset --revision "
            f'{source.revision} --include "{files_of}" --local-dir FOLDER; then set '
            "source.path=FOLDER"
        ) from error
    files = [_place(match, infos.get(match[1], {})) for match in urls if is_wanted(match[3])]
    if not files:
        held = ", ".join(map(str, splits)) or "none"
        raise SettingsError(
            f"the data set {source.dataset} has no {what} in source.split={source.split}; its "
            f"splits are {held}"
        )
    told = by_ending([match[3] for match in urls if not is_wanted(match[3])])
    return (files, {"not_read": told} if told else {}), {"commit": commit}


def _place(match: re.Match[str], info: dict[str, Any]) -> Place:
    """A file by its match of `_FILE`: its URL names its version."""
    return Place(match[3], match[0], info.get("size") or 0, [match[0]])
