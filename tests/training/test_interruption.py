"""What happens while a training runs, provoked for real: signals, killed workers, no memory, bad numbers."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from softcft.training import interruption
from softcft.training.checkpoints import find_damage
from softcft.training.interruption import next_batch
from tests.processes import python, run_command, start_command
from tests.training.test_loop import (
    Adaptive,
    Regression,
    checkpoints,
    equal,
    lines,
    numbers,
    run,
    without_speed,
)

STEPS = 40
FIELDS = {"max_train_steps": STEPS, "checkpointing_steps": 1000, "ema_decay": 0.9, "logging_steps": 7}

SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.training.test_loop import run
from tests.training.test_interruption import FIELDS, Slow
trained = run(Path(sys.argv[1]), Slow(), **FIELDS, resume_from_checkpoint="latest")
torch.save(trained.state_dict(), Path(sys.argv[1], "trained.pt"))
"""


class Slow(Adaptive):
    """Takes its time and tells of it, so that a signal comes in the middle."""

    def forward(self, batch):
        time.sleep(0.1)
        return super().forward(batch)


def start(folder: Path, processes: int) -> subprocess.Popen[str]:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    return start_command(*python(script, folder, processes=processes), cwd=folder.parent)


def wait_for_a_line(folder: Path) -> None:
    """Until the first line of the log: the training is under way."""
    until = time.monotonic() + 240
    while not (folder / "metrics.jsonl").is_file() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < until, "the training did not start"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_from_outside_ends_the_run_and_it_goes_on_from_there(tmp_path, processes):
    number = signal.SIGTERM
    folder = tmp_path / "run"
    process = start(folder, processes)
    wait_for_a_line(folder)
    process.send_signal(number)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 128 + number if processes == 1 else process.returncode != 0
    (saved,) = checkpoints(folder)
    step = int(saved.removeprefix("checkpoint-"))
    assert 7 <= step < STEPS
    assert find_damage(folder / saved) is None
    assert f"{number.name}: stopping after this step" in told
    line = f"toy: stopped by {number.name} after step {step} of {STEPS}; {saved} is saved."
    assert told.count(line) == 1  # one process speaks for all
    assert not (folder / "trained.pt").exists()

    process = start(folder, processes)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told[-3000:]
    if processes == 1:
        whole = run(tmp_path / "whole", Slow(), **FIELDS)
        trained = torch.load(folder / "trained.pt")
        assert all(torch.equal(trained[key], value) for key, value in whole.state_dict().items())
        # The open line of the log goes through the checkpoint, too.
        assert without_speed(lines(folder)) == without_speed(lines(tmp_path / "whole"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_run_goes_on_from_the_checkpoint_of_its_signal(tmp_path, number):
    class Ends(Adaptive):
        left = 3

        def forward(self, batch):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)
            return super().forward(batch)

    fields = {"max_train_steps": 8, "checkpointing_steps": 1000, "ema_decay": 0.9, "logging_steps": 2}
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "run", Ends(), **fields)
    assert stopped.value.code == 128 + number
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"]
    resumed = run(tmp_path / "run", Adaptive(), **fields, resume_from_checkpoint="latest")
    assert equal(resumed, run(tmp_path / "whole", Adaptive(), **fields))
    # The open line of the log goes through the checkpoint, too.
    assert without_speed(lines(tmp_path / "run")) == without_speed(lines(tmp_path / "whole"))


def test_without_checkpoints_a_signal_says_that_nothing_is_saved(tmp_path, capsys):
    class Ends(Regression):
        def forward(self, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(batch)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, Ends())
    assert stopped.value.code == 143
    assert "after step 1 of 6; nothing is saved, for checkpointing_steps is 0" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_twice_does_not_wait_for_the_step(tmp_path):
    class Ends(Regression):
        def forward(self, batch):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one ends it at once")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Ends(), checkpointing_steps=1)
    assert checkpoints(tmp_path) == []


# ---- data -----------------------------------------------------------------------------------------------------------


class Deadly(Dataset):
    """Kills the process that reads its sixth sample."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return numbers()[index]


KILLED = """
import sys
from pathlib import Path
from tests.training.test_interruption import Deadly
from tests.training.test_loop import run

run(Path(sys.argv[1]), dataset=Deadly(), dataloader_num_workers=1, checkpointing_steps=int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 1], ids=["while reading", "or while saving"])
def test_a_killed_worker_is_told(tmp_path, every):
    # In a process of its own: PyTorch raises the error wherever the program happens to be, be it in pytest.
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    result = run_command(*python(script, tmp_path / "run", str(every)), cwd=tmp_path)
    assert result.returncode == 1
    message = r"RuntimeError: toy: DataLoader worker .*(killed|exited).* lower dataloader_num_workers \(now 1\)"
    assert re.search(message, result.stderr), result.stderr[-3000:]
    assert all(find_damage(folder) is None for folder in (tmp_path / "run").glob("checkpoint-*"))


class Disconnected(Dataset):
    """Samples from a server that is gone."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        raise ConnectionResetError("the server is gone")


def test_a_server_that_is_gone_is_no_killed_worker():
    """Both are a ConnectionError here: the one is the worker's report, the other what is left of a worker."""
    batches = iter(DataLoader(Disconnected(), num_workers=1))
    with pytest.raises(RuntimeError, match=r"^toy: the data cannot be read any more at step 3: .*the server is gone"):
        next_batch(batches, "toy", 3, num_workers=1)


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_a_worker_killed_while_it_hands_over_a_tensor(error):
    """A worker that is killed by the test dies at any other moment, too."""

    def batches():
        raise error
        yield

    with pytest.raises(RuntimeError, match=rf"^{re.escape(interruption.KILLED)}"):
        next_batch(batches(), "toy", 3, num_workers=1)


# ---- memory ---------------------------------------------------------------------------------------------------------

HUNGRY = """
import resource, sys
from pathlib import Path
import torch
from tests.training.test_loop import Regression, run

class Hungry(Regression):
    def forward(self, batch):
        scalars = super().forward(batch)
        self.kept = torch.zeros(2**28) + scalars["loss"].detach()
        return scalars

run(Path(sys.argv[1], "enough"), Regression())
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
run(Path(sys.argv[1], "run"), Hungry(), gradient_accumulation_steps=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process, which other systems do not")
def test_a_machine_without_enough_memory_is_told_what_to_lower(tmp_path):
    script = tmp_path / "hungry.py"
    script.write_text(HUNGRY)
    result = run_command(*python(script, tmp_path), cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: toy: out of memory. "), result.stderr[-3000:]
    assert "Lower train_batch_size (now 4) and raise gradient_accumulation_steps by the same factor" in last
    assert "mixed_precision bf16 (now no)" in last


def test_other_errors_of_an_objective_stay_what_they_are(tmp_path):
    class Wrong(Regression):
        def forward(self, batch):
            return super().forward({"x": batch["x"][:, :2], "y": batch["y"]})

    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        run(tmp_path, Wrong())


# ---- numbers --------------------------------------------------------------------------------------------------------


class Normalised(Regression):
    """With statistics that one bad batch would spoil for good."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, batch):
        return super().forward({"x": self.norm(batch["x"]), "y": batch["y"]})


def test_a_skipped_step_leaves_no_trace_in_buffers(tmp_path):
    samples = numbers(n=8)
    samples[3] = {"x": torch.full((3,), math.nan), "y": torch.tensor(1.0)}
    trained = run(tmp_path, Normalised(), samples, train_batch_size=2)
    assert sum(line["skipped"] for line in lines(tmp_path)) >= 1
    assert all(buffer.isfinite().all() for buffer in trained.buffers())
    assert trained.norm.num_batches_tracked == 6 - sum(line["skipped"] for line in lines(tmp_path))
