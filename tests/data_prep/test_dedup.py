"""Documents dropped as copies: the rule, the record, and what vocab and encode leave out."""

import itertools
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import write_source
from shared_data import packed

from data_prep import collect, dedup, encode, vocab
from data_prep.core.files import checksum, read_json
from data_prep.core.job import load
from data_prep.duplicates import matching, search
from data_prep.duplicates.dropped import dropped_ids
from data_prep.duplicates.matching import FEWEST_CHARACTERS, LEAST_EQUAL
from data_prep.duplicates.minhash import BANDS, shingles, signature
from data_prep.duplicates.signatures import Signatures, signatures_path
from data_prep.stores.documents import Document, DocumentPart, list_parts
from data_prep.stores.token_records import TokensManifest


def made_text(seed: int, words: int = 120) -> str:
    """Text of its own: words of four letters, sentences of ten."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(97, 123, (words, 4)).astype(np.uint8)
    texts = [bytes(word).decode() for word in letters]
    texts[9::10] = [f"{word}." for word in texts[9::10]]
    return " ".join(texts)


def with_changes(text: str, number: int, seed: int = 0) -> str:
    """The text with `number` of its words replaced, at places far from each other."""
    words = text.split()
    for place in range(number):
        words[place * len(words) // number] = f"changed{seed}x{place}"
    return " ".join(words)


def found(data_dir: Path) -> list[dict[str, Any]]:
    """The rows of duplicates.parquet."""
    dedup.run(load([f"data_dir={data_dir}"]))
    return pq.read_table(data_dir / "documents" / "duplicates.parquet").to_pylist()


def kept_of(data_dir: Path) -> dict[str, str]:
    """Of each dropped document's name the name of the one that is kept."""
    return {f"{row['source']}/{row['id']}": row["kept"] for row in found(data_dir)}


def of_texts(data_dir: Path, **sources: Sequence[str]) -> dict[str, str]:
    """kept_of documents that are numbered in each source, one part a source."""
    for name, texts in sources.items():
        write_source(data_dir, name, [[Document(str(n), "", t) for n, t in enumerate(texts)]])
    return kept_of(data_dir)


def test_a_copy_of_other_case_blanks_and_punctuation_is_exact_across_sources(tmp_path) -> None:
    text = "It was a bright cold day in April, and the clocks were striking."
    other = "IT WAS\na bright, cold day in april and\nthe Clocks were striking"
    assert of_texts(tmp_path, books=[text, "Another."], web=["A third.", other]) == {
        "web/1": "books/0"
    }
    (row,) = found(tmp_path)
    assert (row["kind"], row["similarity"], row["copies"]) == ("exact", 1.0, 2)


def test_a_few_changed_words_make_a_near_duplicate_and_the_longest_is_kept(tmp_path: Path) -> None:
    text = made_text(1)
    longer = with_changes(text, 2) + " And an end."
    assert of_texts(tmp_path, a=[text, made_text(2)], b=[longer]) == {"a/0": "b/0"}
    (row,) = found(tmp_path)
    assert row["kind"] == "near"
    assert LEAST_EQUAL / 112 <= row["similarity"] < 1


def test_texts_of_one_pattern_below_the_bound_are_kept(tmp_path: Path) -> None:
    assert of_texts(tmp_path, a=[made_text(1), with_changes(made_text(1), 6)]) == {}


def test_stubs_that_differ_in_a_name_are_kept_and_dropped_where_they_are_equal(tmp_path) -> None:
    stubs = [
        f"{name} is a village in Lviv Raion in Lviv Oblast in western Ukraine. It belongs to the "
        "Davydiv rural hromada, one of the hromadas of Ukraine."
        for name in ("Pasiky", "Dmytrovychi", "Pasiky")
    ]
    assert max(map(len, stubs)) < FEWEST_CHARACTERS
    assert of_texts(tmp_path, wiki=stubs) == {"wiki/2": "wiki/0"}


def test_nothing_is_dropped_by_way_of_a_third(tmp_path: Path) -> None:
    """Each like the one before, and the last unlike the first: it is compared with what is kept."""
    chain = [made_text(1, 400)]
    for step in range(1, 9):
        words = chain[-1].split()
        words[step * 40 : step * 40 + 18] = made_text(100 + step, 18).split()
        chain.append(" ".join(words))
    kept = of_texts(tmp_path, a=chain)
    values = [np.array(signature(shingles(text)[0])) for text in chain]
    assert all((one == two).sum() >= LEAST_EQUAL for one, two in zip(values, values[1:]))  # noqa: B905, RUF007
    assert (values[0] == values[-1]).sum() < LEAST_EQUAL
    assert 0 < len(kept) < len(chain) - 1
    for dropped, other in kept.items():
        equal = values[int(dropped.removeprefix("a/"))] == values[int(other.removeprefix("a/"))]
        assert equal.sum() >= LEAST_EQUAL


def test_more_dissimilar_ones_in_a_chain_than_are_compared_are_kept(tmp_path, monkeypatch) -> None:
    text = made_text(1, 400)
    monkeypatch.setattr(matching, "MOST_KEPT", 1)
    other = made_text(2, 300)
    texts = [text, with_changes(text, 5), other, with_changes(other, 5)]
    of_texts(tmp_path, a=texts)
    corpus = matching.Corpus(list_parts(tmp_path))
    numbers = np.arange(4, dtype=np.int32)
    kept, _ = matching._keep(corpus, numbers, np.zeros(4, np.int32))
    assert kept.tolist() == [0, 0, 2, 3]


@st.composite
def corpora(draw: st.DrawFn) -> list[str]:
    """Texts of a few families: unrelated ones, copies, nearly equal and half equal ones."""
    texts = []
    for family in range(draw(st.integers(1, 4))):
        base = made_text(family, draw(st.sampled_from([8, 60, 120])))
        texts.append(base)
        for seed in range(draw(st.integers(0, 5))):
            number = draw(st.sampled_from([0, 0, 1, 2, 3, 6, 20]))
            changed = with_changes(base, number, seed) if number else base.upper()
            texts.append(changed + draw(st.sampled_from(["", "!", " more"])))
    return draw(st.permutations(texts))


@settings(max_examples=25)
@given(texts=corpora(), cut=st.sampled_from([2, 7, 100]), rows=st.integers(1, 50))
def test_each_dropped_one_is_a_copy_of_a_kept_one_and_no_two_kept_ones_are_copies(
    texts: list[str], cut: int, rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data_dir = tmp_path_factory.mktemp("corpus")
    documents = [Document(str(n), "", text) for n, text in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "ROWS_AT_ONCE", rows)
        write_source(data_dir, "a", [documents[n : n + cut] for n in range(0, len(texts), cut)])
        dropped = {int(one[2:]): int(other[2:]) for one, other in kept_of(data_dir).items()}
    letters = [shingles(text)[1].tobytes() for text in texts]
    values = np.array([signature(shingles(text)[0]) for text in texts])

    def are_near(one: int, other: int) -> bool:
        fewest = min(len(texts[one]), len(texts[other]))
        equal = int((values[one] == values[other]).sum())
        return fewest >= FEWEST_CHARACTERS and equal >= LEAST_EQUAL

    for one, other in dropped.items():
        assert other not in dropped
        assert (-len(texts[other]), other) < (-len(texts[one]), one)
        assert letters[one] == letters[other] or are_near(one, other)
    kept = [n for n in range(len(texts)) if n not in dropped]
    assert len({letters[n] for n in kept}) == len(kept)
    for one, other in itertools.combinations(kept, 2):
        share_a_band = (values[one] == values[other]).reshape(BANDS, -1).all(axis=1).any()
        assert not (share_a_band and are_near(one, other))


def test_memory_is_a_hundred_bytes_a_document_and_not_its_signature(monkeypatch) -> None:
    monkeypatch.setattr(matching, "ROWS_AT_ONCE", 500)
    monkeypatch.setattr(matching, "MOST_KEPT", 500)
    peaks = []
    for number in (20_000, 60_000):
        rng = np.random.default_rng(number)
        values = rng.integers(0, 2**32, (number, BANDS, 8), np.uint32)
        values[1::10] = values[::10]  # one in ten is a copy
        names = pa.array([str(n) for n in range(number)])
        made = Signatures(
            ids=names,
            titles=names,
            characters=rng.integers(200, 5000, number).astype(np.uint32),
            exact=rng.integers(0, 2**63, (number, 2)).astype(np.uint64),
            bands=[np.ascontiguousarray(values[:, band]) for band in range(BANDS)],
        )
        monkeypatch.setattr(matching, "signatures_of", lambda part, made=made: made)
        part = DocumentPart(
            source="a", path=Path(), name="part-00000.parquet", rows=number, characters=0,
            checksum="",
        )  # fmt: skip
        corpus = matching.Corpus([part])
        tracemalloc.start()
        assert matching.compare(corpus)[0].num_rows == number // 10
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 40_000 < 100


def test_the_order_of_collecting_does_not_matter(tmp_path: Path) -> None:
    texts = {
        "a": [made_text(1), made_text(2)],
        "b": [with_changes(made_text(2), 1) + " more", made_text(3)],
        "c": [made_text(1).upper(), with_changes(made_text(2), 1)],
    }
    for name, order in (("one", "abc"), ("two", "cba")):
        for number in range(1, 4):
            collected = {source: texts[source] for source in order[:number]}
            of_texts(tmp_path / name, **collected)
    for file in ("duplicates.parquet", "duplicates.json"):
        one, two = (tmp_path / name / "documents" / file for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert kept_of(tmp_path / "one") == {"a/1": "b/0", "c/0": "a/0", "c/1": "b/0"}


def test_the_record_counts_by_source_and_names_the_largest_groups(tmp_path: Path) -> None:
    text = made_text(1)
    of_texts(tmp_path, a=[text, text, made_text(5)], b=[text.upper(), with_changes(text, 1)])
    record = read_json(tmp_path / "documents" / "duplicates.json")
    assert record["sources"] == {
        "a": {"documents": 3, "exact": 0, "near": 2},
        "b": {"documents": 2, "exact": 0, "near": 1},
    }
    assert (record["dropped"], record["groups"]) == (3, 1)
    assert record["largest"][0]["kept"] == "b/1", "the longest"
    assert record["largest"][0]["copies"] == 4
    assert record["dropped_characters"] == 3 * len(text)


def test_an_unchanged_corpus_is_not_compared_again_and_a_changed_or_damaged_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_texts(tmp_path, a=[made_text(1), made_text(1)])
    table = tmp_path / "documents" / "duplicates.parquet"
    compared: list[int] = []
    found_by = search.search
    monkeypatch.setattr(dedup, "search", lambda *given: compared.append(1) or found_by(*given))
    found(tmp_path)
    assert not compared
    table.write_bytes(table.read_bytes()[:-1])
    assert len(found(tmp_path)) == 1
    assert len(compared) == 1
    of_texts(tmp_path, b=[made_text(1)])
    assert len(found(tmp_path)) == 2
    assert len(compared) == 2


def test_signatures_that_are_missing_or_of_an_older_part_are_made(tmp_path: Path) -> None:
    of_texts(tmp_path, a=[made_text(1), made_text(2)])
    assert of_texts(tmp_path, a=[made_text(1), made_text(1)]) == {"a/1": "a/0"}
    signatures_path(list_parts(tmp_path)[0].path).unlink()
    (tmp_path / "documents" / "duplicates.json").unlink()
    assert kept_of(tmp_path) == {"a/1": "a/0"}


def test_duplicates_found_again_while_a_job_runs_stop_it(tmp_path: Path) -> None:
    of_texts(tmp_path, a=[made_text(1), made_text(1)])
    parts = list_parts(tmp_path)
    left_out = dedup.left_out(load([f"data_dir={tmp_path}"]), parts)
    assert dropped_ids(tmp_path, parts[0], left_out) == {"1"}
    of_texts(tmp_path, a=[made_text(1), made_text(1), made_text(1)])
    with pytest.raises(RuntimeError, match=r"duplicates\.parquet has changed while this job ran"):
        dropped_ids(tmp_path, parts[0], left_out)


# --- what the jobs make of it


def corpus_of_jobs(data_dir: Path) -> None:
    of_texts(
        data_dir,
        a=[made_text(n) for n in range(8)],
        b=[made_text(3).upper(), with_changes(made_text(4), 1), made_text(20)],
    )


def run_jobs(data_dir: Path, *overrides: str) -> TokensManifest:
    given = [f"data_dir={data_dir}", "vocab_size=300", "heldout_fraction=0.4", *overrides]
    vocab.run(load(given))
    return encode.run(load(given))


def stored(manifest: TokensManifest) -> int:
    return sum(part.documents for split in manifest.splits.values() for part in split)


def test_encode_leaves_duplicates_out_and_counts_them(tmp_path, capsys) -> None:
    corpus_of_jobs(tmp_path)
    manifest = run_jobs(tmp_path)
    assert manifest.dropped["duplicates"] == 2
    assert stored(manifest) == 9
    given = [f"data_dir={tmp_path}", "heldout_fraction=0.4"]
    assert encode.main(given) == 0
    assert "dropped  2 duplicates\n" in capsys.readouterr().out
    assert vocab.main([*given, "vocab_size=300"]) == 0
    assert "without their 2 duplicates\n" in capsys.readouterr().out


def test_the_vocabulary_is_that_of_the_corpus_without_its_duplicates(tmp_path: Path) -> None:
    corpus_of_jobs(tmp_path / "all")
    dropped = kept_of(tmp_path / "all")
    assert set(dropped) == {"a/4", "b/0"}
    of_texts(
        tmp_path / "rest",
        a=[made_text(n) for n in range(8) if n != 4],
        b=[with_changes(made_text(4), 1), made_text(20)],
    )
    sums = [
        vocab.run(load([f"data_dir={tmp_path / name}", "vocab_size=300"])).checksum
        for name in ("all", "rest")
    ]
    assert sums[0] == sums[1]


def test_the_setting_keep_leaves_them_in_and_compares_nothing(tmp_path: Path) -> None:
    documents = [Document(str(n), "", made_text(n % 10)) for n in range(20)]
    write_source(tmp_path, "a", [documents])
    manifest = run_jobs(tmp_path, "duplicates=keep")
    assert stored(manifest) == 20
    assert manifest.dropped["duplicates"] == 0
    assert not (tmp_path / "documents" / "duplicates.json").exists()
    assert stored(run_jobs(tmp_path)) == 10


@pytest.mark.slow
def test_a_further_source_encodes_again_only_the_parts_whose_duplicates_changed(tmp_path) -> None:
    texts = [made_text(n) for n in range(8)]
    write_source(tmp_path, "a", [[Document(str(n), "", texts[n])] for n in range(8)])
    given = [f"data_dir={tmp_path}", "vocab_size=300", "heldout_fraction=0.4"]
    vocab.run(load(given))
    encode.run(load(given))
    records = tmp_path / "tokens" / "logs" / "finished"

    def ended() -> dict[str, float]:
        return {path.name: read_json(path)["ended"] for path in records.iterdir()}

    before = ended()
    write_source(tmp_path, "b", [[Document("0", "", texts[2] + " The end.")]])
    manifest = encode.run(load(given))
    assert {name for name, time in ended().items() if before.get(name, time) != time} == {
        "a-00002.json"
    }
    assert manifest.dropped["duplicates"] == 1
    assert stored(manifest) == 8


def wiki_pages(folder: Path) -> Path:
    """Pages as WikiExtractor writes them, one a copy."""
    folder.mkdir()
    for number in range(4):
        page = made_text(number % 3)
        (folder / f"wiki_{number:02d}").write_text(
            f'<doc id="{number}" url="" title="T{number}">\nT{number}\n\n{page}\n\n</doc>\n'
        )
    return folder


def collect_pages(data_dir: Path, pages: Path, *overrides: str) -> int:
    return collect.main([
        "+source=wikiextractor", f"source.path={pages}", f"data_dir={data_dir}",
        "characters_per_part=700", *overrides,
    ])  # fmt: skip


def test_the_job_finds_them_and_prints_where_the_list_is(tmp_path, capsys) -> None:
    assert collect_pages(tmp_path / "d", wiki_pages(tmp_path / "pages")) == 0
    path = tmp_path / "d" / "documents" / "duplicates.parquet"
    assert not path.exists()
    capsys.readouterr()
    assert dedup.main([f"data_dir={tmp_path / 'd'}"]) == 0
    printed = capsys.readouterr().out
    assert "wikiextractor  4 documents, copies: 1 exact, 0 near\n" in printed
    assert f"dropped        1 of 4 documents, 0.0 million characters; see {path}\n" in printed
    assert pq.read_table(path)["id"].to_pylist() == ["3"]


def test_the_job_finds_nothing_to_do_with_keep_and_refuses_an_unfinished_collect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_texts(tmp_path / "d", a=[made_text(1), made_text(1)])
    (tmp_path / "d" / "documents" / "other").mkdir()
    assert dedup.main([f"data_dir={tmp_path / 'd'}", "duplicates=keep"]) == 0
    assert "kept and not looked for" in capsys.readouterr().out
    assert dedup.main([f"data_dir={tmp_path / 'd'}"]) == 1
    assert "the store is not finished" in capsys.readouterr().err


def test_the_bytes_are_the_same_for_one_and_three_workers(tmp_path: Path) -> None:
    pages = wiki_pages(tmp_path / "pages")
    sums = []
    for workers in (1, 3):
        data_dir = tmp_path / str(workers)
        assert collect_pages(data_dir, pages, f"num_workers={workers}") == 0
        assert len(found(data_dir)) == 1
        files = [*data_dir.rglob("signatures/*"), *data_dir.glob("documents/duplicates.*")]
        sums.append({str(path.relative_to(data_dir)): checksum(path) for path in files})
    assert sums[0] == sums[1]
    assert len(sums[0]) >= 4


def test_a_source_of_grouped_sentences_is_compared_too(tmp_path: Path) -> None:
    """As BookCorpus has it: rows grouped into documents."""
    sentences = made_text(1, 2000).split(". ")
    groups = ["\n".join(sentences[n : n + 50]) for n in range(0, 200, 50)]
    assert of_texts(tmp_path, bookcorpus=[*groups, groups[1]]) == {"bookcorpus/4": "bookcorpus/1"}


def unpacked(archive: str, member: str) -> str:
    """One text of ../shared/data."""
    with tarfile.open(packed(f"books/{archive}")) as file:
        extracted = file.extractfile(member)
        return extracted.read().decode("utf-8-sig", "replace")


def test_two_editions_of_one_book_are_found_across_sources_and_another_book_is_kept(
    tmp_path: Path,
) -> None:
    raw = unpacked(
        "gutenberg_raw/gutenberg.tar.xz", "gutenberg_raw/Great_Expectations_CharlesDickens.txt"
    )
    novels = [
        unpacked("novels/novels_1.tar.xz", f"novels/Dickens_{name}.txt")
        for name in ("Expectations_1861", "Oliver_1839")
    ]
    for folder, texts in (("novels", novels), ("gutenberg", [raw])):
        (tmp_path / folder).mkdir()
        for number, text in enumerate(texts):
            (tmp_path / folder / f"{number}.txt").write_text(text)
        given = [f"source.path={tmp_path / folder}", f"source.name={folder}"]
        assert collect.main(["+source=books", *given, f"data_dir={tmp_path / 'd'}"]) == 0
    assert kept_of(tmp_path / "d") == {"gutenberg/0.txt": "novels/0.txt"}


def test_two_chapters_of_one_book_are_kept(tmp_path: Path) -> None:
    book = unpacked("novels/novels_1.tar.xz", "novels/Dickens_Oliver_1839.txt")
    chapters = [book[start : start + 20_000] for start in range(10_000, 210_000, 20_000)]
    assert of_texts(tmp_path, oliver=chapters) == {}
