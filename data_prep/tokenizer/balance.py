"""How often the documents of each language are read, so that none crowds out the others."""

from __future__ import annotations

from collections.abc import Mapping

import xxhash

# Share of the characters. A language with less keeps its share: of a few documents the language
# found may be wrong, and they would be read very often.
LEAST_SHARE = 1e-4
UNKNOWN = "unknown"  # as of data_prep.text.language
_SEED = 1  # the hash decides otherwise whether a document is held out


def language_weights(
    corpus: Mapping[str, float], sample: Mapping[str, float], exponent: float
) -> dict[str, float]:
    """How often to read each language of a sample: its share becomes its power in the corpus.

    `corpus` and `sample` are characters by language, of the same languages. A share is raised to
    `exponent` (mBERT: 0.7, XLM: 0.5) and all are scaled to what they had together, so that the
    sample keeps its size. UNKNOWN and languages below LEAST_SHARE keep their share in the corpus.
    """
    whole, size = sum(corpus.values()) or 1, sum(sample.values())
    shares = {language: characters / whole for language, characters in corpus.items()}
    powers = {
        language: share**exponent
        for language, share in shares.items()
        if language != UNKNOWN and share >= LEAST_SHARE
    }
    scale = sum(shares[language] for language in powers) / (sum(powers.values()) or 1)
    wanted = shares | {language: scale * power for language, power in powers.items()}
    return {language: wanted[language] * size / (sample[language] or 1) for language in sample}


def copies(name: str, weight: float) -> int:
    """How often to read a document, 0 or more: `weight` on average, decided by its name."""
    return int(weight + xxhash.xxh3_64_intdigest(name.encode(), _SEED) / 2**64)
