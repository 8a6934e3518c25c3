"""The filter that replaces what identifies a person: e-mail and IP addresses, cards, phones."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from data_prep.filters.rules import Changes, Dropped, Filter

# Bounded where RFC 5321 bounds it, and begun only where such a text can begin: linear time
_EMAIL = re.compile(
    r"(?<![\w!#$%&'*+/=?^`{|}~.-])[\w!#$%&'*+/=?^`{|}~-][\w!#$%&'*+/=?^`{|}~.-]{0,63}"
    r"@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
# What the next four have in common. It is rare and begins with a digit, so the search is fast.
_NUMBER = re.compile(r"[0-9][0-9 ()./+-]{5,}[0-9]")
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)", re.ASCII)
# 16 digits in fours, 15 as 4-6-5 (American Express) and 14 as 4-6-4 (Diners Club), or in one piece
_CARD = re.compile(
    r"(?<![\w.-])(?:[2-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}|3\d{3}([ -]?)\d{6}\2\d{4,5})(?![\w-])",
    re.ASCII,
)
_PHONE = re.compile(
    r"""(?<![\w+.,/-])(?:
      \+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,6}                     # +49 30 901820
    | (?:1[ .-])?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d[ .-])[2-9]\d\d[.-]\d{4}  # (212) 736-5000
    | 0[1-9](?:[ .]\d\d){4}                                          # 01 23 45 67 89
    )(?![\w-])""",
    re.ASCII | re.VERBOSE,
)
_CALLED = re.compile(
    r"(?<!\w)((?:tel|phone|telephone|telefon|fax|mobile|mobil|tél|téléphone|teléfono|telefono|"
    r"tlf|тел|電話|电话|전화)(?:\.:?|:)?[ ]?)(\(?0?\d[\d ()/.-]{4,18}\d)(?!\w)",
    re.IGNORECASE,
)

EMAIL, IP, CARD, PHONE = "email@example.com", "22.214.171.124", "0000 0000 0000 0000", "555-0100"


def pii() -> Filter:
    """Replaces what identifies a person by a fixed text of the same kind.

    E-mail addresses and public IPv4 addresses as FineWeb does (Penedo et al. 2024, appendix B, with
    its placeholders email@example.com and 22.214.171.124); numbers of payment cards that pass
    Luhn's check; phone numbers as Dolma does (Soldaini et al. 2024, section 5.3.2): international
    ones, those of North America and France by their form, others after a word such as tel.
    """

    def apply(text: str, code: str, changes: Changes) -> str | Dropped:
        if "@" in text:
            text = _replaced(text, _EMAIL, EMAIL, "e-mail address", changes)
        if not _NUMBER.search(text):
            return text
        return "\n".join(
            _without_numbers(line, changes) if _NUMBER.search(line) else line
            for line in text.split("\n")
        )

    return apply


def _without_numbers(line: str, changes: Changes) -> str:
    line = _replaced(line, _IP, IP, "IP address", changes, _is_public)
    line = _replaced(line, _CARD, CARD, "card number", changes, passes_luhn)
    line = _replaced(line, _PHONE, PHONE, "phone number", changes, _has_phone_length)
    return _replaced(line, _CALLED, PHONE, "phone number", changes, _has_phone_length)


def passes_luhn(number: str) -> bool:
    """Whether the digits of a number pass the check of ISO/IEC 7812 (Luhn's), and are not alike."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:  # a number above 255, or 01
        return False


def _has_phone_length(number: str) -> bool:
    """Whether a number has as many digits as a phone number; ITU-T E.164 has 15 at most."""
    return 7 <= sum(map(str.isdigit, number)) <= 15


def _replaced(
    text: str,
    pattern: re.Pattern[str],
    placeholder: str,
    kind: str,
    changes: Changes,
    is_one: Callable[[str], bool] = bool,
) -> str:
    """The text with the placeholder for every match that `is_one`; a placeholder stays.

    Of _CALLED the second group is the match.
    """

    def replace(match: re.Match[str]) -> str:
        before, found = match.groups() if pattern is _CALLED else ("", match[0])
        if found == placeholder or not is_one(found):
            return match[0]
        changes.append((kind, found))
        return before + placeholder

    return pattern.sub(replace, text)
