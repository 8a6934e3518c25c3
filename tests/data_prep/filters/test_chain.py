"""Filters in a row: their order, the language of a document, counts and samples over parts."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.core.job import load
from data_prep.core.settings import FilterName
from data_prep.filters.chain import SAMPLES, Chain, Inputs, Recorder, added, identity, make
from data_prep.filters.rules import Changes, Dropped, Filter
from data_prep.stores.documents import Document, Reject, RuleCounts

GERMAN = "Der Fluss stieg in der Nacht, und niemand im Dorf hatte je ein solches Wasser gesehen."


def upper(text: str, code: str, changes: Changes) -> str | Dropped:
    changes.append(("upper", code))
    return text.upper()


def no_capitals(text: str, code: str, changes: Changes) -> str | Dropped:
    return Dropped("capitals") if text.isupper() else text


def nothing(text: str, code: str, changes: Changes) -> str | Dropped:
    changes.append(("line", text))
    return "\n"


def test_a_filter_reads_what_the_one_before_it_leaves() -> None:
    document = Document("1", "A title", "text")
    assert Chain({"b": no_capitals, "a": upper}, "en").apply(document).text == "TEXT"
    rejected = Chain({"a": upper, "b": no_capitals}, "en").apply(document)
    assert rejected == Reject("1", "A title", "text", "b: capitals")


def test_changes_of_a_document_that_the_same_filter_drops_are_not_counted() -> None:
    chain = Chain({"a": nothing}, "en")
    assert chain.apply(Document("1", "", "text")) == Reject("1", "", "text", "a: no text left")
    assert {rule: n.documents for rule, n in chain.counts["a"].items()} == {"no text left": 1}


def test_in_a_corpus_of_many_languages_each_document_has_its_own() -> None:
    chain = Chain({"a": upper}, "multi")
    chain.apply(Document("1", "", GERMAN))
    assert chain.counts["a"]["upper"].samples[0].text == "de"


def recorded(changes) -> dict[str, dict[str, RuleCounts]]:
    recorder = Recorder()
    for rule, number, is_dropped in changes:
        recorder.add("f", rule, str(number), f"text of {number}", is_dropped)
    return recorder.counts()


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 99), st.booleans()), max_size=200),
    st.integers(0, 99),
)
def test_counts_and_samples_do_not_depend_on_how_documents_are_cut_into_parts(changes, cut) -> None:
    changes.sort(key=lambda change: change[1])
    parts = [c for c in changes if c[1] < cut], [c for c in changes if c[1] >= cut]
    whole = recorded(changes)
    assert added([recorded(part) for part in parts]) == whole
    for rule, counts in whole.get("f", {}).items():
        ids = {str(number) for name, number, _ in changes if name == rule}
        assert len(counts.samples) == len({s.id for s in counts.samples}) == min(SAMPLES, len(ids))


def test_only_the_settings_of_the_filters_that_run_decide_their_result(tmp_path) -> None:
    def of(*overrides: str):
        return identity(load([f"data_dir={tmp_path}", *overrides]))

    assert of("filters=[pii]") == of("filters=[pii]", "filter.most_documents=3")
    assert of("filters=[boilerplate]") != of("filters=[boilerplate]", "filter.most_documents=3")
    assert of("filters=[pii,c4_lines]") != of("filters=[c4_lines,pii]")


SENTENCES = (
    "The mill stood at the edge of the old town, and nobody had worked there for years.",
    "On the second day the rain came back, with a cold wind that bent the poplars.",
    "She had to be home before noon; that was what they all said\u00a0to her.",
    "“Have you seen the ferryman?” asked the boy who carried the lamp.",
    "Of the nine boats that left the harbour in 1914, three returned with their crews.",
    "\tHe wrote 12 letters, sent 7 and burned the rest at dusk.  ",
    "Nothing of this was known to the people who lived behind the hill.",
    "It is not far from here to the sea, but the path is steep.",
)


@functools.cache
def alone(name: str) -> Filter:
    """One filter by its name, whose hashes are of nothing."""
    task = f"filter.decontaminate_against={__file__}"
    hashes = np.array([1, 2**63], np.uint64)
    return make(load(["data_dir=any", f"filters=[{name}]", task]), Inputs(hashes, hashes))[name]


@pytest.mark.parametrize("name", [name.value for name in FilterName])
@given(order=st.permutations(SENTENCES), breaks=st.lists(st.booleans(), min_size=7, max_size=7))
def test_prose_without_matches_passes_every_filter_byte_for_byte(name, order, breaks) -> None:
    text = order[0]
    for is_break, sentence in zip(breaks, order[1:], strict=True):
        text += ("\n" if is_break else " ") + sentence
    changes: Changes = []
    assert alone(name)(text, "en", changes) == text
    assert changes == []


def test_task_files_of_one_name_are_told_apart(tmp_path) -> None:
    def of_second(text: str):
        for folder, content in (("a", "first"), ("b", text)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "dev.tsv").write_text(content)
        files = f"[{tmp_path}/a/dev.tsv,{tmp_path}/b/dev.tsv]"
        task = f"filter.decontaminate_against={files}"
        return identity(load([f"data_dir={tmp_path}", "filters=[decontaminate]", task]))

    assert of_second("first") == of_second("first") != of_second("second")
