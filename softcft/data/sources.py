"""Which data set a recipe reads: the fields under ``data`` in its YAML file, and what they load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from datasets import DatasetDict

from softcft.data.morphomnist import MORPHOMNIST_GRAPH, load_morphomnist
from softcft.data.phantom import PHANTOM_GRAPH, load_phantom
from softcft.graph import CausalGraph

__all__ = ["DataConfig", "SubsetConfig", "load_data"]

GRAPHS = {"phantom": PHANTOM_GRAPH, "morphomnist": MORPHOMNIST_GRAPH}


@dataclass(kw_only=True)
class DataConfig:
    """The data set, its folder, and how much of it.

    Raises:
        ValueError: If a value is out of range or does not suit the data set. The message names the flag.
    """

    dataset: Literal["phantom", "morphomnist"] = field(
        metadata={"help": "phantom: procedural chest X-rays, made on first use. morphomnist: files in data_dir."}
    )
    sample_size: int = field(
        metadata={"help": "Image height and width in pixels. phantom: any from 16; morphomnist: 32."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "morphomnist: folder of the downloaded files, required. phantom: folder that keeps the images once "
            "made, the cache of Hugging Face datasets if left out."
        },
    )
    num_train: int | None = field(
        default=None,
        metadata={"help": "Number of training images. Left out: phantom 20,000; morphomnist all but the validation."},
    )
    num_validation: int | None = field(
        default=None,
        metadata={"help": "Number of validation images. Left out: phantom 2,000; morphomnist 5,000 of the training's."},
    )
    num_test: int | None = field(
        default=None, metadata={"help": "Number of test images. Left out: 10,000, which for morphomnist is all."}
    )
    data_seed: int = field(
        default=0,
        metadata={"help": "Seed of the phantom's images, and of the choice of morphomnist's validation images."},
    )

    def __post_init__(self) -> None:
        choices = get_args(get_type_hints(type(self))["dataset"])
        if self.dataset not in choices:
            raise ValueError(f"--dataset must be one of {list(choices)}, got {self.dataset!r}.")
        for name in ("num_train", "num_validation", "num_test"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}; leave it out for the default.")
        if self.data_seed < 0:
            raise ValueError(f"--data_seed must be >= 0, got {self.data_seed}.")
        if self.dataset == "phantom" and self.sample_size < 16:
            raise ValueError(f"--sample_size must be at least 16 for the phantom, got {self.sample_size}.")
        if self.dataset == "morphomnist" and self.sample_size != 32:
            raise ValueError(
                f"--sample_size must be 32 for morphomnist (28 x 28 pixels, padded), got {self.sample_size}."
            )
        if self.dataset == "morphomnist" and self.data_dir is None:
            raise ValueError("--data_dir must be the folder of the downloaded files for morphomnist, got none.")


@dataclass(kw_only=True)
class SubsetConfig:
    """Which of the training data a model sees.

    Raises:
        ValueError: If the value is unknown.
    """

    half: Literal["even", "odd", "all"] = field(
        default="all", metadata={"help": "Rows of the training data to learn from: every other one, or all."}
    )

    def __post_init__(self) -> None:
        if self.half not in ("even", "odd", "all"):
            raise ValueError(f"--half must be 'even', 'odd' or 'all', got {self.half!r}.")

    def rows(self, n: int) -> range:
        """The chosen ones of ``n`` rows."""
        return {"even": range(0, n, 2), "odd": range(1, n, 2), "all": range(n)}[self.half]


def load_data(config: DataConfig, graph: CausalGraph) -> DatasetDict:
    """Load the data set of a recipe.

    Args:
        config: Which one, and how much of it.
        graph: The causal graph of the recipe. It must have the variables of the data set; who causes whom, and the
            ranges, are the recipe's business.

    Returns:
        Splits ``train``, ``validation``, ``test`` with a column ``image`` and one for each variable in natural units.

    Raises:
        FileNotFoundError: If a file of the data set is missing.
        ValueError: If the graph has other variables than the data set, or a file of it is damaged.
    """
    names = GRAPHS[config.dataset].names
    if set(graph.names) != set(names):
        raise ValueError(
            f"The graph has the variables {sorted(graph.names)}, but the data set {config.dataset!r} has "
            f"{sorted(names)}; correct the section 'graph' or --dataset."
        )
    numbers = {name: getattr(config, name) for name in ("num_train", "num_validation", "num_test")}
    numbers = {name: number for name, number in numbers.items() if number is not None}
    if config.dataset == "phantom":
        return load_phantom(config.sample_size, seed=config.data_seed, cache_dir=config.data_dir, **numbers)
    assert config.data_dir is not None  # DataConfig sees to it
    return load_morphomnist(config.data_dir, seed=config.data_seed, **numbers)
