"""The prepared corpus that a run trains on: found and checked, or made if it is the sample.

Imports no torch: wrong data is refused within a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from data_prep.core.config import SettingsError
from data_prep.core.entry import why_not
from data_prep.core.files import checksum
from data_prep.core.objectives import Pairing
from data_prep.core.records import read_manifest, typed
from data_prep.stores.shard_records import ShardsManifest
from data_prep.tokenizer.released import differing, stated_rules
from data_prep.tokenizer.vocab_file import read_vocab
from pretrain.config.settings import DataSettings

# The sample is small. So its vocabulary is small, and one document in twelve is held out, so that
# evaluation has some ten thousand masked tokens. It takes several passes, each with other pairs:
# otherwise the pairs are memorised.
SAMPLE = ("vocab_size=4096", "heldout_fraction=0.08", "copies=5")


def folder_of(data: DataSettings) -> Path:
    """The folder of the shards of data.seq_len tokens."""
    return data.folder / f"len{data.seq_len}"


def manifest_of(data: DataSettings, has_one_length: bool = True) -> ShardsManifest:
    """The shards' manifest, checked against the vocabulary next to it.

    With has_one_length, other shards that would do are proposed where there are none of seq_len; a
    run of several phases has its lengths from each phase.

    Raises SettingsError if there are no such shards, their manifest is of another version, they
    hold other pairs than data.pairs, or they were encoded with another vocabulary.
    """
    folder = folder_of(data)
    path = folder / "manifest.json"
    these = f"data_dir={data.dir} seq_len={data.seq_len}"
    build = f"python -m data_prep.build {these}"
    if data.pairs is not Pairing.nsp:
        build += f" pairs={data.pairs.name}"
    if not path.exists() and data.is_remote:
        raise SettingsError(
            f"{data.dir} is not staged on this machine (no {path}); python -m pretrain.run with "
            "this data.dir and data.stage does it at its start"
        )
    if not path.exists():
        fitting = _fitting_lengths(data) if has_one_length else []
        is_encoded = (data.folder / "tokens" / "manifest.json").exists()
        jobs = f" (after the jobs before it, as python -m data_prep.status {these} prints)"
        raise SettingsError(
            f"there are no shards of {data.seq_len} tokens in {data.dir} (no {path}); "
            + (f"set data.seq_len={fitting[0]}, which is there, or " if fitting else "")
            + f"make them: {build}"
            + ("" if is_encoded else jobs)
        )
    try:
        manifest = read_manifest(path, ShardsManifest, build)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if manifest.seq_len != data.seq_len:
        raise SettingsError(
            f"{path} is of examples of {manifest.seq_len} tokens, not {data.seq_len}; delete it "
            f"and run {build}"
        )
    if manifest.pairs is not data.pairs:
        raise SettingsError(
            f"data.pairs={data.pairs.name}, but the shards in {folder} were built with "
            f"pairs={manifest.pairs.name}; set data.pairs={manifest.pairs.name}, or build others "
            f"in their place: {build} replace=true"
        )
    again = f"run python -m data_prep.encode data_dir={data.dir} and {build} replace=true"
    vocab = data.folder / "vocab" / "vocab.txt"
    if not vocab.exists():
        raise SettingsError(f"{vocab} is missing; the shards in {folder} cannot be read without it")
    if (found := checksum(vocab)) != manifest.vocab_checksum:
        raise SettingsError(
            f"{vocab} (checksum {found}) is not the vocabulary that the shards in {folder} were "
            f"encoded with ({manifest.vocab_checksum}); put that one back, or {again}"
        )
    if wrong := differing(stated_rules(vocab), manifest.form):
        own = {name: manifest.rules[name] for name in wrong}
        raise SettingsError(
            f"{vocab.parent} has {typed(wrong)}, and the shards in {folder} were encoded with "
            f"{typed(own)}; put that one back, or {again}"
        )
    if (entries := len(read_vocab(vocab))) != manifest.vocab_size:
        raise SettingsError(
            f"{vocab} has {entries:,} entries, {path} says {manifest.vocab_size:,}; delete "
            f"{path} and run {build}"
        )
    for split in ("train", "heldout"):
        if not manifest.splits[split].rows:
            raise SettingsError(
                f"{path} lists no examples in its {split} split; delete it and run {build}"
            )
    return manifest


def _fitting_lengths(data: DataSettings) -> list[int]:
    """The lengths of the other shards in data.dir that would do, the nearest first."""
    lengths = []
    for path in data.folder.glob("len*/manifest.json"):
        with contextlib.suppress(SettingsError, ValueError):
            other = int(path.parent.name.removeprefix("len"))
            manifest_of(dataclasses.replace(data, seq_len=other))
            lengths.append(other)
    return sorted(lengths, key=lambda length: abs(length - data.seq_len))


def prepare_sample(data: DataSettings) -> None:
    """Make the sample corpus through the jobs of data_prep, each of which skips what is done.

    Raises SettingsError if their packages are not installed.
    """
    if why := why_not("data"):
        raise SettingsError(f"the sample corpus cannot be prepared: {why}")
    from data_prep import build, collect, encode, vocab
    from data_prep.core.config import compose
    from data_prep.core.settings import DataPrepSettings

    settings, _ = compose(
        "data_prep",
        DataPrepSettings,
        [
            "+source=sample",
            f"data_dir={data.dir}",
            f"seq_len={data.seq_len}",
            f"pairs={data.pairs.name}",
            *SAMPLE,
        ],
    )
    for job in (collect, vocab, encode, build):
        job.run(settings)
