"""Say what to do where the Hub refuses something: diffusers reports it in many ways, some of which hide the cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

__all__ = ["LOG_IN", "explain_hub_errors", "hub_refusal"]

LOG_IN = "log in (hf auth login, or a token in the environment variable HF_TOKEN)"


@contextmanager
def explain_hub_errors(name: str | Path) -> Iterator[None]:
    """Explain the OSError of a repository that cannot be loaded.

    Args:
        name: The repository. Errors of a folder are raised as they are.

    Raises:
        OSError: If the Hub refuses it, it has weights that are not safetensors, or the Hub cannot be reached.
    """
    try:
        yield
    except OSError as error:
        if Path(name).is_dir():
            raise
        reason = hub_refusal(error, str(name)) or _out_of_reach(error, str(name))
        if reason is None:
            raise
        raise OSError(reason) from error


def hub_refusal(error: BaseException, repo_id: str) -> str | None:
    """What the Hub has refused, by an error of huggingface_hub or diffusers, and what to do; None if it has not."""
    if re.search(r"necessary `safetensors` weights|not appear to have a file named \S+\.safetensors", str(error)):
        return (
            f"{repo_id} has not all weights as .safetensors: softcft reads no pickles (.bin, .pt), for that may run "
            "code from the file. If you trust them, load them with diffusers and save them by save_pretrained."
        )
    cause = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
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


def _out_of_reach(error: BaseException, name: str) -> str | None:
    """What to do if the Hub was not asked or did not answer; None if an error has another cause."""
    causes = list(_causes(error))
    is_not_cached = any(isinstance(cause, LocalEntryNotFoundError) for cause in causes)
    is_offline = is_not_cached and constants.HF_HUB_OFFLINE  # which transformers hands on as local_files_only
    if is_offline or any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        why, fix = "HF_HUB_OFFLINE is set: this program is offline", "Unset HF_HUB_OFFLINE"
    elif not is_not_cached and "not fully cached" not in str(error):  # what diffusers says of pipelines
        return None
    elif len(causes) == 1 or all(isinstance(cause, LocalEntryNotFoundError) for cause in causes[1:]):
        why, fix = "local_files_only is set: the Hub is not asked", "Leave out local_files_only=True"
    else:
        why, fix = f"the Hub cannot be reached ({causes[-1]})", "Restore the network"
    return (
        f"There is no folder {name}, it is not, or not whole, in the cache {HF_HUB_CACHE}, and {why}. {fix}; or where "
        f"there is a network call 'hf download {name}' and copy the cache from there; or correct the name."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and the chain of its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
