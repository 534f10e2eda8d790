"""Images of PIL, NumPy or PyTorch to and from the tensors that models take.

diffusers' ``VaeImageProcessor`` resizes, converts or rescales what it does not expect. On medical images a silent
change is worse than an error, so every mismatch is an error here, unless the caller asks for ``fit=True``, which does
what training did. PIL images and arrays are read as in training; what is white in them is the rule of
:mod:`softcft.data.pictures`.
"""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from softcft.arguments import check_choice
from softcft.data.pictures import MODES, plain_picture, read_picture, scale_to_eight_bits, why_unread

__all__ = [
    "Images",
    "OutputType",
    "check_output_type",
    "from_tensor",
    "named_images",
    "to_numpy",
    "to_pixels",
    "to_tensor",
]

File = str | os.PathLike[str]
SingleImage = Image.Image | np.ndarray | Tensor | File
Images = SingleImage | list[Image.Image] | list[np.ndarray] | list[Tensor] | list[File]
OutputType = Literal["pil", "np", "pt"]


def to_tensor(image: Images, channels: int, size: int) -> Tensor:
    """As :func:`to_pixels`, in [-1, 1]."""
    return 2 * to_pixels(image, channels, size) - 1


def named_images(image: Images) -> dict[str, Any]:
    """Single images with their names in messages."""
    if isinstance(image, list | tuple) or (isinstance(image, np.ndarray | Tensor) and image.ndim == 4):
        return {f"image[{i}]": single for i, single in enumerate(image)}
    return {"image": image}


def to_pixels(image: Images, channels: int, size: int, fit: bool = False) -> Tensor:
    """One or several images as float32 in [0, 1] of shape (B, C, H, W).

    Args:
        image: See :meth:`softcft.DSCMPipeline.__call__`.
        channels: Number of channels C that the images must have.
        size: Height and width in pixels that they must have.
        fit: Whether files are read, and images brought to this size and these channels, as training does.

    Raises:
        ValueError: If there is no image, or one cannot be read, has the wrong type, size, channels or range, or is not
            finite; or if ``fit`` is set and there are neither 1 nor 3 channels.
    """
    named = named_images(image)
    if not named:
        raise ValueError("image is empty; give at least one image.")
    if fit:
        if channels not in MODES:
            raise ValueError(f"fit=True is for models of 1 or 3 channels; this one takes {_takes(channels)}.")
        named = {name: _fit(name, single, channels, size) for name, single in named.items()}
    return torch.stack([_pixels(name, single, channels, size) for name, single in named.items()])


def from_tensor(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """From a tensor (B, C, H, W) in [0, 1] to PIL images, an array (B, H, W, C) or a tensor.

    Raises:
        ValueError: If images have pixels that are no numbers.
    """
    if not images.isfinite().all():
        raise ValueError(
            "The image model has computed pixels that are NaN or infinite. In float16 numbers overflow: load it with "
            "dtype=torch.bfloat16 or torch.float32. In float32 its weights are damaged."
        )
    if output_type == "pt":
        return images
    array = to_numpy(images)
    if output_type == "np":
        return array
    eight_bits = (255 * array).round().astype(np.uint8)
    return [Image.fromarray(single[:, :, 0] if single.shape[2] == 1 else single) for single in eight_bits]


def to_numpy(images: Tensor) -> np.ndarray:
    """From a tensor (B, C, H, W) to an array (B, H, W, C)."""
    return images.permute(0, 2, 3, 1).cpu().numpy()


def check_output_type(output_type: str, channels: int) -> None:
    """Raise ValueError if :func:`from_tensor` cannot turn images of that many channels into ``output_type``."""
    check_choice("output_type", output_type, get_args(OutputType))
    if output_type == "pil" and channels not in MODES:
        raise ValueError(f"output_type='pil' needs 1 or 3 channels, the model has {channels}; use 'np' or 'pt'.")


def _pixels(name: str, image: Any, channels: int, size: int) -> Tensor:
    """A single image as floats in [0, 1], shape (C, H, W)."""
    if isinstance(image, Image.Image):
        if channels not in MODES:
            raise ValueError(f"{name} is a PIL image, but the model takes {_takes(channels)}.")
        image = _read(name, image, channels)
    if isinstance(image, np.ndarray):
        image = _channels_first(name, image)
    if not isinstance(image, Tensor):
        raise ValueError(
            f"{name} must be a PIL image, an array, a tensor, or a list of them, got {type(image).__name__}"
            + ("; fit=True reads files, too." if isinstance(image, str | os.PathLike) else ".")
        )
    _check_tensor(name, image)
    if image.shape[0] != channels:
        raise ValueError(
            f"{name} has {image.shape[0]} channels, but the model takes {_takes(channels)}. Channels come last in "
            f"arrays and first in tensors." + " fit=True turns grey into colour and back." * (channels in MODES)
        )
    height, width = image.shape[1:]
    if (height, width) != (size, size):
        raise ValueError(
            f"{name} is {height} x {width} pixels (height x width), but the model takes {size} x {size}. "
            "Give fit=True to have its middle square cut out and resized, as the training images were."
            if channels in MODES
            else f"{name} is {height} x {width} pixels (height x width), but the model takes {size} x {size}."
        )
    pixels = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    _check_range(name, pixels)
    return pixels


def _fit(name: str, image: Any, channels: int, size: int) -> Any:
    """An image of any kind and size as training reads it, uint8; one that fits as it is."""
    if isinstance(image, Tensor):
        _check_tensor(name, image)
        if image.shape == (channels, size, size):
            return image
        image = image.detach().cpu().movedim(0, -1)
        image = (image.double() if image.is_floating_point() else image).numpy()
    shapes = [(size, size, channels), (size, size)][: 2 if channels == 1 else 1]
    if isinstance(image, np.ndarray) and image.shape in shapes:
        return image
    if not isinstance(image, str | os.PathLike | Image.Image | np.ndarray):
        return image  # which is refused
    try:
        return np.asarray(read_picture(image, channels, size))
    except Exception as error:  # of many kinds, which Pillow does not list
        file = f" ({image})" if isinstance(image, str | os.PathLike) else ""
        raise ValueError(f"{name}{file} cannot be read: {why_unread(error)}.") from error


def _check_tensor(name: str, image: Tensor) -> None:
    if image.ndim != 3:
        raise ValueError(f"{name} must be a tensor of shape (C, H, W) or (B, C, H, W), got {tuple(image.shape)}.")
    if image.is_meta or image.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor with values, got {image.layout} on {image.device}.")
    _check_dtype(name, image.dtype, image.dtype == torch.uint8 or image.is_floating_point())


def _read(name: str, image: Image.Image, channels: int) -> np.ndarray:
    """The pixels of a picture, which may still lie in its file."""
    try:
        return np.asarray(plain_picture(image, channels))
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {error}.") from error
    except Exception as error:  # of many kinds, which Pillow does not list
        raise ValueError(f"{name} cannot be read: {error}. Its file is damaged, or was closed too early.") from error


def _channels_first(name: str, image: np.ndarray) -> Tensor:
    if image.ndim not in (2, 3):
        raise ValueError(f"{name} must be an array of shape (H, W), (H, W, C) or (B, H, W, C), got {image.shape}.")
    _check_dtype(name, image.dtype, image.dtype.kind in "iuf")
    image = np.asarray(image)  # of subclasses that index or compute in their own way
    if image.dtype.kind in "iu" or (image > 1).any():
        try:
            image, _ = scale_to_eight_bits(image)
        except ValueError as error:
            raise ValueError(f"{name} cannot be used: {error}.") from error
    image = image[:, :, None] if image.ndim == 2 else image
    # A copy: PyTorch wants neither read-only nor flipped arrays, nor foreign byte order or exotic floats.
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite
        return torch.from_numpy(image.transpose(2, 0, 1).astype(np.uint8 if image.dtype == np.uint8 else np.float32))


def _check_dtype(name: str, dtype: Any, is_valid: bool) -> None:
    if not is_valid:
        raise ValueError(
            f"{name} must be of integers (tensors: uint8) or floats in [0, 1], got {dtype}; rescale it first."
        )


def _check_range(name: str, pixels: Tensor) -> None:
    not_finite = int((~pixels.isfinite()).sum())
    if not_finite:
        raise ValueError(f"{name} has {not_finite} pixels that are NaN or infinite.")
    low, high = pixels.min().item(), pixels.max().item()
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} has values from {low:g} to {high:g}; floats must lie in [0, 1]. Divide 0..255 by 255, or give "
            f"uint8; map [-1, 1] by (x + 1) / 2."
        )


def _takes(channels: int) -> str:
    mode = MODES.get(channels)
    return f"{channels} channel{'s' * (channels > 1)}" + (f" (mode {mode!r})" if mode else ", so no PIL image")
