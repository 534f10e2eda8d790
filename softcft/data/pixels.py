"""Prepare pictures of any kind and size once, as pixels that training reads without decoding.

A prepared data set still has a column ``image`` of :class:`datasets.Image`. Its bytes are those of PGM (grey) or PPM
(colour) files of one size, a short header and the plain pixels, so that a batch is read from the memory-mapped Arrow
file by cutting off the headers, see :func:`read_pixels`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, Value, concatenate_datasets
from datasets.packaged_modules.generator.generator import Generator
from datasets.utils.file_utils import xopen
from PIL import Image as PILImage
from tqdm.auto import tqdm

from softcft.data.integrity import file_state, read_cache
from softcft.data.paths import stored_pictures
from softcft.data.pictures import fit_picture, is_grey, open_file, why_unread

__all__ = [
    "encode_pixels",
    "list_problems",
    "open_picture",
    "picture_shape",
    "prepare_images",
    "read_pixels",
]

CHUNK = 1_000  # pictures that are prepared and cached together: what an interruption may cost
AHEAD = 64  # pictures that are in memory together before they are prepared
VERSION = 6  # of the pixels: raise it with any change of them, so that cached ones are made anew
SHOWN = 20  # problems that a message names
MAGIC = {1: "P5", 3: "P6"}


def encode_pixels(pixels: np.ndarray) -> dict[str, Any]:
    """An array, uint8 of shape (H, W) or (H, W, 3), as :class:`datasets.Image` stores it, not compressed."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return {"bytes": _header(pixels.shape[0], pixels.shape[1], channels) + pixels.tobytes(), "path": None}


def _header(height: int, width: int, channels: int) -> bytes:
    return f"{MAGIC[channels]} {width} {height} 255\n".encode()


def read_pixels(rows: Dataset, indices: list[int] | range, shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels of B rows of a prepared data set, uint8 of shape (B, H, W, C).

    Args:
        rows: A data set whose images are prepared; fastest if it has the format "arrow".
        indices: Which rows.
        shape: Channels, height and width of the images.

    Raises:
        ValueError: If one of the images is not a prepared one of that shape.
    """
    channels, height, width = shape
    header = _header(height, width, channels)
    size = len(header) + height * width * channels
    if rows.format["type"] != "arrow":  # to set it copies the table's directory
        rows = rows.with_format("arrow")
    stored = pc.struct_field(rows[indices]["image"].combine_chunks(), "bytes")
    plain = stored.null_count == 0 and pc.all(pc.equal(pc.binary_length(stored), size)).as_py()
    if plain:
        _, offsets, data = stored.buffers()
        start = np.frombuffer(offsets, np.int32)[stored.offset]
        pixels = np.frombuffer(data, np.uint8)[start : start + len(stored) * size].reshape(len(stored), size)
        plain = not (pixels[:, : len(header)] != np.frombuffer(header, np.uint8)).any()
    if not plain:
        raise ValueError(
            f"rows must have prepared images of {channels} x {height} x {width} pixels (channels, height, width); make "
            "them by softcft.data.pixels.prepare_images."
        )
    return pixels[:, len(header) :].copy().reshape(len(stored), height, width, channels)


def open_picture(stored: Mapping[str, Any] | None) -> PILImage.Image:
    """Open a picture as datasets stores it: in the table, a file, an archive, or on the Hub.

    Raises:
        ValueError: If there is none.
        Exception: As :func:`~softcft.data.pictures.open_file`, if it is missing or damaged.
    """
    stored = stored or {}
    path = stored.get("path")
    if stored.get("bytes") is not None:
        return open_file(stored["bytes"], path)
    if path is None:
        raise ValueError("it has no image")
    if "://" not in path:
        return open_file(path)
    with xopen(path, "rb") as file:
        return open_file(file.read(), path)


def picture_shape(rows: Dataset) -> tuple[int, int, int]:
    """Channels (1 or 3), height and width of the first picture that can be read; ValueError if none can."""
    first = ""
    for i, stored in enumerate(rows.select_columns("image").cast_column("image", Image(decode=False))):
        try:
            with open_picture(stored["image"]) as picture:
                return (1 if is_grey(picture) else 3), picture.height, picture.width
        except Exception as error:  # the next one will do
            path = (stored["image"] or {}).get("path") or f"row {i}"
            first = first or f"; the first: {path}: {why_unread(error)}"
    raise ValueError(f"None of the {len(rows)} images can be read{first}.")


def prepare_images(
    rows: Dataset,
    size: int,
    channels: int,
    *,
    on_error: Literal["skip", "raise"] = "skip",
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    desc: str = "preparing images",
) -> tuple[Dataset, list[str]]:
    """Decode, resize and cache all images of a data set, a thousand at a time.

    Each is made square by :func:`~softcft.data.pictures.fit_picture`. What an earlier run has prepared, finished or
    not, is read from the cache, unless a file has changed since or can be read now and could not then.

    Args:
        rows: A data set with a column ``image``: paths, encoded pictures, or a :class:`datasets.Image` of them.
        size: Height and width of the results in pixels.
        channels: 1 (grey) or 3 (RGB).
        on_error: Whether rows whose picture is missing or cannot be read are left out or raise.
        num_workers: Pictures decoded at the same time; the number of CPU cores if left out.
        cache_dir: Where the results are kept; the cache of Hugging Face datasets if left out.
        desc: Label of the progress bar.

    Returns:
        The rows with prepared images, other columns unchanged, and what was wrong with those that were left out.

    Raises:
        FileNotFoundError: If the folder of all the pictures goes away while they are read.
        ValueError: If ``channels`` is neither 1 nor 3, no picture can be read, or with ``on_error="raise"`` one cannot.
    """
    if channels not in MAGIC:
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}.")
    rows = rows.with_format(None)
    pictures = rows.select_columns("image").cast_column("image", Image(decode=False))
    if _are_prepared(pictures, size, channels):
        return rows.cast_column("image", Image()), []
    chunks, problems, good = [], [], []
    wanted = {"size": size, "channels": channels, "num_workers": num_workers, "folder": _common_folder(pictures)}
    with tqdm(total=len(rows), desc=desc, unit="image") as progress, _quiet():
        for start in range(0, len(rows), CHUNK):
            chunk = pictures.select(range(start, min(start + CHUNK, len(rows))))
            builder = Generator(
                generator=_prepare,
                features=Features({"image": Image(), "problem": Value("string")}),
                cache_dir=None if cache_dir is None else str(cache_dir),
                gen_kwargs={"pictures": chunk, **wanted},
                config_id=f"default-fingerprint={_key(chunk, size, channels)}",
            )
            prepared = read_cache(builder)["train"]
            # What could not be read then may be there now.
            wrong = chunk.select([i for i, problem in enumerate(prepared["problem"]) if problem is not None])
            if any(_prepare_one(row, size, channels)["problem"] is None for row in wrong):
                prepared = read_cache(builder, anew=True)["train"]
            for i, (problem, path) in enumerate(zip(prepared["problem"], _paths(chunk), strict=True), start=start):
                if problem is None:
                    good.append(i)
                    continue
                problem = f"{path or f'row {i}'}: {problem}"
                if on_error == "raise":
                    raise ValueError(f"{problem}. Repair or remove it, or leave out such rows by on_error='skip'.")
                problems.append(problem)
            chunks.append(prepared.remove_columns("problem"))
            progress.update(len(chunk))
    if not good:
        first = f"; the first: {problems[0]}" if problems else ""
        raise ValueError(f"None of the {len(rows)} images can be read{first}.")
    # The other columns are not cached, so that another graph finds the same images. They are copied: datasets would
    # otherwise write the images anew to bring both into one order.
    others = rows.remove_columns("image")
    others = Dataset.from_dict(others[:], features=others.features) if others.column_names else None
    images = concatenate_datasets(chunks)
    joined = images if others is None else concatenate_datasets([images, others], axis=1)
    return (joined.select(good) if problems else joined), problems


def _are_prepared(pictures: Dataset, size: int, channels: int) -> bool:
    """Whether the images are prepared ones of that size, by the length of all and the header of the first."""
    header = _header(size, size, channels)
    lengths = (
        pc.binary_length(pc.struct_field(batch["image"].combine_chunks(), "bytes"))
        for batch in pictures.with_format("arrow").iter(CHUNK)
    )
    plain = len(header) + size * size * channels
    first = (pictures[0]["image"] or {}).get("bytes") or b"" if len(pictures) else b""
    return first.startswith(header) and all(
        pc.all(pc.fill_null(pc.equal(length, plain), False)).as_py() for length in lengths
    )


def _prepare(
    pictures: Dataset, size: int, channels: int, num_workers: int | None, folder: str | None
) -> Iterator[dict[str, Any]]:
    """Prepare a chunk; what prevents it for an image is its ``problem``. Raises if the folder of all is gone."""

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        prepared = _prepare_one(row, size, channels)
        if prepared["problem"] is not None and folder is not None and not _has_files(folder):
            raise FileNotFoundError(
                f"The folder of the images, {folder}, is gone or empty; bring it back and start again: "
                "what was prepared before is kept."
            )
        return prepared

    # Threads suffice: PIL lets go of Python's lock while it decodes and resizes.
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        for start in range(0, len(pictures), AHEAD):  # the pool would else read all at once
            yield from pool.map(prepare, pictures.select(range(start, min(start + AHEAD, len(pictures)))))


def _prepare_one(row: dict[str, Any], size: int, channels: int) -> dict[str, Any]:
    try:
        with open_picture(row["image"]) as picture:
            return {"image": encode_pixels(fit_picture(picture, size, channels)), "problem": None}
    except Exception as error:  # of many kinds; one picture must not end it all
        return {"image": None, "problem": why_unread(error)}


def _paths(pictures: Dataset) -> list[str | None]:
    return pc.struct_field(pictures.with_format("arrow")[:]["image"].combine_chunks(), "path").to_pylist()


def list_problems(problems: Sequence[str]) -> str:
    """Problems for a message, after its colon: the first 20 in a line each, and the number of the others."""
    if len(problems) == 1:
        return f" {problems[0]}"
    others = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*problems[:SHOWN], *others])


def _common_folder(pictures: Dataset) -> str | None:
    """The folder that holds all pictures that are files; None if there are none, or it is empty."""
    paths = (path for path, _ in stored_pictures(pictures, "image"))
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths if path is not None and "://" not in path}
    folder = os.path.commonpath(folders) if folders else None
    return folder if folder is not None and _has_files(folder) else None


def _has_files(folder: str) -> bool:
    """Whether a folder is there and not empty, as the mount point of a missing disk is."""
    if not os.path.isdir(folder):
        return False
    with os.scandir(folder) as entries:
        return any(True for _ in entries)


def _key(pictures: Dataset, size: int, channels: int) -> str:
    """A hash of all pictures in the table, and of the paths, sizes and times of those in files."""
    digest = hashlib.sha256(repr((VERSION, size, channels, len(pictures))).encode())
    for batch in pictures.with_format("arrow").iter(AHEAD):
        stored = batch["image"].combine_chunks()
        paths, contents = pc.struct_field(stored, "path").to_pylist(), pc.struct_field(stored, "bytes")
        for path, content in zip(paths, contents, strict=True):
            digest.update(repr(path).encode())
            if content.is_valid:
                digest.update(content.as_buffer())
            elif path is not None and os.path.isfile(file := path.split("::")[-1] if "://" in path else path):
                digest.update(repr(file_state(file)).encode())
    return digest.hexdigest()[:32]


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the progress bars of datasets, one for each chunk: there is one for all."""
    were_on = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()
