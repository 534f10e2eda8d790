"""Models as users write them, for the phantom's attributes. None of them imports the name ModelMixin."""

from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from softcft import BackboneOutput

SIZE = 16


class Additive(diffusers.ModelMixin, diffusers.ConfigMixin):
    """Each attribute adds a pattern, more or less of it as the abducted noise says."""

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = SIZE, attributes: int = 6) -> None:
        super().__init__()
        self.patterns = nn.Linear(attributes, in_channels * sample_size**2, bias=False)

    def counterfactual(self, image: Tensor, parents: Tensor, others: Tensor, generator: Any = None) -> BackboneOutput:
        noise = randn_tensor((len(image), 1, 1, 1), generator=generator, device=image.device, dtype=image.dtype)
        change = self.patterns(others - parents).view_as(image)
        explained = self.patterns(parents).view_as(image)
        return BackboneOutput(image=image + (1 + 0.3 * noise) * change, fidelity=(image - explained).square().mean())


class Sampler(Additive):
    """Makes images of attributes, too."""

    def sample(self, parents: Tensor, generator: Any = None) -> Tensor:
        shape = len(parents), self.config.in_channels, self.config.sample_size, self.config.sample_size
        noise = randn_tensor(shape, generator=generator, device=parents.device, dtype=parents.dtype)
        return self.patterns(parents).view(shape) + noise


class Once(Additive):
    """Abducts once for several counterfactuals of an image, and counts."""

    abductions = 0

    def counterfactuals(self, image: Tensor, parents: Tensor, others: Tensor, generator: Any = None) -> BackboneOutput:
        self.abductions += len(image)
        noise = randn_tensor((len(image), 1, 1, 1, 1), generator=generator, device=image.device, dtype=image.dtype)
        change = self.patterns(others - parents[:, None]).unflatten(2, image.shape[1:])
        return BackboneOutput(image=image[:, None] + (1 + 0.3 * noise) * change)


class Latents(diffusers.ModelMixin, diffusers.ConfigMixin):
    """Holds an AutoencoderKL of diffusers, whose latents the attributes move."""

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = SIZE, attributes: int = 6) -> None:
        super().__init__()
        self.vae = diffusers.AutoencoderKL(in_channels, in_channels, block_out_channels=(8,), norm_num_groups=4)
        self.moves = nn.Linear(attributes, 4 * sample_size**2, bias=False)

    def counterfactual(self, image: Tensor, parents: Tensor, others: Tensor, generator: Any = None) -> BackboneOutput:
        latent = self.vae.encode(image).latent_dist.mode()
        residual = image - self.vae.decode(latent).sample
        moved = latent + self.moves(others - parents).view_as(latent)
        return BackboneOutput(image=self.vae.decode(moved).sample + residual, fidelity=residual.square().mean())


class Steps(diffusers.UNet2DModel):
    """Is a UNet2DModel of diffusers, which sees the attributes as its step."""

    def counterfactual(self, image: Tensor, parents: Tensor, others: Tensor, generator: Any = None) -> BackboneOutput:
        weights = torch.arange(1, 1 + parents.shape[1]).to(image)
        old, new = (self(image, 100 * values @ weights).sample for values in (parents, others))
        return BackboneOutput(image=image + new - old, fidelity=old.square().mean())


class Module(nn.Module):
    """No model of diffusers: it can be used, and not saved."""

    in_channels, sample_size = 1, SIZE

    def __init__(self) -> None:
        super().__init__()
        self.inner = Additive()

    def counterfactual(self, *arguments: Any) -> BackboneOutput:
        return self.inner.counterfactual(*arguments)


class Object:
    """Not even a module."""

    in_channels, sample_size = 1, (SIZE, SIZE)

    def __init__(self) -> None:
        self.inner = Additive()

    def counterfactual(self, *arguments: Any) -> BackboneOutput:
        return self.inner.counterfactual(*arguments)


def make_steps() -> Steps:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return Steps(SIZE, 1, 1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **blocks)


SAVED = {"Additive": Additive, "Sampler": Sampler, "Latents": Latents, "Steps": make_steps}
USED = {**SAVED, "Module": Module, "Object": Object}
"""Makers of all of them; those of the first can be saved."""
