"""Counterfactual fine-tuning: what the paper adds, as small pure functions."""

from typing import Literal

CFTMode = Literal["none", "hard", "soft", "matched"]
"""No fine-tuning, or fine-tuning with targets of one of three kinds."""
