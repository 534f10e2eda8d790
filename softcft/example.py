"""A pretrained pipeline that comes with softcft, for a first try without training or network."""

from __future__ import annotations

from pathlib import Path

__all__ = ["example_model"]


def example_model() -> Path:
    """Folder of a small pipeline of the phantom, fine-tuned with soft labels, for ``DSCMPipeline.from_pretrained``.

    ``make example`` trains it, by ``recipes/configs/phantom_64.yaml``; its weights are in float16, and loaded as
    float32. The subfolder ``examples`` has test images of 64 x 64 grey pixels and their attributes (``metadata.csv``).
    The phantom is procedural: what the pipeline knows of race or sex is an arbitrary pattern and says nothing about
    people.

    Example:
        >>> from softcft import DSCMPipeline, example_model
        >>> DSCMPipeline.from_pretrained(example_model()).causal_graph.names
        ('age', 'sex', 'race', 'disease')
    """
    return Path(__file__).parent / "pretrained" / "phantom"
