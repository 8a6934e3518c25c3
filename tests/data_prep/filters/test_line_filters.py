"""C4's line rules against datatrove's implementation, and repeated lines against a plain one."""

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.utils.word_tokenizers import WordTokenizer
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters.lines import SHORTEST_REPEATED, c4_lines, line_duplicates
from data_prep.filters.rules import Changes, Dropped
from data_prep.text.sentences import split_paragraph

LINES = (
    "The river rose in the night. By noon it had reached the bridge.",
    "Nobody in the village remembered such a flood!",
    '"Who would have thought it?" asked the miller.',
    "Home | News | Contact",
    "Click here to read",
    "Two words.",
    "And then he waited...",
    "Our site uses cookies, as you know.",
    "See the privacy policy of this page.",
    "Please enable JavaScript to go on.",
    "The word " + "a" * 1_001 + " is too long.",
    "The population is small[12], as the census shows.",
    "History of the town[edit] is told here.",
    "",
)
WHOLE = ("Lorem ipsum dolor sit amet.", "Then { x } is a set.")


class Words(WordTokenizer):
    """Sentences by our splitter, because datatrove's need packages of their own."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return split_paragraph(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(n, n + 1) for n, _ in enumerate(split_paragraph(text))]


def by_c4(text: str, code: str = "en") -> str | Dropped:
    return c4_lines(3, 5, lambda line, _: split_paragraph(line))(text, code, [])


THEIRS = C4QualityFilter(language=Words())


@given(
    st.one_of(
        st.lists(st.sampled_from(LINES), min_size=6, max_size=16),
        st.lists(st.sampled_from(LINES + WHOLE), max_size=12),
    )
)
def test_c4_s_line_rules_give_what_datatrove_s_give(lines: list[str]) -> None:
    text = "\n".join(lines)
    document = Document(text=text, id="")
    is_kept = THEIRS.filter(document)
    ours = by_c4(text)
    assert ours == document.text if is_kept is True else isinstance(ours, Dropped)


KEPT = "He came. He saw. He won. They cheered. They went home."


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("zh", "他在一九二三年来到北京。"),
        ("ja", "彼は東京に来た。"),
        ("hi", "वह दिल्ली आया था।"),
        ("ar", "متى وصل إلى المدينة؟"),
        ("th", "เขามาถึงกรุงเทพฯ เมื่อวานนี้"),
        ("de", "Er sagte: „Ich komme morgen.“"),
        ("en", "He said: “I shall come.”"),
    ],
)
def test_a_sentence_of_any_script_ends_in_a_terminal_mark(code: str, line: str) -> None:
    assert by_c4(f"{KEPT}\n{line}", code) == f"{KEPT}\n{line}"


def test_each_line_left_out_is_noted_with_its_rule() -> None:
    changes: Changes = []
    text = "\n".join([KEPT, "Home | News | Contact", "Two words.", "We use cookies, all of us."])
    assert c4_lines(3, 5, lambda line, _: split_paragraph(line))(text, "en", changes) == KEPT
    assert changes == [
        ("no terminal mark", "Home | News | Contact"),
        ("fewer than 3 words", "Two words."),
        ("cookies or policy", "We use cookies, all of us."),
    ]


LINE = st.text(st.sampled_from("ab .\u00a0ß"), max_size=4).map(lambda line: line * 10)


@given(st.lists(LINE, max_size=8))
def test_a_long_line_stays_where_it_is_the_first_and_short_ones_stay(lines: list[str]) -> None:
    text = "\n".join(lines)
    bare = [line.strip() for line in lines]
    expected = [
        line
        for number, line in enumerate(lines)
        if len(bare[number]) < SHORTEST_REPEATED or bare.index(bare[number]) == number
    ]
    changes: Changes = []
    assert line_duplicates()(text, "en", changes) == "\n".join(expected)
    assert len(changes) == len(lines) - len(expected)
