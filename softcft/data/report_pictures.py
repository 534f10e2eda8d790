"""The part of :mod:`softcft.data.report` about pictures."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict, Image
from tqdm.auto import tqdm

from softcft.data.config import DataConfig
from softcft.data.negatives import find_negatives, thumbnail
from softcft.data.paths import check_paths, find_repeats, stored_pictures
from softcft.data.picture_tables import examples
from softcft.data.pictures import count_frames, eight_bits, fit_picture, is_grey, white_of, why_unread
from softcft.data.pixels import list_problems, open_picture, picture_shape

__all__ = ["DataReport", "Example", "check_pictures"]

SAMPLE = 1_000  # pictures that are read
FLAT = 0.02  # part of the pictures, at least 3, that may be of a single shade
AHEAD = 64  # pictures that are in memory together


class Example(NamedTuple):
    """A picture as a model will see it, uint8 of shape (H, W) or (H, W, 3), and its attributes in words."""

    pixels: np.ndarray
    caption: str


@dataclass
class DataReport:
    """What :func:`check_data` found.

    Attributes:
        lines: The report.
        errors: What would stop a training or the evaluation, each with its fix.
        warnings: What would not, but is likely to be a mistake or to spoil a result.
        examples: Pictures by heading: for each category some, and for each continuous variable from its smallest to its
            largest value.
    """

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    examples: dict[str, list[Example]] = field(default_factory=dict)


class _Picture(NamedTuple):
    """A picture that was read, or the problem that prevented it."""

    name: str
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    grey: bool = False
    white: str = ""
    photometric: str | None = None
    frames: int = 1
    digest: bytes = b""
    small: np.ndarray | None = None
    is_flat: bool = False
    pixels: np.ndarray | None = None
    problem: str | None = None


def check_pictures(
    splits: DatasetDict,
    column: str,
    config: DataConfig,
    report: DataReport,
    *,
    all_images: bool = False,
    values: Mapping[str, Mapping[str, Sequence[Any]]],
    shown: Mapping[str, Mapping[int, str]],
) -> None:
    """Read pictures as training would, and add what was found to a report.

    Args:
        splits: The splits.
        column: The column of the pictures.
        config: The settings of the data.
        report: Lines, problems and examples are added to it.
        all_images: Read all pictures, not a sample of 1,000.
        values: By variable and split what the rows have.
        shown: By heading the training rows of the examples, and their captions.
    """
    try:
        stored = {
            split: rows.select_columns([column]).cast_column(column, Image(decode=False))
            for split, rows in splits.items()
        }
    except (TypeError, ValueError) as error:
        report.errors.append(f"Column {column!r} holds no pictures: {error}. Name theirs by columns: {{image: ...}}.")
        return
    try:
        for rows in stored.values():
            check_paths(rows, column, config.dataset_name)
    except ValueError as error:
        report.errors.append(str(error))
        return
    _check_files(stored, column, config, report)
    report.warnings += find_repeats(stored, column, values)
    try:
        channels = config.image_channels or picture_shape(stored["train"].rename_columns({column: "image"}))[0]
    except ValueError as error:
        report.errors.append(str(error))
        return
    total = sum(len(rows) for rows in stored.values())
    sample = total if all_images else min(SAMPLE, total)
    read: dict[str, list[_Picture]] = {}
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(desc="reading pictures", total=sample, unit="image") as bar,
    ):
        for split, rows in stored.items():
            number = max(1, sample * len(rows) // total)
            chosen = rows.select(np.linspace(0, len(rows) - 1, number).round().astype(int))
            read[split] = []
            for start in range(0, number, AHEAD):  # all of them might not fit into memory
                some = chosen.select(range(start, min(start + AHEAD, number)))
                for picture in pool.map(lambda row: _read_picture(row[column], config.sample_size, channels), some):
                    read[split].append(picture._replace(pixels=None))
                    bar.update()
    pictures = [picture for found in read.values() for picture in found]
    _note_pictures(pictures, total, config, channels, report)
    _check_read(pictures, total, config, channels, report)
    _check_negatives(pictures, report)
    _check_duplicates(read, report)
    for heading, captions in shown.items():
        rows = {row: _read_picture(stored["train"][row][column], config.sample_size, channels) for row in captions}
        report.examples[heading] = [
            Example(picture.pixels, captions[row]) for row, picture in rows.items() if picture.pixels is not None
        ]


def _check_files(stored: Mapping[str, Dataset], column: str, config: DataConfig, report: DataReport) -> None:
    """Look for files that are missing, and for links out of the folder, in all rows: no picture is decoded."""
    lost, links = [], []
    folder = os.path.realpath(config.dataset_name) if os.path.isdir(config.dataset_name) else None
    for rows in stored.values():
        if (rows[0][column] or {}).get("bytes"):  # the table itself holds them
            continue
        for path, is_held in stored_pictures(rows, column):
            if path is None:
                lost += [] if is_held else ["a row has no picture"]
            elif "://" in path:  # in an archive or on the Hub, where datasets has looked for it
                continue
            elif not os.path.isfile(path):
                lost.append(f"{path}: there is no such file")
            elif folder is not None and not Path(target := os.path.realpath(path)).is_relative_to(folder):
                links.append(f"{path} to {target}")
    if lost:
        report.warnings.append(
            f"{len(lost)} pictures are not there, and their rows would be left out. Correct the names, or remove the "
            f"rows:{list_problems(lost)}"
        )
    if links:
        report.warnings.append(
            f"{len(links)} pictures are links out of the folder, for instance {links[0]}. They are followed: see where "
            "they lead, if the folder comes from somebody else."
        )


def _read_picture(stored: Mapping[str, Any] | None, size: int, channels: int) -> _Picture:
    """Read a picture as training does."""
    picture = _Picture(str((stored or {}).get("path") or "an image"))
    try:
        with open_picture(stored) as opened:
            frames = count_frames(opened)
            picture = picture._replace(size=opened.size, mode=opened.mode, grey=is_grey(opened), frames=frames)
            eight = eight_bits(opened)
            picture = picture._replace(white=white_of(eight), photometric=eight.info.get("photometric"))
            pixels = fit_picture(eight, size, channels)
            digest = hashlib.blake2b(pixels.tobytes()).digest()
            is_flat = int(pixels.max()) - int(pixels.min()) <= 1
            return picture._replace(pixels=pixels, digest=digest, small=thumbnail(pixels), is_flat=is_flat)
    except Exception as error:  # of many kinds; one picture must not end it all
        return picture._replace(problem=f"{picture.name}: {why_unread(error)}")


def _note_pictures(
    pictures: Sequence[_Picture], total: int, config: DataConfig, channels: int, report: DataReport
) -> None:
    opened = [picture for picture in pictures if picture.mode]
    gib = total * channels * config.sample_size**2 / 2**30
    report.lines += ["", f"Pictures ({len(pictures):,} of {total:,} read)"]
    if opened:
        sizes = Counter(picture.size for picture in opened).most_common()
        (width, height), number = sizes[0]
        sides = [side for size, _ in sizes for side in size]
        common = f"{width} x {height} ({number:,} of them)"
        others = f", others with sides from {min(sides)} to {max(sides)}" if len(sizes) > 1 else ""
        modes = ", ".join(f"{mode} {n:,}" for mode, n in Counter(picture.mode for picture in opened).most_common())
        tags = Counter(picture.photometric for picture in opened if picture.photometric is not None)
        whites = Counter(picture.white for picture in opened if picture.white)
        enlarged = sum(min(picture.size) < config.sample_size for picture in opened)
        cropped = [1 - min(picture.size) / max(picture.size) for picture in opened]
        report.lines += [
            f"  size in pixels: {common}{others}",
            f"  PIL modes: {modes}",
            *(f"  DICOM, {tag}: {n:,}{', inverted' * (tag == 'MONOCHROME1')}" for tag, n in tags.most_common()),
            *(f"  {white} ({n:,} of them)" for white, n in whites.most_common()),
            f"  become {config.sample_size} x {config.sample_size}, {'grey' if channels == 1 else 'RGB'}; {enlarged:,} "
            "are enlarged",
        ]
        if any(cropped):
            report.lines.append(
                f"  {np.count_nonzero(cropped):,} are no squares: the ends of the longer side are cut off, "
                f"{100 * sum(cropped) / np.count_nonzero(cropped):.0f} % on average"
            )
        if enlarged > len(opened) / 2:
            report.warnings.append(
                f"{enlarged} of {len(opened)} pictures are smaller than --sample_size {config.sample_size}: a smaller "
                "one would lose nothing and train faster."
            )
    report.lines.append(f"  prepared for training, all take {gib:.2g} GiB on disk")


def _check_read(
    pictures: Sequence[_Picture], total: int, config: DataConfig, channels: int, report: DataReport
) -> None:
    problems = [picture.problem for picture in pictures if picture.problem is not None]
    if problems:
        text, named = f"{len(problems)} of {len(pictures)} pictures cannot be used", list_problems(problems)
        if len(problems) == len(pictures) or config.on_error == "raise":
            report.errors.append(f"{text}. Repair them, or leave their rows out:{named}")
        else:
            report.warnings.append(f"{text}, and their rows would be left out. Repair them, if they are needed:{named}")
    whites = Counter(picture.white for picture in pictures if picture.white)
    if len(whites) > 1:
        kinds = "".join(f"\n  {white} ({n:,} of them)" for white, n in whites.most_common())
        report.warnings.append(
            "White is not the same in all pictures, so that one shade may stand for several values. Look at the "
            f"examples; if some are too dark or too bright, bring all to one range before:{kinds}"
        )
    if several := [picture for picture in pictures if picture.frames > 1]:
        report.warnings.append(
            f"{len(several)} of {len(pictures)} files have several pictures (pages, frames), {several[0].name} has "
            f"{several[0].frames}: only the first of each is read. Save the one that is meant as a file."
        )
    flat = [picture.name for picture in pictures if picture.is_flat]
    if len(flat) >= max(3, FLAT * len(pictures)):
        report.warnings.append(
            f"{len(flat)} of {len(pictures)} pictures are of a single shade, to the eye: {examples(flat)}. If they are "
            "masks of 0 and 1, or were saved in a wrong range, scale them; else leave their rows out."
        )
    grey = sum(picture.grey for picture in pictures if picture.mode)
    coloured = sum(not picture.grey for picture in pictures if picture.mode)
    if grey and coloured and config.image_channels is None:
        many = f"{coloured} of {len(pictures)} pictures are in colour, but the first is grey"
        if channels == 3:
            many = f"{grey} of {len(pictures)} pictures are grey, but the first is in colour"
        report.warnings.append(f"{many}, and so all would be: pass --image_channels, 1 or 3.")


def _check_negatives(pictures: Sequence[_Picture], report: DataReport) -> None:
    found = [pictures[place].name for place in find_negatives([picture.small for picture in pictures])]
    if found:
        named = examples(list(dict.fromkeys(found)))
        report.warnings.append(
            f"{len(found)} of {len(pictures)} pictures look inverted (negatives of the others): {named}. DICOM "
            "files with PhotometricInterpretation MONOCHROME1 become so: invert these, or leave their rows out."
        )


def _check_duplicates(read: Mapping[str, Sequence[_Picture]], report: DataReport) -> None:
    places: defaultdict[bytes, dict[str, str]] = defaultdict(dict)
    for split, pictures in read.items():
        for picture in pictures:
            if picture.digest:
                places[picture.digest][split] = picture.name
    shared = [found for found in places.values() if len(found) > 1]
    if shared:
        where = " and ".join(f"{name} ({split})" for split, name in shared[0].items())
        report.warnings.append(
            f"{len(shared)} pictures are in several splits, for instance {where}: results would be too good. Remove "
            "copies, or let --group_column keep them in one split."
        )
