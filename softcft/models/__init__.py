"""Neural mechanisms: attributes, images, and the classifiers that read attributes off images."""

CONDITION_DROPOUT = 0.3
"""Share of the images that lose attributes while a diffusion model learns, unless told otherwise."""
MIN_SNR_GAMMA = 5.0
"""Largest weight of an image's error while a diffusion model learns, unless told otherwise."""
MODULES_HELP = "Python modules to import first, which define the class of a model of your own; in this folder, too."
"""The help of a flag."""
