"""What is needed before anything is uploaded: a name of a repository, and a token."""

from __future__ import annotations

from data_prep.core.config import SettingsError
from data_prep.core.entry import why_not

TOKEN_CURE = (
    "log in with `hf auth login`, or set HF_TOKEN; make a token with write access at "
    "https://huggingface.co/settings/tokens"
)


def name_fault(name: str) -> str | None:
    """Why nothing can be uploaded to `name`: it is no OWNER/NAME, or huggingface_hub is missing."""
    if why := why_not("hub"):
        return why
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if name.count("/") != 1:
        return "it takes OWNER/NAME, as in me/bert-small"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return " ".join(str(error).split())
    return None


def token() -> str:
    """The token of the environment or of huggingface_hub's login. Raises SettingsError if there
    is none."""
    from huggingface_hub import get_token

    found = get_token()
    if found is None:
        raise SettingsError(f"there is no token for the hub; {TOKEN_CURE}")
    return found
