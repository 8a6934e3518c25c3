"""Text to shards: the files here are commands (jobs), each folder is one part.

Commands may import every part of data_prep, and nothing of pretrain or scripts.
"""

from data_prep.core.entry import answer

answer()  # before anything that needs an environment or takes time

from pathlib import Path  # noqa: E402

from data_prep.core.caches import use_numba_cache  # noqa: E402

use_numba_cache(Path(__file__).parent / "stores")  # before a module imports numba
