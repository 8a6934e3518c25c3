"""What identifies a person is replaced: by datatrove's rule, Luhn's check, forms of numbers."""

import time

import pytest
from datatrove.pipeline.formatters.pii import PIIFormatter
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters.pii import passes_luhn, pii
from data_prep.filters.rules import Changes

CARD = "4111 1111 1111 1111"


def replaced(text: str) -> str:
    found = pii()(text, "en", [])
    assert isinstance(found, str)
    return found


WORDS = (
    "write to jane.doe@mail.example.org today",
    "or (info@paper.co.uk).",
    "from 8.8.8.8 and",
    "192.168.0.1 is private",
    "255.255.255.256 is none",
    "@home",
    "a @ b",
    "x+y@z-w.net,",
)


@given(st.lists(st.sampled_from(WORDS)))
def test_addresses_are_replaced_as_by_datatrove(words: list[str]) -> None:
    text = " ".join(words)
    theirs = PIIFormatter(
        email_replacement="email@example.com", ip_replacement="22.214.171.124"
    ).format(text)
    assert replaced(text) == theirs


def checks(number: str) -> bool:
    """Luhn's check as its patent has it: from the right, every second digit doubled."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value // 10 + value % 10
    return total % 10 == 0


@given(st.text("0123456789", min_size=12, max_size=19))
def test_luhn_s_check_is_the_published_one(number: str) -> None:
    assert passes_luhn(number) == (checks(number) and len(set(number)) > 1)


@given(st.integers(2 * 10**15, 7 * 10**15 - 1).map(str))
def test_a_card_number_is_replaced_if_and_only_if_it_passes_luhn_s_check(digits: str) -> None:
    fours = " ".join(digits[n : n + 4] for n in range(0, 16, 4))
    for number in (digits, fours, fours.replace(" ", "-")):
        expected = "0000 0000 0000 0000" if passes_luhn(digits) else number
        assert replaced(f"pay {number} now") == f"pay {expected} now"


@pytest.mark.parametrize(
    "number",
    [
        "+49 30 901820", "+1 (212) 736-5000", "(212) 736-5000", "212-736-5000", "212.736.5000",
        "+33 1 23 45 67 89", "01 23 45 67 89", "+442071234567",
    ],
)  # fmt: skip
def test_phone_numbers_are_replaced(number: str) -> None:
    assert replaced(f"Call {number}, please.") == "Call 555-0100, please."


@pytest.mark.parametrize("word", ["Tel. ", "tel: ", "Fax ", "Telefon ", "Phone: "])
def test_a_number_after_such_a_word_is_a_phone_number(word: str) -> None:
    assert replaced(f"{word}030 / 901 820.") == f"{word}555-0100."


@pytest.mark.parametrize(
    "text",
    [
        "from 1914-1918 and 1939 - 1945", "ISBN 978-3-16-148410-0", "2026-11-29 12:30:45",
        "in 12,345,678 cases", "at 3.14159265358979", "12 345 678 people", "4111 1111 1111 1112",
        "a" * 65 + "@b.org", "10.1000/182.12345.678", "555-0100",
        "22.214.171.124", "email@example.com",
    ],
)  # fmt: skip
def test_other_numbers_and_placeholders_stay(text: str) -> None:
    changes: Changes = []
    assert pii()(text, "en", changes) == text
    assert not changes


def test_each_replacement_is_noted_with_its_kind_and_the_text_that_was_there() -> None:
    changes: Changes = []
    pii()(f"a@b.de\n{CARD} 8.8.8.8", "en", changes)
    assert changes == [
        ("e-mail address", "a@b.de"),
        ("IP address", "8.8.8.8"),
        ("card number", CARD),
    ]


@pytest.mark.parametrize(
    "piece", ["a", "a.", "a-", "1 ", "1.", "(1", "+1 ", "4111 ", "a@", "tel 1"]
)
def test_time_grows_with_the_text_and_not_with_its_square(piece: str) -> None:
    """10 MB/s would take 0.1 s; quadratic time takes hours."""
    began = time.process_time()
    replaced("@" + piece * (1_000_000 // len(piece)))
    assert time.process_time() - began < 10
