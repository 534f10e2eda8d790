"""A saved pipeline of diffusers, with no softcft in it, as the start of an image model that knows attributes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple, cast

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from softcft.arguments import check_whole, is_hub_name, shown
from softcft.graph import CausalGraph
from softcft.models.denoiser import ConditionalDenoiser
from softcft.models.hub_errors import explain_hub_errors
from softcft.models.networks import (
    adopt_network,
    component_of,
    conditions_of,
    network_channels,
    network_class,
    network_size,
)
from softcft.models.noise_schedule import Scheduler, load_scheduler
from softcft.models.parent_encoder import ParentEncoder
from softcft.models.patches import patch_size_of
from softcft.models.prompt import PromptEmbedding
from softcft.models.vae import latent_stride
from softcft.models.weights import load_safetensors

__all__ = ["DiffusionParts", "Found", "adopt", "read_pipeline"]

NETWORKS = ("unet", "transformer")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that pipelines have besides, and that a call with nothing but a prompt does without."""
ENCODED = {"PixArtTransformer2DModel": ("tokens", "mask"), "FluxTransformer2DModel": ("tokens", "pooled")}
"""What ``encode_prompt`` returns, by the class of the network, if it is not the following."""
ENCODED_ELSE = ("tokens", "negative", "pooled")


class DiffusionParts(NamedTuple):
    """What :func:`adopt` makes of a pipeline: arguments of :class:`~softcft.models.denoiser.ConditionalDenoiser`.

    Attributes:
        network: Predicts what it predicted before, until it is trained.
        parent_encoder: The tokens of attributes.
        scheduler: The noise that the network was trained with.
        prompt: What the network is told besides; None if it reads no text.
        vae: The network works on its latents; None if it works on pixels.
    """

    network: ModelMixin
    parent_encoder: ParentEncoder
    scheduler: Scheduler
    prompt: PromptEmbedding | None
    vae: AutoencoderKL | None

    @property
    def components(self) -> dict[str, Any]:
        """The same, by their names in :class:`softcft.DiffusionDSCMPipeline`."""
        network = dict.fromkeys(NETWORKS) | {component_of(self.network): self.network}
        return network | {name: getattr(self, name) for name in ("parent_encoder", "scheduler", "prompt", "vae")}


@torch.no_grad()
def adopt(
    pipeline_dir: str | Path, graph: CausalGraph, prompt: str = "", sample_size: int | None = None
) -> DiffusionParts:
    """Take a pipeline of diffusers as the start of an image model that knows the attributes of a graph.

    Until it is trained, it predicts what it predicted: its tokens of attributes are 0, see
    :func:`~softcft.models.networks.adopt_network`. Network, VAE, kind of prediction, noise schedule, and scale and
    shift of latents are those of the pipeline. Its text encoders encode the prompt, and are not needed afterwards.

    Args:
        pipeline_dir: A folder that ``save_pretrained`` of a pipeline wrote, or the name of a repository of the Hub:
            DDPM, with or without classes, DiT, Stable Diffusion 1, 2, XL and 3, Flux, PixArt, and others of the same
            parts. Its weights must be safetensors.
        graph: The attributes.
        prompt: A text for all images, such as ``"a chest X-ray"``; only where the network reads text.
        sample_size: Side of the images in pixels. Left out, it is that of the pipeline. Flux knows none: there it must
            be given.

    Raises:
        ValueError: If the pipeline is not such a one; the reason is found in its settings, before weights are read. Or
            if images have another size than those of the pipeline, or there are only pickled weights.
        OSError: If there is no such pipeline.
    """
    found = read_pipeline(pipeline_dir, graph, prompt, sample_size)
    told = None
    if found.reads_text:
        told = _encode(pipeline_dir, found.listed, prompt, type(found.network).__name__, found.size)
    own_size = found.network.config.get("sample_size")
    network: Any = load_safetensors(type(found.network), pipeline_dir, subfolder=found.name, dtype=torch.float32)
    if network.config.get("sample_size") is None:
        network.register_to_config(sample_size=own_size)
    vae = found.vae
    if vae is not None:
        vae = load_safetensors(AutoencoderKL, pipeline_dir, subfolder="vae", dtype=torch.float32)
    return DiffusionParts(*adopt_network(network, graph, told), found.scheduler, told, vae)


class Found(NamedTuple):
    """A pipeline that can be adopted, by its settings. Its models have no weights.

    Attributes:
        listed: Its ``model_index.json``.
        name: Of the network among its parts.
        network: See :class:`DiffusionParts`.
        vae: See there.
        scheduler: See there.
        size: Side of the images in pixels.
        reads_text: Whether the network does.
    """

    listed: dict[str, Any]
    name: str
    network: ModelMixin
    vae: AutoencoderKL | None
    scheduler: Scheduler
    size: int
    reads_text: bool


def read_pipeline(pipeline_dir: str | Path, graph: CausalGraph, prompt: str, sample_size: int | None) -> Found:
    """Whether a pipeline can be adopted, before weights are read; arguments and errors as of :func:`adopt`."""
    if not isinstance(graph, CausalGraph):
        raise ValueError(f"graph must be a CausalGraph, got {shown(graph)}.")
    name = str(pipeline_dir)
    if not isinstance(pipeline_dir, str | Path) or not (Path(name).is_dir() or is_hub_name(name)):
        raise ValueError(
            f"pipeline_dir must be a folder, or the name of a repository of the Hub, owner/name, got {shown(name)}."
        )
    index = _read_config(DiffusionPipeline, pipeline_dir)
    name, library_class = _network_of(pipeline_dir, index)
    try:
        network_type: Any = network_class(library_class)
        config = _read_config(network_type, pipeline_dir, subfolder=name)
        has_vae = _has_vae(index)
        vae_config = _read_config(AutoencoderKL, pipeline_dir, subfolder="vae") if has_vae else None
        with explain_hub_errors(pipeline_dir):
            scheduler = load_scheduler(pipeline_dir, subfolder="scheduler")
        with torch.device("meta"):
            network: Any = network_type.from_config(config)
            vae: Any = None if vae_config is None else AutoencoderKL.from_config(vae_config)
            size = _image_size(network, vae, sample_size)
            adopted, encoder = adopt_network(network, graph)
        ConditionalDenoiser(adopted, encoder, scheduler)
        reads_text = conditions_of(adopted).reads_text
        _check_text(index, prompt, reads_text)
    except ValueError as error:
        raise ValueError(f"pipeline_dir {pipeline_dir} cannot be adopted: {error}") from error
    return Found(index, name, network, vae, scheduler, size, reads_text)


def _read_config(kind: Any, pipeline_dir: str | Path, **subfolder: str) -> dict[str, Any]:
    with explain_hub_errors(pipeline_dir):
        return cast(dict[str, Any], kind.load_config(pipeline_dir, **subfolder))


def _network_of(pipeline_dir: str | Path, index: dict[str, Any]) -> tuple[str, str]:
    """The name of a pipeline's network among its parts, and its class."""
    kind, parts = index.get("_class_name"), _parts(index)
    texts = [name for name in parts if name.startswith(("text_encoder", "tokenizer"))]
    unknown = sorted(set(parts) - {*NETWORKS, *UNUSED, *texts, "vae", "scheduler"})
    networks = [name for name in NETWORKS if name in parts]
    if not isinstance(kind, str) or not inspect.isclass(getattr(diffusers, kind, None)):
        reason = "diffusers has no pipeline of this class"
    elif unknown:
        reason = f"its {', '.join(unknown)} cannot be used"
    elif len(networks) != 1 or "scheduler" not in parts:
        reason = "it must have a scheduler and one network, unet or transformer"
    else:
        return networks[0], parts[networks[0]]
    raise ValueError(f"pipeline_dir {pipeline_dir} holds a {kind}, and cannot be adopted: {reason}.")


def _parts(index: dict[str, Any]) -> dict[str, str]:
    """The classes of the parts that a pipeline has."""
    parts = {name: value for name, value in index.items() if isinstance(value, list | tuple) and len(value) == 2}
    return {name: kind for name, (library, kind) in parts.items() if library is not None}


def _has_vae(index: dict[str, Any]) -> bool:
    kind = _parts(index).get("vae")
    if kind not in (None, "AutoencoderKL"):
        raise ValueError(f"vae must be an AutoencoderKL, got {kind}.")
    return kind is not None


def _image_size(network: Any, vae: AutoencoderKL | None, sample_size: int | None) -> int:
    """Side of the images in pixels; a network whose config has no size gets it."""
    if sample_size is not None:
        check_whole("sample_size", sample_size)
    channels = network_channels(network)
    if vae is None:
        _, stride = patch_size_of(channels)
    else:
        if vae.config.get("latents_mean") or vae.config.get("latents_std"):
            raise ValueError("vae has latents_mean and latents_std, by which latents are not scaled here.")
        _, patch_size = patch_size_of(channels, (vae.config["latent_channels"],))
        stride = latent_stride(vae) * patch_size
    if network.config.get("sample_size") is None:
        if sample_size is None or sample_size % stride:
            raise ValueError(
                f"sample_size must be given, a multiple of {stride}, as the network knows no size of images, got "
                f"{sample_size}."
            )
        network.register_to_config(sample_size=sample_size // stride)
    size = network_size(network) * stride
    if sample_size not in (None, size):
        raise ValueError(f"sample_size must be {size}, as its images are of {size} x {size} pixels, got {sample_size}.")
    return size


def _check_text(index: dict[str, Any], prompt: str, reads_text: bool) -> None:
    if not isinstance(prompt, str) or (prompt and not reads_text):
        reason = "empty, for the network reads no text" if isinstance(prompt, str) else "a text"
        raise ValueError(f"prompt must be {reason}, got {shown(prompt)}.")
    kind = getattr(diffusers, index["_class_name"])
    has_encoder = any(name.startswith("text_encoder") for name in _parts(index))
    if reads_text and not (has_encoder and hasattr(kind, "encode_prompt")):
        raise ValueError(f"its network reads text, but {index['_class_name']} has no text encoder to make it.")


def _encode(
    pipeline_dir: str | Path, index: dict[str, Any], prompt: str, network_name: str, size: int
) -> PromptEmbedding:
    """The prompt as the pipeline's own call encodes it, without guidance."""
    others = {name: None for name in _parts(index) if not name.startswith(("text_encoder", "tokenizer"))}
    pipeline = load_safetensors(DiffusionPipeline, pipeline_dir, dtype=torch.float32, **others)
    called, taken = (inspect.signature(method).parameters for method in (pipeline.__call__, pipeline.encode_prompt))
    arguments = {name: called[name].default for name in taken if name in called}
    given = {"prompt": prompt, "device": torch.device("cpu"), "do_classifier_free_guidance": False}
    arguments |= {"num_images_per_prompt": 1} | given
    encoded = pipeline.encode_prompt(**{name: value for name, value in arguments.items() if name in taken})
    found = dict(zip(ENCODED.get(network_name, ENCODED_ELSE), encoded, strict=False))
    found.pop("negative", None)
    return PromptEmbedding.of(**{name: value[0] for name, value in found.items()}, image_size=size)
