"""Pipelines: from images and values in natural units to counterfactuals in one call."""
