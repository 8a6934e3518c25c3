"""The token store: WordPiece ids of every sentence of every document, memory-mapped.

`data_dir/tokens/{train,heldout}/<source>-00000.arrow` are uncompressed Arrow IPC streams of one
record batch each; a row is a document: `document` (string, "<source>/<id>") and `sentences`
(list<list<uint16>>, uint32 above 65,536 vocabulary entries). They open with pyarrow and `datasets`
without this code; here they are read as three flat numpy arrays, without a copy:

    sentence s of a part:  ids[sentence_offsets[s] : sentence_offsets[s + 1]]
    document d of a part:  sentences document_offsets[d] ... document_offsets[d + 1] - 1

Where words were segmented (`settings.words` of the manifest) there is a third column,
`continues_word`: list<list<bool>> like `sentences`, true for a token that continues the word of the
token before it. In a corpus of many languages (`settings.languages` of the manifest) the last
column is `language`: uint16, the place of the document's language among those of its part. The
manifest has the names of all (`languages`) and how many documents of a part have each.

There are no special ids in the store: [CLS], [SEP] and [MASK] come with the pairs.
`data_dir/tokens/manifest.json` lists the parts of both splits in order; a document's number is its
place in that order, over all parts of its split.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, whole_or_absent
from data_prep.stores.arrow import (
    bits_of,
    list_offsets,
    map_batch,
    no_bits,
    num_bytes,
    offsets_fault,
    outside,
)
from data_prep.stores.token_records import (
    SPLITS,
    TokensManifest,
    WrittenPart,
    read_tokens_manifest,
)

MOST_TOKENS = 2**31 - 1  # of a part: Arrow's list offsets are int32
_SCHEMAS = [
    pa.schema({"document": pa.string(), "sentences": pa.list_(pa.list_(ids)), **words, **languages})
    for languages in ({}, {"language": pa.uint16()})
    for words in ({}, {"continues_word": pa.list_(pa.list_(pa.bool_()))})
    for ids in (pa.uint16(), pa.uint32())
]
CURE = "delete the folder tokens and run data_prep.encode again"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest dtype that holds every id of a vocabulary: uint16 up to 65,536 entries."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


@dataclass(frozen=True)
class TokenPart:
    """One file of the store: D documents, S sentences, T tokens. The arrays are read-only views."""

    name: str
    ids: NDArray[Any]  # (T,) uint16 or uint32
    sentence_offsets: NDArray[np.int32]  # (S + 1,) into ids
    document_offsets: NDArray[np.int32]  # (D + 1,) into sentences
    documents: Any  # (D,) pyarrow string array, "<source>/<id>"
    # (ceil(T / 8),) bits, lowest first: the token continues the word before it; (0,): not stored
    continues_word: NDArray[np.uint8] = field(default_factory=no_bits)
    languages: NDArray[np.uint16] | None = None  # (D,) place among the part's; None: not stored

    @property
    def num_documents(self) -> int:
        return len(self.document_offsets) - 1

    @property
    def num_sentences(self) -> int:
        return len(self.sentence_offsets) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @classmethod
    def open(cls, path: Path) -> TokenPart:
        """Map one part into memory. No value is read: `check_part` does that.

        Raises SettingsError where the file is not a whole part.
        """
        batch = map_batch(path, _SCHEMAS, CURE)
        names, sentences = batch.schema.names, batch.column("sentences")
        part = cls(
            name=path.name,
            ids=sentences.values.values.to_numpy(),
            sentence_offsets=list_offsets(sentences.values),
            document_offsets=list_offsets(sentences),
            documents=batch.column("document"),
            languages=batch.column("language").to_numpy() if "language" in names else None,
        )
        if "continues_word" not in names:
            return part
        flags = batch.column("continues_word").values.values  # cut by the offsets of the ids
        if len(flags) != part.num_tokens:
            raise SettingsError(
                f"{path}: continues_word has {len(flags):,} values for {part.num_tokens:,} tokens; "
                f"{CURE}"
            )
        return replace(part, continues_word=bits_of(flags))


def check_part(path: Path, part: TokenPart, vocab_size: int) -> None:
    """Raises SettingsError on offsets that do not rise, and on ids outside the vocabulary.

    Reads every value, in 0.1 ns per token.
    """
    try:
        part.documents.validate(full=True)  # the names are UTF-8
    except pa.ArrowInvalid as error:
        raise SettingsError(f"{path}, column document: {error}; {CURE}") from error
    ends = part.sentence_offsets
    fault = (
        offsets_fault("sentences", part.document_offsets, part.num_sentences, fewest=1)
        or offsets_fault("sentence", ends, part.num_tokens, fewest=1)
        or outside("sentence", part.ids, 0, vocab_size - 1, ends)
    )
    if fault is not None:
        raise SettingsError(f"{path}, {fault}; {CURE}")


def write_part(
    path: Path,
    documents: Sequence[str],
    ids: NDArray[Any],
    sentence_offsets: NDArray[np.integer[Any]],
    document_offsets: NDArray[np.integer[Any]],
    unknown_tokens: int = 0,
    continues_word: NDArray[np.bool_] | None = None,
    languages: Sequence[str] | None = None,
) -> WrittenPart:
    """Write one part, whole or not at all: same arguments, same bytes.

    D documents, (T,) ids, (S + 1,) and (D + 1,) offsets as in the head of this file; how many of
    the ids are [UNK]; (T,) which tokens continue a word and (D,) codes of languages, None: not
    known. A part may hold no documents. Raises ValueError where the offsets do not fit the ids or
    the part is too large.
    """
    if len(ids) > MOST_TOKENS:
        raise ValueError(
            f"{path} would hold {len(ids):,} tokens, a part holds at most {MOST_TOKENS:,}; "
            f"collect into smaller parts"
        )
    _check_offsets(path, "sentence_offsets", sentence_offsets, len(ids))
    _check_offsets(path, "document_offsets", document_offsets, len(sentence_offsets) - 1)
    if len(documents) != len(document_offsets) - 1:
        raise ValueError(
            f"{path}: {len(documents)} document names for {len(document_offsets) - 1} documents"
        )
    columns = {"sentences": ids} | (
        {} if continues_word is None else {"continues_word": continues_word}
    )
    offsets_S, offsets_D = (
        pa.array(offsets.astype(np.int32)) for offsets in (sentence_offsets, document_offsets)
    )
    nested = {
        name: pa.ListArray.from_arrays(offsets_D, pa.ListArray.from_arrays(offsets_S, values))
        for name, values in columns.items()
    }
    by_language = dict(sorted(Counter(languages or ()).items()))
    if languages is not None:
        places = {code: place for place, code in enumerate(by_language)}
        nested["language"] = pa.array([places[code] for code in languages], pa.uint16())
    batch = pa.record_batch({"document": pa.array(list(documents), pa.string()), **nested})
    with whole_or_absent(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as out:
            out.write_batch(batch)
        digest = checksum(temporary)
    return WrittenPart(
        name=path.name,
        documents=len(documents),
        sentences=len(sentence_offsets) - 1,
        tokens=len(ids),
        unknown_tokens=unknown_tokens,
        checksum=digest,
        languages=by_language,
    )


def _check_offsets(
    path: Path, name: str, offsets: NDArray[np.integer[Any]], num_children: int
) -> None:
    """Offsets begin with 0, end with the number of children and leave no list empty."""
    if offsets[0] != 0 or offsets[-1] != num_children or (np.diff(offsets) <= 0).any():
        raise ValueError(
            f"{path}: {name} must rise strictly from 0 to {num_children}; "
            f"an empty sentence or document is dropped and counted before it is stored"
        )


@dataclass(frozen=True)
class TokenStore:
    """One split of a store. A part is mapped when it is first asked for, and stays mapped.

    So opening costs the reading of the manifest, whatever the number P of parts; and a process maps
    the parts that it uses, of which the system allows some 65,000.
    """

    folder: Path
    split: str
    manifest: TokensManifest  # of both splits
    first_document: NDArray[np.int64]  # (P + 1,) number of each part's first document; the count
    mapped: dict[int, TokenPart] = field(default_factory=dict)

    @property
    def num_parts(self) -> int:
        return len(self.first_document) - 1

    @property
    def num_documents(self) -> int:
        return int(self.first_document[-1])

    @functools.cached_property
    def source_codes(self) -> NDArray[np.int64]:
        """(P,) the number of each part's source; parts of one source have the same."""
        sources = [entry.source for entry in self.manifest.splits[self.split]]
        return np.unique(sources, return_inverse=True)[1].astype(np.int64)

    @classmethod
    def open(cls, data_dir: Path, split: str) -> TokenStore:
        """Read the manifest.

        Raises ValueError, with the cure, where the store is missing, SettingsError where it is of
        another version.
        """
        manifest = read_tokens_manifest(data_dir)
        folder = data_dir / "tokens"
        if split not in manifest.splits:
            raise ValueError(f"{folder} has no split {split!r}; there are {', '.join(SPLITS)}")
        documents = (entry.documents for entry in manifest.splits[split])
        return cls(folder, split, manifest, np.cumsum([0, *documents], dtype=np.int64))

    def part(self, number: int) -> TokenPart:
        """Map a part; no value is read.

        Raises SettingsError, with the cure, where it is missing, no part, or has other counts or
        another dtype than the manifest says.
        """
        if (part := self.mapped.get(number)) is not None:
            return part
        entry, path = self.manifest.splits[self.split][number], self.path_of(number)
        part = TokenPart.open(path)
        found = (part.num_documents, part.num_sentences, part.num_tokens, str(part.ids.dtype))
        wanted = (entry.documents, entry.sentences, entry.tokens, self.manifest.dtype)
        if found != wanted:
            raise SettingsError(
                f"{path} holds (documents, sentences, tokens, dtype) = {found}, the manifest "
                f"says {wanted}; {CURE}"
            )
        has_words = bool(self.manifest.settings.words)
        if len(part.continues_word) != num_bytes(has_words * part.num_tokens):
            says = "has" if has_words else "has no"
            raise SettingsError(
                f"{path}: the manifest {says} words, other than the column continues_word; {CURE}"
            )
        if (part.languages is not None) != (has_languages := self.manifest.settings.languages):
            says = "has" if has_languages else "has no"
            raise SettingsError(
                f"{path}: the manifest {says} languages, other than the column language; {CURE}"
            )
        self.mapped[number] = part
        return part

    def documents_of(self, language: str | None) -> NDArray[np.int64]:
        """(P,) documents of each part in this language; None: in any."""
        if language is None:
            return np.diff(self.first_document)
        return self._by_language[:, self.manifest.languages.index(language)].astype(np.int64)

    @functools.cached_property
    def _by_language(self) -> NDArray[np.uint32]:
        """(P, L) documents of each part in each of the manifest's languages."""
        stored = b"".join(entry.documents_of for entry in self.manifest.splits[self.split])
        return np.frombuffer(stored, "<u4").reshape(self.num_parts, -1)

    def languages_of(self, number: int) -> dict[str, tuple[int, int]]:
        """Of each language of a part its value in the column, and its number of documents."""
        named = zip(self.manifest.languages, self._by_language[number].tolist(), strict=True)
        present = [(code, documents) for code, documents in named if documents]
        return {code: (place, documents) for place, (code, documents) in enumerate(present)}

    def documents_in(self, number: int, language: str | None) -> NDArray[np.int64]:
        """The places of a part's documents in this language, ascending; None: in any.

        Raises SettingsError where there are not as many as the manifest says.
        """
        part = self.part(number)
        if language is None:
            return np.arange(part.num_documents)
        place, stated = self.languages_of(number)[language]
        found = np.flatnonzero(part.languages == place)
        if len(found) != stated:
            raise SettingsError(
                f"{self.path_of(number)}: {len(found):,} documents have language {place}, the "
                f"manifest says {stated:,}; {CURE}"
            )
        return found

    def path_of(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / self.split / self.manifest.splits[self.split][part].name

    def locate(self, document: int) -> tuple[int, int]:
        """The part of a document number, and the document's place in that part."""
        if not 0 <= document < self.num_documents:
            raise IndexError(
                f"document {document} of split {self.split!r}: numbers run from 0 to "
                f"{self.num_documents - 1}"
            )
        # "right": of several parts that begin with one number all but the last are empty
        part = int(np.searchsorted(self.first_document, document, side="right")) - 1
        return part, document - int(self.first_document[part])

    def verify(self) -> None:
        """Read every byte. Raises RuntimeError naming the first part of another checksum."""
        for entry in self.manifest.splits[self.split]:
            path = self.folder / self.split / entry.name
            if (found := checksum(path)) != entry.checksum:
                raise RuntimeError(
                    f"{path} has checksum {found}, the manifest says {entry.checksum}: the file "
                    f"was changed after it was written; delete {self.folder} and run "
                    f"data_prep.encode again"
                )
