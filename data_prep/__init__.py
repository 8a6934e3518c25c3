"""Text to shards: the files here are commands (jobs), each folder is one part.

Commands may import every part of data_prep, and nothing of pretrain or scripts.
"""

from pathlib import Path

from data_prep.core.caches import use_numba_cache

use_numba_cache(Path(__file__).parent / "stores")  # before a module imports numba
