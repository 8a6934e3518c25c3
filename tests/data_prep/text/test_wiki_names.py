"""Pages of Wikipedias in other languages: disambiguation, redirects, dates, numbers, quotations."""

import pytest

from data_prep.text import wiki_names
from data_prep.text.wikitext import is_disambiguation, is_redirect, to_text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Née le {{Date de naissance|2|avril|1801}}.", "Née le 2 avril 1801."),
        ("Le {{date|2|4|1801}}, au {{s-|XIX}}.", "Le 2 avril 1801, au XIXe siècle."),
        ("Au {{Ier siècle}} et au {{s|I}}.", "Au Ier siècle et au Ier siècle."),
        ("La {{1re}} et la {{3e}} année.", "La 1re et la 3e année."),
        ("Haut de {{unité|12345|m}}, {{unité|7|km|2}}.", "Haut de 12 345 m, 7 km^2."),
        ("Il dit {{citation|oui}}. {{refnec|Il part}}.", "Il dit « oui ». Il part."),
        ("Er rief {{\"|Halt!}} und sah {{Einheit|3|kg}}.", "Er rief „Halt!“ und sah 3 kg."),
        ("Besucher ({{EnS|visitors}})", "Besucher (englisch visitors)"),
        ("{{仮リンク|緑町|en|Midori}}は{{ruby|町|まち}}だ。", "緑町は町だ。"),
        ("{{임시링크|강|en|River}}은 길다.", "강은 길다."),
        ("Открыт {{дата|9|2|1899}}, {{число|54321}} чел.", "Открыт 9 февраля 1899, 54 321 чел."),
        ("Nacida el {{fecha|9|2|1899}}.", "Nacida el 9 de febrero de 1899."),
        ("Im {{siglo|XX}} __KEIN_INHALTSVERZEICHNIS__", "Im siglo XX"),
    ],
)  # fmt: skip
def test_templates_of_other_languages_leave_their_text(markup: str, text: str) -> None:
    assert to_text(markup) == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("About 10<sup>12</sup> or 10<sup>-3</sup> m.", "About 10^12 or 10^-3 m."),
        ("{{val|6.02|e=23|u=kg}}, {{e|5}}", "6.02×10^23 kg, ×10^5"),
        ("The 1<sup>st</sup> of <sup>14</sup>C and H<sub>2</sub>O", "The 1st of 14C and H2O"),
    ],
)
def test_a_raised_number_is_a_power_and_not_more_digits(markup: str, text: str) -> None:
    assert to_text(markup) == text


@pytest.mark.parametrize(
    "name",
    ["Aimai", "동음이의", "توضيح", "anlam ayrımı", "Begriffsklärung", "消歧义", "Dp", "rozcestník"],
)
def test_a_disambiguation_page_of_any_language_is_known_by_template_and_title(name: str) -> None:
    assert is_disambiguation("A", f"A:\n* [[B]]\n{{{{{name}}}}}")
    assert is_disambiguation(f"A ({name})", "")
    assert not is_disambiguation("A", f"{{{{otheruses|A ({name})}}}} A is a letter.")


@pytest.mark.parametrize(
    "markup", ["#WEITERLEITUNG [[B]]", "#पुनर्प्रेषित [[नदी]]", "#เปลี่ยนทาง [[B]]", "#넘겨주기 [[B]]"]
)
def test_a_redirect_of_any_language_is_known(markup: str) -> None:
    assert is_redirect(markup)
    assert not is_redirect("# [[B]]\n# [[C]]")


def test_no_name_of_a_template_stands_for_two_things() -> None:
    tables = (
        wiki_names.FIRST.values(),
        (names for *_, names in wiki_names.QUOTED.values()),
        wiki_names.PARAGRAPHS.values(),
        {names for names in wiki_names.NUMBERS.values()},
        (names for names, *_ in wiki_names.DATES.values()),
        (names for names, _ in wiki_names.CENTURIES.values()),
        wiki_names.LANGUAGES,
    )
    names = [name for table in tables for listed in table for name in listed.split("|")]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)
