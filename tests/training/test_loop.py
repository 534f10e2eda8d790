import json
import math
from itertools import count

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from softcft.training.config import TrainingConfig
from softcft.training.loop import _EndlessShuffle, train
from tests.processes import run_python


def numbers(n=24, bad=None):
    """Samples of y = x1 + x2 + x3 + 1, the third of them with ``bad`` in place of y."""
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    samples = [{"x": row, "y": row.sum() + 1} for row in x]
    if bad is not None:
        samples[2]["y"] = torch.tensor(bad)
    return samples


class Regression(nn.Module):
    """Linear regression; with ``noise`` also dropout-like noise, so that random states matter."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        nn.init.constant_(self.linear.weight, 0.5)
        nn.init.zeros_(self.linear.bias)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.noise = noise

    def forward(self, batch):
        error = self.linear(batch["x"])[:, 0] * self.frozen - batch["y"]
        error = error + self.noise * torch.randn_like(error)
        return {"loss": error.square().mean(), "bias": self.linear.bias[0]}


class Adaptive(Regression):
    """Has a state of its own, which moves after each step."""

    def __init__(self, noise=0.3):
        super().__init__(noise)
        self.register_buffer("multiplier", torch.zeros(()))

    def forward(self, batch):
        scalars = super().forward(batch)
        return {**scalars, "loss": scalars["loss"] * (1 + self.multiplier)}

    def after_step(self, metrics):
        self.multiplier += 0.1 * metrics["loss"]


def settings(tmp_path, **fields):
    defaults = {
        "max_train_steps": 6,
        "train_batch_size": 4,
        "learning_rate": 0.05,
        "lr_warmup_steps": 0,
        "ema_decay": 0,
        "checkpointing_steps": 0,
        "logging_steps": 1,
    }
    return TrainingConfig(output_dir=str(tmp_path), **{**defaults, **fields})


def run(tmp_path, objective=None, dataset=None, **fields):
    objective = objective or Regression()
    return train(objective, dataset or numbers(), settings(tmp_path, **fields), name="toy")


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def without_speed(entries):
    return [{key: value for key, value in entry.items() if key != "images_per_second"} for entry in entries]


def checkpoints(path):
    return sorted(folder.name for folder in path.glob("checkpoint-*"))


# ---- optimization ---------------------------------------------------------------------------------------------------


def test_it_learns_and_returns_the_same_objective(tmp_path):
    objective = Regression()
    trained = run(tmp_path, objective, max_train_steps=150)
    assert trained is objective
    assert lines(tmp_path)[-1]["loss"] < 1e-2 < lines(tmp_path)[0]["loss"]
    assert torch.equal(objective.frozen, torch.ones(1))


def test_what_is_no_scalar_is_averaged_for_the_objective_and_not_logged(tmp_path):
    class Pictures(Adaptive):
        def __init__(self):
            super().__init__(noise=0)
            self.seen = []

        def forward(self, batch):
            return {**super().forward(batch), "picture": batch["x"].mean(dim=0)}

        def after_step(self, metrics):
            self.seen.append(metrics["picture"])

    large, small = Pictures(), Pictures()
    run(tmp_path / "1x8", large, train_batch_size=8)
    run(tmp_path / "4x2", small, train_batch_size=2, gradient_accumulation_steps=4)
    torch.testing.assert_close(torch.stack(large.seen), torch.stack(small.seen))
    assert large.seen[0].ndim == 1
    assert large.seen[0].any()
    assert "picture" not in lines(tmp_path / "1x8")[0]


def test_moving_average_equals_hand_computation(tmp_path):
    seen = []

    class Watched(Regression):
        def after_step(self, metrics):
            seen.append(self.linear.weight.detach().clone())

    trained = run(tmp_path, Watched(), ema_decay=0.4)
    average = seen[0]  # the first step forgets the initial weights
    for n, weight in enumerate(seen[1:], start=1):
        decay = min(0.4, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(trained.linear.weight, average)
    assert not torch.equal(trained.linear.weight, seen[-1])


# ---- steps that are skipped -----------------------------------------------------------------------------------------


def test_gradients_are_clipped(tmp_path):
    grads = []

    class Watched(Regression):
        def after_step(self, metrics):
            grads.append(torch.cat([p.grad.flatten() for p in self.linear.parameters()]).norm().item())

    run(tmp_path, Watched(), max_grad_norm=0.5)
    assert all(entry["grad_norm"] > 0.5 for entry in lines(tmp_path))  # logged as it was before
    assert grads == pytest.approx([0.5] * 6, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_bad_batch_is_skipped_and_counted(tmp_path, bad):
    after = []

    class Watched(Regression):
        def after_step(self, metrics):
            after.append(self.linear.weight.detach().clone())

    trained = run(tmp_path, Watched(), numbers(n=6, bad=bad), train_batch_size=1)
    skipped = [entry["skipped"] for entry in lines(tmp_path)]
    assert sorted(skipped) == [0] * 5 + [1]
    assert len(after) == 5
    assert trained.linear.weight.isfinite().all()
    assert ["loss" in entry for entry in lines(tmp_path)] == [not count for count in skipped]


def test_one_bad_batch_of_an_accumulated_step_skips_all_of_it(tmp_path):
    objective = Regression()
    dataset = numbers(n=6, bad=math.nan)
    with pytest.raises(RuntimeError, match="toy: all 3 steps were skipped"):
        run(tmp_path, objective, dataset, train_batch_size=1, gradient_accumulation_steps=6, max_train_steps=3)
    assert [entry["skipped"] for entry in lines(tmp_path)] == [1, 1, 1]
    assert equal(objective, Regression())


# ---- the log --------------------------------------------------------------------------------------------------------


def test_metrics_are_averages_over_the_window(tmp_path):
    run(tmp_path / "each", max_train_steps=5)
    run(tmp_path / "window", max_train_steps=5, logging_steps=2)
    each, window = lines(tmp_path / "each"), lines(tmp_path / "window")
    assert [entry["step"] for entry in window] == [2, 4, 5]  # the last step always has its line
    assert set(window[0]) == {"step", "loss", "bias", "grad_norm", "lr", "skipped", "images_per_second"}
    for key in ("loss", "bias", "grad_norm"):
        assert window[1][key] == pytest.approx((each[2][key] + each[3][key]) / 2)
    assert each[0]["bias"] == 0
    assert all(entry["images_per_second"] > 0 and entry["lr"] == 0.05 for entry in each)


def test_tracker_gets_the_metrics(tmp_path):
    run(tmp_path, report_to="tensorboard")
    assert list((tmp_path / "logs" / "toy").glob("events.out.tfevents.*"))


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path, workers):
    # 7 samples in steps of 2 x 2: resuming falls into the middle of an epoch.
    fields = {
        "dataset": numbers(n=7),
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "lr_warmup_steps": 3,
        "dataloader_num_workers": workers,
    }
    whole = run(tmp_path / "whole", Adaptive(), max_train_steps=9, **fields)
    folder = tmp_path / "parts"
    run(folder, Adaptive(), max_train_steps=4, checkpointing_steps=4, **fields)
    with (folder / "metrics.jsonl").open("a") as file:  # what a killed run may leave behind
        file.write('{"step": 5, "loss": 0.0}\n{"step": 6, "lo')
    (folder / "partial-checkpoint").mkdir()
    resumed = run(
        folder, Adaptive(), max_train_steps=9, checkpointing_steps=4, resume_from_checkpoint="latest", **fields
    )
    assert equal(whole, resumed)
    assert whole.multiplier > 0
    assert without_speed(lines(folder)) == without_speed(lines(tmp_path / "whole"))
    assert checkpoints(folder) == ["checkpoint-4", "checkpoint-8", "checkpoint-9"]
    assert not (folder / "partial-checkpoint").exists()


class Stream(IterableDataset):
    """The samples one after the other, without end."""

    def __init__(self, samples, skipped=0):
        self.samples, self.skipped = samples, skipped

    def skip(self, n):
        return Stream(self.samples, self.skipped + n)

    def __iter__(self):
        for i in count(self.skipped):
            yield self.samples[i % len(self.samples)]


def test_a_streamed_run_resumes_where_it_was(tmp_path):
    fields = {"dataset": Stream(numbers(n=7)), "train_batch_size": 2, "gradient_accumulation_steps": 2}
    whole = run(tmp_path / "whole", Adaptive(), max_train_steps=9, **fields)
    folder = tmp_path / "parts"
    run(folder, Adaptive(), max_train_steps=4, checkpointing_steps=4, **fields)
    resumed = run(folder, Adaptive(), max_train_steps=9, resume_from_checkpoint="latest", **fields)
    assert equal(whole, resumed)


def test_resume_of_a_finished_run_returns_its_weights(tmp_path):
    finished = run(tmp_path, checkpointing_steps=5, ema_decay=0.9)
    again = run(tmp_path, checkpointing_steps=5, ema_decay=0.9, resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert equal(finished, again)
    assert len(lines(tmp_path)) == 6


def test_old_checkpoints_are_pruned_and_whole_ones_ordered_by_number(tmp_path):
    run(tmp_path, max_train_steps=11, checkpointing_steps=1, checkpoints_total_limit=3)
    assert checkpoints(tmp_path) == ["checkpoint-10", "checkpoint-11", "checkpoint-9"]
    run(tmp_path / "all", max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=0)
    assert len(checkpoints(tmp_path / "all")) == 4


def test_checkpoints_of_another_run_are_not_mixed_in(tmp_path):
    run(tmp_path, checkpointing_steps=3)
    before = lines(tmp_path)
    with pytest.raises(ValueError, match=r"already has checkpoint-3, checkpoint-6, but this run starts after step 0"):
        run(tmp_path)
    with pytest.raises(ValueError, match=r"already has checkpoint-6, .* resume_from_checkpoint latest"):
        run(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert lines(tmp_path) == before


# ---- the data order -------------------------------------------------------------------------------------------------


def test_shuffle_covers_each_epoch_and_starts_anywhere():
    def take(count, **position):
        indices = iter(_EndlessShuffle(range(7), **position))
        return [next(indices) for _ in range(count)]

    stream = take(21, seed=3, start=0)
    epochs = [stream[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert take(9, seed=3, start=12) == stream[12:]
    assert take(7, seed=4, start=0) != epochs[0]


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_mistakes_are_named_before_any_work(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resume_from_checkpoint .*checkpoint-5"):
        run(tmp_path / "x", resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    with pytest.raises(ValueError, match="checkpoint-STEP"):
        run(tmp_path / "x", resume_from_checkpoint=str(tmp_path))
    with pytest.raises(ValueError, match="no parameter of Regression"):
        run(tmp_path / "x", Regression().requires_grad_(False))
    with pytest.raises(ValueError, match="data set is empty"):
        train(Regression(), [], settings(tmp_path / "x"), name="toy")
    assert not (tmp_path / "x").exists()


# ---- several processes ----------------------------------------------------------------------------------------------

WORKER = """
import importlib.util, math, sys
from pathlib import Path
import torch
from accelerate import PartialState

spec = importlib.util.spec_from_file_location("toys", sys.argv[1])
toys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)
folder = Path(sys.argv[2])
trained = {"good": toys.interrupted_run(folder / "good", batch=4)}
trained["bad"] = toys.run(folder / "bad", dataset=toys.numbers(n=11, bad=math.nan), train_batch_size=1)
torch.save({k: v.state_dict() for k, v in trained.items()}, folder / f"rank-{PartialState().process_index}.pt")
torch.distributed.destroy_process_group()
"""


def interrupted_run(folder, batch):
    fields = {"train_batch_size": batch, "ema_decay": 0.9, "lr_warmup_steps": 2, "lr_scheduler": "cosine"}
    for steps in (5, 8):
        trained = run(
            folder,
            Adaptive(noise=0),
            max_train_steps=steps,
            checkpointing_steps=5,
            resume_from_checkpoint="latest",
            **fields,
        )
    return trained


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    # `accelerate launch --cpu` starts several processes only under MPI; torchrun is its equal for the script.
    run_python(script, __file__, tmp_path, cwd=tmp_path, processes=2)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    one = interrupted_run(tmp_path / "one", batch=8).state_dict()
    for key, value in one.items():
        assert torch.equal(first["good"][key], second["good"][key])
        torch.testing.assert_close(first["good"][key], value, rtol=1e-5, atol=1e-5)
    two_lines = lines(tmp_path / "good")
    for key in ("loss", "bias", "grad_norm", "lr"):
        assert [line[key] for line in two_lines] == pytest.approx([line[key] for line in lines(tmp_path / "one")], 1e-5)

    # A batch that is bad on one process is skipped on both.
    assert sum(line["skipped"] for line in lines(tmp_path / "bad")) == 1
    assert torch.equal(first["bad"]["linear.weight"], second["bad"]["linear.weight"])
    assert first["bad"]["linear.weight"].isfinite().all()

    # A checkpoint of two processes resumes on one.
    assert checkpoints(tmp_path / "good") == ["checkpoint-5", "checkpoint-8"]
    again = run(tmp_path / "good", Adaptive(), ema_decay=0.9, max_train_steps=8, resume_from_checkpoint="latest")
    assert torch.equal(again.linear.weight, first["good"]["linear.weight"])


@pytest.mark.parametrize(
    ("fields", "steps"),
    [({"max_train_epochs": 2}, 12), ({"max_train_epochs": 2, "gradient_accumulation_steps": 5}, 3), ({}, 20)],
)
def test_the_number_of_images_limits_the_steps(tmp_path, fields, steps):
    limited = run(tmp_path / "epochs", max_train_steps=20, lr_scheduler="cosine", **fields)
    fields.pop("max_train_epochs", None)
    plain = run(tmp_path / "steps", max_train_steps=steps, lr_scheduler="cosine", **fields)
    assert torch.equal(limited.linear.weight, plain.linear.weight)
