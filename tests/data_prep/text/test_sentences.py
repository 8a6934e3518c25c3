"""Splitting paragraphs into sentences: by hand-split passages, by nupunkt, and losslessly."""

import functools
import json
from typing import Any

import nupunkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import FIXTURES

from data_prep.text.sentences import split_paragraph


@functools.cache
def punkt() -> Any:
    """nupunkt as it comes, with the switch."""
    model = nupunkt.load_default_model()
    model.EXCL_QUEST_LOWERCASE_CONTINUES = True
    return model


def inner_boundaries(sentences: list[str]) -> set[int]:
    """The ends of all sentences except the last, counted in characters that are not blanks."""
    ends, position = set(), 0
    for sentence in sentences[:-1]:
        position += len("".join(sentence.split()))
        ends.add(position)
    return ends


def test_boundaries_of_hand_split_novels_and_wikipedia_are_found_with_f1_above_96() -> None:
    hits = found = marked = 0
    for line in (FIXTURES / "sentence_splits.jsonl").read_text().splitlines():
        passage = json.loads(line)
        ours = inner_boundaries(split_paragraph(passage["text"]))
        reference = inner_boundaries(passage["sentences"])
        hits += len(ours & reference)
        found += len(ours)
        marked += len(reference)
    f1 = 2 * hits / (found + marked)
    assert f1 > 0.96, f"F1 {f1:.4f}"  # 0.967 with nupunkt 0.8.0 and the switch, 0.953 without


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("", []),
        (" \n\t ", []),
        ("A stub", ["A stub"]),
        ('"Why?" he asked. Mr. Brown left.', ['"Why?" he asked.', "Mr. Brown left."]),
        ("Oh! she cried. It rained.", ["Oh! she cried.", "It rained."]),
        ("It is 3.5 m long. So what?", ["It is 3.5 m long.", "So what?"]),
        ("One line\nends here. Two.", ["One line\nends here.", "Two."]),
    ],
)
def test_a_paragraph_is_split_by_the_rules_of_prose(paragraph: str, sentences: list[str]) -> None:
    assert split_paragraph(paragraph) == sentences


# Short texts of few kinds of characters, and words of all kinds before and after sentence ends:
# both reach the ends that are cut without nupunkt
WORDS = (
    "A I b x1 me wall aloud Tom he IV Civil ill Mr. 'Mr. Dr. St. U.S. e.g. p.m. etc. Jan. No. 12 -"
    " don't half-finished gov't o'clock 'Tis “Oh (a) a) \"He” _it_ été É 漢 -- — … & (see"
).split()
ENDS = [
    ". . .",
    ",",
    "",
    ".--",
    ".\n",
    ".  ",
    ".\xa0",
    *'. ! ? … ... ." .\' !” ?) ". ). .*'.split(),
]


@settings(max_examples=1000)
@given(
    st.text(st.sampled_from("aB .!?…\"'”)»*\n-"), max_size=12)
    | st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(ENDS)), max_size=8).map(
        lambda pairs: " ".join(map("".join, pairs))
    )
)
def test_every_paragraph_is_split_as_nupunkt_splits_it(text: str) -> None:
    sentences = [sentence.strip() for sentence in punkt().tokenize(text)]
    assert split_paragraph(text) == [sentence for sentence in sentences if sentence]


@given(st.text(st.sampled_from("aB1 .!?…\"'”()\n\t\u00a0\u2028\x00é漢-—"), max_size=80))
def test_splitting_keeps_every_character_but_blanks_and_makes_no_blank_sentence(text: str) -> None:
    sentences = split_paragraph(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)


def test_a_paragraph_is_split_the_same_whatever_was_split_before() -> None:
    paragraphs = ["See p. 3. Then go.", "He is Dr. No. Is he?", "J. R. Smith, Jr. came. Wow!"]
    before = [split_paragraph(paragraph) for paragraph in paragraphs]
    for number in range(2000):
        split_paragraph(f"Chap. {number}. See p. {number}. Then {number} came.")
    assert [split_paragraph(paragraph) for paragraph in reversed(paragraphs)] == before[::-1]


def test_nupunkt_for_others_in_this_process_stays_as_it_was() -> None:
    split_paragraph("One. Two.")
    assert not nupunkt.load("default").EXCL_QUEST_LOWERCASE_CONTINUES
