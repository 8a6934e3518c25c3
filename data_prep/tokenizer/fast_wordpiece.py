"""WordPiece by nanotoken, where it is installed (pip install -e '.[fast]').

`tokenizers` stays the definition: the first sentences that an encoder meets are encoded by both,
and one difference ends nanotoken's part in it. The library is young, hence the comparison in every
task. The ids being the same, the identity of a token store does not say which of the two made it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.tokenizer.wordpiece import MOST_WORDS, Encoder, make_tokenizer

try:
    import nanotoken
except ModuleNotFoundError:
    nanotoken = None

INSTALLED = nanotoken is not None
COMPARED = 1_000  # sentences: a tenth of a megabyte of a task's sixteen


class AcceleratedEncoder(Encoder):
    """An `Encoder` with the same ids, by nanotoken as long as these are those of `Encoder`.

    `refused` says that they were not; without nanotoken it stays False.
    """

    def __init__(self, tokens: Sequence[str], lowercase: bool) -> None:
        super().__init__(tokens, lowercase)
        self.refused = False
        self._to_compare = COMPARED
        self._accelerator = None
        if INSTALLED:
            nanotoken.set_cache_entries(MOST_WORDS)  # at most 80 MB; 210 with its default
            self._accelerator = nanotoken.Tokenizer(make_tokenizer(tokens, lowercase))

    def encode(self, sentences: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """N sentences to (T,) ids end to end, and the (N,) lengths; a length may be 0."""
        if self._accelerator is None:
            return super().encode(sentences)
        # parallel would start a thread for each core, and tasks run side by side as it is
        rows = self._accelerator.encode_batch(sentences, add_special_tokens=False, parallel=False)
        if compared := sentences[: self._to_compare]:
            self._to_compare -= len(compared)
            ids, lengths = super().encode(compared)
            if not (
                np.array_equal(rows.lengths[: len(lengths)], lengths)
                and np.array_equal(rows.ids[: len(ids)], ids)
            ):
                self.refused, self._accelerator = True, None
                return super().encode(sentences)
        return rows.ids, rows.lengths
