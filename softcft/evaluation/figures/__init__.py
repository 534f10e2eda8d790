"""Figures: counterfactuals, their attributes' strength, distribution shift, training curves."""
