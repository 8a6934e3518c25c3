"""Where the random B of a pair comes from: the parts that a part's partners are drawn from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prep.core.objectives import RandomNext
from data_prep.examples import philox
from data_prep.stores.tokens import TokenStore

PARTNER_PARTS = 256  # 4 GB of text


def partner_parts(
    store: TokenStore, part: int, where: RandomNext, key: np.uint64
) -> NDArray[np.int64]:
    """(Q,) the parts that random partners of a part come from, itself included, in their order.

    Up to PARTNER_PARTS of those that hold documents, of the part's source alone if `where` asks for
    it and the source has several documents. A function of the key and the part, so the same for any
    number of workers.
    """
    documents = np.diff(store.first_document)
    if where is RandomNext.source and not is_lone(store, part, where):
        documents *= store.source_codes == store.source_codes[part]
    others = np.flatnonzero(documents)
    others = others[others != part]
    if len(others) >= PARTNER_PARTS:
        words = np.empty(len(others) + 15, np.uint32)
        philox.fill(words, len(others), key, philox.PARTNER_PARTS, part)
        order = np.argsort(words[: len(others)], kind="stable")
        others = others[order[: PARTNER_PARTS - 1]]
    return np.sort(np.append(others, part))


def is_lone(store: TokenStore, part: int, where: RandomNext) -> bool:
    """Whether a document of this part would have no partner where it should come from."""
    if where is RandomNext.corpus:
        return False
    of_source = store.source_codes == store.source_codes[part]
    return bool(np.diff(store.first_document)[of_source].sum() < 2)
