"""Refuse files that were cut short, and make damaged caches anew.

Arrow, Parquet and tar files have an end mark. An Arrow file or a tar archive that is cut after a batch or a member
would otherwise be read as a smaller one without an error.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from datasets import DatasetBuilder, DatasetDict, DatasetInfo
from datasets.exceptions import DatasetGenerationError

__all__ = ["check_whole", "file_state", "read_cache"]

logger = logging.getLogger(__name__)

ENDS = {
    ".arrow": (b"\xff\xff\xff\xff\0\0\0\0", b"ARROW1"),  # of a stream, as datasets writes them, and of a file
    ".parquet": (b"PAR1", b"PARE"),
    ".tar": (bytes(1024),),
}


def check_whole(path: str | Path) -> None:
    """Refuse an Arrow or Parquet file or a tar archive that was cut short. Files of other kinds pass.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no end mark.
    """
    ends = ENDS.get(Path(path).suffix.lower(), (b"",))
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - max(map(len, ends))))
        if not file.read().endswith(ends):
            raise ValueError(
                f"{path} is cut short: {size} bytes, of which the last are not the end of a {Path(path).suffix} file. "
                "Copy, download or make it anew."
            )


def file_state(path: str | Path) -> tuple[str, ...]:
    """A file's size and times, which tell whether it has changed.

    Copying tools may set back the time of the last modification. ``st_ctime`` cannot be set, but on Windows.
    """
    state = os.stat(path)
    return str(state.st_size), str(state.st_mtime_ns), str(state.st_ctime_ns)


def read_cache(builder: DatasetBuilder, *, anew: bool = False) -> DatasetDict:
    """Read the splits of a builder of datasets from the cache, or make them, anew if files are missing or cut short.

    Args:
        builder: For instance from :func:`datasets.load_dataset_builder`.
        anew: Make them anew in any case.

    Raises:
        ValueError: If datasets would not take the name of the cache as it is.
        Exception: Of any kind, if they cannot be made: the cause of datasets' own error.
    """
    folder = Path(builder.cache_dir)
    if "::" in str(folder):  # which datasets takes for the way into an archive
        raise ValueError(f"The cache {folder} must have no '::' in its name; give another data_dir.")
    if folder.is_dir() and (anew or not _is_whole(folder)):
        if not anew:
            logger.warning("The cache %s is damaged; it is made anew.", folder)
        shutil.rmtree(folder)
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        # Its own text is that there was an error.
        if type(error) is DatasetGenerationError and isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise
    return builder.as_dataset()


def _is_whole(folder: Path) -> bool:
    """Whether a cache has all its files to their ends."""
    try:
        splits = (DatasetInfo.from_directory(str(folder)).splits or {}).values()
        files = list(folder.glob("*.arrow"))
        for file in files:
            check_whole(file)
    except (OSError, TypeError, ValueError):  # no or half a description, or half a file
        return False
    return len(files) == sum(len(split.shard_lengths or [0]) for split in splits)
