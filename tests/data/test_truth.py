import gzip
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from softcft.data.config import DataConfig
from softcft.data.morpho_transform import redraw_digit
from softcft.data.morphomnist import MORPHOMNIST_GRAPH, find_files, read_files
from softcft.data.phantom import PHANTOM_GRAPH, draw_block, expression, load_phantom, render
from softcft.data.schema import ImageAttributeDataset, scale_pixels
from softcft.data.truth import MorphoMNISTTruth, PhantomTruth, TrueCounterfactuals, true_counterfactuals
from softcft.graph import CausalGraph
from tests.data.test_morphomnist import idx

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = Path(os.environ.get("MORPHOMNIST_DIR", SHARED / "morphomnist"))
MNIST = Path(os.environ.get("MNIST_DIR", SHARED / "mnist"))

AGE, SEX, RACE, DISEASE = (PHANTOM_GRAPH.slices[name] for name in ("age", "sex", "race", "disease"))
THICKNESS, INTENSITY, DIGIT = (MORPHOMNIST_GRAPH.slices[name] for name in MORPHOMNIST_GRAPH.names)


def others(name: str, parents: Tensor) -> Tensor:
    """Parents with another value of one variable of the phantom."""
    parents = parents.clone()
    columns = PHANTOM_GRAPH.slices[name]
    if name == "race":
        parents[:, columns] = parents[:, columns].roll(1, dims=1)
    elif name == "age":
        parents[:, columns] = torch.where(parents[:, columns] > 0, -0.8, 0.8)
    else:
        parents[:, columns] = 1 - parents[:, columns]
    return parents


# ---- the phantom --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> ImageAttributeDataset:
    cache = str(tmp_path_factory.mktemp("phantom"))
    splits = load_phantom(32, num_train=1, num_validation=1, num_test=300, seed=4, cache_dir=cache)
    return ImageAttributeDataset(splits["test"], PHANTOM_GRAPH)


@pytest.mark.parametrize("name", PHANTOM_GRAPH.names)
@pytest.mark.parametrize("rows", [range(300), [299, 3, 256, 255, 70, 3], [0]])
def test_a_null_intervention_gives_back_the_phantoms_image(phantom, rows, name: str) -> None:
    expected = scale_pixels(torch.stack([phantom[row]["image"] for row in rows]))
    parents = phantom.parents[list(rows)]
    image, true_parents = PhantomTruth("test", 32, seed=4).counterfactual(rows, name, parents)
    assert torch.equal(image, expected)
    torch.testing.assert_close(true_parents, parents, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PHANTOM_GRAPH.names)
def test_a_true_counterfactual_is_the_same_noise_with_other_attributes(name: str) -> None:
    drawn = [draw_block("validation", block, 24, seed=1) for block in (0, 1)]
    rows = [256, 17, 511, 80, 0]
    own = torch.stack([drawn[row // 256][0][row % 256] for row in rows])
    image, parents = PhantomTruth("validation", 24, seed=1).counterfactual(rows, name, others(name, own))
    assert image.shape == (5, 1, 24, 24)
    for other in set(PHANTOM_GRAPH.names) - PHANTOM_GRAPH.affected_by(name):
        assert torch.equal(parents[:, PHANTOM_GRAPH.slices[other]], own[:, PHANTOM_GRAPH.slices[other]])
    columns = PHANTOM_GRAPH.slices[name]
    assert torch.equal(parents[:, columns], others(name, own)[:, columns])
    for i, row in enumerate(rows):
        place = slice(row % 256, row % 256 + 1)
        expected = render(parents[i : i + 1], drawn[row // 256][1][place])
        torch.testing.assert_close(image[i : i + 1], expected, rtol=0, atol=0.51 / 127.5)
    pixels = (image + 1) * 127.5
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)


def test_disease_follows_age_by_its_own_noise() -> None:
    attributes, noise = draw_block("test", 0, 16, seed=0)
    truth = PhantomTruth("test", 16, seed=0)
    before = attributes[:, DISEASE]
    for age, change in ((0.95, "more"), (-0.95, "fewer")):
        asked = attributes.clone()
        asked[:, AGE] = age
        asked[:, DISEASE] = 0.5  # what somebody else thinks of disease does not count
        image, parents = truth.counterfactual(range(256), "age", asked)
        expected = (2 * age - 0.9 + noise.disease > 0).float()[:, None]
        assert torch.equal(parents[:, DISEASE], expected)
        assert ((expected >= before) if change == "more" else (expected <= before)).all()
        assert (expected != before).any()
        # Whose disease moves has an image that shows it, beside what age alone would do.
        asked[:, DISEASE] = before
        age_alone = render(asked, noise)
        moved = (expected != before)[:, 0]
        difference = (image - age_alone).abs().amax((1, 2, 3))
        assert difference[~moved].max() < 0.51 / 127.5
        assert difference[moved].min() > 2 / 127.5


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sex", [0, 3.9, 0, 0]), ("race", [0, 0, 2.5, 0]), ("disease", [0, 0, 0, 2.25])],
)
def test_expressions_move_with_the_attribute_and_keep_their_noise(name: str, expected: list[float]) -> None:
    drawn = [draw_block("test", block, 16, seed=2) for block in (0, 1)]
    rows = [300, 5, 200, 64]
    own = torch.stack([drawn[row // 256][0][row % 256] for row in rows])
    truth = PhantomTruth("test", 16, seed=2)
    factual = truth.expression(rows, own)
    for i, row in enumerate(rows):
        place = slice(row % 256, row % 256 + 1)
        assert torch.equal(factual[i], expression(own[i : i + 1], drawn[row // 256][1][place])[0])
    change = truth.expression(rows, others(name, own)) - factual
    norms = torch.stack([change[:, truth.expression_columns[other]].norm(dim=1) for other in PHANTOM_GRAPH.names], 1)
    torch.testing.assert_close(norms, torch.tensor([expected] * 4), atol=5e-3, rtol=0)


# ---- Morpho-MNIST -------------------------------------------------------------------------------------------------


def strokes(n: int) -> np.ndarray:
    digits = []
    for i in range(n):
        large = Image.new("L", (280, 280))
        ImageDraw.Draw(large).arc((70 + 5 * i, 60, 200, 220), 40 * i, 40 * i + 250, fill=255, width=26)
        digits.append(np.asarray(large.resize((28, 28), Image.Resampling.BOX)))
    return np.stack(digits)


NUM = 5
NOISE = np.array([-1.5, 0.3, 0.0, 2.0, -0.4])
THICK = np.array([1.6, 2.0, 2.5, 3.2, 2.2])


def intensity(thickness: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return 64 + 191 / (1 + np.exp(-(0.5 * noise + 2 * thickness - 5)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small Morpho-MNIST whose noise is known: folders of the digits and of the images made from them."""
    mnist, folder = tmp_path_factory.mktemp("mnist"), tmp_path_factory.mktemp("morphomnist")
    digits, values = strokes(NUM), intensity(THICK, NOISE)
    images = np.stack([redraw_digit(*drawn) for drawn in zip(digits, THICK, values, strict=True)])
    table = "".join(f"{i},{t!r},{v!r}\n" for i, (t, v) in enumerate(zip(THICK.tolist(), values.tolist(), strict=True)))
    (mnist / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(digits)))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(NUM, dtype=np.uint8)))
    (folder / "t10k-morpho.csv").write_text("index,thickness,intensity\n" + table)
    return mnist, folder


def encoded(folder: Path) -> Tensor:
    return MORPHOMNIST_GRAPH.encode(read_files(*find_files(folder, "t10k"))[1])


def padded(folder: Path, rows: list[int]) -> Tensor:
    images = read_files(*find_files(folder, "t10k"))[0][rows]
    return scale_pixels(torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2))))[:, None])


@pytest.mark.parametrize("name", ["thickness", "intensity"])
def test_a_null_intervention_gives_back_the_morphomnist_image(made, name: str) -> None:
    mnist, folder = made
    rows = [4, 0, 3]
    image, parents = MorphoMNISTTruth(mnist, folder).counterfactual(rows, name, encoded(folder)[rows])
    assert torch.equal(image, padded(folder, rows))
    assert torch.equal(parents, encoded(folder)[rows])


def test_a_null_intervention_gives_back_real_images() -> None:
    if not (REAL.is_dir() and MNIST.is_dir()):
        pytest.skip("the files of Morpho-MNIST and MNIST are not here; MORPHOMNIST_DIR and MNIST_DIR may name them")
    truth = MorphoMNISTTruth(MNIST, REAL)
    rows = list(range(100, 120))
    own = encoded(REAL)[rows]
    # As they come back from a table of rounded values, too.
    own[:, :2] = MORPHOMNIST_GRAPH.encode(MORPHOMNIST_GRAPH.decode(own))[:, :2]
    for name in truth.interventions:
        assert torch.equal(truth.counterfactual(rows, name, own)[0], padded(REAL, rows))


def test_thickness_moves_intensity_by_the_images_own_noise(made) -> None:
    mnist, folder = made
    rows = [3, 1, 0, 4]
    new = np.array([1.5, 3.5, 2.0, 4.5])
    asked = torch.zeros(4, MORPHOMNIST_GRAPH.width)
    asked[:, THICKNESS] = MORPHOMNIST_GRAPH["thickness"].encode(new)
    image, parents = MorphoMNISTTruth(mnist, folder).counterfactual(rows, "thickness", asked)
    values = intensity(new, NOISE[rows])
    low, high = 66.601204, 254.90317
    torch.testing.assert_close(parents[:, THICKNESS], asked[:, THICKNESS])
    expected = torch.tensor(2 * (values - low) / (high - low) - 1)[:, None]
    torch.testing.assert_close(parents[:, INTENSITY], expected.float(), rtol=0, atol=1e-5)
    assert torch.equal(parents[:, DIGIT], encoded(folder)[rows][:, DIGIT])
    redrawn = np.stack([redraw_digit(*drawn) for drawn in zip(strokes(NUM)[rows], new, values, strict=True)])
    grey = (image[:, 0, 2:30, 2:30] + 1) * 127.5
    assert (
        grey - torch.from_numpy(redrawn)
    ).abs().max() < 1.01  # decoded values have six digits, and grey is truncated
    assert (image[:, 0, [0, 1, 30, 31]] == -1).all()


def test_intensity_scales_brightness_only(made) -> None:
    mnist, folder = made
    rows = list(range(NUM))
    asked = encoded(folder)
    asked[:, INTENSITY] = MORPHOMNIST_GRAPH["intensity"].encode(100)
    image, parents = MorphoMNISTTruth(mnist, folder).counterfactual(rows, "intensity", asked)
    assert torch.equal(parents, asked)
    ratio = 100 / intensity(THICK, NOISE)
    before, after = ((x + 1) * 127.5 for x in (padded(folder, rows), image))
    unclipped = before < 250
    expected = before * torch.tensor(ratio)[:, None, None, None]
    # Both were truncated: the factual image before it is scaled here, the counterfactual after.
    assert (after - expected)[unclipped].abs().max() < 1 + ratio.max() * 1.5


def test_folders_that_do_not_belong_together_are_refused(made, tmp_path: Path) -> None:
    mnist, folder = made
    few = tmp_path / "few"
    few.mkdir()
    (few / "t10k-images-idx3-ubyte").write_bytes(idx(strokes(NUM)[:3]))
    for digits in (folder, few):  # files of the same names
        with pytest.raises(ValueError, match="must hold the digits"):
            MorphoMNISTTruth(digits, folder)
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte"):
        MorphoMNISTTruth(tmp_path, folder)
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        MorphoMNISTTruth(mnist, mnist)


# ---- both ---------------------------------------------------------------------------------------------------------


def test_bad_arguments(made) -> None:
    phantom: TrueCounterfactuals = PhantomTruth("test", 16, 0)
    morphomnist: TrueCounterfactuals = MorphoMNISTTruth(*made)
    for truth, width, unknown in ((phantom, 6, "weight"), (morphomnist, 12, "digit")):
        name = truth.interventions[0]
        for rows in ([], [-1, 0]):
            with pytest.raises(ValueError, match="rows must"):
                truth.counterfactual(rows, name, torch.zeros(len(rows), width))
        for shape in ((2, width), (1, width + 1)):
            with pytest.raises(ValueError, match="parents must"):
                truth.counterfactual([0], name, torch.zeros(shape))
        with pytest.raises(ValueError, match=f"'{unknown}'"):
            truth.counterfactual([0], unknown, torch.zeros(1, width))
    with pytest.raises(ValueError, match="from 0 to 4, got"):
        morphomnist.counterfactual([5], "thickness", torch.zeros(1, 12))
    with pytest.raises(ValueError, match="split must"):
        PhantomTruth("dev", 16, 0)


def test_the_truth_of_a_run(made, phantom, caplog: pytest.LogCaptureFixture) -> None:
    mnist, folder = made
    config = DataConfig(dataset_name="phantom", sample_size=32, num_test=3, data_seed=4)
    truth = true_counterfactuals(config, PHANTOM_GRAPH)
    assert isinstance(truth, PhantomTruth)
    image, _ = truth.counterfactual([0, 1, 2], "sex", phantom.parents[:3])
    assert torch.equal(image, scale_pixels(torch.stack([phantom[row]["image"] for row in range(3)])))
    orphan = CausalGraph([replace(variable, parents=()) for variable in PHANTOM_GRAPH.variables])
    assert true_counterfactuals(config, orphan) is not None  # what the run believes of causes is its own business

    config = DataConfig(dataset_name="morphomnist", sample_size=32, data_dir=str(folder))
    assert isinstance(true_counterfactuals(config, MORPHOMNIST_GRAPH, mnist_dir=mnist), MorphoMNISTTruth)
    assert true_counterfactuals(config, MORPHOMNIST_GRAPH) is None
    assert true_counterfactuals(config, MORPHOMNIST_GRAPH, "validation", mnist) is None
    assert true_counterfactuals(DataConfig(dataset_name="folder", sample_size=32), PHANTOM_GRAPH) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("variables", "channels"),
    [
        (PHANTOM_GRAPH.variables[:2], None),
        (PHANTOM_GRAPH.variables[::-1], None),
        ((replace(PHANTOM_GRAPH["age"], high=100), *PHANTOM_GRAPH.variables[1:]), None),
        (PHANTOM_GRAPH.variables, 3),
    ],
    ids=["fewer", "order", "range", "colour"],
)
def test_a_run_with_another_encoding_has_no_truth(variables, channels, caplog: pytest.LogCaptureFixture) -> None:
    config = DataConfig(dataset_name="phantom", sample_size=32, image_channels=channels)
    with caplog.at_level(logging.WARNING):
        assert true_counterfactuals(config, CausalGraph(variables)) is None
    assert "phantom" in caplog.text
