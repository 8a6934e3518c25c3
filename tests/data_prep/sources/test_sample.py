"""The sample inside every CPython: what of it is prose."""

import pytest
from source_reading import read_all, reasons, source_of, texts

from data_prep.sources import sample


@pytest.mark.slow
def test_the_sample_has_every_topic_and_hundreds_of_modules() -> None:
    from pydoc_data.topics import topics

    items = read_all(source_of("sample"))
    documents = texts(items)
    assert len({item.id for item in items}) == len(items)
    assert sum(id.startswith("topics/") for id in documents) > 0.9 * len(topics)
    assert sum(id.startswith("modules/") for id in documents) > 200
    assert sum(map(len, documents.values())) > 1_000_000
    assert set(reasons(items).values()) <= {"no docstring", "no prose"}


def test_prose_is_kept_and_grammar_tables_doctests_and_directives_go() -> None:
    text = """Sequence Types
**************

A sequence is an *ordered* collection, see
:class:`list` and ``tuple`` for two of them.

   seq ::= item ("," item)*

+-----+---------------------+
| x   | the table has words |
+-----+---------------------+

>>> [1, 2] + [3]
the output of this is here.

.. note:: this is a directive of some words.

* The first item goes
  over two lines.
* The second item is here.

str.join(iterable)

   Return a string which is the joined one.
"""
    assert sample.prose(text) == [
        "Sequence Types",
        "A sequence is an ordered collection, see list and tuple for two of them.",
        "The first item goes over two lines.",
        "The second item is here.",
        "Return a string which is the joined one.",
    ]


def test_docstrings_follow_the_source_and_nothing_is_run() -> None:
    code = b'''"""Module."""
raise SystemExit("imported")
def first():
    """First."""
    def inner():
        """Inner."""
class Second:
    """Second."""
    async def method(self): "Method."
def last(): return "no docstring"
'''
    assert sample.docstrings(code) == ["Module.", "First.", "Inner.", "Second.", "Method."]
