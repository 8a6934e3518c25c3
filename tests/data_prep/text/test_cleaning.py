"""Cleaning that every source shares."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.text.cleaning import clean_line, clean_paragraphs, join_wrapped, split_lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\f", "\v", "\x85", "\u2028", "\u2029"])
def test_every_kind_of_line_end_ends_a_line(end: str) -> None:
    assert split_lines(f"one{end}two") == ["one", "two"]


@pytest.mark.parametrize("blank", ["\t", "\xa0", "\u2003", "\u3000", "  "])
def test_every_kind_of_blank_becomes_one_space(blank: str) -> None:
    assert clean_line(f"{blank}one{blank}two{blank}") == "one two"


@given(st.text(st.characters()))
def test_nothing_invisible_or_unwritable_is_left(text: str) -> None:
    cleaned = clean_paragraphs(split_lines(text))
    cleaned.encode("utf-8")
    assert not [c for c in cleaned if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"]
    assert "" not in cleaned.split("\n") or cleaned == ""


@given(st.text(st.characters()))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_paragraphs(split_lines(text))
    assert clean_paragraphs(split_lines(once)) == once


@given(st.text(st.characters(exclude_categories=["C", "Z"])))
def test_visible_characters_all_stay(text: str) -> None:
    assert clean_line(text) == text


def test_lines_of_a_block_are_joined_and_blank_lines_part_blocks() -> None:
    lines = ["", "one", "two ", "", " ", "three", "", "four"]
    assert join_wrapped(lines) == ["one two", "three", "four"]
