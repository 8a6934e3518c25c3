"""Lines that many documents have: counted by hash ranges as in one dictionary, and left out."""

from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.filters.boilerplate import (
    boilerplate,
    count_lines,
    frequent_lines,
    line_hash,
    write_array,
)
from data_prep.filters.rules import Changes

LINES = st.lists(st.sampled_from(["Home", "News 1", "News 2", "A story.", "***", "é"]), max_size=5)


@settings(max_examples=30)
@given(st.lists(st.lists(LINES, max_size=4), min_size=1, max_size=3), st.integers(1, 3))
def test_the_frequent_lines_are_those_of_one_dictionary(tmp_path_factory, parts, ranges) -> None:
    folder: Path = tmp_path_factory.mktemp("counts")
    paths = [folder / f"{number}.npy" for number in range(len(parts))]
    for path, documents in zip(paths, parts, strict=True):
        write_array(path, count_lines("\n".join(lines) for lines in documents))
    counter = Counter(
        number
        for documents in parts
        for lines in documents
        for number in {line_hash(line) for line in "\n".join(lines).split("\n")}
        if number is not None
    )
    found = [frequent_lines(paths, index, ranges, 2) for index in range(ranges)]
    assert np.concatenate(found).tolist() == sorted(n for n in counter if counter[n] > 2)


def test_lines_are_alike_whatever_their_case_digits_and_marks() -> None:
    assert line_hash("Page 3 of 10") == line_hash("PAGE 7 OF 42!")
    assert line_hash("Page three") != line_hash("Page seven")
    assert line_hash(" * * * ") is None


def test_a_frequent_line_is_left_out_of_every_document_and_noted() -> None:
    hashes = np.array([line_hash("home  | news")], np.uint64)
    changes: Changes = []
    text = "Home | News\nA story of its own.\n***"
    assert boilerplate(hashes)(text, "en", changes) == "A story of its own.\n***"
    assert changes == [("frequent line", "Home | News")]
