"""Somebody watches a training: the best weights are what is left of it, and nothing else changes."""

import random
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from softcft.training.checkpoints import find_damage
from softcft.training.loop import train
from softcft.training.monitor import Look
from tests.processes import run_python
from tests.training.test_loop import (
    Regression,
    checkpoints,
    equal,
    lines,
    numbers,
    settings,
    without_speed,
)

LATEST = {"resume_from_checkpoint": "latest"}


class Normalised(Regression):
    """Has the statistics of a batch normalisation, and a state that follows the steps."""

    def __init__(self):
        super().__init__(noise=0.3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("multiplier", torch.zeros(()))

    def forward(self, batch):
        returned = super().forward({**batch, "x": self.norm(batch["x"])})
        return {**returned, "loss": returned["loss"] * (1 + self.multiplier)}

    def after_step(self, metrics):
        self.multiplier += 0.1 * metrics["loss"]


class Scripted:
    """Calls the weights of the steps in ``best`` the best, and does all that could disturb a training."""

    def __init__(self, objective, every=2, best=(), over=None):
        self.objective, self.every, self.best, self.over = objective, every, best, over
        self.seen, self.weights = [], {}

    def look(self, step):
        assert not torch.is_grad_enabled()
        self.seen.append(step)
        self.weights[step] = {key: tensor.clone() for key, tensor in self.objective.state_dict().items()}
        self.objective.train()  # a mode in which buffers move
        self.objective({**torch.utils.data.default_collate(numbers()), "seeds": [0] * 24})
        self.objective.multiplier += torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        self.objective.eval()
        return Look({"watch/step": float(step)}, step in self.best, step == self.over)

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


def watched(folder, best=(), every=2, objective=None, over=None, **fields):
    objective = objective or Normalised()
    monitor = Scripted(objective, every, best, over)
    fields = {"max_train_steps": 9, "ema_decay": 0.9, **fields}
    train(objective, numbers(), settings(folder, **fields), name="toy", monitor=monitor)
    return objective, monitor


def unwatched(folder, **fields):
    fields = {"max_train_steps": 9, "ema_decay": 0.9, **fields}
    return train(Normalised(), numbers(), settings(folder, **fields), name="toy")


@pytest.mark.parametrize("ema_decay", [0, 0.9])
def test_who_looks_moves_nothing(tmp_path, ema_decay):
    plain = unwatched(tmp_path / "plain", ema_decay=ema_decay)
    for every in (1, 4):
        objective, monitor = watched(tmp_path / str(every), every=every, ema_decay=ema_decay)
        assert equal(plain, objective)
        assert objective.norm.training
        logged = [line for line in lines(tmp_path / str(every)) if "watch/step" not in line]
        assert without_speed(logged) == without_speed(lines(tmp_path / "plain"))
    assert monitor.seen == [0, 4, 8, 9]


@pytest.mark.parametrize("ema_decay", [0, 0.9])
@pytest.mark.parametrize("best", [0, 4, 9])
def test_the_best_weights_are_what_is_left_with_their_buffers(tmp_path, best, ema_decay):
    objective, monitor = watched(tmp_path, [0, best], ema_decay=ema_decay)
    shown = monitor.weights[best]
    assert all(torch.equal(tensor, shown[key]) for key, tensor in objective.state_dict().items())
    others = [monitor.weights[step] for step in monitor.seen if step != best]
    for key in ("linear.weight", "norm.running_mean", "norm.num_batches_tracked", "multiplier"):
        assert not any(torch.equal(shown[key], other[key]) for other in others)


def test_it_sees_what_would_be_saved(tmp_path):
    """After the last step those are the weights that an unwatched run returns: the moving average."""
    plain = unwatched(tmp_path / "plain")
    _, monitor = watched(tmp_path / "watched")
    assert all(torch.equal(tensor, monitor.weights[9][key]) for key, tensor in plain.state_dict().items())


def test_looks_are_lines_of_the_log(tmp_path):
    watched(tmp_path, every=4, logging_steps=3)
    assert [(line["step"], line.get("watch/step")) for line in lines(tmp_path)] == [
        *[(0, 0), (3, None), (4, 4), (6, None), (8, 8), (9, None), (9, 9)]
    ]
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(tmp_path / "metrics.jsonl", again)  # of a run that was killed before its first checkpoint
    watched(again, every=4, logging_steps=3, **LATEST)
    assert without_speed(lines(again)) == without_speed(lines(tmp_path))


@pytest.mark.parametrize("best", [[2], [2, 6], [0], []])
@pytest.mark.parametrize("stop", [4, 5])
def test_resumed_it_equals_a_run_that_was_not_stopped(tmp_path, best, stop):
    whole, seen = watched(tmp_path / "whole", best, checkpointing_steps=stop)
    folder = tmp_path / "parts"
    folder.mkdir()
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{stop}", folder / f"checkpoint-{stop}")
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", folder)
    assert find_damage(folder / f"checkpoint-{stop}") is None
    resumed, monitor = watched(folder, best, checkpointing_steps=stop, **LATEST)
    assert equal(whole, resumed)
    assert monitor.seen == seen.seen
    assert without_speed(lines(folder)) == without_speed(lines(tmp_path / "whole"))
    finished, monitor = watched(folder, best, checkpointing_steps=stop, **LATEST)
    assert equal(whole, finished)
    assert monitor.seen == seen.seen
    assert checkpoints(folder)[-1] == "checkpoint-9"


@pytest.mark.parametrize("best", [[2], [4], []])
def test_what_is_over_ends_with_the_best_weights_and_stays_ended(tmp_path, best):
    fields = {"best": best, "over": 4, "checkpointing_steps": 3}
    ended, monitor = watched(tmp_path, **fields)
    assert monitor.seen == [0, 2, 4]
    shown = monitor.weights[best[0] if best else 4]
    assert all(torch.equal(tensor, shown[key]) for key, tensor in ended.state_dict().items())
    assert checkpoints(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    logged = lines(tmp_path)
    again, monitor = watched(tmp_path, **fields, **LATEST)
    assert equal(ended, again)
    assert monitor.seen == [0, 2, 4]
    assert lines(tmp_path) == logged


@pytest.mark.parametrize("was_watched", [True, False])
def test_watched_and_not_watched_do_not_mix(tmp_path, was_watched):
    before, now = (watched, unwatched) if was_watched else (unwatched, watched)
    before(tmp_path / "run", max_train_steps=4, checkpointing_steps=4)
    with pytest.raises(ValueError, match="checkpoint-4"):
        now(tmp_path / "run", **LATEST)
    # What the error advises.
    before(tmp_path / "run", **LATEST)
    now(tmp_path / "another", **LATEST)


SCRIPT = """
import sys
import torch
from pathlib import Path
from tests.training.test_monitor import watched

folder = Path(sys.argv[1])
objective, monitor = watched(folder, best=[2], max_train_steps=4, train_batch_size=2)
rank = torch.distributed.get_rank()
torch.save((objective.linear.state_dict(), monitor.seen, monitor.weights.get(2)), folder / f"{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_keep_the_same_weights_and_one_of_them_looks(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    run_python("script.py", tmp_path, cwd=tmp_path, processes=2)
    (first, seen, shown), (second, unseen, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert (seen, unseen) == ([0, 2, 4], [])
    for key in first:
        assert torch.equal(first[key], second[key])
        assert torch.equal(first[key], shown[f"linear.{key}"])
