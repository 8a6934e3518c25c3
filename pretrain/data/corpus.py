"""The prepared corpus that a run trains on: found and checked, or made if it is the sample.

Imports no torch: wrong data is refused within a second.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum
from data_prep.core.records import read_manifest
from data_prep.stores.shards import ShardsManifest
from data_prep.tokenizer.casing import Casing, stated_casing
from data_prep.tokenizer.vocab_file import read_vocab
from pretrain.config.settings import DataSettings

# The sample is small. So its vocabulary is small, and one document in twelve is held out, so that
# evaluation has some ten thousand masked tokens. It takes several passes, each with other pairs:
# otherwise the pairs are memorised.
SAMPLE = ("vocab_size=4096", "heldout_fraction=0.08", "copies=5")


def folder_of(data: DataSettings) -> Path:
    """The folder of the shards of data.seq_len tokens."""
    return Path(data.dir) / f"len{data.seq_len}"


def manifest_of(data: DataSettings) -> ShardsManifest:
    """The shards' manifest, checked against the vocabulary next to it.

    Raises SettingsError if there are no such shards, their manifest is of another version, they
    hold other pairs than data.pairs, or they were encoded with another vocabulary.
    """
    folder = folder_of(data)
    path = folder / "manifest.json"
    if not path.exists():
        others = sorted(Path(data.dir).glob("len*/manifest.json"))
        lengths = [other.parent.name.removeprefix("len") for other in others]
        raise SettingsError(
            f"there are no shards of {data.seq_len} tokens in {data.dir} (no {path}); "
            + (f"set data.seq_len={lengths[0]}, which is there, or " if lengths else "")
            + f"make them: python -m data_prep.build data_dir={data.dir} seq_len={data.seq_len}"
            + ("" if lengths else " (after the jobs before it: docs/data.md)")
        )
    build = f"python -m data_prep.build data_dir={data.dir} seq_len={data.seq_len}"
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
            f"in their place: {build} pairs={data.pairs.name}"
        )
    vocab = Path(data.dir) / "vocab" / "vocab.txt"
    if not vocab.exists():
        raise SettingsError(f"{vocab} is missing; the shards in {folder} cannot be read without it")
    if (found := checksum(vocab)) != manifest.vocab_checksum:
        raise SettingsError(
            f"{vocab} (checksum {found}) is not the vocabulary that the shards in {folder} were "
            f"encoded with ({manifest.vocab_checksum}); run data_prep.encode and "
            f"data_prep.build again with data_dir={data.dir}"
        )
    own = Casing.of(manifest)
    if (casing := stated_casing(vocab)).differs(own):
        raise SettingsError(
            f"{vocab.parent} has {casing}, and the shards in {folder} were encoded with {own}; run "
            f"data_prep.encode and data_prep.build again with data_dir={data.dir}"
        )
    if (entries := len(read_vocab(vocab))) != manifest.vocab_size:
        raise SettingsError(
            f"{vocab} has {entries:,} entries, {path} says {manifest.vocab_size:,}; build it again"
        )
    for split in ("train", "heldout"):
        if not manifest.splits[split].rows:
            raise SettingsError(f"{path} lists no examples in its {split} split; build it again")
    return manifest


def prepare_sample(data: DataSettings) -> None:
    """Make the sample corpus through the jobs of data_prep, each of which skips what is done."""
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
