from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softcft.counterfactuals.backbone import BackboneOutput
from softcft.data.augmentation import random_change
from softcft.data.config import AugmentationConfig
from softcft.noise import seeded_generator
from softcft.training.cft_config import CFTConfig
from softcft.training.cft_trainer import CFTTrainer
from softcft.training.config import TrainingConfig
from tests.training.test_cutting import data
from tests.training.test_objectives import classifier, scm

ALL = AugmentationConfig(random_flip=True, random_shift=0.1, random_zoom=0.1, random_brightness=0.2, random_noise=0.25)


def generators(*seeds: int) -> list[torch.Generator]:
    return [seeded_generator(seed) for seed in seeds]


def images(number: int = 4, channels: int = 3) -> torch.Tensor:
    return torch.rand(number, channels, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def changed(config: AugmentationConfig, image: torch.Tensor, *seeds: int) -> torch.Tensor:
    return random_change(config, image.shape, generators(*seeds), image.device)(image)


def test_nothing_is_changed_and_no_number_is_drawn_where_nothing_is_asked_for() -> None:
    drawn = generators(0, 1, 2, 3)
    image = images()
    assert torch.equal(random_change(AugmentationConfig(), image.shape, drawn, image.device)(image), image)
    assert torch.equal(drawn[0].get_state(), generators(0)[0].get_state())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_shape_and_range_and_each_is_changed_in_its_own_way(channels: int) -> None:
    image = images(channels=channels)
    result = changed(ALL, image, 0, 1, 2, 3)
    assert result.shape == image.shape
    assert result.abs().max() <= 1
    same = changed(ALL, image[:1].expand(4, -1, -1, -1), 0, 1, 2, 3)
    assert all(not torch.allclose(same[0], other) for other in same[1:])


def test_the_change_is_the_images_own_in_whichever_batch_it_comes() -> None:
    image = images()
    assert torch.allclose(changed(ALL, image, 0, 1, 2, 3)[2:], changed(ALL, image[2:], 2, 3), atol=1e-6)


class Same(nn.Module):
    """An image mechanism that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def counterfactual(self, image: Tensor, *_: Any) -> BackboneOutput:
        return BackboneOutput(image=image + self.weight, fidelity=self.weight)


def test_in_fine_tuning_a_guide_sees_images_before_and_after_changed_alike(tmp_path: Path) -> None:
    guide, seen = classifier(), []
    guide.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    config = TrainingConfig(output_dir=str(tmp_path))
    trainer = CFTTrainer(Same(), scm(), [guide], config, CFTConfig(cft="soft"), ALL)  # type: ignore[arg-type]
    batch = {key: torch.stack([row[key] for row in data()[:4]]) for key in ("image", "parents")}
    trainer.objective({**batch, "seeds": [0, 1, 2, 3]})
    before, after = seen
    assert torch.equal(before, after)
    assert not torch.equal(before, batch["image"])


def test_gradients_pass() -> None:
    image = (0.5 * images()).requires_grad_()
    changed(ALL, image, 0, 1, 2, 3).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_a_flip_alone_mirrors_some_images_and_leaves_the_others() -> None:
    image = images(40)
    result = changed(AugmentationConfig(random_flip=True), image, *range(40))
    kept = torch.isclose(result, image, atol=1e-5).flatten(1).all(dim=1)
    mirrored = torch.isclose(result, image.flip(-1), atol=1e-5).flatten(1).all(dim=1)
    assert (kept ^ mirrored).all()
    assert 0 < kept.sum() < 40


@pytest.mark.parametrize("name", ["random_shift", "random_zoom", "random_brightness", "random_noise"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_shares_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}"):
        AugmentationConfig(**{name: value})
