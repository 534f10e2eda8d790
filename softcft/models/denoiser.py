"""A conditional diffusion model of images given their attributes, from the parts that diffusers saves."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from softcft.arguments import plain
from softcft.graph import CausalGraph
from softcft.models.noise_schedule import NoiseSchedule, Scheduler
from softcft.models.parent_encoder import ParentEncoder
from softcft.models.patches import fold_patches, unfold_patches
from softcft.models.weights import load_safetensors
from softcft.noise import Generator, uniform

__all__ = [
    "UNETS",
    "ConditionalDenoiser",
    "adopt_unet",
    "load_unet",
    "network_size",
]

UNETS: dict[str, type[UNet2DModel | UNet2DConditionModel]] = {
    "UNet2DModel": UNet2DModel,
    "UNet2DConditionModel": UNet2DConditionModel,
}
"""The networks that can be conditioned on attributes, by the name that diffusers saves."""


class ConditionalDenoiser(nn.Module):
    """Predicts the noise in noisy images, given their attributes; see :mod:`softcft.models.noise_schedule`.

    A network that takes more channels than the images have sees patches of pixels, see :mod:`softcft.models.patches`.

    Args:
        unet: A ``UNet2DConditionModel``, which attends to one token for each variable, or a ``UNet2DModel`` whose
            ``class_embed_type`` is ``identity``: the sum of the tokens is added to its time embedding.
        parent_encoder: Makes the tokens.
        scheduler: Holds the noise schedule and what the network predicts; nothing else of it is used.

    Raises:
        ValueError: If the UNet takes no such tokens, or tokens of another size; or the scheduler is not for
            :class:`~softcft.models.noise_schedule.NoiseSchedule`.
    """

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel,
        parent_encoder: ParentEncoder,
        scheduler: Scheduler,
    ) -> None:
        super().__init__()
        size = parent_encoder.config["embedding_dim"]
        if unet.config["in_channels"] != unet.config["out_channels"]:
            raise ValueError(
                f"unet must predict as many channels as it takes, {unet.config['in_channels']}, but predicts "
                f"{unet.config['out_channels']}: a variance cannot be used."
            )
        if not _attends(unet) and unet.config["class_embed_type"] != "identity":
            raise ValueError(
                "unet must have class_embed_type 'identity', so that the tokens of parent_encoder can be added to its "
                f"time embedding, got {unet.config['class_embed_type']!r}."
            )
        what, taken = "the time embedding of unet has", _time_embedding_size(unet)
        if _attends(unet):
            what, taken = "cross_attention_dim of unet is", unet.config["cross_attention_dim"]
        if taken != size:
            raise ValueError(f"parent_encoder makes tokens of size {size}, but {what} {taken}.")
        self.schedule = NoiseSchedule(scheduler)
        self.unet = unet
        self.parent_encoder = parent_encoder
        self.scheduler = scheduler

    def forward(self, noisy: Tensor, timestep: Tensor, parents: Tensor, present: Tensor | None = None) -> Tensor:
        """The network's prediction, of the schedule's kind, in float32 and of the shape of the images.

        Args:
            noisy: Noisy images, shape (B, C, H, W).
            timestep: What the schedule tells the network of the noise in each image, shape (B,).
            parents: Encoded attributes, shape (B, K).
            present: Which variables to condition on, boolean, shape (B, V); all if left out.
        """
        tokens = self.parent_encoder(parents.to(self.parent_encoder.dtype), present).to(self.unet.dtype)
        patches = fold_patches(noisy, self.unet.config["in_channels"]).to(self.unet.dtype)
        if _attends(self.unet):
            prediction = self.unet(patches, timestep, encoder_hidden_states=tokens).sample
        else:
            prediction = self.unet(patches, timestep, class_labels=tokens.sum(dim=1)).sample
        return unfold_patches(prediction.float(), noisy.shape[1])

    def loss(
        self,
        image: Tensor,
        parents: Tensor,
        condition_dropout: float = 0.0,
        min_snr_gamma: float | None = None,
        generator: Generator = None,
        time: Tensor | None = None,
    ) -> Tensor:
        r"""Mean squared error of the prediction for images at random times, given some of their attributes, shape (B,).

        Args:
            image: Clean images (or their latents), shape (B, C, H, W).
            parents: Encoded attributes, shape (B, K).
            condition_dropout: The share of the images that lose attributes, in [0, 1]. Guidance needs images given all
                attributes, a group of them, or none: of the images that lose any, equally many lose 1, 2, ... or all,
                drawn at random.
            min_snr_gamma: Weighs the error of the *image* at each time by its signal-to-noise ratio, at most this: Hang
                et al., "Efficient diffusion training via min-SNR weighting" (ICCV 2023), who recommend 5. Left out, and
                for flow matching, whose times are chosen already: the plain error of the prediction.
            generator: Makes times, dropout and noise reproducible; a list has one generator per image.
            time: Quantile of each image's time, in [0, 1), shape (B,): 0 is no noise, 1 pure noise. Left out, they are
                drawn: spread evenly by one generator, independent by a list of them.

        Returns:
            One error per image; their mean over random times is what training minimises.
        """
        variables = len(self.parent_encoder.causal_graph)
        drawn, loses, number, order = uniform((len(image), 3 + variables), generator, image.device).split(
            [1, 1, 1, variables], dim=1
        )
        if time is None and isinstance(generator, list):
            time = drawn[:, 0]
        elif time is None:
            # Evenly spread from one random start: each is still uniform, but their mean loss varies less.
            # Kingma et al., "Variational diffusion models" (NeurIPS 2021), appendix I.1.
            time = (drawn[0] + torch.arange(len(image), device=image.device) / len(image)) % 1
        timestep, signal, noise = self.schedule.at(time.to(image.device))
        lost = torch.where(loses < condition_dropout, 1 + (number * variables).long().clamp_max(variables - 1), 0)
        present = order.argsort(dim=1).argsort(dim=1) >= lost
        epsilon = randn_tensor(image.shape, generator=generator, device=image.device, dtype=torch.float32)
        prediction = self(signal * image + noise * epsilon, timestep, parents, present)
        target = self.schedule.target(image, epsilon, signal, noise)
        error = (prediction - target).square().flatten(1).mean(dim=1)
        return self.schedule.weighted(error, signal, noise, min_snr_gamma)


def adopt_unet(
    unet: UNet2DModel | UNet2DConditionModel, graph: CausalGraph
) -> tuple[UNet2DModel | UNet2DConditionModel, ParentEncoder]:
    """Condition a UNet of diffusers on the attributes of a graph.

    A ``UNet2DModel`` first computes what it did before: it gets ``class_embed_type`` ``identity``; if it had an
    embedding of classes, its rows become the tokens of the variable with as many categories; all other tokens are 0.
    The tokens that a ``UNet2DConditionModel`` attends to are random.

    Returns:
        A network with the same weights, and the encoder of its tokens. ``unet`` is not changed.

    Raises:
        ValueError: If the network has classes, but not one discrete variable has as many categories; or if it has
            conditions other than classes (``UNet2DModel``) or tokens of one size (``UNet2DConditionModel``).
    """
    if _attends(unet):
        size = unet.config["cross_attention_dim"]
        others = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")
        if not isinstance(size, int) or any(unet.config.get(other) is not None for other in others):
            raise ValueError(
                "unet must attend to tokens of one size, cross_attention_dim, and have no other conditions; it has "
                f"{ {name: unet.config.get(name) for name in ('cross_attention_dim', *others)} }."
            )
        return unet, ParentEncoder(graph.to_list(), size)
    if unet.config["class_embed_type"] not in (None, "identity"):
        raise ValueError(
            f"unet must be conditioned on classes or on nothing, got class_embed_type "
            f"{unet.config['class_embed_type']!r}."
        )
    encoder = ParentEncoder(graph.to_list(), _time_embedding_size(unet))
    if unet.config["class_embed_type"] == "identity":
        return unet, encoder
    weights = dict(unet.state_dict())
    embedding = weights.pop("class_embedding.weight", None)
    # from_config would put back what was left at its default.
    settings = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    conditional = UNet2DModel(**{**settings, "class_embed_type": "identity", "num_class_embeds": None})
    conditional.load_state_dict(weights)
    last_layers = [[x for x in layer.modules() if isinstance(x, nn.Linear)][-1] for layer in encoder.encoders]
    with torch.no_grad():
        for parameter in nn.ModuleList(last_layers).parameters():
            parameter.zero_()
        if embedding is not None:
            classes = len(embedding)
            places = [i for i, v in enumerate(graph.variables) if len(v.categories) == classes]
            if len(places) != 1:
                raise ValueError(
                    f"unet was trained with {classes} classes, so one variable of the graph must have {classes} "
                    f"categories, but {[graph.names[i] for i in places]} have."
                )
            layer = last_layers[places[0]]
            if graph.variables[places[0]].kind == "binary":
                layer.weight.copy_((embedding[1] - embedding[0])[:, None])
                layer.bias.copy_(embedding[0])
            else:
                layer.weight.copy_(embedding.T)
            encoder.absent[places[0]] = embedding.mean(dim=0)
    return conditional, encoder


def load_unet(folder: str | Path) -> UNet2DModel | UNet2DConditionModel:
    """A UNet of either class, as diffusers saves it.

    Raises:
        ValueError: If the folder holds a model of another class, or pickled weights.
    """
    name = UNet2DModel.load_config(folder).get("_class_name")
    if name not in UNETS:
        raise ValueError(f"{folder} holds a {name}, and not one of {sorted(UNETS)}.")
    unet: UNet2DModel | UNet2DConditionModel = load_safetensors(UNETS[name], folder)
    return unet


def network_size(unet: UNet2DModel | UNet2DConditionModel) -> int:
    """Height and width of a network's input (images, patches or latents); ValueError if they are unknown or differ."""
    size = plain(unet.config["sample_size"])
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        raise ValueError(
            f"sample_size of unet must be the side of square images, got {size!r}. If it is only missing, set it by "
            "unet.register_to_config(sample_size=...)."
        )
    return sides[0]


def _attends(unet: UNet2DModel | UNet2DConditionModel) -> bool:
    """Whether a UNet attends to tokens; by its config, as it may be compiled."""
    return "cross_attention_dim" in unet.config


def _time_embedding_size(unet: UNet2DModel | UNet2DConditionModel) -> int:
    return unet.config["time_embedding_dim"] or 4 * unet.config["block_out_channels"][0]
