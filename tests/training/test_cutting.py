"""The same result however a training is cut: into processes, accumulated batches, or by interruptions."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from softcft.counterfactuals.diffusion_backbone import DiffusionBackbone
from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.data.phantom import draw_block, render
from softcft.models.classifier import AttributeClassifier
from softcft.training.cft_config import CFTConfig
from softcft.training.cft_trainer import CFTTrainer
from softcft.training.config import TrainingConfig
from softcft.training.loop import train
from softcft.training.objectives import (
    ClassifierObjective,
    DiffusionObjective,
    HVAEObjective,
    SCMObjective,
    VAEObjective,
)
from tests.processes import run_python
from tests.training.test_objectives import PLAIN, classifier, denoiser, hvae, scm, vae

STEPS = 6
CUTS = {"whole": (8, 1), "accumulated": (4, 2)}
CUT = ["scm", "classifier", "hvae", "diffusion", "cft", "cft to matched targets"]
INTERRUPTED = [*CUT, "vae", "cft of diffusion"]


def without_batch_statistics() -> AttributeClassifier:
    """ConvNeXt normalises each image by itself."""
    torch.manual_seed(0)
    trunk = {"model_type": "convnextv2", "num_channels": 1, "patch_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return AttributeClassifier(PLAIN, {**trunk, "num_stages": 2, "drop_path_rate": 0.0})


def data() -> list[dict[str, torch.Tensor]]:
    parents, noise = draw_block("train", 0, 16, seed=0)
    images = render(parents, noise)[:30]
    return [{"image": image, "parents": row} for image, row in zip(images, parents[:30], strict=True)]


def cut_run(kind: str, folder: Path, batch: int = 8, accumulation: int = 1, **settings) -> nn.Module:
    """Train one of the models; the same weights at the start, the same data."""
    config = TrainingConfig(
        output_dir=str(folder),
        **{
            "max_train_steps": STEPS,
            "train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": 1e-3,
            "adam_beta2": 0.999,
            "lr_warmup_steps": 2,
            "lr_scheduler": "cosine",
            "ema_decay": 0.9,
            "max_grad_norm": 1.0,
            "skip_grad_norm": float("inf"),
            "checkpointing_steps": 0,
            "logging_steps": 1,
            **settings,
        },
    )
    if kind.startswith("cft"):
        backbone = (
            DiffusionBackbone(denoiser(), num_inference_steps=2) if kind == "cft of diffusion" else HVAEBackbone(hvae())
        )
        mode = "matched" if kind == "cft to matched targets" else "soft"
        cft = CFTConfig(cft=mode, slack_images=20, damping=50.0, multiplier_learning_rate=5.0)
        guides = [classifier() for _ in range(2 if mode == "matched" else 1)]
        trainer = CFTTrainer(backbone, scm(), guides, config, cft)
        trainer.objective.constraint.multiplier.fill_(1)  # so that all weights have gradients above rounding errors
        trainer.train(data())  # type: ignore[arg-type]
        return trainer.objective
    make = {
        "scm": lambda: SCMObjective(scm()),
        "classifier": lambda: ClassifierObjective(without_batch_statistics()),
        "hvae": lambda: HVAEObjective(hvae()),
        "diffusion": lambda: DiffusionObjective(denoiser()),
        "vae": lambda: VAEObjective(vae()),
    }
    return train(make[kind](), data(), config, name=kind)  # type: ignore[arg-type]


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


# ---- processes and accumulated batches ------------------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
import torch
from softcft.training.processes import this_process
from tests.training.test_cutting import CUT, cut_run

for kind in CUT:
    trained = cut_run(kind, Path(sys.argv[1], kind), batch=4).state_dict()
    torch.save(trained, Path(sys.argv[1], f"{kind}-{this_process().process_index}.pt"))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Each model trained by two processes, 4 images each."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "worker.py"
    script.write_text(WORKER)
    run_python(script, folder, cwd=folder, processes=2)
    return folder


def assert_same_training(states: list[dict[str, torch.Tensor]], logs: list[list[dict[str, float]]]) -> None:
    """The same weights in the end and the same numbers on the way, but for the order of sums."""
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=2e-5, msg=key)
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", CUT)
def test_accumulated_batches_are_one_large_batch(kind, tmp_path):
    whole, accumulated = (cut_run(kind, tmp_path / name, *cut).state_dict() for name, cut in CUTS.items())
    logs = [metrics(tmp_path / name) for name in CUTS]
    assert_same_training([whole, accumulated], logs)
    if kind.startswith("cft"):
        assert max(line["multiplier"] for line in logs[0]) > 0
        assert whole["constraint.slack"] != 0
    if kind == "cft to matched targets":
        assert whole["targets.strength.offsets"].any()
        assert whole["targets.effect.excess"].any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CUT)
def test_two_processes_are_one_with_twice_the_batch(kind, tmp_path, two_processes):
    whole = cut_run(kind, tmp_path).state_dict()
    first, second = (torch.load(two_processes / f"{kind}-{i}.pt") for i in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert_same_training([whole, first], [metrics(tmp_path), metrics(two_processes / kind)])


def test_the_noise_of_an_image_is_its_own(tmp_path):
    """What would be the same even if noise were not cut along with the images proves nothing."""
    one, other = (
        cut_run("hvae", tmp_path / str(seed), seed=seed, max_train_steps=1, lr_warmup_steps=0) for seed in (0, 1)
    )
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    generators = {}
    for batch in (8, 4):
        objective = HVAEObjective(hvae())
        seen = generators.setdefault(batch, [])
        objective.hvae.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.extend(inputs[2]))
        config = {"max_train_steps": 2, "train_batch_size": batch, "gradient_accumulation_steps": 8 // batch}
        train(objective, data(), TrainingConfig(output_dir=str(tmp_path / f"of {batch}"), **config), name="hvae")
    seeds = {batch: [generator.initial_seed() for generator in seen] for batch, seen in generators.items()}
    assert seeds[8] == seeds[4]
    assert len(set(seeds[8])) == 16


# ---- interruptions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INTERRUPTED)
def test_interrupted_at_any_step_it_ends_bit_for_bit_as_it_would_have(kind, tmp_path):
    whole = cut_run(kind, tmp_path / "whole", checkpointing_steps=1, checkpoints_total_limit=0).state_dict()
    for step in range(1, STEPS):
        start = str(tmp_path / "whole" / f"checkpoint-{step}")
        resumed = cut_run(kind, tmp_path / str(step), resume_from_checkpoint=start).state_dict()
        assert all(torch.equal(resumed[key], value) for key, value in whole.items()), f"after step {step}"
        assert metrics(tmp_path / str(step)) == metrics(tmp_path / "whole")[step:]
