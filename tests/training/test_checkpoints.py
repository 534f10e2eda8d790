"""What is written while a training runs is whole or not there: damage, full disks, models that are replaced."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from softcft.training import writing
from softcft.training.checkpoints import _describe, find_damage, save_whole
from softcft.training.writing import replace_file
from tests.processes import run_command
from tests.training.test_loop import Adaptive, checkpoints, equal, lines, run, without_speed

FIELDS = {"ema_decay": 0.9, "checkpointing_steps": 2, "logging_steps": 3}


def vae(width: int = 8) -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=[width], norm_num_groups=4, latent_channels=2)


def weights(folder: Path) -> torch.Tensor:
    return AutoencoderKL.from_pretrained(folder).encoder.conv_in.weight


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cut(tmp_path):
    """A run of 6 steps with checkpoints, the first half of one of 10."""
    run(tmp_path / "run", Adaptive(), **FIELDS)
    return tmp_path / "run"


@pytest.fixture
def whole(tmp_path):
    return run(tmp_path / "whole", Adaptive(), max_train_steps=10, **FIELDS)


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "no list", "garbled list"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(cut, whole, damage, caplog):
    newest = cut / "checkpoint-6"
    assert find_damage(newest) is None
    victim = newest / "model.safetensors"
    if damage == "truncate":
        os.truncate(victim, victim.stat().st_size // 2)
    elif damage == "flip":
        content = bytearray(victim.read_bytes())
        content[-3] ^= 1
        victim.write_bytes(content)
    elif damage == "delete":
        victim.unlink()
    elif damage == "no list":
        (newest / "files.json").unlink()
    else:
        (newest / "files.json").write_text('{"model')
    resumed = run(cut, Adaptive(), max_train_steps=10, resume_from_checkpoint="latest", **FIELDS)
    assert equal(resumed, whole)
    told = caplog.text
    assert "checkpoint-6 is damaged, so the one before it is used" in told
    assert ("files.json" if "list" in damage else "model.safetensors") in told or damage == "garbled list"
    assert checkpoints(cut) == ["checkpoint-10", "checkpoint-6", "checkpoint-8"]
    assert (cut / "damaged-checkpoint-6").is_dir()
    assert find_damage(cut / "checkpoint-6") is None
    assert without_speed(lines(cut)) == without_speed(lines(cut.parent / "whole"))


def test_where_all_are_damaged_the_run_starts_anew(cut, whole):
    for folder in cut.glob("checkpoint-*"):
        (folder / "optimizer.bin").write_bytes(b"")
    resumed = run(cut, Adaptive(), max_train_steps=10, resume_from_checkpoint="latest", **FIELDS)
    assert equal(resumed, whole)
    assert without_speed(lines(cut)) == without_speed(lines(cut.parent / "whole"))


def test_a_checkpoint_of_another_model_is_refused(cut):
    other = Adaptive()
    other.linear = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="checkpoint-6 is of another model"):
        run(cut, other, max_train_steps=10, resume_from_checkpoint="latest", **FIELDS)


def test_no_pickle_of_a_checkpoint_runs_code(cut, tmp_path):
    """Even where somebody has made the list of files agree with it."""

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    victim = cut / "checkpoint-6" / "optimizer.bin"
    victim.write_bytes(pickle.dumps(Payload(), protocol=2))
    listed = json.loads((cut / "checkpoint-6" / "files.json").read_text())
    (cut / "checkpoint-6" / "files.json").write_text(json.dumps(listed | {"optimizer.bin": _describe(victim)}))
    assert find_damage(cut / "checkpoint-6") is None
    with pytest.raises(ValueError, match=r"checkpoint-6 is refused, for it holds more than tensors and numbers"):
        run(cut, Adaptive(), max_train_steps=10, resume_from_checkpoint="latest", **FIELDS)
    assert not (tmp_path / "ran").exists()


# ---- full disks -----------------------------------------------------------------------------------------------------

FULL = """
from pathlib import Path
from tests.processes import run_command
from tests.training.test_loop import Adaptive, numbers, settings
from softcft.training.loop import train
import torch
config = settings(Path({folder!r}), max_train_steps=50, checkpointing_steps=1, checkpoints_total_limit=0)
train(Adaptive(), numbers(), config, name="toy")
"""

needs_namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0,
    reason="a full disk is a small tmpfs, which takes a mount namespace of its own (unshare -rm)",
)


@pytest.mark.slow
@needs_namespaces
def test_a_full_disk_ends_the_run_and_leaves_what_was_saved(tmp_path):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    script = tmp_path / "full.py"
    script.write_text(FULL.format(folder=str(disk / "run")))
    # The mount ends with the shell's namespace, so what is left is copied out of it.
    shell = f"mount -t tmpfs -o size=96k none {disk} && {sys.executable} {script}; rc=$?; cp -r {disk} {copy}; exit $rc"
    result = run_command("unshare", "-rm", "sh", "-c", shell, cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "OSError: Could not save" in last
    assert "Nothing that was saved before is lost" in last
    assert "checkpoints_total_limit" in last
    left = sorted((copy / "run").glob("checkpoint-*"))
    assert left
    assert all(find_damage(folder) is None for folder in left)
    assert not (copy / "run" / "partial-checkpoint").exists()
    # With room, it goes on and ends as if nothing had been.
    fields = {"max_train_steps": 8, "checkpointing_steps": 1, "checkpoints_total_limit": 0}
    newest = max(int(folder.name.removeprefix("checkpoint-")) for folder in left)
    assert newest < 8
    resumed = run(copy / "run", Adaptive(), resume_from_checkpoint="latest", **fields)
    assert equal(resumed, run(tmp_path / "whole", Adaptive(), **fields))


# ---- file systems that cannot do all --------------------------------------------------------------------------------


@pytest.fixture
def told_anew():
    writing._warn_once.cache_clear()
    yield
    writing._warn_once.cache_clear()


def refuse_folders(monkeypatch, error):
    """Windows, and some network mounts: a folder cannot be opened."""
    opened = os.open

    def refusing(path, *arguments, **keywords):
        if isinstance(path, str | Path) and os.path.isdir(path):
            raise error
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refusing)


def refuse_sync(monkeypatch, error):
    """Some network mounts: nothing can be forced to the disk."""

    def refusing(descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", refusing)


CANNOT = [
    PermissionError(errno.EACCES, "Permission denied"),
    PermissionError("without a number"),
    *(OSError(number, os.strerror(number)) for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)),
]


@pytest.mark.parametrize("refuse", [refuse_folders, refuse_sync])
@pytest.mark.parametrize("error", CANNOT, ids=repr)
def test_a_file_system_that_cannot_force_things_to_the_disk(tmp_path, monkeypatch, caplog, told_anew, refuse, error):
    whole = run(tmp_path / "whole", Adaptive(), **FIELDS)
    writing._warn_once.cache_clear()
    caplog.clear()
    refuse(monkeypatch, error)
    cut = run(tmp_path / "run", Adaptive(), **FIELDS, max_train_steps=4)
    assert caplog.text.count("after a power failure") == 1
    assert find_damage(tmp_path / "run" / "checkpoint-4") is None
    del cut
    assert equal(run(tmp_path / "run", Adaptive(), resume_from_checkpoint="latest", **FIELDS), whole)
    model = vae()
    for _ in range(2):
        save_whole(tmp_path / "model", model)
    replace_file(tmp_path / "file.txt", "text")
    assert torch.equal(weights(tmp_path / "model"), model.encoder.conv_in.weight)


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (RuntimeError(f"IoError(Os {{ code: 28, message: {os.strerror(errno.ENOSPC)!r} }})"), True),
        (OSError(errno.EIO, os.strerror(errno.EIO)), False),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("something of PyTorch's own"), False),
    ],
    ids=repr,
)
@pytest.mark.parametrize("refused", ["state", "fsync"])
def test_only_a_full_disk_is_told_as_one(tmp_path, monkeypatch, error, is_full, refused):
    def refusing(*arguments, **keywords):
        raise error

    if refused == "state":
        monkeypatch.setattr("accelerate.Accelerator.save_state", refusing)
    elif isinstance(error, PermissionError):
        pytest.skip("what a file system answers that cannot force things to the disk")
    else:
        monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(OSError, match="checkpoint-2") as told:
        run(tmp_path, Adaptive(), **FIELDS)
    assert ("is full" in str(told.value)) == is_full
    assert ("checkpoints_total_limit" in str(told.value)) == is_full
    assert str(error.args[-1]) in str(told.value)
    assert checkpoints(tmp_path) == []
    assert not (tmp_path / "partial-checkpoint").exists()


# ---- models ---------------------------------------------------------------------------------------------------------


def test_a_model_is_replaced(tmp_path):
    first, second = vae(), vae()
    save_whole(tmp_path, first)
    (tmp_path / "metrics.jsonl").write_text("mine")
    save_whole(tmp_path, second)
    assert torch.equal(weights(tmp_path), second.encoder.conv_in.weight)
    assert not torch.equal(weights(tmp_path), first.encoder.conv_in.weight)
    names = {"config.json", "diffusion_pytorch_model.safetensors", "metrics.jsonl"}
    assert set(os.listdir(tmp_path)) == names


def test_parts_have_folders_of_their_own(tmp_path):
    save_whole(tmp_path, one=vae(), two=vae(16))
    assert weights(tmp_path / "one").shape[0] == 8
    assert weights(tmp_path / "two").shape[0] == 16


@pytest.mark.parametrize("moves", range(5))
def test_killed_while_a_model_is_replaced_it_is_the_old_the_new_or_none(tmp_path, monkeypatch, moves):
    """The moves one by one: after each of them the process may end."""
    old, new = vae(), vae()
    save_whole(tmp_path, old)
    done = []
    rename = Path.rename

    def dies(self, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    try:
        save_whole(tmp_path, new)
    except KeyboardInterrupt:
        assert moves < 4
    monkeypatch.undo()
    if (tmp_path / "config.json").exists():
        expected = old if moves == 0 else new
        assert torch.equal(weights(tmp_path), expected.encoder.conv_in.weight)
    save_whole(tmp_path, new)
    assert torch.equal(weights(tmp_path), new.encoder.conv_in.weight)
    assert not {"partial-model", "replaced-model"} & set(os.listdir(tmp_path))


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "config.yaml"
    replace_file(path, "one")
    replace_file(path, "two")
    assert path.read_text() == "two"
    with pytest.raises(OSError, match=r"Could not save .*config.yaml: .*run the same command again"):
        replace_file(tmp_path / "none" / "config.yaml", "x")
    assert os.listdir(tmp_path) == ["config.yaml"]
