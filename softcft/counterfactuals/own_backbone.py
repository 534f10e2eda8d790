"""Counterfactuals of a user's own model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from softcft.arguments import check_whole, plain, shown
from softcft.counterfactuals.backbone import BackboneOutput
from softcft.noise import Generator, copies, own_generators

__all__ = ["OwnBackbone", "check_output", "check_saveable"]

logger = logging.getLogger(__name__)

METHOD = "counterfactual(image, parents, counterfactual_parents, generator)"


class OwnBackbone(nn.Module):
    """A model of anybody's as pipelines, fine-tuning and evaluation use it.

    It computes in the model's type. What the model returns is checked, made float32 and clamped to [-1, 1]. Several
    predictions of one image are the model's ``counterfactuals``. Without that method they are made one after the other,
    each by an abduction with the same noise.

    Args:
        model: Has the method of :class:`~softcft.counterfactuals.backbone.CounterfactualBackbone`.

    Raises:
        ValueError: If it has not.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        method = getattr(model, "counterfactual", None)
        if isinstance(model, type) or not callable(method):
            what = f"the class {model.__name__}; make one" if isinstance(model, type) else f"a {type(model).__name__}"
            raise ValueError(f"backbone must be an object with the method {METHOD}, got {what}.")
        try:
            inspect.signature(method).bind(*range(4))
        except TypeError as error:
            raise ValueError(
                f"backbone must have the method {METHOD}, but that of {type(model).__name__} cannot be called with "
                f"these four: {error}."
            ) from error
        self.model = model

    @property
    def uncompiled(self) -> Any:
        """The model itself, also if it was compiled."""
        return getattr(self.model, "_orig_mod", self.model)

    @property
    def abducts_once(self) -> bool:
        """Whether the model predicts several counterfactuals of an image from one abduction."""
        return callable(getattr(self.model, "counterfactuals", None))

    @property
    def image_format(self) -> tuple[int, int]:
        """Channels, and height and width in pixels, of the images that the model takes.

        Raises:
            ValueError: If it does not say, or they are not square.
        """
        return _format_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        first = next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)
        return getattr(self.model, "dtype", first)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return getattr(self.model, "device", next((p.device for p in self.parameters()), torch.device("cpu")))

    def counterfactual(
        self,
        image: Tensor,
        parents: Tensor,
        counterfactual_parents: Tensor,
        generator: Generator = None,
    ) -> BackboneOutput:
        """See :class:`~softcft.counterfactuals.backbone.CounterfactualBackbone`.

        Raises:
            ValueError: If the model returns something else.
        """
        if counterfactual_parents.ndim == 2 or self.abducts_once:
            return self._predict(image, parents, counterfactual_parents, generator)
        each = counterfactual_parents.unbind(dim=1)
        outputs = [
            self._predict(image, parents, other, same)
            for other, same in zip(each, copies(generator or own_generators(image), len(each)), strict=True)
        ]
        return BackboneOutput(torch.stack([output.image for output in outputs], dim=1), outputs[0].fidelity)

    def check_samples(self) -> None:
        """Raise ValueError if the model cannot :meth:`sample`."""
        if not callable(getattr(self.model, "sample", None)):
            raise ValueError(
                f"backbone ({type(self.model).__name__}) has no method sample(parents, generator): without it there "
                "are counterfactuals of images, and no new images."
            )

    def sample(self, parents: Tensor, generator: Generator = None) -> Tensor:
        """Images of encoded attributes (B, K), shape (B, C, H, W).

        Raises:
            ValueError: If the model has no such method, or returns something else.
        """
        self.check_samples()
        images = _sample(self.model, parents.to(self.dtype), generator)
        channels, size = self.image_format
        shape = (len(parents), channels, size, size)
        if not isinstance(images, Tensor) or images.shape != shape:
            raise ValueError(f"sample of backbone must return images of shape {shape}, got {_form(images)}.")
        return images.float().clamp(-1, 1)

    def _predict(
        self, image: Tensor, parents: Tensor, counterfactual_parents: Tensor, generator: Generator
    ) -> BackboneOutput:
        given = (tensor.to(self.dtype) for tensor in (image, parents, counterfactual_parents))
        if counterfactual_parents.ndim == 2:
            output = _counterfactual(self.model, *given, generator)
            check_output(output, image.shape)
        else:
            output = _counterfactuals(self.model, *given, generator)
            shape = torch.Size([*counterfactual_parents.shape[:2], *image.shape[1:]])
            check_output(output, shape, method="counterfactuals")
        return BackboneOutput(output.image.float().clamp(-1, 1), output.fidelity)


# As before forward: weights that diffusers has moved away to save memory come back.
_counterfactual = apply_forward_hook(lambda model, *arguments: model.counterfactual(*arguments))
_counterfactuals = apply_forward_hook(lambda model, *arguments: model.counterfactuals(*arguments))
_sample = apply_forward_hook(lambda model, *arguments: model.sample(*arguments))


def check_output(output: Any, shape: torch.Size, with_fidelity: bool = False, method: str = "counterfactual") -> None:
    """Make sure that a backbone has returned what it must.

    Args:
        output: What the method has returned.
        shape: That of the counterfactuals.
        with_fidelity: Whether there must be a fidelity, too, which fine-tuning constrains.
        method: Its name.

    Raises:
        ValueError: If there are no images of that shape, or the fidelity is no scalar.
    """
    must = f"{method} of backbone must return a softcft.BackboneOutput with"
    images = getattr(output, "image", None)
    if not isinstance(images, Tensor) or images.shape != shape:
        got = _form(output) if images is None else _form(images)
        raise ValueError(f"{must} images of shape {tuple(shape)}, got {got}.")
    fidelity = getattr(output, "fidelity", None)
    if with_fidelity and not (isinstance(fidelity, Tensor) and fidelity.ndim == 0):
        raise ValueError(f"{must} a fidelity, a scalar that is lower where it is better, got {_form(fidelity)}.")


def check_saveable(model: Any) -> None:
    """Make sure that diffusers can save a model and load it; warns if only where its class is defined.

    Raises:
        ValueError: If it is no ``ModelMixin`` and ``ConfigMixin``, or its config lacks an argument of its class.
    """
    cls = type(model)
    if not issubclass(cls, ModelMixin) or not issubclass(cls, ConfigMixin):
        raise ValueError(
            f"backbone ({cls.__name__}) cannot be saved: let its class inherit from ModelMixin and ConfigMixin of "
            "diffusers, and decorate its __init__ with register_to_config."
        )
    arguments = [
        name for name, p in inspect.signature(cls).parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    known = {*getattr(model, "config", {}), *cls.ignore_for_config}
    if missing := [name for name in arguments if name not in known and not name.startswith("_")]:
        raise ValueError(
            f"The config of backbone ({cls.__name__}) lacks {missing}, without which the same model cannot be made "
            "again: decorate its __init__ with register_to_config of diffusers.configuration_utils."
        )
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        logger.warning(
            "%s is defined in a script, a notebook or a function, and can be loaded only where it is defined again. "
            "Put it into a module of its own, or pass the model to from_pretrained as backbone.",
            cls.__name__,
        )


def _format_of(model: Any) -> tuple[int, int]:
    name = type(model).__name__
    config = getattr(model, "config", None)
    known = dict(config) if isinstance(config, Mapping) else {}
    names = "in_channels", "sample_size"
    channels, size = (plain(known[key] if key in known else getattr(model, key, None)) for key in names)
    missing = [key for key, value in zip(names, (channels, size), strict=True) if value is None]
    if missing:
        raise ValueError(
            f"backbone must say what images it takes, by in_channels and sample_size (height and width in pixels) in "
            f"its config or as attributes; {name} has no {' and no '.join(missing)}."
        )
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    check_whole(f"in_channels of backbone ({name})", channels)
    check_whole(f"sample_size of backbone ({name})", size)
    return channels, size


def _form(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
