"""Folders for compiled code that no other user can write: what lies in them is run.

numba's are pickles and machine code, torch's Python and shared objects. Left to themselves, torch
takes /tmp/torchinductor_USER, whoever made it, and numba fails where neither the checkout nor the
home folder can be written.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from data_prep.core.files import only_process

NUMBA, INDUCTOR, TRITON = "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
_OTHERS = {False: stat.S_IWGRP | stat.S_IWOTH, True: stat.S_IWOTH}
# What the user has set: read first, because torch sets its variable to its default when imported
_GIVEN = {variable: os.environ.get(variable) for variable in (NUMBA, INDUCTOR, TRITON)}


def use_private_compile_caches(folder: str | None = None) -> None:
    """The folders of torch.compile. Before torch is imported: its workers keep what they find.

    `folder` is used in place of that of the environment.
    """
    if folder is not None and _GIVEN[INDUCTOR] != folder:
        _GIVEN[INDUCTOR] = str(Path(folder).absolute())
        use_private_cache.cache_clear()
    use_private_cache(INDUCTOR)
    if _GIVEN[TRITON]:  # otherwise torch puts Triton's below its own
        use_private_cache(TRITON)


@functools.cache
def use_private_cache(variable: str) -> None:
    """Set an environment variable such as INDUCTOR to a folder that only this user can write.

    That is the folder that the user has set, ~/.cache/bert-pretrain/<name>, or a new temporary one
    until the process ends, which is told on stderr. A folder that the user has set may be root's or
    writable by a group, because a team may share one; it is not used if any other user owns it or
    everybody can write it.
    """
    given = _GIVEN[variable]
    if given:
        if is_private(Path(given), is_given=True):
            os.environ[variable] = given
            return
        sys.stderr.write(
            f"{variable}={given} is not used: other users can put code there, or you cannot write "
            "it; make a folder of your own\n"
        )
    with contextlib.suppress(RuntimeError):  # no home
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "bert-pretrain" / variable.removesuffix("_CACHE_DIR").lower()
        if is_private(folder):
            os.environ[variable] = str(folder)
            return
    os.environ[variable] = temporary = tempfile.mkdtemp(prefix="bert-pretrain-")
    atexit.register(_remove, temporary, os.getpid())
    sys.stderr.write(
        f"neither the checkout nor ~/.cache can keep compiled code, so that each start compiles; "
        f"set {variable}=FOLDER to keep it\n"
    )


def use_numba_cache(package: Path) -> None:
    """Keep numba's compiled code in the __pycache__ folders of `package` if they can be written.

    Who can write there can change the program. Otherwise as `use_private_cache`.
    """
    cache = package / "__pycache__"
    if _GIVEN[NUMBA] or not os.access(cache if cache.exists() else package, os.W_OK):
        use_private_cache(NUMBA)


def is_private(folder: Path, *, is_given: bool = False) -> bool:
    """Whether this user can write and lock files in `folder`, and others cannot. It is made."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat() if is_given else folder.lstat()
        owners = (os.geteuid(), 0) if is_given else (os.geteuid(),)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners:
            return False
        if found.st_mode & _OTHERS[is_given]:
            return False
        with (
            tempfile.NamedTemporaryFile(dir=folder) as file,
            only_process(Path(file.name)) as locks,
        ):
            return locks  # torch locks files there
    except OSError:
        return False


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # not a forked child's
        shutil.rmtree(folder, ignore_errors=True)
