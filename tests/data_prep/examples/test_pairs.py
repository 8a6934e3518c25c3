"""Sentence pairs: as a plain version of Google's code makes them, well-formed, fair."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_corpora import distinct_documents, open_store, random_documents

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing, RandomNext
from data_prep.examples import partners as partners_module
from data_prep.examples import philox
from data_prep.examples.pairs import PairRule, Pairs, make_pairs, split_long_sentences
from data_prep.examples.partners import partners_of
from data_prep.stores.tokens import TokenStore

CLS, SEP = 2, 3
RULE = PairRule(Pairing.nsp, seq_len=32, short_seq_prob=0.1, seed=12345, copy=0)


def pairs_of(tmp_path: Path, parts, rule: PairRule = RULE) -> list[Pairs]:
    """The pairs of each part of a corpus."""
    store = open_store(tmp_path, parts)
    return [make_pairs(store, part, rule, CLS, SEP) for part in range(store.num_parts)]


def rows(pairs: list[Pairs]) -> list[tuple[list[int], list[int], int, int, int, int]]:
    """(A, B, label, document of A, document of B, number) of every pair, cut one by one."""
    out = []
    for part in pairs:
        for i, (start, end) in enumerate(pairwise(part.offsets)):
            ids, length = part.input_ids[start:end].tolist(), int(part.segment_a_lengths[i])
            assert (ids[0], ids[length - 1], ids[-1]) == (CLS, SEP, SEP)
            columns = (part.next_sentence_labels, part.document_a, part.document_b, part.numbers)
            a, b = ids[1 : length - 1], ids[length:-1]
            out.append((a, b, *(int(column[i]) for column in columns)))
    return out


def naive_pairs(documents, rule: PairRule, choices_of=None):
    """create_instances_from_document in plain Python, on the numbers of the same streams.

    `choices_of` has for each document those that its partners come from; None: all others.
    """
    window = rule.seq_len - 3
    key = np.uint64(rule.seed << 32 | rule.copy)

    def stream_of(purpose: int, document: int, number: int) -> np.ndarray:
        stream = np.zeros(philox.WORDS, np.uint32)
        philox.start(stream, key, purpose, np.uint64(document << 32 | number))
        return stream

    out = []
    for document, stored in enumerate(documents):
        sentences = []
        for sentence in stored:
            cuts = range(0, 2 * len(sentence), window) if len(sentence) > window else [0]
            cuts = [*(cut // 2 for cut in cuts), len(sentence)]
            sentences += [sentence[a:b] for a, b in pairwise(cuts)]
        i = number = 0
        while i < len(sentences):
            stream = stream_of(philox.PAIR, document, number)
            is_short = philox.next_double(stream) < rule.short_seq_prob
            target = 2 + philox.next_below(stream, window - 1) if is_short else window
            chunk: list[list[int]] = []
            while i < len(sentences) and sum(map(len, chunk)) < target:
                chunk.append(sentences[i])
                i += 1
            a_end = 1 + (philox.next_below(stream, len(chunk) - 1) if len(chunk) > 1 else 0)
            a = [token for sentence in chunk[:a_end] for token in sentence]
            b: list[int] = []
            other = document
            if len(chunk) == 1 or philox.next_below(stream, 2) == 1:
                among = choices_of[document] if choices_of else range(len(documents))
                choices = [d for d in among if d != document]
                other = choices[philox.next_below(stream, len(choices))]
                partner = stream_of(philox.PARTNER, document, number)
                start = philox.next_below(partner, len(documents[other]))
                for sentence in documents[other][start:]:
                    b += sentence
                    if len(b) >= target - len(a):
                        break
                i -= len(chunk) - a_end
            else:
                b = [token for sentence in chunk[a_end:] for token in sentence]
            coins = stream_of(philox.TRUNCATION, document, number)
            while len(a) + len(b) > window:
                longer = a if len(a) > len(b) else b
                longer.pop(0 if philox.next_below(coins, 2) == 1 else -1)
            out.append((a, b, int(other != document), document, other, number))
            number += 1
    return out


LENGTHS = st.lists(  # documents of one sentence, of many, and of sentences beyond the window
    st.lists(st.one_of(st.integers(1, 12), st.integers(1, 200)), min_size=1, max_size=12),
    min_size=2,
    max_size=6,
)


def any_corpus(test: Callable[..., None]) -> Callable[..., None]:
    """Give a test corpora, rules, and a document before which the corpus is cut into parts."""
    return given(
        lengths=LENGTHS, seed=st.integers(0, 2**32 - 1), short=st.sampled_from([0.0, 0.1, 1.0]),
        seq_len=st.sampled_from([8, 9, 32, 128]), cut=st.integers(0, 6),
    )(test)  # fmt: skip


def owners(documents: list[list[list[int]]]) -> dict[int, int]:
    """The number of the document that has each token, where all tokens differ."""
    return {
        token: number
        for number, document in enumerate(documents)
        for sentence in document
        for token in sentence
    }


@any_corpus
def test_pairs_equal_those_of_a_plain_rendering_of_google_s_code(
    tmp_path_factory, lengths, seed, short, seq_len, cut
) -> None:
    rule = PairRule(Pairing.nsp, seq_len, short, seed, copy=3)
    documents = distinct_documents(lengths)
    parts = [documents[:cut], [], documents[cut:]]  # any cut, an empty part among them
    found = rows(pairs_of(tmp_path_factory.mktemp("corpus"), parts, rule))
    assert found == naive_pairs(documents, rule)


@given(lengths=LENGTHS, seed=st.integers(0, 2**32 - 1))
def test_every_pair_is_well_formed_and_every_token_used_once(
    tmp_path_factory, lengths, seed
) -> None:
    documents = distinct_documents(lengths)
    pairs = pairs_of(
        tmp_path_factory.mktemp("corpus"), [documents], PairRule(Pairing.nsp, 16, 0.1, seed, 0)
    )
    owner = owners(documents)
    own: Counter[int] = Counter()
    for a, b, label, document_a, document_b, _ in rows(pairs):
        assert a
        assert b
        assert len(a) + len(b) <= 13
        assert {owner[token] for token in a} == {document_a}
        assert {owner[token] for token in b} == {document_b}
        assert label == (document_a != document_b)
        own.update(a if label else a + b)
    assert set(own.values()) == {1}
    assert len(own) + pairs[0].truncated_tokens == len(owner)


def test_b_that_follows_a_in_its_document_has_label_0(tmp_path: Path) -> None:
    documents = distinct_documents([[3, 4, 3, 4, 3, 4] * 20, [5] * 50])
    actual = [row for row in rows(pairs_of(tmp_path, [documents])) if row[2] == 0]
    assert len(actual) > 5
    last_tokens = {sentence[-1] for document in documents for sentence in document}
    for a, b, *_ in actual:
        assert a == list(range(a[0], a[0] + len(a)))
        assert b == list(range(b[0], b[0] + len(b)))
        # between them is at most what truncation removed: no whole sentence
        between = [token for token in range(a[-1], b[0]) if token in last_tokens]
        assert len(between) == 1


def test_after_a_random_next_the_walk_goes_on_right_after_a(tmp_path: Path) -> None:
    documents = distinct_documents([[4] * 600, [4] * 600])
    found = [row for row in rows(pairs_of(tmp_path, [documents])) if row[3] == 0]
    put_back = 0
    for (a, _, label, *_), (following, *_) in pairwise(found):
        if label == 1 and len(a) <= 12:  # shorter than half a window: truncation spares A
            assert following[0] - a[-1] <= 4
            put_back += 1
    assert put_back > 10


def test_a_random_partner_is_any_other_document_equally_often(tmp_path: Path) -> None:
    # Uniform by document and not by length: one of them is a hundred times as long
    documents = distinct_documents([[8] * 3000, *([[8] * 30] * 9)])
    found = rows(pairs_of(tmp_path, [documents[:4], documents[4:]]))
    partners = Counter(b for _, _, label, a, b, _ in found if label and a == 0)
    expected = sum(partners.values()) / 9
    assert expected > 50
    assert sorted(partners) == list(range(1, 10))
    assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in partners.values())


def parts_of_partners(store: TokenStore, part: int, where: RandomNext, key: int) -> list[list[int]]:
    """The parts that the partners of a part's documents come from; a list for each language."""
    return [p.parts.tolist() for p in partners_of(store, part, where, np.uint64(key))]


def test_of_many_parts_a_task_maps_a_few_and_draws_from_their_documents_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partners_module, "PARTNER_PARTS", 3)
    store = open_store(tmp_path, [distinct_documents([[5, 5, 5]] * 4)] * 8)
    pairs = make_pairs(store, 2, RULE, CLS, SEP)
    [chosen] = parts_of_partners(store, 2, RandomNext.corpus, RULE.seed << 32)
    assert len(chosen) == 3
    assert 2 in chosen
    assert set(store.mapped) <= set(chosen)
    assert set(pairs.document_b // 4) <= set(chosen)
    assert not np.any((pairs.next_sentence_labels == 1) & (pairs.document_a == pairs.document_b))


def test_every_other_part_with_documents_is_drawn_from_equally_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partners_module, "PARTNER_PARTS", 4)
    part = distinct_documents([[5]])
    store = open_store(tmp_path, [part, [], *[part] * 6])
    drawn = Counter(
        other
        for key in range(2000)
        for [chosen] in [parts_of_partners(store, 0, RandomNext.corpus, key)]
        for other in chosen
    )
    assert drawn.pop(0) == 2000
    assert set(drawn) == {2, 3, 4, 5, 6, 7}
    assert all(900 < count < 1100 for count in drawn.values())  # 1,000 +- 4.5 deviations of 22


FROM_SOURCE = replace(RULE, random_next=RandomNext.source)


def sources_of_partners(tmp_path: Path, sources: str, rule: PairRule) -> set[str]:
    """The sources of A and of its random B, over a corpus of a part of 4 documents per letter."""
    parts = [distinct_documents([[5, 5, 5]] * 4) for _ in sources]
    store = open_store(tmp_path, parts, sources)
    return {
        sources[a // 4] + sources[b // 4]
        for part in range(store.num_parts)
        for *_, label, a, b, _ in rows([make_pairs(store, part, rule, CLS, SEP)])
        if label
    }


def test_with_random_next_source_partners_are_of_the_same_source(tmp_path: Path) -> None:
    assert sources_of_partners(tmp_path / "source", "aabb", FROM_SOURCE) == {"aa", "bb"}
    assert sources_of_partners(tmp_path / "corpus", "aabb", RULE) == {"aa", "ab", "ba", "bb"}


def test_of_many_parts_of_a_source_a_task_draws_from_a_few_of_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partners_module, "PARTNER_PARTS", 3)
    store = open_store(tmp_path, [distinct_documents([[5]])] * 12, "aaaaaaaaabbb")
    for key in range(50):
        [chosen] = parts_of_partners(store, 0, RandomNext.source, key)
        assert len(chosen) == 3
        assert 0 in chosen
        assert max(chosen) < 9


def test_of_one_source_every_random_next_gives_the_same_pairs(tmp_path: Path) -> None:
    parts = [random_documents(np.random.default_rng(n), 5) for n in range(3)]
    whole, of_source = (rows(pairs_of(tmp_path, parts, rule)) for rule in (RULE, FROM_SOURCE))
    assert whole == of_source


def test_a_document_alone_of_its_source_has_partners_of_others_and_is_counted(
    tmp_path: Path,
) -> None:
    parts = [distinct_documents([[5] * 200]), distinct_documents([[5, 5]] * 3)]
    store = open_store(tmp_path, parts, "ab")
    first, second = (make_pairs(store, part, FROM_SOURCE, CLS, SEP) for part in range(2))
    assert set(first.document_b[first.next_sentence_labels == 1].tolist()) == {1, 2, 3}
    assert (first.lone_documents, second.lone_documents) == (1, 0)
    assert not (second.document_b == 0).any()


BY_LANGUAGE = replace(RULE, random_next=RandomNext.language)


def naive_choices(sources: str, languages: list[str]) -> list[list[int]]:
    """Of each document those of its source and language, else of its language, else all."""
    kinds = [(s, code) for s, codes in zip(sources, languages, strict=True) for code in codes]
    rules: list[Callable[[tuple[str, str], tuple[str, str]], bool]] = [
        lambda a, b: a == b,
        lambda a, b: a[1] == b[1],
        lambda a, b: True,
    ]
    found = []
    for own in kinds:
        levels = [[d for d, kind in enumerate(kinds) if rule(own, kind)] for rule in rules]
        found.append(next(level for level in levels if len(level) >= 2))
    return found


@settings(max_examples=25)
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from("ab"), st.text(st.sampled_from("xyz"), max_size=5)),
        min_size=1, max_size=6,
    ).filter(lambda kinds: sum(len(codes) for _, codes in kinds) >= 2),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_with_random_next_language_pairs_equal_those_of_a_plain_rendering(
    tmp_path_factory, kinds: list[tuple[str, str]], seed: int
) -> None:
    sources, languages = "".join(s for s, _ in kinds), [codes for _, codes in kinds]
    documents = distinct_documents([[9, 20, 9]] * sum(map(len, languages)))
    ends = np.cumsum([0, *map(len, languages)])
    parts = [documents[a:b] for a, b in pairwise(ends)]
    store = open_store(tmp_path_factory.mktemp("corpus"), parts, sources, languages)
    rule = replace(BY_LANGUAGE, seed=seed)
    pairs = [make_pairs(store, part, rule, CLS, SEP) for part in range(store.num_parts)]
    assert rows(pairs) == naive_pairs(documents, rule, naive_choices(sources, languages))
    own = [(s, code) for s, codes in kinds for code in codes]
    lone = sum(kind not in own[:n] + own[n + 1 :] for n, kind in enumerate(own))
    assert sum(part.lone_documents for part in pairs) == lone


def test_of_many_parts_each_language_has_partners_of_a_few_that_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partners_module, "PARTNER_PARTS", 3)
    languages = ["xxy", *["xx"] * 8, *["xy"] * 4, *["xz"] * 3]
    parts = [distinct_documents([[5]] * len(codes)) for codes in languages]
    store = open_store(tmp_path, parts, languages=languages)
    common = set()
    for key in range(100):
        x, y = parts_of_partners(store, 0, RandomNext.language, key)
        assert (len(x), len(y), x[0], y[0]) == (3, 3, 0, 0)
        assert set(y) <= {0, 9, 10, 11, 12}
        common |= set(x)
    assert common == set(range(16))


def test_other_languages_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path, [distinct_documents([[5, 5]] * 4)], languages=["xxyy"])
    store.manifest.splits["train"][0].documents_of = np.array([3, 1], "<u4").tobytes()
    with pytest.raises(SettingsError, match=r"2 documents have language 0, the manifest says 3; d"):
        make_pairs(store, 0, BY_LANGUAGE, CLS, SEP)


def test_a_random_partner_starts_at_any_sentence_equally_often(tmp_path: Path) -> None:
    documents = distinct_documents([[9] * 6000, [9] * 10])
    found = rows(pairs_of(tmp_path, [documents]))
    first = documents[1][0][0]
    starts = Counter((b[0] - first) // 9 for _, b, label, a, *_ in found if label and a == 0)
    expected = sum(starts.values()) / 10
    assert expected > 100
    assert all(abs(starts[place] - expected) < 5 * np.sqrt(expected) for place in range(10))


def test_the_short_target_is_drawn_for_every_pair(tmp_path: Path) -> None:
    documents = distinct_documents([[1] * 20_000, [1] * 20_000])
    rule = PairRule(Pairing.nsp, 128, 0.1, 5, 0)
    lengths = [len(a) + len(b) for a, b, *_ in rows(pairs_of(tmp_path, [documents], rule))]
    share = np.mean(np.array(lengths) < 125)
    # 0.1 * 123 / 124 draws below the window; drawn once a document it would be 0 or 1
    assert abs(share - 0.0992) < 4 * np.sqrt(0.09 / len(lengths))
    short = [length for length in lengths if length < 125]
    assert min(short) < 20
    assert abs(np.mean(short) - 63) < 4 * 36 / np.sqrt(len(short))  # uniform from 2 to 124


def test_a_single_document_has_no_partner_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds 1 document.*another one: add documents"):
        pairs_of(tmp_path, [distinct_documents([[5, 5, 5]])])


@given(lengths=LENGTHS, window=st.integers(2, 125))
def test_long_sentences_are_cut_into_pieces_that_lose_nothing(lengths, window: int) -> None:
    sentence_offsets = np.cumsum([0, *(n for document in lengths for n in document)])
    document_offsets = np.cumsum([0, *map(len, lengths)])
    new_sentences, new_documents = split_long_sentences(sentence_offsets, document_offsets, window)
    pieces = np.diff(new_sentences)
    assert pieces.min() > 0
    assert pieces.max() <= window
    assert set(sentence_offsets.tolist()) <= set(new_sentences.tolist())
    # a document starts at the token where it started
    before = sentence_offsets[document_offsets].tolist()
    assert new_sentences[new_documents].tolist() == before
    # what fits a window is left whole
    kept = [n for document in lengths for n in document if n <= window]
    assert sum(n > window for document in lengths for n in document) <= len(pieces) - len(kept)


def test_a_sentence_of_many_windows_appears_in_full(tmp_path: Path) -> None:
    """One sentence of 40 windows: without pieces, 39 of them would be lost."""
    documents = distinct_documents([[40 * 29], [10] * 5])
    pairs = pairs_of(tmp_path, [documents], PairRule(Pairing.nsp, 32, 0.0, 1, 0))
    of_first = [row for row in rows(pairs) if row[3] == 0]
    own = {token for a, b, label, *_ in of_first for token in (a if label else a + b)}
    assert len(own) == 40 * 29
    assert pairs[0].long_sentences == 1


# ------------------------------------------------ sentence order, and no pairs at all

SWAPPING = PairRule(Pairing.sop, seq_len=32, short_seq_prob=0.1, seed=12345, copy=0)
SINGLE = PairRule(Pairing.none, seq_len=32, short_seq_prob=0.1, seed=12345, copy=0)


def texts(pairs: list[Pairs]) -> list[tuple[list[int], int]]:
    """(ids, document) of every example without pairs."""
    out = []
    for part in pairs:
        for i, (start, end) in enumerate(pairwise(part.offsets)):
            ids = part.input_ids[start:end].tolist()
            assert (ids[0], ids[-1]) == (CLS, SEP)
            assert part.segment_a_lengths[i] == len(ids)
            assert part.next_sentence_labels[i] == 0
            assert part.document_a[i] == part.document_b[i]
            out.append((ids[1:-1], int(part.document_a[i])))
    return out


@any_corpus
def test_a_pair_in_order_or_swapped_is_two_neighbours_of_one_document(
    tmp_path_factory, lengths, seed, short, seq_len, cut
) -> None:
    documents = distinct_documents(lengths)
    parts = [documents[:cut], [], documents[cut:]]
    rule = PairRule(Pairing.sop, seq_len, short, seed, copy=3)
    pairs = pairs_of(tmp_path_factory.mktemp("corpus"), parts, rule)
    owner = owners(documents)
    window = seq_len - 3
    unpaired = {
        n for n, document in enumerate(lengths) if len(document) == 1 and document[0] <= window
    }
    used: list[int] = []
    for a, b, label, document_a, document_b, _ in rows(pairs):
        assert a
        assert b
        assert len(a) + len(b) <= window
        assert document_a == document_b
        assert {owner[token] for token in a + b} == {document_a}
        first, second = (b, a) if label else (a, b)
        text = first + second
        assert text == sorted(text)  # ids ascend through the corpus
        assert first == list(range(first[0], first[-1] + 1))
        assert second == list(range(second[0], second[-1] + 1))
        used += text
    # in the order of the corpus, each once; what is between was truncated, and counted
    assert used == sorted(set(used))
    assert len(used) + sum(part.truncated_tokens for part in pairs) == len(owner)
    assert set(range(len(documents))) - {owner[token] for token in used} == unpaired
    assert sum(part.unpaired_documents for part in pairs) == len(unpaired)


def test_what_is_neither_too_long_nor_alone_is_never_truncated(tmp_path: Path) -> None:
    """Sentences that fill the window exactly, except for the last one, which would be alone."""
    documents = distinct_documents([[9, 10, 10, 9, 10, 10, 9]])
    pairs = pairs_of(tmp_path, [documents], PairRule(Pairing.sop, 32, 0.0, 1, 0))
    assert [len(a) + len(b) for a, b, *_ in rows(pairs)] == [29, 19, 19]
    assert pairs[0].truncated_tokens == 0


def test_half_of_the_pairs_are_swapped(tmp_path: Path) -> None:
    documents = random_documents(np.random.default_rng(0), 2000)
    labels = [label for _, _, label, *_ in rows(pairs_of(tmp_path, [documents], SWAPPING))]
    assert len(labels) > 5000
    assert abs(np.mean(labels) - 0.5) < 4 * np.sqrt(0.25 / len(labels))


def test_lengths_after_truncation_do_not_reveal_that_a_pair_is_swapped(tmp_path: Path) -> None:
    """Truncation prefers one place where both are equally long: it must come after the swap."""
    documents = distinct_documents([[20, 20] for _ in range(100)])
    found = rows(pairs_of(tmp_path, [documents], SWAPPING))
    assert {(len(a), len(b)) for a, b, *_ in found} == {(15, 14)}
    assert {label for _, _, label, *_ in found} == {0, 1}


@any_corpus
def test_without_pairs_no_token_is_lost_doubled_or_of_another_document(
    tmp_path_factory, lengths, seed, short, seq_len, cut
) -> None:
    documents = distinct_documents(lengths)
    parts = [documents[:cut], [], documents[cut:]]
    rule = PairRule(Pairing.none, seq_len, short, seed, copy=3)
    pairs = pairs_of(tmp_path_factory.mktemp("corpus"), parts, rule)
    of_document: list[list[int]] = [[] for _ in documents]
    for ids, document in texts(pairs):
        assert 0 < len(ids) <= seq_len - 2
        of_document[document] += ids
    assert of_document == [[t for sentence in document for t in sentence] for document in documents]
    assert sum(part.truncated_tokens + part.unpaired_documents for part in pairs) == 0


def test_without_pairs_an_example_ends_before_the_sentence_that_does_not_fit(tmp_path) -> None:
    documents = distinct_documents([[10, 10, 10, 11, 9, 30, 5], [3]])
    made = pairs_of(tmp_path, [documents], PairRule(Pairing.none, 32, 0.0, 1, 0))
    assert [len(ids) for ids, _ in texts(made)] == [30, 20, 30, 5, 3]


@pytest.mark.parametrize("rule", [RULE, SWAPPING, SINGLE])
def test_examples_do_not_depend_on_how_the_corpus_is_cut_into_parts(tmp_path, rule) -> None:
    documents = random_documents(np.random.default_rng(0), 30)
    whole = pairs_of(tmp_path / "whole", [documents], rule)
    cut = pairs_of(tmp_path / "cut", [documents[:7], documents[7:8], [], documents[8:]], rule)
    columns = "input_ids segment_a_lengths next_sentence_labels document_a document_b numbers"
    for name in columns.split():
        assert np.concatenate([getattr(part, name) for part in cut]).tolist() == (
            getattr(whole[0], name).tolist()
        )


@pytest.mark.parametrize("rule", [RULE, SWAPPING, SINGLE])
def test_another_pass_or_seed_makes_other_examples(tmp_path: Path, rule: PairRule) -> None:
    store = open_store(tmp_path, [random_documents(np.random.default_rng(0), 30)])
    made = [
        make_pairs(store, 0, replace(rule, seed=seed, copy=copy), CLS, SEP).input_ids.tobytes()
        for seed, copy in ((1, 0), (1, 1), (2, 0), (1, 0))
    ]
    assert made[0] == made[3]
    assert len(set(made)) == 3


def test_a_single_document_needs_no_partner_where_there_are_no_random_ones(tmp_path: Path) -> None:
    for rule in (SWAPPING, SINGLE):
        assert len(pairs_of(tmp_path, [distinct_documents([[5, 5, 5]])], rule)[0].offsets) == 2


# ------------------------------------------------ against Google's own way, by statistics


def google_pairs(documents, window: int, short: float, rng: Random) -> list[tuple[int, int, int]]:
    """(label, |A|, |B|) by create_instances_from_document with its own generator.

    Only the target is drawn per pair.
    """
    out = []
    for index, document in enumerate(documents):
        chunk: list[list[int]] = []
        i = 0
        target = window
        while i < len(document):
            if not chunk:
                target = rng.randint(2, window) if rng.random() < short else window
            chunk.append(document[i])
            if i == len(document) - 1 or sum(map(len, chunk)) >= target:
                a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                a = sum(map(len, chunk[:a_end]))
                b = 0
                if label := int(len(chunk) == 1 or rng.random() < 0.5):
                    other = index
                    while other == index:
                        other = rng.randint(0, len(documents) - 1)
                    for sentence in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
                        b += len(sentence)
                        if b >= target - a:
                            break
                    i -= len(chunk) - a_end
                else:
                    b = sum(map(len, chunk[a_end:]))
                while a + b > window:
                    a, b = (a - 1, b) if a > b else (a, b - 1)
                out.append((label, a, b))
                chunk = []
            i += 1
    return out


@pytest.mark.parametrize("seq_len", [32, 128])
def test_label_rate_and_lengths_are_those_of_google_s_algorithm(tmp_path, seq_len: int) -> None:
    documents = random_documents(np.random.default_rng(3), 3000)
    expected = np.array(google_pairs(documents, seq_len - 3, 0.1, Random(0)))
    found = rows(pairs_of(tmp_path, [documents], PairRule(Pairing.nsp, seq_len, 0.1, 9, 0)))
    ours = np.array([(label, len(a), len(b)) for a, b, label, *_ in found])
    error = np.sqrt(expected.var(0) / len(expected) + ours.var(0) / len(ours))
    assert (abs(ours.mean(0) - expected.mean(0)) < 4.5 * error).all()
    assert abs(len(ours) / len(expected) - 1) < 0.02


def test_pairs_are_made_at_more_than_10_megabytes_of_text_a_second(tmp_path: Path) -> None:
    store = open_store(tmp_path, [random_documents(np.random.default_rng(3), 5000)])
    make_pairs(store, 0, RULE, CLS, SEP)  # compiles
    began = time.process_time()
    make_pairs(store, 0, RULE, CLS, SEP)
    # 4.3 bytes of English per token; 300 MB/s on one core, so the bound holds under load
    assert store.part(0).num_tokens * 4.3 / (time.process_time() - began) > 10e6
