"""The differentiable core: abduction, action and prediction for images."""

from collections.abc import Mapping
from typing import Any, Literal

from softcft.arguments import check_number

Solver = Literal["ddim", "bdia"]
"""How a diffusion model's images are inverted and made again, see :mod:`softcft.counterfactuals.solvers`."""
MOST_GUIDANCE = 1000.0
"""A hundred times the usual scales. Much larger ones overflow, and images become NaN."""


def check_guidance(guidance_scale: Any, invariant_guidance_scale: Any) -> None:
    """Raise ValueError unless these are weights from 0 to :data:`MOST_GUIDANCE`, as a ``DiffusionBackbone`` takes them.

    Args:
        guidance_scale: A number, or a mapping from variables to numbers.
        invariant_guidance_scale: A number, or None, which it must be beside a mapping.
    """
    weights = {"guidance_scale": guidance_scale}
    if isinstance(guidance_scale, Mapping):
        weights = {f"guidance_scale[{name!r}]": weight for name, weight in guidance_scale.items()}
    if invariant_guidance_scale is not None:
        if isinstance(guidance_scale, Mapping):
            raise ValueError("invariant_guidance_scale has no place beside a guidance_scale by variable; leave it out.")
        weights["invariant_guidance_scale"] = invariant_guidance_scale
    for name, weight in weights.items():
        check_number(name, weight, least=0, most=MOST_GUIDANCE)
