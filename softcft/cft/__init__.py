"""Counterfactual fine-tuning: what the paper adds, as small pure functions."""
