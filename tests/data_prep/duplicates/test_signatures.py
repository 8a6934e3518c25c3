"""What is compared of a document: its shingles, its signature, and the file that holds them."""

import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rensa
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.core.files import checksum
from data_prep.duplicates import minhash, signatures
from data_prep.duplicates.minhash import SEED, SHINGLE_WORDS, VALUES, shingles, signature
from data_prep.duplicates.signatures import open_signatures, signatures_path, write_signatures
from data_prep.stores.documents import Document, write_part

MASK = 2**64 - 1
WORDS = "sea whale ship captain harpoon storm white leg mast boat line deck sail crew oil".split()
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab 'é一あก-\n", max_size=60)


def words_of(text: str) -> list[str]:
    """Plainly: runs of letters, digits and marks, and single ones of scripts without blanks."""
    words = [""]
    for character in text.casefold():
        code = ord(character)
        if any(first <= code <= last for first, last in minhash.UNSPACED):
            is_letter = unicodedata.category(character)[0] in "LMN"
            words += [character, ""] if is_letter else [""]
        elif code <= minhash.LAST_LETTER and unicodedata.category(character)[0] in "LMN":
            words[-1] += character
        else:
            words.append("")
    return [word for word in words if word]


def hash_of(words: list[str]) -> int:
    """Plainly: FNV-1a of each word, a polynomial of these, MurmurHash3's end."""
    total = 0
    for word in words:
        hashed = 0xCBF29CE484222325
        for byte in word.encode():
            hashed = ((hashed ^ byte) * 0x100000001B3) & MASK
        total = (total * 0x9E3779B97F4A7C15 + hashed) & MASK
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        total = ((total ^ total >> 33) * factor) & MASK
    return total ^ total >> 33


def runs_of(words: list[str]) -> list[list[str]]:
    fewest = min(SHINGLE_WORDS, len(words)) or 1
    return [words[n : n + fewest] for n in range(len(words) - fewest + 1)]


@given(texts)
@example("Straße 7, STRASSE 7! x y z w")
@example("東京は日本の首都である。Tokyo")
def test_shingles_and_letters_are_those_of_plain_python(text: str) -> None:
    hashes, letters = shingles(text)
    words = words_of(text)
    assert hashes.tolist() == [hash_of(run) for run in runs_of(words)]
    assert letters.tobytes().decode() == "".join(words)


def test_a_text_longer_than_a_piece_is_folded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Größe ΟΔΟΣ and one two three, four five. " * 3
    whole = shingles(text)
    monkeypatch.setattr(minhash, "PIECE", 3)
    for array, expected in zip(shingles(text), whole, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_the_signature_is_that_of_the_set_of_shingles_by_name() -> None:
    words = words_of(" ".join(WORDS * 3))
    plain = {hash_of(run) for run in runs_of(words)}
    matrix = rensa.RMinHash.digest_matrix_from_token_hash_sets([plain], VALUES, SEED)
    assert signature(shingles(" ".join(WORDS * 3))[0]) == matrix.to_rows()[0]


def test_the_share_of_equal_values_estimates_the_jaccard_similarity() -> None:
    rng = np.random.default_rng(7)
    text = rng.integers(0, 5000, 3000).astype(str).tolist()
    errors = []
    for changed in (0, 30, 60, 120, 300):
        other = text.copy()
        for place in rng.choice(len(text), changed, replace=False):
            other[place] = "changed"
        sets = [{tuple(run) for run in runs_of(words)} for words in (text, other)]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        pair = [signature(shingles(" ".join(words))[0]) for words in (text, other)]
        errors.append(float(np.mean(np.equal(*pair))) - exact)
    assert errors[0] == 0
    assert max(map(abs, errors)) < 0.15  # three standard errors of 112 values at 0.5


def test_case_blanks_line_ends_and_punctuation_change_nothing() -> None:
    one = "It was the best of times; it was the worst of times."
    other = "IT was --- the best\nof times\n\nIt was  the worst _of_ times"
    for array, expected in zip(shingles(one), shingles(other), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_text_without_blanks_has_a_shingle_a_letter() -> None:
    text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    letters = len(re.sub("。", "", text))
    assert len(np.unique(shingles(text)[0])) == letters - SHINGLE_WORDS + 1


def write(folder: Path, *pages: str) -> Path:
    part = folder / "part-00000.parquet"
    write_part(part, [Document(str(n), f"page {n}", page) for n, page in enumerate(pages)])
    return part


def test_a_file_holds_what_was_written_of_each_document(tmp_path: Path) -> None:
    pages = ["One two three four five six.", "?!", "", "Ünë dëux"]
    part = write(tmp_path, *pages)
    write_signatures(part, "abc")
    opened = open_signatures(part, "abc")
    assert opened.ids.to_pylist() == ["0", "1", "2", "3"]
    assert opened.titles.to_pylist() == ["page 0", "page 1", "page 2", "page 3"]
    assert opened.characters.tolist() == [len(page) for page in pages]
    values = np.concatenate(opened.bands, axis=1)
    assert values.tolist() == [signature(shingles(page)[0]) for page in pages]
    assert len({tuple(row) for row in opened.exact.tolist()}) == 4


def test_a_part_without_documents_has_signatures(tmp_path: Path) -> None:
    part = write(tmp_path)
    write_signatures(part, "abc")
    opened = open_signatures(part, "abc")
    assert [len(band) for band in opened.bands] == [0] * minhash.BANDS


def test_signatures_of_another_part_or_make_and_broken_ones_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = write(tmp_path, "One two three four five six.")
    assert open_signatures(part, "abc") is None
    write_signatures(part, "abc")
    assert open_signatures(part, "other") is None
    with monkeypatch.context() as patch:
        patch.setattr(signatures, "version", lambda _: "9.9")
        assert open_signatures(part, "abc") is None
    path = signatures_path(part)
    path.write_bytes(path.read_bytes()[:-1000])
    assert open_signatures(part, "abc") is None


def test_the_same_part_gives_the_same_bytes(tmp_path: Path) -> None:
    part = write(tmp_path, *(" ".join(WORDS[n:]) for n in range(9)))
    sums = []
    for _ in range(2):
        write_signatures(part, "abc")
        sums.append(checksum(signatures_path(part)))
    assert all(first == second for first, second in pairwise(sums))
