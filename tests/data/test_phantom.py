from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from softcft.data.phantom import (
    PHANTOM_GRAPH,
    RACE_SEPARATION,
    SEX_SEPARATION,
    PhantomNoise,
    disease_mechanism,
    draw_block,
    expression,
    load_phantom,
    render,
    sample_attributes,
    sample_noise,
)

INVISIBLE = 1 / 127.5  # one grey level of 8 bits
AGE, SEX, RACE, DISEASE = (PHANTOM_GRAPH.slices[name] for name in ("age", "sex", "race", "disease"))


def draw(n: int, resolution: int = 32, seed: int = 0) -> tuple[Tensor, PhantomNoise]:
    generator = torch.Generator().manual_seed(seed)
    noise = sample_noise(n, resolution, generator)
    return sample_attributes(noise, generator), noise


def flipped(attributes: Tensor, columns: slice) -> Tensor:
    """Attributes with a binary variable turned around."""
    attributes = attributes.clone()
    attributes[:, columns] = 1 - attributes[:, columns]
    return attributes


def auc(score: Tensor, label: Tensor) -> float:
    """Probability that a random positive scores above a random negative."""
    return (score[label == 1][:, None] > score[label == 0][None, :]).float().mean().item()


def pixels(rows) -> np.ndarray:
    return np.stack([np.asarray(image) for image in rows["image"]])


# ---- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [16, 32, 64, 96])
def test_images_of_any_resolution_lie_in_range(resolution: int) -> None:
    attributes, noise = draw(70, resolution)  # more than one chunk
    images = render(attributes, noise)
    assert images.shape == (70, 1, resolution, resolution)
    assert images.min() >= -1
    assert images.max() <= 1
    assert images.std(dim=(1, 2, 3)).min() > 0.2  # neither blank nor saturated
    assert (images.abs() == 1).float().mean() < 0.2


def test_resolutions_show_the_same_patient() -> None:
    attributes, noise = draw(8, 32)
    noise.pixels = torch.zeros(8, 32, 32)
    small = render(attributes, noise)
    noise.pixels = torch.zeros(8, 96, 96)
    large = torch.nn.functional.avg_pool2d(render(attributes, noise), 3)
    assert (small - large).abs().mean() < 0.05
    assert (small - large.roll(1, dims=0)).abs().mean() > 0.1


def test_each_image_depends_on_its_own_noise_only() -> None:
    attributes, noise = draw(70)
    images = render(attributes, noise)
    index = torch.tensor([65, 3])
    torch.testing.assert_close(render(attributes[index], noise[index]), images[index])
    torch.testing.assert_close(render(attributes[60:], noise[60:]), images[60:])


def test_wrong_shapes_are_refused() -> None:
    attributes, noise = draw(4)
    for wrong in (attributes[:3], attributes[:, :5]):
        with pytest.raises(ValueError, match="attributes must"):
            render(wrong, noise)
    with pytest.raises(ValueError, match="resolution must"):
        sample_noise(4, 15)


# ---- true counterfactuals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [32, 64])
def test_disease_changes_one_lung_only(resolution: int) -> None:
    attributes, noise = draw(128, resolution)
    noise.pose = torch.zeros_like(noise.pose)  # so that all bodies stand in the middle
    healthy, ill = attributes.clone(), attributes.clone()
    healthy[:, DISEASE], ill[:, DISEASE] = 0, 1
    change = (render(ill, noise) - render(healthy, noise))[:, 0]
    assert (change.amax((1, 2)) > 4 * INVISIBLE).all()  # each image shows it
    assert change.min() > -1e-5  # fluid stops X-rays, so it only brightens
    ticks = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    assert change[:, ticks < -0.85].abs().max() == 0  # above the lungs
    assert change[:, ticks > 0.95].abs().max() < INVISIBLE  # below
    assert change[:, :, ticks.abs() < 0.05].abs().max() < INVISIBLE  # the spine between them
    assert change[:, :, ticks.abs() > 0.9].abs().max() < INVISIBLE  # outside
    healthy_side = (ticks > 0.13).expand(len(noise), -1)
    assert change.transpose(1, 2)[healthy_side].abs().max() < INVISIBLE


def test_sex_changes_the_lower_chest_only() -> None:
    attributes, noise = draw(64, 64)
    noise.pose = torch.zeros_like(noise.pose)
    change = (render(flipped(attributes, SEX), noise) - render(attributes, noise))[:, 0]
    assert (change.abs().amax((1, 2)) > 4 * INVISIBLE).all()
    ticks = (torch.arange(64) + 0.5) / 32 - 1
    assert change[:, (ticks < -0.1) | (ticks > 0.55)].abs().max() == 0
    assert change[:, :, ticks.abs() > 0.75].abs().max() == 0


@pytest.mark.parametrize("name", PHANTOM_GRAPH.names)
def test_every_attribute_shows_at_every_noise_and_can_be_taken_back(name: str) -> None:
    attributes, noise = draw(64)
    columns = PHANTOM_GRAPH.slices[name]
    other = attributes.clone()
    if name == "race":
        other[:, columns] = attributes[:, columns].roll(1, dims=1)
    elif name == "age":
        other[:, columns] = torch.where(attributes[:, columns] > 0, -0.9, 0.9)
    else:
        other = flipped(attributes, columns)
    factual, counterfactual = render(attributes, noise), render(other, noise)
    assert ((factual - counterfactual).abs().amax((1, 2, 3)) > INVISIBLE).all()
    other[:, columns] = attributes[:, columns]
    assert torch.equal(render(other, noise), factual)


# ---- expression ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 4), st.floats(0.01, 3))
def test_expression_is_monotone_in_its_own_noise(which: int, step: float) -> None:
    attributes, noise = draw(16)
    before = expression(attributes, noise)
    noise.expression[:, which] += step
    change = expression(attributes, noise) - before
    assert (change[:, which] > 0).all()
    change[:, which] = 0
    assert not change.any()


def test_classes_shift_their_own_expression_only() -> None:
    attributes, noise = draw(16)
    shift = expression(flipped(attributes, SEX), noise) - expression(attributes, noise)
    torch.testing.assert_close(shift[:, 1], SEX_SEPARATION * (1 - 2 * attributes[:, SEX][:, 0]))
    assert not shift[:, [0, 2, 3, 4]].any()

    shift = expression(flipped(attributes, DISEASE), noise) - expression(attributes, noise)
    assert torch.equal(shift[:, 4] > 0, attributes[:, DISEASE][:, 0] == 0)
    assert not shift[:, :4].any()

    older = attributes.clone()
    older[:, AGE] += 0.1
    shift = expression(older, noise) - expression(attributes, noise)
    assert (shift[:, 0] > 0).all()
    assert not shift[:, 1:].any()


def test_all_pairs_of_races_are_equally_far_apart() -> None:
    attributes = torch.zeros(3, PHANTOM_GRAPH.width)
    attributes[:, RACE] = torch.eye(3)
    noise = draw(3)[1]
    noise.expression = torch.zeros(3, 5)
    corners = expression(attributes, noise)
    assert not corners[:, 0].any()
    torch.testing.assert_close(torch.pdist(corners[:, 2:4]), torch.full((3,), RACE_SEPARATION), rtol=1e-3, atol=0)


def test_classes_overlap_as_in_real_images() -> None:
    """The best possible classifier of the image is about as good as a good one of chest X-rays, and never perfect."""
    attributes, noise = draw(4000, 16)
    shown = expression(attributes, noise)
    assert 0.92 < auc(shown[:, 4], attributes[:, DISEASE][:, 0]) < 0.96
    assert 0.990 < auc(shown[:, 1], attributes[:, SEX][:, 0]) < 0.9995
    # Of two races the one whose corner is nearer.
    race = attributes[:, RACE].argmax(1)
    pair = race < 2
    toward = shown[:, 2:4] @ torch.tensor([-0.5, -0.866])
    assert 0.92 < auc(toward[pair], race[pair]) < 0.98


# ---- attributes ---------------------------------------------------------------------------------------------------


def test_attributes_are_valid_and_disease_obeys_its_mechanism() -> None:
    attributes, noise = draw(500, 16)
    values = PHANTOM_GRAPH.decode(attributes)
    torch.testing.assert_close(PHANTOM_GRAPH.encode(values), attributes)
    assert torch.equal(attributes[:, DISEASE][:, 0], disease_mechanism(attributes[:, AGE][:, 0], noise.disease))


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_ageing_never_cures(age: float, other: float) -> None:
    noise = draw(200, 16)[1].disease
    young, old = sorted((age, other))
    before, after = (disease_mechanism(torch.full((200,), a), noise) for a in (young, old))
    assert (after >= before).all()


def test_frequencies_follow_the_graph() -> None:
    attributes, _ = draw(6000, 16)
    age, disease = attributes[:, AGE][:, 0], attributes[:, DISEASE][:, 0]
    for low in (-0.6, -0.2, 0.2, 0.6):
        group = (age > low) & (age < low + 0.3)
        expected = torch.sigmoid(-0.9 + 2 * age[group]).mean().item()
        error = (expected * (1 - expected) / group.sum().item()) ** 0.5
        assert disease[group].mean().item() == pytest.approx(expected, abs=4 * error)
    assert attributes[:, RACE].mean(0).tolist() == pytest.approx([0.55, 0.18, 0.27], abs=0.03)
    assert attributes[:, SEX].mean().item() == pytest.approx(0.5, abs=0.03)
    # Only age and disease go together.
    correlation = torch.corrcoef(attributes.T)
    assert correlation[0, 5] > 0.3
    assert correlation[[0, 0, 1, 1, 1], [1, 2, 2, 3, 5]].abs().max() < 0.06


# ---- the data set -------------------------------------------------------------------------------------------------


def test_rows_are_the_rendered_blocks(tmp_path: Path) -> None:
    rows = load_phantom(16, num_train=300, num_validation=1, num_test=1, seed=5, cache_dir=str(tmp_path))["train"]
    for block, part in ((0, rows.select(range(256))), (1, rows.select(range(256, 300)))):
        attributes, noise = draw_block("train", block, 16, seed=5)
        n = len(part)
        expected = render(attributes, noise)[:n, 0].numpy()
        assert np.abs(pixels(part) / 127.5 - 1 - expected).max() <= 0.5 / 127.5 + 1e-6
        values = {name: part[name] for name in PHANTOM_GRAPH.names}
        torch.testing.assert_close(PHANTOM_GRAPH.encode({k: list(v) for k, v in values.items()}), attributes[:n])


def test_the_seed_decides_and_the_first_images_do_not_depend_on_the_number(tmp_path: Path) -> None:
    def train(n: int, seed: int, folder: str) -> dict[str, list]:
        splits = load_phantom(16, n, 1, 1, seed=seed, cache_dir=str(tmp_path / folder))
        return {"pixels": pixels(splits["train"]).tolist(), "age": list(splits["train"]["age"])}

    few, many = train(3, 0, "a"), train(260, 0, "a")
    assert few == {name: column[:3] for name, column in many.items()}
    assert few == train(3, 0, "b")  # made anew, not read from the cache
    assert few["pixels"] != train(3, 1, "a")["pixels"]


def test_splits_and_blocks_share_no_image() -> None:
    ages = [draw_block(split, block, 16, 0)[0][:, AGE] for split in ("train", "validation", "test") for block in (0, 1)]
    ages = torch.cat(ages)
    assert len(ages.unique()) > 0.99 * len(ages)


@pytest.mark.parametrize("name", ["num_train", "num_validation", "num_test"])
def test_empty_splits_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        load_phantom(16, **{name: 0})
