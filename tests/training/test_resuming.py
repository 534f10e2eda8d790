"""A run that goes on with other settings: what may change is used, what may not is refused, and all advice works."""

import errno
import json
import os
import pickle
import shutil
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn

from softcft.training.checkpoints import _describe, load_checkpoint
from softcft.training.loop import _EndlessShuffle, train
from softcft.training.parsing import read_config
from softcft.training.preparation import begin_training
from softcft.training.writing import KILLED
from tests.training.test_loop import (
    Adaptive,
    Regression,
    checkpoints,
    lines,
    numbers,
    run,
    settings,
)

HALF = 3
LATEST = {"resume_from_checkpoint": "latest"}


def half(folder, objective=None, dataset=None, **fields):
    """A folder with what a run has left that was ended after half of its 6 steps."""
    run(folder, objective, dataset, checkpointing_steps=HALF, **fields)
    shutil.rmtree(folder / "checkpoint-6")
    return folder


# ---- the new value is used from the next step on --------------------------------------------------------------------


def by_hand(before, after):
    """By PyTorch alone: the weights after 3 steps with some settings and the others with new ones; learning rates."""
    model, samples, rates = Regression(), numbers(), []
    optimizer = torch.optim.AdamW(model.linear.parameters())
    order = iter(_EndlessShuffle(samples, seed=0, start=0))
    for done in range(after.max_train_steps):
        config = before if done < HALF else after
        warmup = config.lr_warmup_steps
        factor = 1.0
        if done < warmup:
            factor = done / warmup
        elif config.lr_scheduler == "cosine":
            factor = (1 + torch.tensor(torch.pi * (done - warmup) / (config.max_train_steps - warmup)).cos().item()) / 2
        rates.append(config.learning_rate * factor)
        betas = (config.adam_beta1, config.adam_beta2)
        optimizer.param_groups[0] |= {"lr": rates[-1], "betas": betas, "weight_decay": config.adam_weight_decay}
        model(torch.utils.data.default_collate([samples[next(order)] for _ in range(4)]))["loss"].backward()
        nn.utils.clip_grad_norm_(model.linear.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return model, rates


@pytest.mark.parametrize("elsewhere", [False, True], ids=["latest", "another folder"])
@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 0.005},
        {"learning_rate": 0.5},
        {"learning_rate": 0.01, "lr_scheduler": "cosine"},
        {"lr_warmup_steps": 5},
        {"lr_scheduler": "cosine", "max_train_steps": 8},
        {"adam_beta1": 0.5},
        {"adam_beta2": 0.999},
        {"adam_weight_decay": 0.3},
        {"max_grad_norm": 0.1, "adam_beta2": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("schedule", ["constant_with_warmup", "cosine"])
def test_a_new_setting_is_used_from_the_next_step_on(tmp_path, changed, elsewhere, schedule):
    first = {"max_train_steps": 6, "lr_scheduler": schedule, "lr_warmup_steps": 1}
    folder = half(tmp_path / "first", **first)
    resume = {"resume_from_checkpoint": str(folder / "checkpoint-3")} if elsewhere else LATEST
    target = tmp_path / "second" if elsewhere else folder
    trained = run(target, **first | changed | resume)
    expected, rates = by_hand(settings(folder, **first), settings(folder, **first | changed))
    torch.testing.assert_close(trained.linear.state_dict(), expected.linear.state_dict(), rtol=1e-5, atol=1e-6)
    told = [line["lr"] for line in lines(target)]
    assert told == pytest.approx(rates[-len(told) :])
    if changed.get("lr_scheduler") != schedule:
        unchanged, _ = by_hand(settings(folder, **first), settings(folder, **first))
        assert not torch.allclose(trained.linear.weight, unchanged.linear.weight, rtol=1e-5, atol=1e-6)


class Watched(Regression):
    """Keeps which images it has seen, the seeds of their noise, and the type it computed in."""

    def __init__(self):
        super().__init__()
        self.images, self.seeds, self.types = [], [], set()

    def forward(self, batch):
        self.images += batch["x"].tolist()
        self.seeds += batch["seeds"]
        self.types.add(self.linear(batch["x"]).dtype)
        return super().forward(batch)


@pytest.mark.parametrize(("batch", "accumulated"), [(12, 1), (6, 2), (4, 3), (3, 4), (2, 6), (1, 12)])
@pytest.mark.parametrize(("batch_before", "accumulated_before"), [(12, 1), (3, 4)])
def test_cut_otherwise_from_a_checkpoint_on_a_step_is_the_same(
    tmp_path, batch_before, accumulated_before, batch, accumulated
):
    before = {"train_batch_size": batch_before, "gradient_accumulation_steps": accumulated_before}
    whole, resumed = Watched(), Watched()
    run(tmp_path / "whole", whole, **before)
    folder = half(tmp_path / "run", **before)
    run(folder, resumed, train_batch_size=batch, gradient_accumulation_steps=accumulated, **LATEST)
    assert resumed.images == whole.images[HALF * 12 :]
    assert resumed.seeds == whole.seeds[HALF * 12 :]
    torch.testing.assert_close(resumed.linear.weight, whole.linear.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("batch", "accumulated"), [(1, 1), (2, 1), (5, 1), (3, 2)])
def test_with_another_number_of_images_a_step_none_is_left_out_or_repeated(tmp_path, batch, accumulated):
    watched, resumed = Watched(), Watched()
    folder = half(tmp_path, watched)
    seen = HALF * 4
    run(folder, resumed, train_batch_size=batch, gradient_accumulation_steps=accumulated, **LATEST, max_train_steps=30)
    samples = numbers()
    order = iter(_EndlessShuffle(samples, seed=0, start=seen))
    assert resumed.images == [samples[next(order)]["x"].tolist() for _ in resumed.images]
    assert resumed.seeds == list(range(seen, seen + len(resumed.seeds)))
    # And once more, where steps of two sizes lie behind.
    again = Watched()
    (newest,) = checkpoints(half_again(folder, batch, accumulated))
    run(folder, again, **LATEST, max_train_steps=40)
    assert newest == "checkpoint-33"
    assert again.seeds[0] == seen + 30 * batch * accumulated


def half_again(folder, batch, accumulated):
    fields = {"train_batch_size": batch, "gradient_accumulation_steps": accumulated, "checkpoints_total_limit": 1}
    run(folder, max_train_steps=33, checkpointing_steps=33, **fields, **LATEST)
    return folder


def test_to_fp16_the_loss_scale_starts_anew(tmp_path):
    """fp16 needs a GPU; its loss scale does not."""

    def prepared():
        accelerator, model = Accelerator(cpu=True), Regression()
        optimizer = torch.optim.AdamW(model.linear.parameters(), lr=0.1)
        schedule = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=0)
        accelerator.prepare(model, optimizer, schedule)
        return accelerator, schedule

    accelerator, _ = prepared()
    accelerator.save_state(str(tmp_path))
    accelerator, schedule = prepared()
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    load_checkpoint(accelerator, schedule, None, tmp_path)
    assert accelerator.scaler is scaler
    assert scaler.get_scale() == 8.0


# ---- what may change is recorded, what may not is refused -----------------------------------------------------------


def recipe(folder, objective=None, dataset=None, *, graph=("age",), model=None, data=None, more=None, **fields):
    """What recipes do, with a toy: settings into the folder, and training."""
    config = settings(folder, **fields)
    sections = {
        "graph": [{"name": name, "kind": "binary"} for name in graph],
        "columns": {},
        "data": {"dataset_name": "phantom", "sample_size": 16, "data_dir": None, **(data or {})},
        "scm": {**asdict(config), **(more or {}), "model": {"num_bins": 8, "sizes": {"inner": 3}, **(model or {})}},
    }
    begin_training(sections, "scm", folder)
    return train(objective or Regression(), dataset or numbers(), config, name="toy")


def half_recipe(folder, objective=None, dataset=None, **fields):
    recipe(folder, objective, dataset, checkpointing_steps=HALF, **fields)
    shutil.rmtree(folder / "checkpoint-6")
    return folder


@pytest.mark.parametrize("elsewhere", [False, True], ids=["latest", "another folder"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.01),
        ("lr_scheduler", "cosine"),
        ("lr_warmup_steps", 3),
        ("adam_beta1", 0.5),
        ("adam_beta2", 0.99),
        ("adam_weight_decay", 0.1),
        ("max_grad_norm", 1.0),
        ("skip_grad_norm", 1e9),
        ("ema_decay", 0.5),
        ("train_batch_size", 2),
        ("gradient_accumulation_steps", 2),
        ("mixed_precision", "bf16"),
        ("max_train_steps", 7),
        ("dataloader_num_workers", 1),
        ("logging_steps", 2),
        ("checkpointing_steps", 2),
        ("checkpoints_total_limit", 1),
        ("report_to", "tensorboard"),
    ],
)
def test_what_may_change_is_recorded(tmp_path, name, value, elsewhere):
    folder = half_recipe(tmp_path / "first", ema_decay=0.9)
    before = read_config(folder / "config.yaml")["scm"][name]
    resume = {"resume_from_checkpoint": str(folder / "checkpoint-3")} if elsewhere else LATEST
    target = tmp_path / "second" if elsewhere else folder
    fields = {"ema_decay": 0.9, "checkpointing_steps": HALF, **resume, name: value}
    recipe(target, **fields)
    assert read_config(target / "config.yaml")["scm"][name] == value
    (change,) = map(json.loads, (target / "changes.jsonl").read_text().splitlines())
    assert change == {"step": HALF, "setting": name, "before": before, "after": value}
    assert lines(target)[-1]["step"] == fields.get("max_train_steps", 6)


def test_gradient_checkpointing_and_moved_data_may_change(tmp_path):
    folder = half_recipe(tmp_path, more={"gradient_checkpointing": False})
    recipe(
        folder, more={"gradient_checkpointing": True}, data={"data_dir": "/elsewhere"}, checkpointing_steps=3, **LATEST
    )
    changed = [json.loads(line)["setting"] for line in (folder / "changes.jsonl").read_text().splitlines()]
    assert changed == ["data_dir", "gradient_checkpointing"]


def test_nothing_is_recorded_where_nothing_changes(tmp_path):
    folder = half_recipe(tmp_path / "first")
    recipe(folder, checkpointing_steps=HALF, **LATEST)
    recipe(tmp_path / "new", checkpointing_steps=HALF, **LATEST)
    assert not list(tmp_path.rglob("changes.jsonl"))


FORBIDDEN = {
    "graph": {"graph": ["age", "sex"]},
    "dataset_name": {"data": {"dataset_name": "morphomnist"}},
    "sample_size": {"data": {"sample_size": 32}},
    "half": {"more": {"half": "even"}},
    "seed": {"seed": 1},
    "model.num_bins": {"model": {"num_bins": 4}},
    "model.sizes.inner": {"model": {"sizes": {"inner": 4}}},
    "model.learning_rate": {"model": {"learning_rate": 4}},  # an argument of a model with the name of a setting
    "damping": {"more": {"damping": 10.0}},
    "ema_decay": {"ema_decay": 0.9},
}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["latest", "another folder"])
@pytest.mark.parametrize(("name", "changed"), FORBIDDEN.items())
def test_what_may_not_change_is_refused(tmp_path, name, changed, elsewhere):
    folder = half_recipe(tmp_path / "first")
    resume = {"resume_from_checkpoint": str(folder / "checkpoint-3")} if elsewhere else LATEST
    target = tmp_path / "second" if elsewhere else folder
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=name):
        recipe(target, checkpointing_steps=HALF, **resume, **changed)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # The message says: restore it, or start anew in another folder.
    recipe(target, checkpointing_steps=HALF, **resume)
    recipe(tmp_path / "anew", **changed)


def test_where_nothing_was_saved_a_run_starts_anew_with_any_settings(tmp_path):
    recipe(tmp_path)
    recipe(tmp_path, seed=1, model={"num_bins": 4}, **LATEST)
    assert read_config(tmp_path / "config.yaml")["scm"]["seed"] == 1


def test_a_checkpoint_without_settings_is_told(tmp_path, caplog):
    folder = half(tmp_path)
    recipe(folder, **LATEST)
    assert "config.yaml" in caplog.text


# ---- every advice is followed ---------------------------------------------------------------------------------------


class Breaks(Adaptive):
    """Learns until its third step and then meets with an accident, unless what it is told to look for has changed."""

    def __init__(self, accident, where=lambda batch: True):
        super().__init__()
        self.accident, self.where, self.steps = accident, where, 0

    def forward(self, batch):
        returned = super().forward(batch)
        return self.accident(returned) if self.steps >= HALF and self.where(batch) else returned

    def after_step(self, metrics):
        super().after_step(metrics)
        self.steps += 1


def raises(error):
    def accident(returned):
        raise error

    return accident


def is_stopped(returned):
    os.kill(os.getpid(), signal.SIGTERM)
    return returned


class Runaway(Regression):
    """Its weight grows by the learning rate in each step, and beyond 5 it has no loss, or no finite buffer."""

    def __init__(self, bursts=False):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.bursts = bursts

    @property
    def is_too_far(self):
        return self.linear.weight.detach().max() > 5

    def forward(self, batch):
        loss = -self.linear.weight.sum() - self.linear.bias.sum()
        return {"loss": loss * torch.nan if self.is_too_far and not self.bursts else loss}

    def after_step(self, metrics):
        if self.is_too_far and self.bursts:
            self.scale.fill_(torch.inf)


class Gone:
    """Samples of which the last cannot be read."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index == 17:
            raise FileNotFoundError(index)
        return numbers()[index]


def on_a_full_disk(monkeypatch):
    """The disk has room for three checkpoints."""
    save_state = Accelerator.save_state

    def save(self, folder):
        if len(checkpoints(Path(folder).parent)) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save_state(self, folder)

    monkeypatch.setattr(Accelerator, "save_state", save)


MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
# Too far after 57 steps.
STEEP = {"learning_rate": 0.08, "adam_weight_decay": 0.0, "max_train_steps": 120, "checkpoints_total_limit": 0}
LOWER = {"learning_rate": 1e-3}
EACH = {"checkpointing_steps": 1}

ADVICE = {
    "lower the learning rate, not finite": (
        RuntimeError,
        lambda: {"objective": Runaway(bursts=True), **STEEP, "checkpointing_steps": 19},
        [{**LATEST, **LOWER, "objective": Runaway(bursts=True)}],
    ),
    "lower the learning rate, skipped": (
        RuntimeError,
        lambda: {"objective": Runaway(), **STEEP, "checkpointing_steps": 54},
        [
            {**LATEST, **LOWER, "objective": Runaway()},
            {
                **LOWER,
                "objective": Runaway(),
                "resume_from_checkpoint": "{folder}/checkpoint-54",
                "output_dir": "another",
            },
        ],
    ),
    "raise the norm that is skipped": (
        RuntimeError,
        lambda: {"checkpointing_steps": 20, "skip_grad_norm": 0.5, "max_train_steps": 80},
        [{**LATEST, "skip_grad_norm": 1e9}],
    ),
    "stopped": (SystemExit, lambda: {"objective": Breaks(is_stopped), **EACH}, [LATEST]),
    "out of memory": (
        RuntimeError,
        lambda: {"objective": Breaks(raises(MEMORY), lambda batch: len(batch["x"]) == 4), **EACH},
        [
            {**LATEST, "train_batch_size": 2, "gradient_accumulation_steps": 2},
            {**LATEST, "train_batch_size": 1, "gradient_accumulation_steps": 4},
            {**LATEST, "mixed_precision": "bf16"},
            {**LATEST, "more": {"gradient_checkpointing": True}},
        ],
    ),
    "a killed worker": (
        RuntimeError,
        lambda: {
            "objective": Breaks(raises(RuntimeError(f"{KILLED} 7) is killed by signal"))),
            **EACH,
            "dataloader_num_workers": 1,
        },
        [{**LATEST, "dataloader_num_workers": 0}],
    ),
    "data that cannot be read": (
        RuntimeError,
        lambda: {"dataset": Gone(), **EACH},
        [LATEST],
    ),
    "a full disk": (
        OSError,
        lambda: {**EACH, "checkpoints_total_limit": 0},
        [{**LATEST, "checkpoints_total_limit": 2}, {**LATEST, "checkpoints_total_limit": 1}],
    ),
    "later checkpoints": (
        ValueError,
        lambda: {"after": {}, **EACH},
        [LATEST, {"output_dir": "another"}],
    ),
    "no such checkpoint": (
        FileNotFoundError,
        lambda: {"after": {"resume_from_checkpoint": "{folder}/checkpoint-9"}, **EACH},
        [LATEST],
    ),
    "a damaged checkpoint": (
        ValueError,
        lambda: {"after": {"resume_from_checkpoint": "{folder}/checkpoint-6"}, "damage": "truncate", **EACH},
        [LATEST, {"output_dir": "another", "resume_from_checkpoint": "{folder}/checkpoint-5"}],
    ),
    "a pickle that runs code": (
        ValueError,
        lambda: {"after": LATEST, "damage": "pickle", **EACH},
        [{"output_dir": "another"}],
    ),
    "no moving average": (
        ValueError,
        lambda: {"after": {**LATEST, "ema_decay": 0.9}, "make": run, **EACH},
        [LATEST, {"output_dir": "another", "ema_decay": 0.9}],
    ),
    "another seed": (
        ValueError,
        lambda: {"after": {**LATEST, "seed": 1}, "make": run, **EACH},
        [LATEST, {"output_dir": "another", "seed": 1}],
    ),
    "fewer steps than were taken": (
        ValueError,
        lambda: {"after": {**LATEST, "max_train_steps": 5}, **EACH},
        [{**LATEST, "max_train_steps": 7}, {"output_dir": "another", "max_train_steps": 5}],
    ),
}


@pytest.mark.parametrize(
    ("error", "first", "followed"),
    [(error, first, follow) for error, first, advised in ADVICE.values() for follow in advised],
    ids=[f"{name} {i}" for name, (*_, advised) in ADVICE.items() for i in range(len(advised))],
)
def test_advice_is_followed(tmp_path, error, first, followed, monkeypatch):
    folder, fields = tmp_path / "run", first()
    after, damage, make = fields.pop("after", None), fields.pop("damage", None), fields.pop("make", recipe)
    objective, dataset = fields.pop("objective", Adaptive()), fields.pop("dataset", None)

    def there(settings):
        return {k: v.format(folder=folder) if isinstance(v, str) else v for k, v in settings.items()}

    if error is OSError:
        on_a_full_disk(monkeypatch)
    if after is not None:
        make(folder, objective, **fields)
        victim = folder / "checkpoint-6" / "optimizer.bin"
        if damage == "truncate":
            os.truncate(victim, 10)
        elif damage == "pickle":
            victim.write_bytes(pickle.dumps(print, protocol=2))
            listed = json.loads((victim.parent / "files.json").read_text())
            (victim.parent / "files.json").write_text(json.dumps(listed | {victim.name: _describe(victim)}))
    with pytest.raises(error) as told:
        make(folder, objective, dataset, **{**fields, **there(after or {})})
    if error is not SystemExit:
        advised = {*followed, *followed.get("more", {})} - {"more", "objective", *(after or {})}
        assert not [flag for flag in advised if flag not in str(told.value)], told.value
    there_before = set(checkpoints(folder))
    assert there_before

    followed = there(followed)
    target = tmp_path / followed.pop("output_dir") if "output_dir" in followed else folder
    objective = followed.pop("objective", None) or Adaptive()
    before = {} if "learning_rate" in followed or "skip_grad_norm" in followed else {"max_train_steps": 6}
    make(target, objective, **{**fields, **before, **followed})
    assert all(parameter.isfinite().all() for parameter in objective.parameters())
    assert lines(target)[-1]["step"] == {**fields, **before, **followed}["max_train_steps"]
    if "learning_rate" in followed:
        newest = max(int(name.removeprefix("checkpoint-")) for name in there_before)
        assert {line["lr"] for line in lines(target) if line["step"] > newest} == {1e-3}
