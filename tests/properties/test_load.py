"""One pipeline serves many: several threads at once, and ten thousand images without growing."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests.pipelines import test_diffusion_dscm, test_dscm

THREADS = 4
PIPELINES = {
    "hvae": (test_dscm.build(), 16, test_dscm.PARENTS),
    "diffusion": (test_diffusion_dscm.build(), 8, test_diffusion_dscm.PARENTS),
}
SETTINGS: dict[str, dict[str, Any]] = {"hvae": {}, "diffusion": {"num_inference_steps": 4, "guidance_scale": 2.0}}
DOS: dict[str, list[dict[str, Any]]] = {
    "hvae": [{"age": 40}, {"sex": "female"}, {"race": "White", "age": [20, 50, 90]}, {}],
    "diffusion": [{"size": 7}, {"state": "on"}, {"site": "c", "size": [1, 5, 9]}, {}],
}


def pictures(kind: str, number: int) -> torch.Tensor:
    """Noise, (number, 1, H, W) in [0, 1]."""
    size = PIPELINES[kind][1]
    return torch.rand(number, 1, size, size, generator=torch.Generator().manual_seed(5))


def ask(kind: str, i: int, seed: int | None, **settings: Any) -> Any:
    pipe, _, parents = PIPELINES[kind]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    settings = {**SETTINGS[kind], "output_type": "pt", **settings}
    return pipe(pictures(kind, 3), parents, DOS[kind][i], generator=generator, **settings)


def at_once(call: Any) -> list[Any]:
    """What ``call(i)`` gives in each of the threads, which start together and call three times."""
    barrier = threading.Barrier(THREADS)

    def serve(i: int) -> list[Any]:
        barrier.wait()
        return [call(i) for _ in range(3)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(serve, range(THREADS)))


@pytest.mark.parametrize("kind", PIPELINES)
def test_threads_get_what_each_would_get_alone(kind: str) -> None:
    together = at_once(lambda i: ask(kind, i, seed=i))  # first, while nothing has been set up by a call
    alone = [ask(kind, i, seed=i) for i in range(THREADS)]
    assert not torch.equal(alone[0].images, alone[1].images)
    for expected, results in zip(alone, together, strict=True):
        for result in results:
            assert torch.equal(result.images, expected.images)
            assert torch.equal(result.effects, expected.effects)
            assert result.parents == expected.parents
            assert result.factual_predictions == expected.factual_predictions
            assert result.counterfactual_predictions == expected.counterfactual_predictions


@pytest.mark.parametrize("kind", PIPELINES)
def test_threads_without_generators_keep_what_is_not_random(kind: str) -> None:
    """A null intervention gives the images back, whatever noise is drawn meanwhile by others."""
    settings = {"guidance_scale": 1.0} if kind == "diffusion" else {}
    results = at_once(lambda i: ask(kind, i, seed=None, **settings))
    for result in results[3]:
        torch.testing.assert_close(result.images, pictures(kind, 3), rtol=0, atol=3e-4)
    for i, name in enumerate(["age", "sex"] if kind == "hvae" else ["size", "state"]):
        for result in results[i]:
            assert result.parents[name] == pytest.approx([DOS[kind][i][name]] * 3)


@pytest.mark.parametrize("kind", PIPELINES)
def test_threads_draw_samples_of_their_own(kind: str) -> None:
    pipe = PIPELINES[kind][0]
    settings = {"num_inference_steps": 4} if kind == "diffusion" else {}

    def draw(i: int) -> Any:
        return pipe.sample(3, generator=torch.Generator().manual_seed(i), output_type="pt", **settings)

    alone = [draw(i) for i in range(THREADS)]
    for expected, results in zip(alone, at_once(draw), strict=True):
        assert all(torch.equal(result.images, expected.images) for result in results)
        assert all(result.parents == expected.parents for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PIPELINES)
def test_ten_thousand_images_leave_nothing_behind(kind: str) -> None:
    pipe, size, parents = PIPELINES[kind]
    batch = 250
    images = pictures(kind, batch).numpy().transpose(0, 2, 3, 1)
    values = {name: [value[i % 3] for i in range(batch)] for name, value in parents.items()}
    settings = {"num_inference_steps": 2} if kind == "diffusion" else {}
    process = psutil.Process()

    def serve() -> tuple[int, int]:
        """Memory and the number of tensors after 2,000 images more."""
        for i in range(2_000 // batch):
            output = pipe(images, values, DOS[kind][i % 2], **settings)
        assert np.asarray(output.images[-1]).shape == (size, size)
        del output
        gc.collect()
        return process.memory_info().rss, sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    memory, tensors = zip(*(serve() for _ in range(5)), strict=True)
    assert max(tensors) == tensors[0]
    # The allocator takes a few MiB more now and then, and keeps them. A leak takes some each time: an 8-bit
    # copy of each image would be 0.5 MB for each 2,000 of 16 x 16 pixels.
    assert memory[-1] - memory[0] < 32 * 2**20
    assert min(later - earlier for earlier, later in pairwise(memory)) < 2_000 * size**2
