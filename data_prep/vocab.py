"""Make the vocabulary: python -m data_prep.vocab data_dir=FOLDER vocab_size=30522.

It is trained on the documents of all sources; of a large corpus, on a sample of its parts. With
vocab_file=vocab.txt a released vocabulary is checked and used instead, entry for entry, followed by
the words of add_words=FILE. data_dir/vocab then holds a whole tokenizer, which
`AutoTokenizer.from_pretrained` loads, and a manifest, written last.

Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import tokenizers
import xxhash

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json, write_json
from data_prep.core.job import Rows, start
from data_prep.core.records import TextForm, typed
from data_prep.core.settings import DataPrepSettings, Executor
from data_prep.dedup import left_out
from data_prep.duplicates.dropped import LeftOut, dropped_ids
from data_prep.stores.documents import Document, DocumentPart, list_parts, read_part
from data_prep.text.language import iso_code, language_of
from data_prep.tokenizer.balance import copies, language_weights
from data_prep.tokenizer.hf_files import TOKENIZER_FILES, save_tokenizer
from data_prep.tokenizer.released import differing, stated_rules
from data_prep.tokenizer.store import LanguageShare, VocabManifest, VocabSettings, read_vocab_store
from data_prep.tokenizer.training import COVERAGE, add_words, train_vocab
from data_prep.tokenizer.vocab_file import check_casing, read_vocab, special_ids

SCHEMA_VERSION: Final = 1
BATCH_CHARACTERS = 1_000_000  # passed to the trainer at once
LANGUAGES_SHOWN = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Make the vocabulary and print a table."""
    return start(run, argv, summary=_summary)


def run(settings: DataPrepSettings) -> VocabManifest:
    """Train or take over the vocabulary; return the manifest of data_dir/vocab.

    A finished one of the same settings and documents is left alone. Raises SettingsError if
    vocab_file is missing, broken or of another text form, or if shards of this vocabulary are there
    (see settings.replace), ValueError if the documents are missing or
    too few for vocab_size.
    """
    data_dir = Path(settings.data_dir)
    folder, manifest_path = data_dir / "vocab", data_dir / "vocab" / "manifest.json"
    all_parts = [] if settings.vocab_file else list_parts(data_dir)
    dropped = {} if settings.vocab_file else left_out(_of_one_task(settings), all_parts)
    exponent = _exponent(settings)
    parts = _sample(all_parts, settings.vocab_characters, exponent)
    dropped = {part.key: dropped[part.key] for part in parts if part.key in dropped}
    form = _text_form(settings)
    identity = _identity(settings, parts, dropped, form)
    former, is_mended = _finished(data_dir)
    if former and (former.settings == identity or (is_mended and _has_rules(former, identity))):
        return former
    if not settings.replace:
        _check_shards(data_dir)
    added: list[str] = []
    balance = None
    if settings.vocab_file:
        tokens, added = _released(Path(settings.vocab_file), settings, form)
    else:
        if exponent is not None:
            balance = _Balance.of(_documents(data_dir, parts, dropped), all_parts, exponent)
        batches = partial(_batches, data_dir, parts, dropped, balance)
        tokens = train_vocab(batches, settings.vocab_size, form, settings.alphabet_coverage)
        check_casing(tokens, settings.lowercase)
    manifest_path.unlink(missing_ok=True)  # it must never describe files of another vocabulary
    save_tokenizer(folder, tokens, form)
    manifest = VocabManifest(
        schema_version=SCHEMA_VERSION,
        vocab_size=len(tokens),
        special_ids=special_ids(tokens),
        checksum=checksum(folder / "vocab.txt"),
        settings=identity,
        added_words=added,
        parts=len(all_parts),
        languages=balance.shares if balance else None,
        **msgspec.structs.asdict(form),
    )
    write_json(manifest_path, manifest)
    return manifest


def _of_one_task(settings: DataPrepSettings) -> DataPrepSettings:
    """The settings of jobs that this one runs first: it cannot be an element of a Slurm array."""
    if settings.executor is Executor.slurm:
        return dataclasses.replace(settings, executor=Executor.local)
    return settings


def _check_shards(data_dir: Path) -> None:
    """Raises SettingsError if whole shards hold the ids of the vocabulary that is there."""
    vocab = data_dir / "vocab" / "vocab.txt"
    own = checksum(vocab) if vocab.is_file() else None
    for path in sorted(data_dir.glob("len*/manifest.json")):
        if own and read_json(path).get("vocab_checksum") == own:
            raise SettingsError(
                f"the shards in {path.parent} hold the ids of {vocab}, and no run could train on "
                "them with another vocabulary. It serves more documents as it is: what to run "
                f"then, python -m data_prep.status data_dir={data_dir} prints. To keep both take "
                "another data_dir, to replace the vocabulary add replace=true"
            )


def _exponent(settings: DataPrepSettings) -> float | None:
    """The exponent of the languages' shares; None: languages are not looked at."""
    exponent = settings.vocab_language_exponent
    return None if exponent == 1 else exponent


def _text_form(settings: DataPrepSettings) -> TextForm:
    """The text form of the settings; strip_accents=null is what vocab_file's tokenizer states.

    Raises SettingsError if it states another form.
    """
    wanted = {name: getattr(settings, name) for name in TextForm.__struct_fields__}
    stated = stated_rules(Path(settings.vocab_file)) if settings.vocab_file else {}
    if wanted["strip_accents"] is None:
        wanted["strip_accents"] = stated.get("strip_accents")
    form = TextForm(**wanted)
    if wrong := differing(stated, form):
        cased = msgspec.structs.replace(form, lowercase=stated.get("lowercase", form.lowercase))
        wrong |= differing(stated, cased)  # what only matters with that casing
        path = Path(str(settings.vocab_file)).with_name("vocab.txt")
        alone = f" (or, to use the entries alone, copy {path} to a folder of its own)"
        raise SettingsError(
            f"vocab_file={settings.vocab_file}: its tokenizer has {typed(wrong)}; set "
            f"{typed(wrong)}{alone if path.is_file() else ''}"
        )
    form.turkish_i = form.turkish_i and form.lowercase
    if form.strip_accents == form.lowercase:
        form.strip_accents = None
    return form


def _identity(
    settings: DataPrepSettings,
    parts: Sequence[DocumentPart],
    dropped: LeftOut,
    form: TextForm,
) -> VocabSettings:
    """Raises SettingsError if a file that the settings name is missing."""
    identity = VocabSettings(
        **msgspec.structs.asdict(form),
        tokenizers=tokenizers.__version__,
        duplicates=dropped,
        vocab_file=None,
        vocab_size=None,
        language=None if settings.language.code == "en" else settings.language.code,
    )
    if not settings.vocab_file:
        identity.vocab_size = settings.vocab_size
        if settings.alphabet_coverage != COVERAGE:
            identity.alphabet_coverage = settings.alphabet_coverage
        identity.language_exponent = _exponent(settings)
        identity.documents = {part.key: part.checksum for part in parts}
        return identity
    path = Path(settings.vocab_file)
    if not path.is_file():
        raise SettingsError(
            f"vocab_file={path} is not a file; give the path of a vocab.txt, or leave vocab_file "
            "out to train a vocabulary on the documents"
        )
    identity.vocab_file = checksum(path)
    if settings.add_words:
        if not Path(settings.add_words).is_file():
            raise SettingsError(
                f"add_words={settings.add_words} is not a file; give the path of one with one word "
                "per line"
            )
        identity.add_words = checksum(Path(settings.add_words))
    return identity


def _finished(data_dir: Path) -> tuple[VocabManifest | None, bool]:
    """The manifest of a whole and unchanged vocabulary (None: there is none), and whether files of
    the tokenizer were lost and are written again."""
    try:
        tokens, manifest = read_vocab_store(data_dir)
    except ValueError:
        return None, False
    folder = data_dir / "vocab"
    if all((folder / name).is_file() for name in TOKENIZER_FILES):
        return manifest, False
    save_tokenizer(folder, tokens, manifest.form)
    return manifest, True


def _has_rules(former: VocabManifest, identity: VocabSettings) -> bool:
    """Whether a vocabulary has these settings, whatever documents it was trained on."""
    names = ("documents", "duplicates", "tokenizers")
    same = {name: getattr(identity, name) for name in names}
    return msgspec.structs.replace(former.settings, **same) == identity


def _released(
    path: Path, settings: DataPrepSettings, form: TextForm
) -> tuple[list[str], list[str]]:
    """The entries of a released vocabulary followed by the added words, and the added words."""
    try:
        tokens = read_vocab(path)
        # A cased tokenizer without capitals, such as the Chinese one, states that it is cased
        if "lowercase" not in stated_rules(path):
            check_casing(tokens, form.lowercase)
    except ValueError as error:
        raise SettingsError(f"vocab_file={path}: {error}") from error
    if settings.add_words is None:
        return tokens, []
    try:
        added = add_words(tokens, Path(settings.add_words), form)
    except ValueError as error:
        raise SettingsError(f"add_words: {error}") from error
    return [*tokens, *added], added


def _sample(
    parts: Sequence[DocumentPart], most_characters: int, exponent: float | None
) -> list[DocumentPart]:
    """Parts of at most `most_characters` together, in their order; at least one.

    They are drawn by a hash of their names. With an exponent each source has its part of the
    characters, by its share to that exponent, and one part or more: a source may be a language.
    """
    whole = sum(part.characters for part in parts)
    if whole <= most_characters:
        return list(parts)
    if exponent is None:
        drawn = _drawn(parts, most_characters)
    else:
        sources: dict[str, list[DocumentPart]] = {}
        for part in parts:
            sources.setdefault(part.source, []).append(part)
        shares = [sum(p.characters for p in own) / whole for own in sources.values()]
        scale = most_characters / sum(share**exponent for share in shares)
        drawn = set()
        for own, share in zip(sources.values(), shares, strict=True):
            drawn |= _drawn(own, int(scale * share**exponent))
    return [part for part in parts if part.key in drawn]


def _drawn(parts: Sequence[DocumentPart], most_characters: int) -> set[str]:
    drawn: set[str] = set()
    characters = 0
    for part in sorted(parts, key=lambda part: xxhash.xxh3_64_intdigest(part.key.encode())):
        if drawn and characters + part.characters > most_characters:
            break
        drawn.add(part.key)
        characters += part.characters
    return drawn


def _documents(
    data_dir: Path, parts: Sequence[DocumentPart], dropped: LeftOut
) -> Iterator[tuple[str, Document]]:
    """The source and the document, of all that are not dropped."""
    for part in parts:
        dropped_here = dropped_ids(data_dir, part, dropped)
        for document in read_part(part.path, part.rows):
            if document.id not in dropped_here:
                yield part.source, document


@dataclass(frozen=True)
class _Balance:
    """How often each document of a sample is read, by its language and its name."""

    languages: list[str]  # of the documents, in their order
    weights: dict[str, float]  # by language
    shares: dict[str, LanguageShare]

    @classmethod
    def of(
        cls,
        documents: Iterable[tuple[str, Document]],
        all_parts: Sequence[DocumentPart],
        exponent: float,
    ) -> _Balance:
        """Reads the sample once. A source's languages in it stand for those of the whole source."""
        languages: list[str] = []
        counts: Counter[tuple[str, str]] = Counter()  # characters by source and language
        for source, document in documents:
            code = document.language or iso_code(language_of(document.text))
            languages.append(sys.intern(code))
            counts[source, languages[-1]] += len(document.text)
        of_source: Counter[str] = Counter()
        for part in all_parts:
            of_source[part.source] += part.characters
        sampled: Counter[str] = Counter()
        for (source, _), characters in counts.items():
            sampled[source] += characters
        corpus: Counter[str] = Counter()
        sample: Counter[str] = Counter()
        for (source, language), characters in counts.items():
            sample[language] += characters
            corpus[language] += characters * of_source[source] // sampled[source]
        weights = language_weights(corpus, sample, exponent)
        read = {language: weights[language] * sample[language] for language in sample}
        shares = {
            language: LanguageShare(
                corpus=corpus[language] / (corpus.total() or 1),
                sample=read[language] / (sum(read.values()) or 1),
            )
            for language in sample
        }
        return cls(languages, weights, shares)


def _batches(
    data_dir: Path,
    parts: Sequence[DocumentPart],
    dropped: LeftOut,
    balance: _Balance | None,
) -> Iterator[list[str]]:
    """The paragraphs of all documents that are not dropped, BATCH_CHARACTERS at a time."""
    batch: list[str] = []
    characters = 0
    for number, (source, document) in enumerate(_documents(data_dir, parts, dropped)):
        times = 1
        if balance:
            weight = balance.weights[balance.languages[number]]
            times = copies(f"{source}/{document.id}", weight)
        batch += document.text.split("\n") * times
        characters += len(document.text) * times
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _summary(settings: DataPrepSettings, manifest: VocabManifest) -> Rows:
    if settings.vocab_file:
        made = f"taken from {settings.vocab_file}"
        if settings.add_words:
            made += f", followed by {len(manifest.added_words):,} words of {settings.add_words}"
    else:
        used = manifest.settings
        duplicates = sum(entry["documents"] for entry in used.duplicates.values())
        made = (
            f"trained on {len(used.documents or ()):,} of {manifest.parts:,} parts of the "
            f"documents, without their {duplicates:,} duplicates"
        )
    return [
        *_language_rows(manifest),
        ("vocabulary", f"{Path(settings.data_dir) / 'vocab'}, {made}"),
        ("entries", f"{manifest.vocab_size:,}"),
        ("text form", str(manifest.form)),
        ("checksum", manifest.checksum),
    ]


def _language_rows(manifest: VocabManifest) -> Rows:
    """What the exponent made of the languages, the largest first."""
    shares = sorted((manifest.languages or {}).items(), key=lambda item: -item[1].corpus)
    shown = [f"{name} {s.corpus:.1%} to {s.sample:.1%}" for name, s in shares[:LANGUAGES_SHOWN]]
    if len(shares) > LANGUAGES_SHOWN:
        shown.append(f"and {len(shares) - LANGUAGES_SHOWN} more (vocab/manifest.json)")
    return [("languages", ", ".join(shown))] if shown else []


if __name__ == "__main__":
    sys.exit(status_of(main))
