"""What the Hub refuses, in words that say what to do. diffusers tells of it in many ways, some of which hide it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError

__all__ = ["LOG_IN", "explain_hub_errors", "hub_refusal"]

LOG_IN = "log in (hf auth login, or a token in the environment variable HF_TOKEN)"


@contextmanager
def explain_hub_errors(name: str | Path) -> Iterator[None]:
    """Say why a model cannot be loaded from the Hub.

    Args:
        name: What is loaded: a repository, or a folder, of which nothing is said.

    Raises:
        OSError: In place of one that follows from a refusal of the Hub, or from weights that are not safetensors.
    """
    try:
        yield
    except OSError as error:
        if Path(name).is_dir() or (reason := hub_refusal(error, str(name))) is None:
            raise
        raise OSError(reason) from error


def hub_refusal(error: BaseException, repo_id: str) -> str | None:
    """What the Hub has refused and what to do about it; None if an error has another cause.

    Args:
        error: As it was raised by huggingface_hub or diffusers.
        repo_id: The repository that was asked for.
    """
    if re.search(r"necessary `safetensors` weights|not appear to have a file named \S+\.safetensors", str(error)):
        return (
            f"{repo_id} has not all weights as .safetensors: softcft reads no pickles (.bin, .pt), for that may run "
            "code from the file. If you trust them, load them with diffusers and save them by save_pretrained."
        )
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__ or cause.__context__
    if cause is None or isinstance(cause, EntryNotFoundError):
        return None
    if isinstance(cause, GatedRepoError):
        return f"{repo_id} is gated: ask for access on its page on the Hub, then {LOG_IN} as the user that has got it."
    status = cause.response.status_code
    if status == 401 and "Invalid credentials" in str(cause):
        return f"The Hub does not know your token, which may have expired: make a new one, then {LOG_IN}."
    if status == 403:
        return f"Your token may not write to {repo_id}: use one with write access to it, and {LOG_IN}."
    if status in (401, 404):
        return (
            f"There is no folder {repo_id}, and no such repository on the Hub, or it is private: correct the name, or "
            f"{LOG_IN} as a user that may see it."
        )
    return None
