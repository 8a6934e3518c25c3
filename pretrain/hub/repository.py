"""One repository of the hub: made, checked and filled by huggingface_hub's own functions.

An upload that was cut off continues: huggingface_hub sends no file again that the hub has.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json
from pretrain.config.hub_access import TOKEN_CURE, token
from pretrain.hub.contents import MAIN, Contents

ORIGIN = "origin.json"  # in each branch: whose files the repository has


class HubError(RuntimeError):
    """The hub, or the way to it, failed; the same command continues the upload."""


def push(
    contents: Contents, name: str, private: bool, overwrite: bool, report: Callable[[str], None]
) -> None:
    """Upload each branch in a commit of its own to the repository `name`, which is made if needed.

    A new repository is private or not; an existing one stays as it is. With `overwrite`, files of
    another origin are replaced and removed. `report` gets a line per finished branch. Raises
    SettingsError without a token, without access and if the repository is of another origin;
    HubError if the hub fails.
    """
    secret = token()
    api = HfApi(token=secret)
    with _failures(secret):
        _claim(api, contents, name, private, overwrite)
    for branch in contents.branches:
        with tempfile.TemporaryDirectory(prefix="push-") as temporary:
            folder = Path(temporary) / branch.name
            branch.fill(folder)
            write_json(folder / ORIGIN, {"from": contents.title, "identity": contents.identity})
            with _failures(secret):
                if branch.name != MAIN:
                    _make_branch(api, name, branch.name)
                api.upload_folder(
                    repo_id=name,
                    repo_type=contents.kind,
                    folder_path=folder,
                    revision=branch.name,
                    commit_message=f"Upload {contents.title}",
                    delete_patterns="*" if overwrite else None,
                )
        report(branch.name)


def _claim(api: HfApi, contents: Contents, name: str, private: bool, overwrite: bool) -> None:
    """Make the repository, or raise SettingsError if there is one with other files."""
    kind = contents.kind
    if not api.repo_exists(name, repo_type=kind):
        api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        return
    files = set(api.list_repo_files(name, repo_type=kind)) - {".gitattributes"}
    if overwrite or not files:
        return
    owner = "files that were not uploaded by this command"
    if ORIGIN in files:
        with tempfile.TemporaryDirectory() as folder:
            path = api.hf_hub_download(name, ORIGIN, repo_type=kind, local_dir=folder)
            origin = read_json(Path(path))
        if origin.get("identity") == contents.identity:
            return
        owner = f"files of {origin.get('from')}, which is another one than {contents.title}"
    raise SettingsError(
        f"{name} holds {owner}; give another name in to=, or replace them with overwrite=true"
    )


def _make_branch(api: HfApi, name: str, branch: str) -> None:
    """Make it at the first commit, which has no model: never does it show that of another step."""
    first = api.list_repo_commits(name)[-1].commit_id
    api.create_branch(name, branch=branch, revision=first, exist_ok=True)


@contextlib.contextmanager
def _failures(secret: str) -> Iterator[None]:
    """Raise what huggingface_hub raises as one line of SettingsError or HubError, without `secret`.

    Of its errors, and of those of the client below it, only HfHubHTTPError has a name that lasts.
    """
    try:
        yield
    except SettingsError:
        raise
    except Exception as error:
        cause = error if isinstance(error, HfHubHTTPError) else error.__cause__ or error
        text = " ".join(f"{type(cause).__name__}: {cause}".split()).replace(secret, "...")
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in (401, 403):
            raise SettingsError(f"the hub refuses the token ({text}); {TOKEN_CURE}") from error
        raise HubError(text) from error
