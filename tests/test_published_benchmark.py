"""The published protocol for Morpho-MNIST, ``benchmarks/published_benchmark.py``, and the tables made by it."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import one_hot

from softcft import DSCMPipeline
from softcft.data.morpho_transform import redraw_digit
from softcft.data.morphomnist import MORPHOMNIST_GRAPH as GRAPH
from softcft.data.morphomnist import find_files, read_files
from softcft.data.schema import scale_pixels
from tests.data.test_morpho_transform import REAL, hook
from tests.small_models import make_classifier, make_hvae, make_scm, perturb

ROOT = Path(__file__).resolve().parents[1]
JUDGES = Path(os.environ.get("CF_BENCHMARK_JUDGES", ROOT.parent / "shared" / "data" / "cf_benchmark_judges"))


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    """``published_benchmark`` and ``morphomnist`` of ``benchmarks/``."""
    names = ("published_benchmark", "morphomnist")
    sys.path.append(str(ROOT / "benchmarks"))
    yield importlib.import_module(names[0]), importlib.import_module(names[1])
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in names:
        del sys.modules[name]


@pytest.fixture
def published(modules: tuple[ModuleType, ModuleType]) -> ModuleType:
    return modules[0]


def draw_parents(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.cat([2 * torch.rand(n, 2, generator=generator) - 1, one_hot(torch.arange(n) % 10, 10).float()], dim=1)


def draw_images(n: int) -> Tensor:
    return 2 * torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(1)) - 1


def pad(pixels: np.ndarray) -> Tensor:
    """Digits (N, 28, 28) as images."""
    return scale_pixels(torch.from_numpy(np.pad(pixels, ((0, 0), (2, 2), (2, 2))))[:, None])


def save_judges(published: ModuleType, folder: Path) -> Path:
    """Files like the published ones, of random weights."""
    torch.manual_seed(0)
    for name, outputs in published.OUTPUTS.items():
        network = published.Predictor(outputs, int(name == "thickness"))
        torch.save({"epoch": 1, "state_dict": network.state_dict()}, folder / f"{name}.ckpt")
    return folder


# ---- the published judges --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_published_judges_on_real_digits(published: ModuleType) -> None:
    if not (REAL.is_dir() and JUDGES.is_dir()):
        pytest.skip("no Morpho-MNIST or no judges here; MORPHOMNIST_DIR and CF_BENCHMARK_JUDGES may name their folders")
    pixels, columns = read_files(*find_files(REAL, "t10k"))
    images, labels = pad(pixels), GRAPH.encode(columns)
    judges = published.load_predictors(JUDGES)
    for training, floor in ((True, (0.078, 1.51, 0.989)), (False, (0.122, 1.54, 0.9905))):
        seen = published.predict(judges, images, labels, training)
        errors = [
            (seen[name] - labels[:, GRAPH.slices[name]]).abs().mean().item() * np.ptp(GRAPH[name].bounds) / 2
            for name in ("thickness", "intensity")
        ]
        right = (seen["digit"].argmax(dim=1) == labels[:, GRAPH.slices["digit"]].argmax(dim=1)).double().mean().item()
        assert errors == pytest.approx(floor[:2], rel=0.005)
        assert right == pytest.approx(floor[2], abs=0.0006)


def test_training_mode_judges_a_batch_and_leaves_evaluation_mode_alone(published: ModuleType, tmp_path: Path) -> None:
    judges = published.load_predictors(save_judges(published, tmp_path))
    images, labels = draw_images(300), draw_parents(300)
    before = published.predict(judges, images, labels, training=False)
    together = published.predict(judges, images, labels, training=True)
    batch = published.predict(judges, images[:256], labels[:256], training=True)
    fewer = published.predict(judges, images[:40], labels[:40], training=True)
    after = published.predict(judges, images[:40], labels[:40], training=False)
    for name, outputs in published.OUTPUTS.items():
        assert together[name].shape == (300, outputs)
        torch.testing.assert_close(together[name][:256], batch[name])
        assert not torch.allclose(together[name][:40], fewer[name], atol=1e-3)
        torch.testing.assert_close(before[name][:40], after[name], rtol=1e-4, atol=1e-5)


def test_only_thickness_is_told_the_intensity(published: ModuleType, tmp_path: Path) -> None:
    judges = published.load_predictors(save_judges(published, tmp_path))
    images, labels = draw_images(20), draw_parents(20)
    for name in GRAPH.names:
        changed = labels.clone()
        changed[:, GRAPH.slices[name]] = changed[:, GRAPH.slices[name]].roll(1, dims=0)
        one, other = (published.predict(judges, images, x, training=False) for x in (labels, changed))
        moved = {seen for seen in one if not torch.equal(one[seen], other[seen])}
        assert moved == ({"thickness"} if name == "intensity" else set())


def test_features_are_an_images_own(published: ModuleType, tmp_path: Path) -> None:
    judges = published.load_predictors(save_judges(published, tmp_path))
    images = draw_images(260)
    features = published.features(judges, images)
    assert features.shape == (260, 3 * 64)
    torch.testing.assert_close(features[255:], published.features(judges, images[255:]), rtol=1e-4, atol=1e-5)


def test_missing_and_wrong_files_are_refused_by_name(published: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"thickness\.ckpt"):
        published.load_predictors(tmp_path)
    save_judges(published, tmp_path)
    (tmp_path / "digit.ckpt").write_bytes((tmp_path / "intensity.ckpt").read_bytes())
    with pytest.raises(ValueError, match=r"digit\.ckpt"):
        published.load_predictors(tmp_path)
    torch.save({"state_dict": Path("code")}, tmp_path / "digit.ckpt")  # a class: its pickle would run code
    with pytest.raises(ValueError, match=r"digit\.ckpt"):
        published.load_predictors(tmp_path)


@pytest.mark.parametrize("number", [256, 300, 600])
def test_weights_make_the_mean_of_the_means_of_batches(published: ModuleType, number: int) -> None:
    values, weights = np.random.default_rng(0).random(number), published.batch_weights(number)
    expected = np.mean([part.mean() for part in np.split(values, range(256, number, 256))])
    assert np.average(values, weights=weights[0]) == pytest.approx(expected)


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("thickness", "intensity"), [(1.5, 90.0), (3.0, 160.0), (5.0, 250.0)])
def test_pixels_show_what_a_digit_was_drawn_with(published: ModuleType, thickness: float, intensity: float) -> None:
    seen = published.measure_pixels(pad(redraw_digit(hook(), thickness, intensity)[None]))
    natural = {name: GRAPH[name].decode(value)[0] for name, value in seen.items()}
    assert natural["thickness"] == pytest.approx(thickness, abs=0.3, rel=0.1)
    assert natural["intensity"] == pytest.approx(intensity, abs=2)


def test_a_blank_image_has_no_thickness(published: ModuleType) -> None:
    seen = published.measure_pixels(pad(np.full((1, 28, 28), 70, np.uint8)))
    low, high = GRAPH["thickness"].bounds
    assert seen["thickness"].item() == pytest.approx(2 * (0 - low) / (high - low) - 1)
    assert GRAPH["intensity"].decode(seen["intensity"]) == pytest.approx([70], abs=0.01)


# ---- values ----------------------------------------------------------------------------------------------------------


def test_values_come_from_another_bin_all_equally_likely(published: ModuleType) -> None:
    values = torch.linspace(-1, 0.5, 40).repeat(500)
    values[:1000] = -1.0  # how often a value occurs does not matter
    new = published.other_bin(values, torch.Generator().manual_seed(0))
    bins, new_bins = (published.value_bins(x, values) for x in (values, new))
    assert (bins != new_bins).all()
    assert torch.isin(new, values).all()
    for own in bins.unique():
        drawn, counts = new[bins == own].unique(return_counts=True)
        assert len(drawn) == (published.value_bins(values.unique(), values) != own).sum()
        expected = counts.sum() / len(counts)
        assert ((counts - expected).abs() < 5 * expected.sqrt()).all()
    torch.testing.assert_close(new, published.other_bin(values, torch.Generator().manual_seed(0)))


def test_bins_are_bounded_by_the_means_of_nine_intervals(published: ModuleType) -> None:
    reference = 2 * torch.rand(5000, generator=torch.Generator().manual_seed(0)) - 1
    interval = np.digitize(reference.numpy(), np.linspace(-1, 1, 10))
    bounds = [reference.numpy()[interval == i].mean() for i in range(1, 10)]
    expected = np.searchsorted(bounds, reference.numpy())
    assert (published.value_bins(reference, reference).numpy() == expected).mean() > 0.999  # but for rounding


def test_values_of_one_bin_leave_none_to_draw(published: ModuleType) -> None:
    with pytest.raises(ValueError, match="bin"):
        published.other_bin(torch.full((5,), 0.3), torch.Generator())


def test_a_plan_sets_one_variable_and_moves_its_descendants_only(published: ModuleType) -> None:
    parents, scm = draw_parents(50), perturb(make_scm(GRAPH.to_list()), 0.1)
    plan = published.published_plan(scm, parents, seed=0)
    assert plan.shape == (50, 3, GRAPH.width)
    for i, (name, each) in enumerate(published.published_interventions(parents, seed=0).items()):
        for other in GRAPH.names:
            old, new = (x[:, GRAPH.slices[other]] for x in (parents, plan[:, i]))
            if other == name:
                torch.testing.assert_close(new, each.values[:, GRAPH.slices[name]])
                assert (old != new).any(dim=1).all()
            elif (name, other) == ("thickness", "intensity"):
                assert not torch.allclose(old, new)
            else:
                torch.testing.assert_close(old, new)


# ---- the tables ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tables_have_what_there_is(
    modules: tuple[ModuleType, ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published, morphomnist = modules
    graph = GRAPH.to_list()
    scm, classifier = perturb(make_scm(graph), 0.1), make_classifier(graph)
    sizes = {"sample_size": 32, "resolutions": [8, 1], "channels": [8, 8], "patch_size": 4}
    sizes |= {"encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, names in zip(runs, (["none", "soft", "hard"], ["none", "soft"]), strict=True):
        for name in names:
            hvae = perturb(make_hvae(graph, **sizes), 0.1)
            DSCMPipeline(hvae=hvae, attribute_scm=scm, classifier=classifier).save_pretrained(run / name)
    small = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4}
    small |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "mid_block_add_attention": False, "layers_per_block": 1}
    AutoencoderKL(in_channels=1, out_channels=1, **small).save_pretrained(runs[0] / "vae")
    for module in modules:
        monkeypatch.setattr(module, "FEW", 4)
    monkeypatch.setattr(sys, "argv", ["", "--data_dir", "x", "--judge_dir", "y", "--runs", *map(str, runs)])
    _, folders = morphomnist.parse_arguments()
    assert folders == ["none", "soft"]  # only one run has the other

    judges = published.load_predictors(save_judges(published, tmp_path))
    images, parents, training = draw_images(100), draw_parents(100), draw_images(120)
    morphomnist.by_outside_judges(runs, folders, images, parents, judges, training, {})
    printed = capsys.readouterr().out
    assert printed.count("| Real images |") == 3
    assert printed.count("| Soft-CFT |") == 3 * 3 + 1
    assert "Hard-CFT" not in printed
    widths = {line.count("|") for line in printed.split("Without labels")[0].splitlines() if line.startswith("|")}
    assert widths == {7}
    widths = {line.count("|") for line in printed.split("Without labels")[1].splitlines() if line.startswith("|")}
    assert widths == {10}
    frechet, minimality, composition = next(
        [float(text.split()[0]) for text in line.split("|")[2:5]]
        for line in printed.splitlines()
        if line.startswith("| No CFT | ")
    )
    assert frechet >= 0
    assert 0 <= minimality <= 1
    assert composition < 1  # grey level: the residual keeps the image, but for rounding

    morphomnist.by_outside_judges([], [], images, parents, judges, training, {})
    assert "CFT |" not in capsys.readouterr().out
