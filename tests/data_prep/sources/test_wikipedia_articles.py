"""Which pages are articles."""

import pytest

from data_prep.sources.wikipedia_articles import lists_meanings

PARAGRAPH = "It has been known for a long time, and much has been written about it. " * 5


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("FIPS", "FIPS or Fips may refer to:"),
        ("A", "A may refer to:\nB, a town in Bavaria\nC, a village in Franconia"),
        ("Athene", "Athene is a goddess of Greek mythology.\nAthene may also refer to:"),
        ("CNO", "CNO is a three-letter initialism. It can mean:\nCNO may also refer to:"),
        ("Kuentz", "Kuentz is a German surname that may refer to"),
        ("Woolundunga", "Woolundunga may refer to."),
        ("Sapiens", "Sapiens, a Latin word meaning wise, may refer to :"),
        ("Durham", "Durham commonly refers to:\nDurham may also refer to:"),
        ("Hadriwa", "Hadriwa may refer to the following places in Bavaria, Germany:"),
        ("Sleet", "Sleet is a regional term that refers to two forms of precipitation:"),
        ("A (disambiguation)", PARAGRAPH),
        ("A (Begriffsklärung)", PARAGRAPH),
    ],
)
def test_pages_that_list_meanings_are_known(title: str, text: str) -> None:
    assert lists_meanings(title, text)


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("Clone", "Clone may refer to a cell."),
        ("Hindu", "Hindu can refer to either a religious or a cultural identity."),
        ("List", f"A mailing list is a use of email. It can refer to:\n{PARAGRAPH}"),
        ("Guitar", f"{PARAGRAPH}\nThe classical guitar may refer to:\n{PARAGRAPH}"),
        ("Avidar", "Avidar is a surname. Notable people with the surname include:"),
        ("A (dab hand)", "A is known."),
        ("Disambiguation", "Disambiguation is what a lexicographer does."),
    ],
)
def test_articles_about_meanings_are_kept(title: str, text: str) -> None:
    assert not lists_meanings(title, text)
