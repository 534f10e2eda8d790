"""Where a step makes the host wait for the device: counted on the CPU, the same as on a GPU."""

import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.data.config import AugmentationConfig
from softcft.training.objectives import ClassifierObjective, HVAEObjective, SCMObjective
from tests.cft.test_objective import cft
from tests.training.test_objectives import classifier, hvae, phantoms, scm

__all__ = ["phantoms"]

WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2"}


class Waits(TorchDispatchMode):
    """Counts operations whose result the host must know, and constants made of Python's numbers, by file."""

    def __init__(self) -> None:
        super().__init__()
        self.files: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1])
        result = func(*args, **(kwargs or {}))
        if name in WAITS or by_mask or (name == "lift_fresh" and result.ndim):
            frames = [f.filename for f in traceback.extract_stack() if "/softcft/" in f.filename]
            self.files[frames[-1].rsplit("/", 1)[-1] if frames else name] += 1
        return result


def matched(guides: int) -> nn.Module:
    objective: Any = cft("matched", guides=guides)
    graph = objective.guides.graph
    labels = scm().sample(200)
    objective.targets.reference_parents = labels
    said = [graph.probabilities(torch.randn(labels.shape)) for _ in range(guides)]
    objective.targets.reference_predictions = torch.stack(said)
    objective.targets.effect.observe(torch.randn(len(labels), 1, 16, 16), labels)
    objective.targets.effect.fit()
    return objective


MADE: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "hvae": (lambda: HVAEObjective(hvae()), {}),
    "classifier": (lambda: ClassifierObjective(classifier(), AugmentationConfig(random_noise=0.2)), {}),
    "scm": (lambda: SCMObjective(scm()), {"attribute_scm.py": 1}),  # are values encoded?
    "hard": (lambda: cft("hard", HVAEBackbone(hvae())), {"attribute_scm.py": 2}),
    "soft": (lambda: cft("soft", HVAEBackbone(hvae())), {"attribute_scm.py": 2}),
    # How many real images are as near as the last of the nearest: for each variable, and twice more for a categorical.
    "matched": (lambda: matched(1), {"attribute_scm.py": 2, "transport.py": 6}),
    # And how many images each guide is shown.
    "three guides": (lambda: matched(3), {"attribute_scm.py": 2, "transport.py": 6, "guides.py": 3}),
}


@pytest.mark.parametrize("name", MADE)
def test_a_step_waits_for_the_device_only_where_it_must(name: str, phantoms: dict[str, Tensor]) -> None:
    make, expected = MADE[name]
    objective = make()
    batch = {**phantoms, "seeds": list(range(len(phantoms["image"])))}
    with Waits() as waits:
        objective(batch)["loss"].backward()
    assert waits.files == expected
