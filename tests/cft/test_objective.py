"""Algorithm 1: one step of counterfactual fine-tuning."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softcft.cft.constraint import LagrangianConstraint
from softcft.cft.guides import Guides
from softcft.cft.interventions import draw_interventions
from softcft.cft.matched import Matched
from softcft.cft.objective import CFTObjective
from softcft.cft.targets import Hard, Soft
from softcft.counterfactuals.backbone import BackboneOutput
from softcft.counterfactuals.hvae_backbone import HVAEBackbone
from softcft.data.config import AugmentationConfig
from softcft.data.phantom import PHANTOM_GRAPH
from softcft.graph import Intervention
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier
from softcft.models.sight import Sight
from tests.training.test_objectives import PLAIN, classifier, hvae, phantoms, scm

__all__ = ["phantoms"]


def constraint() -> LagrangianConstraint:
    return LagrangianConstraint(slack=5.0, damping=10.0, learning_rate=0.5)


def objective_of(mode: str, backbone: nn.Module, guides: list[AttributeClassifier], **options: Any) -> CFTObjective:
    asked = Guides(guides)  # type: ignore[arg-type]
    targets: Any = {"hard": Hard, "soft": lambda: Soft(asked.graph), "matched": lambda: Matched(asked)}[mode]()
    return CFTObjective(backbone, scm(), asked, targets, constraint(), **options)  # type: ignore[arg-type]


def cft(mode: str = "soft", backbone: nn.Module | None = None, guides: int = 1, **options: Any) -> CFTObjective:
    return objective_of(mode, backbone or HVAEBackbone(hvae()), [classifier() for _ in range(guides)], **options)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("hard", {}), ("soft", {}), ("soft", {"guides": 2, "augmentation": AugmentationConfig(random_noise=0.2)})],
)
def test_only_the_backbone_gets_gradients(mode: str, options: dict[str, Any], phantoms: dict[str, Tensor]) -> None:
    objective = cft(mode, **options)
    objective(phantoms)["loss"].backward()
    names = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert names == {f"backbone.{name}" for name, _ in objective.backbone.named_parameters()}
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == (name in names), name
    assert objective.backbone.training
    assert not any(m.training for part in (objective.guides[0], objective.attribute_scm) for m in part.modules())


def test_no_gradient_passes_through_what_the_guide_says_of_the_factual_image(phantoms: dict[str, Tensor]) -> None:
    guides = Guides([classifier(), classifier()])  # type: ignore[list-item]
    image, parents = phantoms["image"].clone().requires_grad_(), phantoms["parents"]
    mask = torch.ones(len(parents), len(PHANTOM_GRAPH), dtype=torch.bool)
    seen = guides.look(image, image, parents, parents, mask, None)
    assert seen.logits.requires_grad
    assert not seen.prediction.requires_grad


def test_matched_targets_need_a_reference(phantoms: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="reference"):
        cft("matched")(phantoms)


def test_scalars_add_up(phantoms: dict[str, Tensor]) -> None:
    objective = cft()
    objective.constraint.multiplier.fill_(0.7)
    objective.constraint.violation.fill_(0.1)
    objective.constraint.ascend(5.1)
    scalars = objective(phantoms)
    assert set(scalars) == {
        "loss",
        "guidance",
        "fidelity",
        "multiplier",
        "change",
        *(f"guidance/{name}" for name in PHANTOM_GRAPH.names),
    }
    assert all(value.ndim == 0 for value in scalars.values())
    total = torch.stack([scalars[f"guidance/{name}"] for name in PHANTOM_GRAPH.names]).sum()
    torch.testing.assert_close(scalars["guidance"], total)
    expected = scalars["guidance"] + (0.7 + 0.5 * 0.1 + 10 * 0.1) * (scalars["fidelity"] - 5)
    torch.testing.assert_close(scalars["loss"], expected)
    assert scalars["multiplier"].item() == pytest.approx(0.75)


def test_after_step_moves_the_multiplier() -> None:
    objective = cft()
    objective.after_step({"fidelity": 6.5, "loss": 0.0})
    assert objective.constraint.multiplier.item() == pytest.approx(0.75)


class Recorder(nn.Module):
    """A backbone that changes nothing and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def counterfactual(
        self, image: Tensor, parents: Tensor, counterfactual_parents: Tensor, generator: Any = None
    ) -> BackboneOutput:
        self.asked = parents, counterfactual_parents
        return BackboneOutput(image=image + self.shift, fidelity=self.shift.square())


def test_an_unchanged_image_costs_only_what_should_have_changed(
    phantoms: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw_interventions(PHANTOM_GRAPH, phantoms["parents"], phantoms["parents"].roll(1, dims=0))
    # The prediction on an image that stayed itself is its own soft target; a hard label is not.
    for i in range(20):
        one = {key: values[i : i + 1] for key, values in phantoms.items()}
        own = Intervention(drawn.values[i : i + 1], drawn.mask[i : i + 1])
        monkeypatch.setattr("softcft.cft.interventions.draw_interventions", lambda *_, own=own: own)
        costs = {}
        for mode in ("hard", "soft"):
            objective = cft(mode, Recorder())
            torch.manual_seed(i)
            scalars = objective(one)
            costs[mode] = {name: scalars[f"guidance/{name}"].item() for name in PHANTOM_GRAPH.names}
        free = {name for name, cost in costs["soft"].items() if abs(cost) < 1e-6}
        # A do() leaves at least two variables alone: all but age and, through it, disease.
        assert 2 <= len(free) <= 3
        assert all(costs["hard"][name] > costs["soft"][name] for name in free)
        assert all(costs["hard"][name] == costs["soft"][name] for name in set(costs["soft"]) - free)


def test_counterfactual_attributes_come_from_the_mechanisms(phantoms: dict[str, Tensor]) -> None:
    objective = cft("soft", Recorder())
    objective(phantoms)
    parents, counterfactual = objective.backbone.asked
    assert torch.equal(parents, phantoms["parents"])
    moved = {n: (parents[:, c] != counterfactual[:, c]).any(dim=1) for n, c in PHANTOM_GRAPH.slices.items()}
    per_image = torch.stack([moved[name] for name in PHANTOM_GRAPH.names]).sum(dim=0)
    assert all(changed.any() for changed in moved.values())
    # One variable of each image, and disease beside age where age moves it.
    assert (per_image <= 1 + (moved["age"] & moved["disease"])).all()


def test_a_backbone_must_be_a_module() -> None:
    class Plain:
        counterfactual = Recorder.counterfactual

    with pytest.raises(ValueError, match=r"must be an nn.Module to be trained, got Plain"):
        cft("soft", Plain())  # type: ignore[arg-type]


def test_mechanisms_and_guide_must_share_their_graph() -> None:
    other = AttributeSCM(PLAIN[:3], num_bins=4, hidden_features=[8])
    with pytest.raises(ValueError, match="different graphs"):
        CFTObjective(Recorder(), other, Guides([classifier()]), Hard(), constraint())  # type: ignore[arg-type,list-item]


def with_sight(objective_guides: list[AttributeClassifier], *unseen: set[str]) -> list[AttributeClassifier]:
    """Guides that do not see these variables."""
    for guide, names in zip(objective_guides, unseen, strict=True):
        guide.store_sight(
            {
                v.name: Sight(
                    "skill" if v.kind == "continuous" else "auc", *((0.0,) * 3 if v.name in names else (0.9,) * 3)
                )
                for v in PHANTOM_GRAPH.variables
            }
        )
    return objective_guides


def blind(mode: Any, *unseen: set[str], backbone: nn.Module | None = None) -> CFTObjective:
    guides = with_sight([classifier() for _ in unseen], *unseen)
    return objective_of(mode, backbone or HVAEBackbone(hvae()), guides)


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("name", PHANTOM_GRAPH.names)
def test_a_guide_is_not_asked_for_what_it_does_not_see(mode: str, name: str, phantoms: dict[str, Tensor]) -> None:
    """Neither where it is moved nor where it is untouched: its head has no part in the gradient of the images."""
    gradients = []
    for weight in (1.0, -50.0):
        objective = blind(mode, {name})
        with torch.no_grad():  # whatever the guide says of the variable
            objective.guides[0].heads.weight[PHANTOM_GRAPH.slices[name]] *= weight
        torch.manual_seed(1)
        scalars = objective(phantoms)
        assert {key for key in scalars if key.startswith("guidance/")} == {
            f"guidance/{other}" for other in PHANTOM_GRAPH.names if other != name
        }
        scalars["loss"].backward()
        gradients.append([parameter.grad for parameter in objective.backbone.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    objective = blind(mode, set(PHANTOM_GRAPH.names) - {name})  # and that alone
    torch.manual_seed(1)
    objective(phantoms)["guidance"].backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in objective.backbone.parameters())


def test_each_guide_is_asked_for_what_it_sees_and_the_log_has_the_same_keys(phantoms: dict[str, Tensor]) -> None:
    objective = blind("soft", {"sex", "race"}, {"sex", "age", "disease"}, backbone=Recorder())
    assert objective.guides.names == ("age", "race", "disease")
    keys = set()
    for seed in range(12):
        torch.manual_seed(seed)
        scalars = objective({key: values[seed : seed + 1] for key, values in phantoms.items()})
        keys.add(frozenset(scalars))
        asked = {name for name in objective.guides.names if scalars[f"guidance/{name}"] > 0}
        assert asked <= {"age", "disease"} or asked <= {"race"}
        scalars["loss"].backward()  # every parameter has a part in it, whichever guide was drawn
    assert len(keys) == 1


def test_strength_and_effect_are_held_of_what_a_guide_sees(phantoms: dict[str, Tensor]) -> None:
    objective = blind("matched", {"sex", "race"}, {"sex"})
    matched: Any = objective.targets
    for held in (matched.strength, matched.effect):
        assert [variable.name for variable in held.variables] == ["race", "disease"]
    matched.reference_parents = phantoms["parents"]
    matched.reference_predictions = objective.guides.predict(phantoms["image"])
    matched.effect.observe(phantoms["image"], phantoms["parents"])
    matched.effect.fit()
    scalars = objective(phantoms)
    assert {key for key in scalars if key.startswith("shortfall/")} == {"shortfall/race", "shortfall/disease"}
    scalars["loss"].backward()
    objective.after_step({key: x.item() if x.ndim == 0 else x.detach() for key, x in scalars.items()})
    assert matched.strength.offsets.isfinite().all()


def test_guides_that_see_nothing_have_nothing_to_steer_by() -> None:
    with pytest.raises(ValueError, match="no variable"):
        blind("soft", set(PHANTOM_GRAPH.names))


def test_there_must_be_a_guide() -> None:
    with pytest.raises(ValueError, match="at least one classifier"):
        cft(guides=0)


def test_guides_share_the_images(phantoms: dict[str, Tensor]) -> None:
    seeds = list(range(64))
    one, three = cft(backbone=Recorder()), cft(backbone=Recorder(), guides=3)
    alike = [objective({**phantoms, "seeds": seeds}) for objective in (one, three)]
    for key, value in alike[0].items():
        torch.testing.assert_close(alike[1][key], value)

    seen = [[] for _ in range(3)]
    for guide, images in zip(three.guides, seen, strict=True):
        guide.register_forward_pre_hook(lambda _, inputs, images=images: images.append(inputs[0]))
    three({**phantoms, "seeds": seeds})
    factual = [images[0] for images in seen]  # each guide sees its images, and then their counterfactuals
    assert sum(len(images) for images in factual) == 64
    assert all(10 < len(images) < 33 for images in factual)
    found = torch.cat(factual).flatten(1)
    assert torch.equal(found.sum(dim=1).sort().values, phantoms["image"].flatten(1).sum(dim=1).sort().values)


def test_an_image_keeps_its_guide_in_every_batch(phantoms: dict[str, Tensor]) -> None:
    objective = cft(backbone=Recorder(), guides=2)
    objective.guides[1].heads.bias.data += 1
    whole = objective({**phantoms, "seeds": list(range(64))})
    parts = [
        objective({key: values[half] for key, values in phantoms.items()} | {"seeds": list(range(64))[half]})
        for half in (slice(32), slice(32, 64))
    ]
    torch.testing.assert_close(whole["guidance"], (parts[0]["guidance"] + parts[1]["guidance"]) / 2)


class Adder(Recorder):
    """Adds a grey level."""

    def counterfactual(self, image: Tensor, *others: Any) -> BackboneOutput:
        return BackboneOutput(image=image + self.shift + 1 / 127.5, fidelity=self.shift)


def test_changes_cost_what_they_weigh(phantoms: dict[str, Tensor]) -> None:
    scalars = cft(backbone=Adder(), minimality=0.25)(phantoms)
    assert scalars["change"].item() == pytest.approx(1, rel=1e-4)
    assert (scalars["loss"] - scalars["guidance"]).item() == pytest.approx(0.25, rel=1e-3)
