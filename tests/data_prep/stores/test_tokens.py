from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_manifests import tokens_manifest

from data_prep.core.files import write_json
from data_prep.stores.token_records import TokenPartEntry
from data_prep.stores.tokens import TokenPart, TokenStore, token_dtype, write_part

Documents = list[list[list[int]]]  # documents of sentences of ids

DOCUMENTS: Documents = [[[5, 6, 7], [8]], [[9, 65_535]], [[1], [2], [3, 4]]]


def write(path: Path, documents: Documents, dtype: Any = np.uint16) -> TokenPartEntry:
    sentences = [sentence for document in documents for sentence in document]
    ids = np.array([token for sentence in sentences for token in sentence], dtype)
    return write_part(
        path,
        [f"test/{number}" for number in range(len(documents))],
        ids,
        np.cumsum([0, *map(len, sentences)]),
        np.cumsum([0, *map(len, documents)]),
    )


def write_store(data_dir: Path, parts: list[Documents], **changes: Any) -> None:
    entries = [
        write(data_dir / "tokens" / "train" / f"part-{number:05d}.arrow", documents)
        for number, documents in enumerate(parts)
    ]
    manifest = tokens_manifest({"train": entries}, **changes)
    write_json(data_dir / "tokens" / "manifest.json", manifest)


def read_back(part: TokenPart) -> Documents:
    """By plain loops over the three arrays."""
    documents = []
    for document in range(part.num_documents):
        first, last = part.document_offsets[document], part.document_offsets[document + 1]
        documents.append(
            [
                part.ids[part.sentence_offsets[s] : part.sentence_offsets[s + 1]].tolist()
                for s in range(first, last)
            ]
        )
    return documents


@settings(deadline=None)
@given(
    documents=st.lists(
        st.lists(st.lists(st.integers(0, 65_535), min_size=1, max_size=5), min_size=1, max_size=4),
        max_size=5,
    ),
    dtype=st.sampled_from([np.uint16, np.uint32]),
)
def test_a_part_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, documents: Documents, dtype: Any
) -> None:
    path = tmp_path_factory.mktemp("part") / "part-00000.arrow"
    write(path, documents, dtype)
    part = TokenPart.open(path)
    assert read_back(part) == documents
    assert part.documents.to_pylist() == [f"test/{number}" for number in range(len(documents))]
    assert part.ids.dtype == dtype
    assert part.num_sentences == sum(map(len, documents))
    assert part.num_tokens == sum(len(sentence) for document in documents for sentence in document)


def test_a_part_opens_with_plain_pyarrow_and_with_datasets(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.arrow"
    write(path, DOCUMENTS)
    with pa.ipc.open_stream(path) as reader:
        batches = list(reader)
    assert len(batches) == 1
    assert batches[0].column("sentences").to_pylist() == DOCUMENTS
    assert datasets.Dataset.from_file(str(path))["sentences"][:] == DOCUMENTS


def test_the_arrays_are_views_of_the_file_and_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.arrow"
    allocated = pa.total_allocated_bytes()
    write(path, DOCUMENTS)
    part = TokenPart.open(path)
    assert pa.total_allocated_bytes() == allocated
    for array in (part.ids, part.sentence_offsets, part.document_offsets):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_the_same_part_written_twice_has_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "part-00000.arrow", DOCUMENTS)
    assert write(tmp_path / "b" / "part-00000.arrow", DOCUMENTS) == first
    a, b = (tmp_path / folder / "part-00000.arrow" for folder in "ab")
    assert a.read_bytes() == b.read_bytes()
    assert (first.documents, first.sentences, first.tokens) == (3, 6, 10)


@pytest.mark.parametrize(
    ("documents", "name"), [([[[1], []]], "sentence_offsets"), ([[[1]], []], "document_offsets")]
)
def test_an_empty_sentence_or_document_is_refused(
    tmp_path: Path, documents: Documents, name: str
) -> None:
    with pytest.raises(ValueError, match=f"{name} must rise strictly"):
        write(tmp_path / "part-00000.arrow", documents)
    assert not list(tmp_path.iterdir())


def test_ids_are_sixteen_bit_up_to_65536_entries() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


def test_documents_are_numbered_over_all_parts_and_empty_parts_hold_none(tmp_path: Path) -> None:
    write_store(tmp_path, [[], DOCUMENTS[:2], [], [], DOCUMENTS[2:], []])
    store = TokenStore.open(tmp_path, "train")
    assert store.num_documents == 3
    assert store.first_document.tolist() == [0, 0, 2, 2, 2, 3, 3]
    found = [read_back(store.part(part))[place] for part, place in map(store.locate, range(3))]
    assert found == DOCUMENTS
    with pytest.raises(IndexError, match="from 0 to 2"):
        store.locate(3)
    assert TokenStore.open(tmp_path, "heldout").num_documents == 0


def test_a_store_opens_without_its_parts_and_maps_those_that_are_asked_for(tmp_path: Path) -> None:
    write_store(tmp_path, [DOCUMENTS] * 3)
    (tmp_path / "tokens" / "train" / "part-00001.arrow").unlink()
    store = TokenStore.open(tmp_path, "train")
    assert store.num_documents == 3 * len(DOCUMENTS)
    assert not store.mapped
    assert store.part(2) is store.part(2)
    assert list(store.mapped) == [2]


def test_a_missing_store_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"python -m data_prep\.encode data_dir="):
        TokenStore.open(tmp_path, "train")


def test_an_unknown_split_is_refused_with_the_splits_there_are(tmp_path: Path) -> None:
    write_store(tmp_path, [DOCUMENTS])
    with pytest.raises(ValueError, match="there are train, heldout"):
        TokenStore.open(tmp_path, "test")


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path, [DOCUMENTS], schema_version=99)
    with pytest.raises(
        ValueError, match=r"tokens/manifest\.json .* 99 .*schema_version.*data_prep\.encode"
    ):
        TokenStore.open(tmp_path, "train")


def test_a_part_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    write_store(tmp_path, [DOCUMENTS])
    path = tmp_path / "tokens" / "train" / "part-00000.arrow"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"part-00000\.arrow.*run data_prep\.encode again"):
        TokenStore.open(tmp_path, "train").part(0)


def test_a_missing_part_is_refused_by_name(tmp_path: Path) -> None:
    write_store(tmp_path, [DOCUMENTS])
    (tmp_path / "tokens" / "train" / "part-00000.arrow").unlink()
    with pytest.raises(ValueError, match=r"part-00000\.arrow.*run data_prep\.encode again"):
        TokenStore.open(tmp_path, "train").part(0)


def test_a_part_with_other_counts_than_the_manifest_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path, [DOCUMENTS])
    write(tmp_path / "tokens" / "train" / "part-00000.arrow", DOCUMENTS[:2])
    with pytest.raises(ValueError, match=r"part-00000\.arrow holds .* the manifest says"):
        TokenStore.open(tmp_path, "train").part(0)


def test_a_changed_byte_is_found_by_the_checksum(tmp_path: Path) -> None:
    write_store(tmp_path, [DOCUMENTS])
    store = TokenStore.open(tmp_path, "train")
    store.verify()
    path = tmp_path / "tokens" / "train" / "part-00000.arrow"
    changed = bytearray(path.read_bytes())
    changed[changed.index(np.uint16(65_535).tobytes() + b"\x01\x00")] ^= 1
    path.write_bytes(changed)
    with pytest.raises(RuntimeError, match=r"part-00000\.arrow has checksum"):
        store.verify()
