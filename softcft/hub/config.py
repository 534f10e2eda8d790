"""Whether and where a recipe publishes what it has trained. What publishes it is imported when that is due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from softcft.models.hub_errors import LOG_IN

__all__ = ["HubConfig", "check_access"]


@dataclass(kw_only=True)
class HubConfig:
    """Whether and where a recipe publishes what it has trained. The token is never a setting.

    Raises:
        ValueError: If one of the two is missing, the name is none of the Hub, or there is no token.
    """

    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "Put the trained model on the Hub. Its repository is made before the training, private unless the "
            "data are the phantom or morphomnist. The token is that of hf auth login, or HF_TOKEN."
        },
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "With --push_to_hub: the repository, owner/name, made if there is none."}
    )

    def __post_init__(self) -> None:
        if self.push_to_hub != (self.hub_model_id is not None):
            raise ValueError(
                f"push_to_hub and hub_model_id go together, got {self.push_to_hub} and {self.hub_model_id!r}: give "
                "both, with OWNER/NAME for hub_model_id, or neither."
            )
        if self.hub_model_id is not None:
            check_access("hub_model_id", self.hub_model_id)

    def reserve(self, settings: Mapping[str, Any]) -> None:
        """Make the repository, so that a mistake shows before the training; nothing without ``push_to_hub``.

        Raises:
            OSError: If the Hub refuses it, or cannot be reached.
            ValueError: If it is public, but the data have people.
        """
        if self.hub_model_id is not None:
            from softcft.hub.card import has_people, setting
            from softcft.hub.publish import reserve

            reserve(self.hub_model_id, has_people(setting(settings, "dataset_name")))

    def publish(self, folder: str | Path, settings: Mapping[str, Any]) -> str:
        """Publish what was trained, and return the address of the repository.

        Raises:
            SystemExit: If that fails for any reason, with the command to try again.
        """
        from softcft.hub.card import has_people, setting
        from softcft.hub.publish import publish

        run, is_private = Path(settings["output_dir"]), has_people(setting(settings, "dataset_name"))
        try:
            return publish(folder, str(self.hub_model_id), settings, is_private)
        except Exception as error:
            raise SystemExit(
                f"{error}\nThe model was not published, but nothing is lost: it is in {folder}. Publish it by\n"
                f"    python recipes/push_to_hub.py --output_dir {run} --part {Path(folder).relative_to(run)} "
                f"--repo_id {self.hub_model_id}"
            ) from error


def check_access(flag: str, repo_id: str) -> None:
    """Raise ValueError if the repository that a flag names is not called ``owner/name``, or there is no token."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{flag} must be OWNER/NAME, got {repo_id!r}: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{flag} must be OWNER/NAME, got {repo_id!r}.")
    if get_token() is None:
        raise ValueError(f"{flag} {repo_id} needs a token of the Hub, and there is none: {LOG_IN}.")
