r"""Holds what interventions change, on the average and pixel by pixel, at what it is in real images.

A guide looks at what it needs to tell the ill from the healthy, and no further. A counterfactual that satisfies it may
still lack the rim of an effusion, or keep the rim of one that was to go: nobody pays for it, and whatever holds the
image near to the factual one gains by it. Who learns from such images learns the rim.

Regress real images on their attributes, :math:`x = W a + \ldots`. The coefficients of the disease are a picture: by
how much images of the ill differ from those of healthy people of the same age, sex and race. Attributes are all that
an image has in common with its causes, so this is the average effect of the disease, and counterfactuals must have it
too. With :math:`\Delta x` the change of the image and :math:`\Delta a` that of its attributes,

.. math:: E\left[\Delta x - W \Delta a \mid do(v = k)\right] = 0 \quad \text{for each category } k.

The left side is a picture, too: what images that are made k have in excess. Its square is the penalty, or rather the
product of the pictures of the last step and of this one, whose expectation it is: the square of a mean of few images
would be too large by their variance. This is small, for what is peculiar to an image is in the factual image as well.

Continuous attributes are regressed on, but not held: their effects are no straight lines.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softcft.cft.strength import category_probabilities
from softcft.graph import CausalGraph

__all__ = ["EffectConstraint"]

GREY_LEVELS = 127.5
"""In a unit of an image's range from -1 to 1."""


class EffectConstraint(nn.Module):
    """A penalty on the difference of the average effect in counterfactuals and in real images.

    Args:
        graph: The causal graph.
        weight: Of the penalty, in nats per squared grey level of the mean pixel.
    """

    effects: Tensor | None
    excess: Tensor | None

    def __init__(self, graph: CausalGraph, weight: float = 0.05) -> None:
        super().__init__()
        self.graph, self.weight = graph, weight
        self.variables = [variable for variable in graph.variables if variable.kind != "continuous"]
        self.register_buffer("effects", None)  # W, shape (K, C, H, W)
        self.register_buffer("excess", None)  # of each category when it was last given to an image, (G, C, H, W)
        self._moments = self._products = torch.zeros((), dtype=torch.float64)

    def observe(self, image: Tensor, parents: Tensor) -> None:
        """Take note of real images, to be followed by :meth:`fit`.

        Args:
            image: Shape (B, C, H, W) in [-1, 1].
            parents: Encoded attributes, shape (B, K).
        """
        regressors = torch.cat([parents.new_ones(len(parents), 1), parents], dim=1)
        products = torch.einsum("bk,bchw->kchw", regressors, image.to(regressors))
        self._moments = self._moments + (regressors.T @ regressors).double().cpu()
        self._products = self._products + products.double().cpu()

    def fit(self) -> None:
        """Measure the average effects in all images that were observed; they are on the CPU then."""
        # The columns of a categorical variable add up to 1, so W is not unique; but what it says of a change is.
        inverse = torch.linalg.pinv(self._moments, rtol=1e-6, hermitian=True)
        effects = torch.einsum("jk,kchw->jchw", inverse, self._products)[1:]
        self.effects = effects.float()
        categories = sum(len(variable.categories) for variable in self.variables)
        self.excess = self.effects.new_zeros(categories, *self.effects.shape[1:])

    def forward(
        self, change: Tensor, parents: Tensor, counterfactual_parents: Tensor, intervened: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The penalty, and what :meth:`follow` wants to know of these images.

        Args:
            change: Counterfactual less factual image, shape (B, C, H, W), in units of their range from -1 to 1.
            parents: Encoded factual attributes, shape (B, K).
            counterfactual_parents: Encoded counterfactual attributes, shape (B, K).
            intervened: Which variables each image's intervention sets, bool of shape (B, V).

        Returns:
            A scalar that has the gradient of the penalty; and metrics: ``effect/excess`` of shape (G, C, H, W) and
            ``effect/share`` of shape (G,), means over the images for all G categories of discrete variables, and for
            each of these variables ``excess/...``, the root mean square in grey levels of its last pictures.

        Raises:
            ValueError: If the effects have not been measured.
        """
        if self.effects is None or self.excess is None:
            raise ValueError("Average effects must be measured first: observe() real images, then fit().")
        given = torch.cat(
            [
                parents[:, :0],
                *(
                    category_probabilities(variable, counterfactual_parents[:, self.graph.slices[variable.name]])
                    * intervened[:, self.graph.names.index(variable.name), None]
                    for variable in self.variables
                ),
            ],
            dim=1,
        )
        with torch.autocast(change.device.type, enabled=False):  # rounding would cost up to half a grey level
            expected = torch.einsum("bk,kchw->bchw", counterfactual_parents - parents, self.effects)
            excess = GREY_LEVELS * torch.einsum("bg,bchw->gchw", given, change.float() - expected) / len(change)
        loss = self.weight * (self.excess * excess).sum(dim=0).mean()
        pictures = self.excess.split([len(variable.categories) for variable in self.variables])
        sizes = {f"excess/{v.name}": x.square().mean().sqrt() for v, x in zip(self.variables, pictures, strict=True)}
        return loss, {"effect/excess": excess.detach(), "effect/share": given.mean(dim=0), **sizes}

    def follow(self, metrics: dict[str, Tensor]) -> None:
        """Move on to what the counterfactuals of this step have in excess.

        Args:
            metrics: Those of :meth:`forward`, the mean over all images of the step.
        """
        if self.excess is not None:
            share = metrics["effect/share"][:, None, None, None]
            self.excess.copy_(torch.where(share > 0, metrics["effect/excess"] / share.clamp_min(1e-12), self.excess))
