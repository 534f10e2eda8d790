"""Data that break: cut short, gone, or left half by a process that was killed. Every fault is a real one."""

import gc
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, load_from_disk
from PIL import Image
from torch.utils.data import DataLoader

from softcft.data import streaming
from softcft.data.config import DataConfig
from softcft.data.own import read_table
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.data.pixels import encode_pixels, prepare_images
from softcft.data.schema import ImageAttributeDataset
from softcft.data.sources import load_data, training_images
from softcft.graph import CausalGraph
from softcft.training.interruption import next_batch
from softcft.training.writing import KILLED
from tests.data.picture_files import png
from tests.processes import python, start_command

GRAPH = CausalGraph([{"name": "age", "kind": "continuous", "low": 0, "high": 300}])
SIZE = 16
PHANTOM = {"num_train": 2_100, "num_validation": 2, "num_test": 2}  # several batches to a file


def make_folder(folder: Path, n: int = 100) -> Path:
    """Pictures with a table; each picture has its age as its grey level."""
    (folder / "pictures").mkdir(parents=True)
    for i in range(n):
        (folder / "pictures" / f"{i}.png").write_bytes(png(i % 256, SIZE))
    lines = [json.dumps({"file_name": f"pictures/{i}.png", "age": i}) for i in range(n)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def settings(folder: Path, cache: Path, **others: object) -> DataConfig:
    return DataConfig(dataset_name=str(folder), data_dir=str(cache), sample_size=SIZE, **others)


def ends_of_batches(path: Path) -> list[int]:
    """Where the schema and each batch of an Arrow file end."""
    source = pa.BufferReader(path.read_bytes())
    ends = []
    for _ in pa.ipc.MessageReader.open_stream(source):
        ends.append(source.tell())
    return ends


def after_a_batch(path: Path) -> None:
    """The cut that pyarrow does not notice."""
    cut(path, ends_of_batches(path)[-2])


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


CUTS: dict[str, Callable[[Path], None]] = {
    "after a batch": after_a_batch,
    "in a batch": lambda path: cut(path, path.stat().st_size - 1_000),
    "before its end": lambda path: cut(path, path.stat().st_size - 8),
    "to nothing": lambda path: cut(path, 0),
    "gone": Path.unlink,
}


# ---- files that are cut short ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", CUTS.values(), ids=CUTS)
def test_a_damaged_cache_of_the_phantom_is_made_anew(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load_phantom(SIZE, **PHANTOM, cache_dir=str(tmp_path))["train"]
    last = whole[len(whole) - 1]
    path = Path(whole.cache_files[0]["filename"])
    del whole
    damage(path)
    again = load_phantom(SIZE, **PHANTOM, cache_dir=str(tmp_path))["train"]
    assert len(again) == PHANTOM["num_train"]
    assert again[len(again) - 1] == last
    assert f"The cache {path.parent} is damaged; it is made anew." in caplog.text
    caplog.clear()
    load_phantom(SIZE, **PHANTOM, cache_dir=str(tmp_path))
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("damage", ["in a batch", "gone"])
def test_a_damaged_cache_of_prepared_images_is_made_anew(damage: str, tmp_path: Path) -> None:
    config = settings(make_folder(tmp_path / "mine"), tmp_path / "cache", num_validation=10, num_test=10)
    rows = load_data(config, GRAPH)["train"]
    before = [row["image"].getpixel((0, 0)) for row in rows]
    assert before == [int(age) for age in rows["age"]]
    path = next(Path(file["filename"]) for file in rows.cache_files)
    del rows
    CUTS[damage](path)
    assert [row["image"].getpixel((0, 0)) for row in load_data(config, GRAPH)["train"]] == before


@pytest.mark.parametrize("damage", ["in a batch", "gone"])
def test_a_damaged_cache_of_data_files_is_made_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Dataset.from_dict({"age": range(100)}).to_parquet(folder / "train.parquet")
    rows = read_table(str(folder))["train"]
    cache = Path(rows.cache_files[0]["filename"])
    del rows
    CUTS[damage](cache)
    assert read_table(str(folder))["train"]["age"][:] == list(range(100))
    assert "damaged; it is made anew" in caplog.text


@pytest.mark.parametrize("damage", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("splits", [False, True])
def test_a_damaged_folder_of_save_to_disk_is_refused(
    splits: bool, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    rows = Dataset.from_dict({"age": range(3_000), "text": ["x" * 100] * 3_000})
    folder = tmp_path / "saved"
    (datasets.DatasetDict({"train": rows}) if splits else rows).save_to_disk(folder)
    path = next(folder.rglob("*.arrow"))
    damage(path)
    with pytest.raises(ValueError, match=rf"dataset_name {folder} cannot be read: .*{path.name}"):
        read_table(str(folder))


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "tar"])
def test_a_file_of_the_user_that_is_cut_short_is_named(kind: str, is_streamed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    path = folder / f"train.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            for i in range(4):
                for name, content in ((f"{i}.png", png(i, SIZE)), (f"{i}.json", b'{"age": 1}')):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    else:
        rows = Dataset.from_dict({"age": range(3_000)})
        if kind == "parquet":
            rows.to_parquet(path)
        else:
            rows.save_to_disk(tmp_path / "saved")
            shutil.copy(next((tmp_path / "saved").glob("*.arrow")), path)
    whole = path.read_bytes()
    assert read_table(str(folder), streaming=is_streamed)["train"] is not None
    for size in (len(whole) - 20 if kind != "tar" else 2_048, len(whole) // 2, 0):  # 2,048: after a member
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"cannot be read: {path} is cut short: {size} bytes.*anew|train.{kind}"):
            read_table(str(folder), streaming=is_streamed)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP"])
def test_no_part_of_a_picture_is_taken_for_the_whole(form: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form)
    whole = file.getvalue()
    pixels = np.asarray(Image.open(io.BytesIO(whole)))
    parts = [{"bytes": whole[:size], "path": None} for size in range(1, len(whole))]
    rows = Dataset.from_dict({"image": [*parts, {"bytes": whole, "path": None}]})
    with pytest.warns(UserWarning, match="EXIF") if form == "TIFF" else pytest.MonkeyPatch.context():
        prepared, problems = prepare_images(
            rows.cast_column("image", datasets.Image()), SIZE, 1, cache_dir=tmp_path / "cache"
        )
    assert len(problems) > len(whole) / 2
    for row in prepared:  # what may be missing is what follows the pixels
        assert (np.asarray(row["image"]) == pixels).all()


# ---- files that go away ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Pillow leaves the pipe open
@pytest.mark.parametrize("leaves_an_empty_folder", [False, True])
def test_a_folder_that_vanishes_while_its_pictures_are_read(leaves_an_empty_folder: bool, tmp_path: Path) -> None:
    """Two of the pictures are pipes: one tells that reading has begun, one holds it up until the folder is gone."""
    pictures = make_folder(tmp_path / "mine", n=300) / "pictures"
    pipes = [pictures / "100.png", pictures / "200.png"]
    for pipe in pipes:
        pipe.unlink()
        os.mkfifo(pipe)
    code = f"""
import os, time
from pathlib import Path
pictures, away = Path({str(pictures)!r}), Path({str(tmp_path / "away")!r})
os.close(os.open(pictures / "100.png", os.O_WRONLY))  # returns when the other side reads
pictures.rename(away)
if {leaves_an_empty_folder}:
    pictures.mkdir()
while True:
    try:
        os.close(os.open(away / "200.png", os.O_WRONLY | os.O_NONBLOCK))
    except OSError:  # nobody reads yet
        time.sleep(0.01)
"""
    thief = subprocess.Popen([sys.executable, "-c", code])
    rows = read_table(str(pictures.parent))["train"]
    try:
        with pytest.raises(FileNotFoundError, match=rf"folder of the images, {pictures}, is gone.*start again"):
            prepare_images(rows, SIZE, 1, num_workers=1, cache_dir=tmp_path / "cache")
    finally:
        thief.kill()
        thief.wait()
        gc.collect()
    # Nothing of it is kept as if it were whole: all are there once the folder is.
    if leaves_an_empty_folder:
        pictures.rmdir()
    (tmp_path / "away").rename(pictures)
    for i, pipe in zip((100, 200), pipes, strict=True):
        pipe.unlink()
        pipe.write_bytes(png(i, SIZE))
    prepared, problems = prepare_images(rows, SIZE, 1, cache_dir=tmp_path / "cache")
    assert (len(prepared), problems) == (300, [])


def test_a_picture_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    """It was a network's fault or a permission's, so size and time of the file are what they were."""
    folder = make_folder(tmp_path / "mine", n=10)
    path = folder / "pictures" / "3.png"
    whole, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=times)
    rows = read_table(str(folder))["train"]
    assert len(prepare_images(rows, SIZE, 1, cache_dir=tmp_path / "cache")[1]) == 1
    path.write_bytes(whole)
    os.utime(path, ns=times)
    prepared, problems = prepare_images(rows, SIZE, 1, cache_dir=tmp_path / "cache")
    assert (len(prepared), problems) == (10, [])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_vanishes_in_the_middle_of_an_epoch_of_a_stream(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BUFFER", 1)  # or it would be read to its end at once
    folder = make_folder(tmp_path / "mine", n=300)
    config = settings(folder, tmp_path / "cache", streaming=True, num_validation=10, num_test=10)
    images = training_images(load_data(config, GRAPH)["train"], config, GRAPH)
    batches = iter(DataLoader(images, batch_size=10, num_workers=workers, prefetch_factor=1 if workers else None))
    next(batches)
    shutil.rmtree(folder / "pictures")
    with pytest.raises(OSError, match=rf"{folder}: 64 images in a row cannot be read; the last is {folder}/pictures/"):
        list(islice(batches, 30))


@pytest.mark.parametrize("workers", [0, 2])
def test_some_damaged_pictures_do_not_end_a_stream(workers: int, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine", n=200)
    for i in range(0, 200, 3):
        (folder / "pictures" / f"{i}.png").write_bytes(b"damaged")
    config = settings(folder, tmp_path / "cache", streaming=True, num_validation=10, num_test=10)
    images = training_images(load_data(config, GRAPH)["train"], config, GRAPH).subset("even")
    wanted = [i for i in range(20, 200, 2) if i % 3]
    batches = DataLoader(images, batch_size=len(wanted) // 2, num_workers=workers)
    grey = [int(value) for batch in islice(batches, 2) for value in batch["image"][:, 0, 0, 0]]
    assert sorted(grey) == wanted


# ---- processes that are killed --------------------------------------------------------------------------------------


def test_a_killed_worker_is_an_error_and_the_data_are_as_before() -> None:
    rows = Dataset.from_dict(
        {"image": [encode_pixels(np.full((SIZE, SIZE), i, np.uint8)) for i in range(64)], "age": list(range(64))}
    ).cast_column("image", datasets.Image())
    images = ImageAttributeDataset(rows, GRAPH)
    loader = DataLoader(images, batch_size=1, num_workers=1, prefetch_factor=1)
    batches = iter(loader)
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=rf"^{re.escape(KILLED)}.*(is killed by signal|exited unexp|was killed)"):
        [next_batch(batches, "toy", step, num_workers=1) for step in range(63)]
    assert [int(batch["image"][0, 0, 0, 0]) for batch in loader] == list(range(64))


def kill_when(code: str, is_time: Callable[[], bool], cwd: Path) -> None:
    """Run code in another process, and kill it, as nothing can prevent, once it is time."""
    process = start_command(*python("-c", code), cwd=cwd)
    try:
        deadline = time.monotonic() + 120
        while not is_time():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_half_a_phantom_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    sizes = {"num_train": 6_000, "num_validation": 2, "num_test": 2}

    def is_half_written() -> bool:
        return any(path.stat().st_size > 0 for path in tmp_path.rglob("*.incomplete/*.arrow"))

    code = f"""
from softcft.data.phantom import load_phantom
load_phantom({SIZE}, **{sizes}, cache_dir={str(tmp_path)!r})
"""
    kill_when(code, is_half_written, tmp_path)
    assert not list(tmp_path.rglob("dataset_info.json"))
    rows = load_phantom(SIZE, **sizes, cache_dir=str(tmp_path))["train"]
    assert len(ImageAttributeDataset(rows, PHANTOM_GRAPH)) == sizes["num_train"]


def test_a_preparation_that_was_killed_goes_on(tmp_path: Path) -> None:
    n = 2_500
    rows = Dataset.from_dict(
        {"image": [{"bytes": png(i % 256, SIZE), "path": None} for i in range(n)], "age": [i % 100 for i in range(n)]}
    ).cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path / "saved")

    def has_one_chunk() -> bool:
        return any(".incomplete" not in str(path) for path in (tmp_path / "cache").rglob("dataset_info.json"))

    code = f"""
from datasets import load_from_disk
from softcft.data.pixels import prepare_images
prepare_images(load_from_disk("saved"), {SIZE}, 1, num_workers=1, cache_dir="cache")
"""
    kill_when(code, has_one_chunk, tmp_path)
    prepared, problems = prepare_images(load_from_disk(tmp_path / "saved"), SIZE, 1, cache_dir=tmp_path / "cache")
    assert (len(prepared), problems) == (n, [])
    images = ImageAttributeDataset(prepared, GRAPH)
    assert [int(images[i]["image"][0, 0, 0]) for i in range(0, n, 100)] == [i % 256 for i in range(0, n, 100)]
