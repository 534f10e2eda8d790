"""Counterfactual fine-tuning: what the paper adds, as small pure functions."""

from typing import Literal

CFTMode = Literal["none", "hard", "soft", "matched"]
"""No fine-tuning, or fine-tuning with targets of one of three kinds."""
CFT_NAMES = {"none": "No CFT", "hard": "Hard-CFT", "soft": "Soft-CFT", "matched": "Matched-CFT"}
"""Their names in tables."""
PUBLISHED_CFT = ("none", "hard", "soft")
"""Those of the paper, which are compared unless told otherwise."""
