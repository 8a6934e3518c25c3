import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from made_manifests import shards_manifest
from made_shards import make_examples, write_folder

from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from data_prep.stores.shard_checks import verify
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import _ZSTD
from data_prep.stores.shards import SCHEMA_VERSION, Examples, read_shard, write_shard


def rows(examples: Examples) -> list[tuple[object, ...]]:
    """Plain Python rows, cut one by one."""
    out = []
    for i in range(len(examples)):
        begin, end = examples.offsets[i], examples.offsets[i + 1]
        first, last = examples.masked_offsets[i], examples.masked_offsets[i + 1]
        out.append(
            (
                examples.input_ids[begin:end].tolist(),
                int(examples.segment_a_lengths[i]),
                int(examples.next_sentence_labels[i]),
                examples.masked_positions[first:last].tolist(),
                examples.masked_input_ids[first:last].tolist(),
                int(examples.document_a[i]),
                int(examples.document_b[i]),
            )
        )
    return out


def test_a_shard_written_twice_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, make_examples(100, 1), {"seed": "1", "split": "train"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_shard_reads_back_as_it_was_written(tmp_path: Path, dtype: type) -> None:
    examples = make_examples(50, 2, dtype)
    write_shard(tmp_path / "a", examples, {"seed": "7"})
    found, metadata = read_shard(tmp_path / "a")
    assert rows(found) == rows(examples)
    assert found.input_ids.dtype == dtype
    assert metadata == {"schema_version": str(SCHEMA_VERSION), "seed": "7"}


def test_a_shard_is_viewed_and_not_copied(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", make_examples(50, 2), {})
    before = pa.total_allocated_bytes()
    found, _ = read_shard(tmp_path / "a")
    assert pa.total_allocated_bytes() == before
    assert not any(column.flags.owndata for column in vars(found).values())


def test_plain_pyarrow_opens_a_shard(tmp_path: Path) -> None:
    examples = make_examples(50, 3)
    write_shard(tmp_path / "a", examples, {"vocab_checksum": "abc"})
    with pa.memory_map(str(tmp_path / "a")) as file, pa.ipc.open_stream(file) as reader:
        table = reader.read_all()
    assert [tuple(row.values()) for row in table.to_pylist()] == rows(examples)
    assert table.schema.metadata[b"vocab_checksum"] == b"abc"
    assert [f"{field.name}: {field.type}" for field in table.schema] == [
        "input_ids: list<item: uint16>",
        "segment_a_length: uint16",
        "next_sentence_label: uint8",
        "masked_positions: list<item: uint16>",
        "masked_input_ids: list<item: uint16>",
        "document_a: uint32",
        "document_b: uint32",
    ]


def test_datasets_opens_shards_by_name_and_by_file(tmp_path: Path) -> None:
    import datasets

    sizes = [20, 0, 7]  # the middle one has no row
    shards = write_folder(tmp_path, sizes)
    expected = [row for examples in shards for row in rows(examples)]
    files = sorted(str(path) for path in (tmp_path / "train").iterdir())
    loaded = datasets.load_dataset(
        "arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [tuple(row.values()) for row in loaded] == expected
    mapped = datasets.Dataset.from_file(files[0])
    assert [tuple(row.values()) for row in mapped] == expected[:20]


@settings(deadline=None)  # the first call compiles
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_examples_come_in_the_order_asked_for(tmp_path_factory, seed, sizes) -> None:
    folder = tmp_path_factory.mktemp("shards")
    expected = [row for examples in write_folder(folder, sizes) for row in rows(examples)]
    shards = Shards.open(folder, "train")
    rng = np.random.default_rng(seed)
    asked = rng.integers(0, len(expected), 20) if expected else np.zeros(0, np.int64)
    found = shards.read(asked)
    assert rows(found) == [expected[i] for i in asked]
    assert shards.lengths(asked).tolist() == np.diff(found.offsets).tolist()
    assert shards.masked_counts(asked).tolist() == np.diff(found.masked_offsets).tolist()
    assert shards.num_examples == len(expected)
    shutil.rmtree(folder)


def test_labels_of_a_thousand_random_examples_are_those_of_their_shards(tmp_path: Path) -> None:
    made = write_folder(tmp_path, [400, 1, 399])
    labels = np.concatenate([examples.next_sentence_labels for examples in made])
    asked = np.random.default_rng(0).integers(0, 800, 1000)
    found = Shards.open(tmp_path, "train").read(asked)
    np.testing.assert_array_equal(found.next_sentence_labels, labels[asked])


def test_targets_stand_at_the_masked_positions() -> None:
    examples = make_examples(30, 5)
    naive = [row[0][position] for row in rows(examples) for position in row[3]]
    assert examples.targets.tolist() == naive


def test_a_slice_of_a_record_batch_is_read_by_its_own_offsets(tmp_path: Path) -> None:
    examples = make_examples(30, 6)
    write_shard(tmp_path / "a", examples, {})
    with pa.memory_map(str(tmp_path / "a")) as file, pa.ipc.open_stream(file) as reader:
        batch = reader.read_next_batch().slice(10, 5)
    from data_prep.stores.shards import _list_views

    offsets, ids = _list_views(batch.column("input_ids"))
    found = [ids[offsets[i] : offsets[i + 1]].tolist() for i in range(5)]
    assert found == [row[0] for row in rows(examples)[10:15]]


def test_the_order_is_the_manifest_s_and_not_the_listing_s(tmp_path: Path, monkeypatch) -> None:
    expected = [row for examples in write_folder(tmp_path, [3, 4, 5]) for row in rows(examples)]
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(sorted(real(self))))
    assert rows(Shards.open(tmp_path, "train").read(np.arange(12))) == expected


def test_a_missing_shard_is_named_with_the_cure(tmp_path: Path) -> None:
    write_folder(tmp_path, [3, 4])
    (tmp_path / "train" / "shard-00001.arrow").unlink()
    with pytest.raises(ValueError, match=r"shard-00001\.arrow is missing.*data_prep\.build again"):
        Shards.open(tmp_path, "train")


def test_a_short_shard_is_named_with_its_size(tmp_path: Path) -> None:
    write_folder(tmp_path, [3, 4])
    path = tmp_path / "train" / "shard-00000.arrow"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"shard-00000\.arrow has [\d,]+ bytes, the manifest says"):
        Shards.open(tmp_path, "train")


def test_a_folder_without_manifest_names_the_job_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json is missing.*python -m data_prep\.build"):
        Shards.open(tmp_path, "train")


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", shards_manifest(schema_version=99))
    with pytest.raises(
        ValueError, match=r"manifest\.json .* 99 .*schema_version.*data_prep\.build"
    ):
        Shards.open(tmp_path, "train")


def test_verify_names_the_shard_with_a_flipped_bit(tmp_path: Path) -> None:
    write_folder(tmp_path, [30, 40])
    assert verify(tmp_path) == []
    path = tmp_path / "train" / "shard-00001.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    [fault] = verify(tmp_path)
    assert "shard-00001.arrow has checksum" in fault


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"not arrow at all")
    with pytest.raises(SettingsError, match="a cannot be read"):
        read_shard(tmp_path / "a")


def test_an_example_beyond_the_last_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path, [3])
    with pytest.raises(ValueError, match=r"example 3 asked of .*0 to 2"):
        Shards.open(tmp_path, "train").read(np.array([0, 3]))


@pytest.mark.parametrize("size", [0, 1, 30_522])
def test_counts_are_packed_as_zstandard_packs_them(size: int) -> None:
    counts = (np.arange(size) ** 2 % 1000).astype("<u4").tobytes()
    assert _ZSTD.compress(counts, asbytes=True) == zstandard.compress(counts)
