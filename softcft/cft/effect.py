r"""Holds the average change that an intervention makes, pixel by pixel, at what it is in real images.

A guide looks at the part of a disease that it needs to tell the ill from the healthy. The rest of the disease has no
effect on its prediction: fine-tuning need not draw it, and does not remove it. So the average effect of the disease on
each pixel is held as well.

Regress real images on their attributes, :math:`x = W a + \ldots`. A coefficient is a picture: by how much images of
the ill differ on average from those of healthy people with the same other attributes. Attributes are all that an image
has in common with its causes, so this is the average causal effect, and counterfactuals must have it. With
:math:`\Delta x` the change of the image and :math:`\Delta a` that of its attributes,

.. math:: E\left[\Delta x - W \Delta a \mid do(v = k)\right] = 0 \quad \text{for each category } k.

The left side is a picture, the *excess* of category k. The penalty is its mean square, times the share of images that
are given k. The square of a mean over few images is too large, by their variance. So the picture :math:`d` of this
step is multiplied by the picture :math:`c` of the step before: :math:`2 c d - c^2` has the value and the gradient of
the square where the model stands still.

Effects of rare categories are measured with noise. The penalty of each category is weighed by its *reliability*,

.. math:: r_k = \max(0, 1 - \text{error variance} / \text{mean square of the picture}).

It is 0 for attributes that always go together. Continuous attributes are regressed on but not held, for their effects
are not linear.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from softcft.graph import CausalGraph

__all__ = ["EffectConstraint"]

GREY_LEVELS = 127.5
"""In a unit of an image's range from -1 to 1."""


class EffectConstraint(nn.Module):
    """A penalty on the difference of the average effect in counterfactuals and in real images.

    Args:
        graph: The causal graph.
        weight: Of the penalty, in nats per squared grey level of the mean pixel.
        names: The variables to hold; continuous ones among them are not held. All if left out.

    Attributes:
        effects: W, shape (K, C, H, W), in units of images from -1 to 1; None before they are measured.
        reliability: r of each of the G categories of discrete variables, from 0 to 1, shape (G,).
        excess: The excess of each category when an image was last given it, in grey levels, shape (G, C, H, W).
    """

    effects: Tensor | None
    reliability: Tensor | None
    excess: Tensor | None

    def __init__(self, graph: CausalGraph, weight: float = 0.025, names: Collection[str] | None = None) -> None:
        super().__init__()
        self.graph, self.weight = graph, weight
        self.variables = [
            variable
            for variable in graph.variables
            if variable.kind != "continuous" and (names is None or variable.name in names)
        ]
        for name in ("effects", "reliability", "excess"):
            self.register_buffer(name, None)
        self._moments = self._products = self._squares = torch.zeros((), dtype=torch.float64)

    def observe(self, image: Tensor, parents: Tensor) -> None:
        """Add real images to the sums that :meth:`fit` uses.

        Args:
            image: Shape (B, C, H, W) in [-1, 1].
            parents: Encoded attributes, shape (B, K).
        """
        pixels, parents = image.cpu().double(), parents.cpu().double()  # differences of large sums need the digits
        regressors = torch.cat([parents.new_ones(len(parents), 1), parents], dim=1)
        self._moments = self._moments + regressors.T @ regressors
        self._products = self._products + torch.einsum("bk,bchw->kchw", regressors, pixels)
        self._squares = self._squares + pixels.square().sum(dim=0)

    def fit(self) -> None:
        """Measure the average effects in all images that were observed. They are on the CPU afterwards."""
        number = self._moments[0, 0]
        mean, mean_image = self._moments[0, 1:] / number, self._products[0] / number
        moments = self._moments[1:, 1:] - number * mean[:, None] * mean
        products = self._products[1:] - number * torch.einsum("k,chw->kchw", mean, mean_image)
        # In standard deviations: the pseudo-inverse's cutoff must not depend on the units of the attributes.
        scale = moments.diagonal().sqrt()
        scale = torch.where(scale > 1e-6 * number.sqrt(), 1 / scale, 0)  # 0: the same in all images
        # The columns of a categorical variable add up to 1, so W is not unique; but W times a change is.
        scales = scale[:, None] * scale
        scaled_inverse = torch.linalg.pinv(scales * moments, rtol=1e-6, hermitian=True)
        inverse = scales * scaled_inverse
        effects = torch.einsum("jk,kchw->jchw", inverse, products)
        self.effects = effects.float()

        explained = torch.einsum("kchw,kchw->chw", effects, products)
        rest = self._squares - number * mean_image.square() - explained
        variance = (rest / (number - len(effects) - 1).clamp_min(1)).mean().clamp_min(0)  # of the mean pixel
        changes = self._changes(mean)
        size = torch.einsum("gk,kchw->gchw", changes, effects).square().mean(dim=(1, 2, 3))
        error = variance * torch.einsum("gk,kl,gl->g", changes, inverse, changes)
        # The effect of one of two attributes that always go together cannot be identified.
        wanted = changes * scale
        projected = wanted @ scaled_inverse @ (scales * moments)
        is_identified = (projected - wanted).norm(dim=1) < 1e-3 * wanted.norm(dim=1)
        self.reliability = ((1 - error / size.clamp_min(1e-30)).clamp_min(0) * is_identified).float()
        self.excess = self.effects.new_zeros(len(changes), *self.effects.shape[1:])

    def reliabilities(self) -> dict[str, float]:
        """The reliability of each category's effect, by the category's name; empty before it is measured."""
        names = [f"'{variable.name}': {category!r}" for variable in self.variables for category in variable.categories]
        return {} if self.reliability is None else dict(zip(names, self.reliability.tolist(), strict=True))

    def _changes(self, mean: Tensor) -> Tensor:
        """The mean change of attributes where an image of another category is given this one, shape (G, K)."""
        blocks = [mean.new_zeros(0, len(mean))]
        for variable in self.variables:
            columns = self.graph.slices[variable.name]
            others = variable.category_probabilities(mean[None, columns]).repeat(len(variable.categories), 1)
            others.fill_diagonal_(0)
            changes = torch.eye(len(others)).to(others) - others / others.sum(dim=1, keepdim=True).clamp_min(1e-12)
            blocks.append(mean.new_zeros(len(others), len(mean)))
            blocks[-1][:, columns] = changes[:, -variable.width :]
        return torch.cat(blocks)

    def forward(
        self, change: Tensor, parents: Tensor, counterfactual_parents: Tensor, intervened: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The penalty, and the metrics that :meth:`follow` needs.

        Args:
            change: Counterfactual minus factual image, shape (B, C, H, W), in units of their range from -1 to 1.
            parents: Encoded factual attributes, shape (B, K).
            counterfactual_parents: Encoded counterfactual attributes, shape (B, K).
            intervened: Which variables each image's intervention sets, bool of shape (B, V).

        Returns:
            A scalar with the gradient of the penalty; and metrics: for the G categories of discrete variables the
            means over the images ``effect/excess`` (G, C, H, W) and ``effect/share`` (G,), and for each discrete
            variable ``excess/NAME``, the root mean square of its excess at the last step, in grey levels.

        Raises:
            ValueError: If the effects have not been measured.
        """
        if self.effects is None or self.reliability is None or self.excess is None:
            raise ValueError("Average effects must be measured first: observe() real images, then fit().")
        given = torch.cat(
            [
                parents[:, :0],
                *(
                    variable.category_probabilities(counterfactual_parents[:, self.graph.slices[variable.name]])
                    * intervened[:, self.graph.names.index(variable.name), None]
                    for variable in self.variables
                ),
            ],
            dim=1,
        )
        with torch.autocast(change.device.type, enabled=False):  # bfloat16 would round by half a grey level
            expected = torch.einsum("bk,kchw->bchw", counterfactual_parents - parents, self.effects)
            excess = GREY_LEVELS * torch.einsum("bg,bchw->gchw", given, change.float() - expected) / len(change)
            share = given.mean(dim=0)[:, None, None, None]
            squares = (2 * self.excess * excess - share * self.excess.square()).mean(dim=(1, 2, 3))
            loss = self.weight * (self.reliability * squares).sum()
        pictures = self.excess.split([len(variable.categories) for variable in self.variables])
        sizes = {f"excess/{v.name}": x.square().mean().sqrt() for v, x in zip(self.variables, pictures, strict=True)}
        return loss, {"effect/excess": excess.detach(), "effect/share": given.mean(dim=0), **sizes}

    def follow(self, metrics: dict[str, Tensor]) -> None:
        """Remember the excess of this step's counterfactuals.

        Args:
            metrics: Those of :meth:`forward`, the mean over all images of the step.
        """
        if self.excess is not None:
            share = metrics["effect/share"][:, None, None, None]
            self.excess.copy_(torch.where(share > 0, metrics["effect/excess"] / share.clamp_min(1e-12), self.excess))
