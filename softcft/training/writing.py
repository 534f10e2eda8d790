"""Writing to disks that are full, and to file systems that cannot do all that others can."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

__all__ = ["CONFIG", "KILLED", "remove", "replace_file", "sync", "sync_folder", "writing"]

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
"""The settings of a run, in its folder."""
KILLED = "DataLoader worker (pid"
"""How PyTorch's error begins when a process that loads data was killed. It may interrupt the program anywhere."""
FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE = 2**20
"""Fewer free bytes than these are taken for a full disk where an error gives no reason."""
CANNOT_FORCE = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR)
"""Errors of fsync on Windows and some network mounts, which do not support it; some raise PermissionError instead."""


@contextmanager
def writing(path: Path, what: str, again: str, room: str = "Make room") -> Iterator[None]:
    """Turn whatever error into an OSError that says what could not be written and why; delete what was written of it.

    Args:
        path: The file or folder that is written.
        what: What it is, for the message.
        again: What to do once the cause is mended.
        room: What to do if the disk is full.
    """
    try:
        yield
    except Exception as error:  # OSError, or what safetensors and PyTorch make of it
        is_full = _is_full(error, path)
        with suppress(OSError):
            remove(path)
        if KILLED in str(error):
            raise
        reason = f"the disk, or your share of it, is full ({error})" if is_full else str(error) or type(error).__name__
        raise OSError(
            f"Could not save {what}: {reason}. Nothing that was saved before is lost. "
            f"{room if is_full else 'Mend this'} and {again}."
        ) from error


def replace_file(path: Path, text: str) -> None:
    """Write a text file, whose old content stays until the new one is whole."""
    new = path.with_name(f"{path.name}.new")
    with writing(new, str(path), "run the same command again"):
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        for part in path.iterdir():  # not shutil.rmtree, which opens folders: not all file systems can
            remove(part)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _is_full(error: Exception, path: Path) -> bool:
    """Whether the disk is full. safetensors quotes the system's message, PyTorch gives no reason."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    if any(os.strerror(number) in str(error) for number in FULL):
        return True
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    return not isinstance(error, OSError) and shutil.disk_usage(there).free < LITTLE


def sync(folder: Path) -> None:
    """Force a folder and all that is in it to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with _where_possible(), path.open("r+b") as file:  # Windows forces only what may be written
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    with _where_possible():
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _where_possible() -> Iterator[None]:
    """Go on, with a warning, where a file system does not support fsync."""
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_FORCE and not isinstance(error, PermissionError):
            raise
        _warn_once(error.strerror or str(error))


@cache
def _warn_once(reason: str) -> None:
    logger.warning(
        f"This file system does not force everything to the disk ({reason}): after a power failure the newest "
        "checkpoint or model may be incomplete. --resume_from_checkpoint latest then takes the checkpoint before."
    )
