"""Publish a saved model on the Hub, in one commit, after all checks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from safetensors import SafetensorError, safe_open

from softcft.hub.card import INDEX, make_card, parts_of
from softcft.models.hub_errors import hub_refusal

__all__ = ["model_files", "publish", "reserve"]

CARD = "README.md"


def reserve(repo_id: str, is_private: bool) -> None:
    """Make a repository, or check that an existing one is not public by mistake.

    Args:
        repo_id: The repository, ``owner/name``.
        is_private: Whether only its owners shall see it. A private one stays private in any case.

    Raises:
        OSError: If the Hub refuses it, or cannot be reached.
        ValueError: If it shall be private, but is public already.
    """
    with _explain_refusals(repo_id):
        api = HfApi()
        api.create_repo(repo_id, private=is_private, exist_ok=True)
        is_public = not api.model_info(repo_id).private
    if is_private and is_public:
        raise ValueError(
            f"{repo_id} is public, but a model of these data is private unless you say otherwise: its weights can "
            "give away pictures of people. Take another repository, make this one private in its settings, or, if the "
            "data's licence lets you, publish it by recipes/push_to_hub.py --public."
        )


def model_files(folder: str | Path) -> list[Path]:
    """The files of a saved pipeline or model: configurations and safetensors, nothing else of the folder.

    Raises:
        FileNotFoundError: If there is no model, or a part has no weights.
        ValueError: If a file of weights is damaged.
    """
    folder = Path(folder)
    files = [folder / INDEX] if (folder / INDEX).is_file() else []
    for part in parts_of(folder):
        weights = sorted(part.glob("*.safetensors"))
        if not weights and not (part / "scheduler_config.json").is_file():
            raise FileNotFoundError(f"{part} has no .safetensors, and nothing else is published: save the model anew.")
        for path in weights:
            try:
                with safe_open(path, framework="pt") as file:
                    file.keys()
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged ({error}): train or copy the model anew.") from error
        files += [*sorted(part.glob("*config.json")), *weights, *sorted(part.glob("*.safetensors.index.json"))]
    return files


def publish(
    folder: str | Path,
    repo_id: str,
    settings: Mapping[str, Any],
    is_private: bool,
    entry: str | Path | None = None,
    **results: Sequence[Any],
) -> str:
    """Publish a saved pipeline or model with its card, in one commit.

    Args:
        folder: Where it is saved. The card is written there as ``README.md``.
        repo_id: The repository, ``owner/name``; made if there is none.
        settings: Of its training, as in its ``config.yaml``.
        is_private: As for :func:`reserve`.
        entry: A file that becomes ``pipeline.py``.
        results: ``tables`` and ``scores`` of :func:`~softcft.hub.card.make_card`.

    Returns:
        The address of the repository.

    Raises:
        FileNotFoundError: If the folder has no whole model.
        OSError: If the Hub refuses it, or cannot be reached.
        ValueError: If a file is damaged, or the repository is public and shall be private.
    """
    folder = Path(folder)
    files = {str(path.relative_to(folder)): path for path in model_files(folder)}
    if entry is not None:
        files["pipeline.py"] = Path(entry)
    make_card(folder, repo_id, settings, **results).save(folder / CARD)
    files[CARD] = folder / CARD
    reserve(repo_id, is_private)
    additions = [CommitOperationAdd(name, _content(path)) for name, path in sorted(files.items())]
    with _explain_refusals(repo_id):
        api = HfApi()
        api.create_commit(repo_id, additions, commit_message="Upload a model of softcft, with its card")
    return f"{api.endpoint}/{repo_id}"


def _content(path: Path) -> Path | bytes:
    """The file as it is sent, without the path that a model was loaded from, which is private."""
    if path.suffix != ".json":
        return path
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    return json.dumps(settings, indent=2, sort_keys=True).encode()


@contextmanager
def _explain_refusals(repo_id: str) -> Iterator[None]:
    """Turn the many kinds of errors of the Hub's client into an OSError with the reason."""
    try:
        yield
    except Exception as error:
        raise OSError(hub_refusal(error, repo_id) or f"The Hub did not take {repo_id}: {error}") from error
