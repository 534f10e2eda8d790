"""Data sets that are whole: files that were cut short are refused, and caches that were are made anew.

Files of these kinds say where they end. That matters most for those that are read from front to back: an Arrow file or
a tar archive that ends after a batch or a member reads as a smaller one, without a word.
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
    """Refuse a file that was cut short, as a copy or a download that broke off leaves it.

    Args:
        path: An Arrow or Parquet file or a tar archive. Files of other kinds pass.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not end as files of its kind do.
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
    """What tells a file from the same one after a change: its size and times, without reading it.

    Who changes a file can set back the time of its last modification, as copying tools do. The time of the last change
    of the file itself or of its attributes (``st_ctime``) is the file system's own, but on Windows.
    """
    state = os.stat(path)
    return str(state.st_size), str(state.st_mtime_ns), str(state.st_ctime_ns)


def read_cache(builder: DatasetBuilder, *, anew: bool = False) -> DatasetDict:
    """Read what a builder has in the cache, or make it.

    It is made beside its place and moved there whole; but a disk that was full, a copy or a clean-up of old files may
    have damaged it since. Then it is made anew.

    Args:
        builder: Of datasets, for instance from :func:`datasets.load_dataset_builder`.
        anew: Make it anew in any case.

    Returns:
        Its splits.

    Raises:
        ValueError: If the name of the cache has a part that datasets does not take for a name.
        Exception: Whatever prevented it, of many kinds: what datasets reports as an error in making the data set is
            unwrapped.
    """
    folder = Path(builder.cache_dir)
    if "::" in str(folder):  # which datasets takes for the way into an archive
        raise ValueError(f"The cache {folder} must have no '::' in its name; give another --data_dir.")
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
