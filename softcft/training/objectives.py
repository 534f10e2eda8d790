"""What each model is trained on: modules that turn a batch into a loss, run by :func:`softcft.training.loop.train`.

Each loss is a mean over the images of its batch, and each image has noise of its own, which follows from the batch's
``seeds``. So many images make the same step however they are cut into processes and accumulated batches. What has to be
known of all images together, such as the error of a classifier or the violation of a constraint, is a buffer that
follows the steps. Three things remain that are of one forward pass: the statistics of batch normalisation, the error of
the VAE (a yardstick of the evaluation), and the log in the fidelity of a diffusion model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from softcft.cft.constraint import LagrangianConstraint
from softcft.cft.effect import EffectConstraint
from softcft.cft.guidance import guidance_losses
from softcft.cft.interventions import draw_interventions
from softcft.cft.matched import Reference
from softcft.cft.strength import StrengthConstraint
from softcft.cft.targets import TargetMode, counterfactual_targets, moved_variables
from softcft.counterfactuals.backbone import CounterfactualBackbone
from softcft.data.schema import scale_pixels
from softcft.graph import Intervention
from softcft.models.attribute_scm import AttributeSCM
from softcft.models.classifier import AttributeClassifier, attribute_losses
from softcft.models.denoiser import CONDITION_DROPOUT, MIN_SNR_GAMMA, ConditionalDenoiser
from softcft.models.hvae import HVAEModel
from softcft.models.patches import fold_patches
from softcft.models.sight import seen_by_some
from softcft.models.vae import encode_latents
from softcft.noise import Generator, seeded_generator, spread_evenly, uniform
from softcft.training.augmentation import AugmentationConfig, random_change

__all__ = [
    "CFTObjective",
    "ClassifierObjective",
    "DiffusionObjective",
    "HVAEObjective",
    "SCMObjective",
    "VAEObjective",
]

ROUNDING_ERROR = (2 / 255) ** 2 / 12
"""Mean squared error of pixels in [-1, 1] that were rounded to 8 bits."""

Batch = dict[str, Any]
"""See :class:`softcft.training.loop.Objective`."""


def noise_generators(batch: Batch) -> Generator:
    """A generator for each image of a batch, on its device, or PyTorch's global one for all if it has no ``seeds``."""
    seeds = batch.get("seeds")
    device = batch["image"].device
    return None if seeds is None else [seeded_generator(seed, device=device) for seed in seeds]


def grey_levels(difference: Tensor) -> Tensor:
    """Mean absolute difference of images in [-1, 1], in grey levels of 255."""
    return 127.5 * difference.abs().mean()


class SCMObjective(nn.Module):
    """Maximum likelihood of the attribute mechanisms, in nats per image.

    What an image does not tell is left out: the terms of variables that are missing or have a missing parent.
    """

    def __init__(self, scm: AttributeSCM) -> None:
        super().__init__()
        self.scm = scm.train()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``parents`` (B, K)."""
        return {"loss": -self.scm(batch["parents"]).mean()}


class ClassifierObjective(nn.Module):
    """Maximum likelihood of all attributes given the image, in nats per image, summed over variables.

    A continuous variable's likelihood is normal, and its variance the moving average of the squared error, which starts
    at that of a blind guess: no weight has to be chosen to balance years against classes. Missing attributes (NaN) are
    left out: of the likelihood, which is still a mean over all images, and of the squared error, which is not.

    Args:
        classifier: What is trained.
        augmentation: How its images are changed at random; not at all if left out.
    """

    squared_errors: Tensor

    def __init__(self, classifier: AttributeClassifier, augmentation: AugmentationConfig | None = None) -> None:
        super().__init__()
        self.classifier = classifier.train()
        self.augmentation = augmentation
        variables = classifier.causal_graph.variables
        self.continuous = [variable.name for variable in variables if variable.kind == "continuous"]
        self.register_buffer("squared_errors", torch.full((len(self.continuous),), 1 / 3))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1], and ``parents`` (B, K)."""
        graph = self.classifier.causal_graph
        image, parents = scale_pixels(batch["image"]), batch["parents"]
        if self.augmentation is not None:
            image = random_change(self.augmentation, image.shape, noise_generators(batch), image.device)(image)
        logits = self.classifier(image).logits
        losses, known = {}, {}
        for name, loss in attribute_losses(graph, logits, parents.nan_to_num()).items():
            is_known = ~parents[:, graph.slices[name]].isnan().any(dim=1)
            losses[name], known[name] = (loss * is_known).mean(), is_known.float().mean()
        errors = {name: losses[name].detach() for name in self.continuous}
        for name, variance in zip(self.continuous, self.squared_errors.clamp_min(1e-6).unbind(), strict=True):
            losses[name] = 0.5 * (losses[name] / variance + known[name] * torch.log(variance))
        return {
            "loss": torch.stack(list(losses.values())).sum(),
            **{f"loss/{name}": loss for name, loss in losses.items()},
            **{f"squared_error/{name}": error for name, error in errors.items()},
            **{f"known/{name}": known[name] for name in self.continuous},
        }

    def after_step(self, metrics: dict[str, float]) -> None:
        """Follow the squared errors of the images whose value is known, in encoded units."""
        for i, name in enumerate(self.continuous):
            if metrics[f"known/{name}"] > 0:
                error = metrics[f"squared_error/{name}"] / metrics[f"known/{name}"]
                self.squared_errors[i].lerp_(torch.as_tensor(error).to(self.squared_errors), 0.1)


class HVAEObjective(nn.Module):
    """The negative evidence lower bound ``nll + beta * kl`` of images given their parents, in nats per dimension."""

    def __init__(self, hvae: HVAEModel) -> None:
        super().__init__()
        self.hvae = hvae.train()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1], and ``parents`` (B, K)."""
        output = self.hvae(scale_pixels(batch["image"]), batch["parents"], noise_generators(batch))
        return {"loss": output.nelbo.mean(), "nll": output.nll.mean(), "kl": output.kl.mean()}


class DiffusionObjective(nn.Module):
    """The denoising loss of images given some of their attributes.

    See :meth:`~softcft.models.denoiser.ConditionalDenoiser.loss`.

    Args:
        denoiser: The diffusion model.
        vae: Where given, the model is one of its latents; not trained.
        condition_dropout: See there.
        min_snr_gamma: See there.
    """

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        vae: AutoencoderKL | None = None,
        condition_dropout: float = CONDITION_DROPOUT,
        min_snr_gamma: float | None = MIN_SNR_GAMMA,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.train()
        self.vae = None if vae is None else vae.eval().requires_grad_(False)
        self.condition_dropout = condition_dropout
        self.min_snr_gamma = min_snr_gamma

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1], and ``parents`` (B, K)."""
        image, parents = scale_pixels(batch["image"]), batch["parents"]
        if self.vae is not None:
            with torch.no_grad():
                image = encode_latents(self.vae, image)
        times = spread_evenly(batch["seeds"]) if "seeds" in batch else None
        generators = noise_generators(batch)
        loss = self.denoiser.loss(image, parents, self.condition_dropout, self.min_snr_gamma, generators, times).mean()
        return {"loss": loss, "denoising": loss}


class VAEObjective(nn.Module):
    r"""The negative evidence lower bound of images, in nats per dimension: squared error plus KL, without attributes.

    Pixels are normal with one standard deviation for all, the one that fits the batch best (the optimal sigma of Rybkin
    et al., "Simple and effective VAE training with calibrated decoders", 2021): no weight has to be chosen to balance
    error and KL. With n pixels times channels, and the mean squared error e, to which that of 8-bit rounding is added,

    .. math:: loss = \tfrac{1}{2} (\log 2 \pi e + 1) + \tfrac{1}{n} KL(q(z | x) \| N(0, 1))
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae.train()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1]; other entries are ignored."""
        patches = fold_patches(scale_pixels(batch["image"]), self.vae.config["in_channels"])
        moments = self.vae.encode(patches).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(moments.float())  # whatever the compute type
        latents = posterior.sample(noise_generators(batch))  # type: ignore[arg-type]  # a list will do
        error = (self.vae.decode(latents).sample.float() - patches).square().mean()
        nll = 0.5 * (torch.log(2 * math.pi * (error + ROUNDING_ERROR)) + 1)
        kl = posterior.kl().mean() / patches[0].numel()
        return {"loss": nll + kl, "nll": nll, "kl": kl}


class CFTObjective(nn.Module):
    """Counterfactual fine-tuning (Algorithm 1): minimise the guidance loss, hold fidelity at the pretrained level.

    Args:
        backbone: The image mechanism to fine-tune, a module that satisfies
            :class:`~softcft.counterfactuals.backbone.CounterfactualBackbone`.
        attribute_scm: Trained attribute mechanisms; frozen here.
        guides: Trained and calibrated classifiers; frozen here. Each image is shown to one of them, drawn at random,
            which is asked for no variable that it does not see (:mod:`softcft.models.sight`).
        constraint: Holds the fidelity.
        mode: Of the targets, see :mod:`softcft.cft.targets`. With matched ones all counterfactuals together are held
            to reality, too: in their strength (:mod:`softcft.cft.strength`) and their effect
            (:mod:`softcft.cft.effect`).
        minimality: Weight of the mean absolute change of the images, in nats per grey level of 255.
        published: Whether descendants that keep their value have labels for targets, and guides are asked for what they
            do not see, as published.
        augmentation: How factual and counterfactual images are changed at random, both alike, before guides see them;
            not at all if left out.

    Attributes:
        asked: The variables that each guide is asked for: those that it sees; as published, all.
        seen: Those that one of them at least is asked for.

    Raises:
        ValueError: If the backbone is no module; there is no guide, or none that sees a variable; or mechanisms and a
            guide have different graphs.
    """

    reference_parents: Tensor | None
    reference_predictions: Tensor | None

    def __init__(
        self,
        backbone: CounterfactualBackbone,
        attribute_scm: AttributeSCM,
        guides: Sequence[AttributeClassifier],
        constraint: LagrangianConstraint,
        mode: TargetMode,
        minimality: float = 0.0,
        published: bool = False,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise ValueError(f"The backbone must be an nn.Module to be trained, got {type(backbone).__name__}.")
        if not guides:
            raise ValueError("guides must have at least one classifier, got none.")
        for guide in guides:
            if attribute_scm.causal_graph != guide.causal_graph:
                raise ValueError(
                    f"Attribute mechanisms and guide have different graphs: {attribute_scm.causal_graph} against "
                    f"{guide.causal_graph}. Train both from one config."
                )
        self.asked = [attribute_scm.causal_graph.names if published else guide.seen for guide in guides]
        self.seen = attribute_scm.causal_graph.names if published else seen_by_some(guides)
        self.backbone = backbone.train()
        self.attribute_scm = attribute_scm.eval().requires_grad_(False)
        frozen = nn.ModuleList(guides).eval().requires_grad_(False)
        frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the images they will see
        self.guides = cast("Sequence[AttributeClassifier]", frozen)
        self.constraint = constraint
        self.mode = mode
        self.published = published
        self.augmentation = augmentation
        self.strength = StrengthConstraint(attribute_scm.causal_graph, names=self.seen) if mode == "matched" else None
        self.effect = EffectConstraint(attribute_scm.causal_graph, names=self.seen) if mode == "matched" else None
        self.minimality = minimality
        # For matched targets; measured by the trainer.
        self.register_buffer("reference_parents", None)
        self.register_buffer("reference_predictions", None)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of a batch with ``image`` (B, C, H, W), uint8 or in [-1, 1], and ``parents`` (B, K)."""
        image, parents = scale_pixels(batch["image"]), batch["parents"]
        generators = noise_generators(batch)
        intervention, new_parents = self.draw(parents, generators)
        output = self.backbone.counterfactual(image, parents, new_parents, generators)
        change_both = self.random_change(image, generators)
        losses, shortfalls = self._guidance(
            change_both(image), change_both(output.image), parents, new_parents, intervention.mask, generators
        )
        guidance = torch.stack(list(losses.values())).sum()
        change = grey_levels(output.image - image)
        loss = guidance + self.constraint(output.fidelity) + self.minimality * change
        metrics = {"fidelity": output.fidelity, "multiplier": self.constraint.multiplier.clone(), "change": change}
        metrics |= {f"shortfall/{name}": value for name, value in shortfalls.items()}
        if self.effect is not None:
            excess, measured = self.effect(output.image - image, parents, new_parents, intervention.mask)
            loss = loss + excess
            metrics |= measured
        return {"loss": loss, "guidance": guidance, **metrics, **{f"guidance/{name}": x for name, x in losses.items()}}

    @torch.no_grad()
    def draw(self, parents: Tensor, generators: Generator) -> tuple[Intervention, Tensor]:
        """An intervention on each image of a batch, and the attributes (B, K) that follow from it."""
        others = self.attribute_scm.sample(len(parents), generator=generators).to(parents)
        intervention = draw_interventions(self.attribute_scm.causal_graph, parents, others, generators)
        return intervention, self.attribute_scm.counterfactual(parents, intervention, generators)

    def _guidance(
        self,
        image: Tensor,
        counterfactual: Tensor,
        parents: Tensor,
        new_parents: Tensor,
        intervened: Tensor,
        generators: Generator,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean loss and shortfall of strength of each variable that is seen; each image is shown to one guide."""
        draw = uniform((len(image), 1), generators, image.device)[:, 0]
        whose = (draw * len(self.guides)).long().clamp_max(len(self.guides) - 1)
        # All that one guide at least sees, whichever guides this batch draws.
        nothing = torch.zeros((), device=image.device)
        total = dict.fromkeys(self.seen, nothing)
        held = () if self.strength is None else self.strength.variables
        shortfalls = {variable.name: nothing for variable in held}
        graph = self.attribute_scm.causal_graph
        moves = moved_variables(graph, intervened, parents, new_parents, self.published)
        for i, guide in enumerate(self.guides):
            mine = (whose == i).nonzero()[:, 0]
            if not len(mine):
                continue
            with torch.no_grad():
                factual_prediction = guide.predict(image[mine])
            reference = self.reference(i)
            targets = counterfactual_targets(
                guide.causal_graph,
                intervened[mine],
                parents[mine],
                new_parents[mine],
                factual_prediction,
                self.mode,
                reference,
                self.published,
            )
            logits = guide(counterfactual[mine]).logits
            if self.strength is not None and reference is not None:
                seen = guide.probabilities(logits.detach())
                short = self.strength.shortfall(targets, seen, new_parents[mine], moves[mine], reference)
                for name in shortfalls.keys() & set(self.asked[i]):
                    shortfalls[name] = shortfalls[name] + short[name] / len(image)
                targets = self.strength(targets, new_parents[mine], moves[mine])
            losses = guidance_losses(guide.causal_graph, logits, targets, guide.column_scales)
            for name in self.asked[i]:
                total[name] = total[name] + losses[name].sum() / len(image)
        return total, shortfalls

    def random_change(self, image: Tensor, generators: Generator) -> Callable[[Tensor], Tensor]:
        """How images such as these (B, C, H, W), before and after, are changed before a guide sees them.

        A pattern that does not bear a shift or noise is none of an attribute's.
        """
        return random_change(self.augmentation or AugmentationConfig(), image.shape, generators, image.device)

    def reference(self, guide: int) -> Reference | None:
        """What a guide says of real images."""
        if self.reference_parents is None or self.reference_predictions is None:
            return None
        return Reference(self.reference_parents, self.reference_predictions[guide])

    def after_step(self, metrics: dict[str, Any]) -> None:
        """Gradient ascent of the Lagrange multipliers, and of what holds strength and effect."""
        self.constraint.ascend(metrics["fidelity"])
        if self.strength is not None:
            self.strength.ascend({v.name: metrics[f"shortfall/{v.name}"] for v in self.strength.variables})
        if self.effect is not None:
            self.effect.follow(metrics)
