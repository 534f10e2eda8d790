"""The differentiable core: abduction, action and prediction for images."""

from typing import Literal

Solver = Literal["ddim", "bdia"]
"""How a diffusion model's images are inverted and made again, see :mod:`softcft.counterfactuals.solvers`."""
MOST_GUIDANCE = 1000.0
"""A hundred times the usual scales. Much larger ones overflow, and images become NaN."""
