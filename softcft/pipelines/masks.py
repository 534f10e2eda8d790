"""Masks: where counterfactuals may differ from their images, and a border between the two that is not seen."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image
from torch import Tensor
from torch.nn import functional

from softcft.data.pictures import middle_square, open_file, plain_picture, read_picture, scale_to_eight_bits, why_unread
from softcft.pipelines.images import Images, named_images

__all__ = ["FEATHER", "blend_weights", "to_mask"]

logger = logging.get_logger(__name__)

FEATHER = 1 / 16
"""The width of the border inside a mask, as a share of the image's size."""


def to_mask(mask: Images, image: Images, size: int, fit: bool, batch_size: int) -> Tensor:
    """Where images may change: 0 is nowhere, 1 is at will.

    Args:
        mask: See :meth:`softcft.DSCMPipeline.__call__`.
        image: The images as they were given, which :func:`~softcft.pipelines.images.to_pixels` has taken.
        size: Height and width in pixels that the model takes.
        fit: Whether images were brought to this size, as a mask is then: a pixel of it is the mean of what it covers.
        batch_size: How many counterfactuals there are.

    Returns:
        One mask for all, or one for each, float32 of shape (1 or B, 1, H, W).

    Raises:
        ValueError: If a mask cannot be read, has not the size of its image, values that are no mask's, or is 0
            everywhere; or if there are neither 1 nor B.
    """
    given = mask if isinstance(mask, list | tuple) else [mask]
    names = [f"mask[{i}]" for i in range(len(given))] if given is mask else ["mask"]
    planes = [(name, plane) for name, one in zip(names, given, strict=True) for plane in _planes(name, one)]
    if len(planes) not in (1, batch_size):
        raise ValueError(f"mask has {len(planes)} masks for {batch_size} counterfactuals; give one, or one for each.")
    sizes = [_size_of(single) for single in named_images(image).values()] if fit else [(size, size)]
    masks = []
    for i, (name, plane) in enumerate(planes):
        for height, width in sizes if 1 in (len(planes), len(sizes)) else sizes[i : i + 1]:
            if plane.shape != (height, width):
                raise ValueError(
                    f"{name} is {plane.shape[0]} x {plane.shape[1]} pixels (height x width), but must lie on an image "
                    f"of {height} x {width}." + " With fit=True both are fitted together." * (not fit)
                )
        if plane.shape != (size, size):
            picture = Image.fromarray(plane)
            box = middle_square(picture.size)
            plane = np.asarray(picture.resize((size, size), Image.Resampling.BOX, box=box)).clip(0, 1)
        if not plane.any():
            raise ValueError(f"{name} is 0 everywhere, so nothing may change; it must be 1 where the image may change.")
        if plane.min() == 1:
            logger.warning("%s is 1 everywhere, and has no effect.", name)
        masks.append(torch.from_numpy(plane.copy()))
    return torch.stack(masks)[:, None]


def blend_weights(mask: Tensor) -> Tensor:
    """The share of the counterfactual in each pixel: 0 where the mask is, from there smoothly up, within the mask.

    Args:
        mask: From :func:`to_mask`, shape (B, 1, H, W).

    Returns:
        Of the same shape. :data:`FEATHER` of the size inside of the border it is the mask itself, which it is nowhere
        above. The edge of the image is no border.
    """
    width = max(2, round(FEATHER * mask.shape[-1]))
    outside = (mask == 0).to(mask.dtype)
    depth = 1 - outside  # in pixels from the border; the larger of both axes
    for _ in range(width):
        outside = functional.max_pool2d(outside, 3, stride=1, padding=1)
        depth = depth + (1 - outside)
    share = depth / (width + 1)
    return torch.minimum(mask, share * share * (3 - 2 * share))


def _planes(name: str, mask: Any) -> np.ndarray:
    """One mask or several of one array as float32 in [0, 1], shape (n, H, W)."""
    if isinstance(mask, Image.Image | str | os.PathLike):
        mask = _read(name, mask)
    if isinstance(mask, Tensor):
        if mask.is_meta or mask.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor with values, got {mask.layout} on {mask.device}.")
        values = (mask.float() if mask.is_floating_point() else mask).detach().cpu().numpy()
        channels = 1 if values.ndim == 4 else None
    elif isinstance(mask, np.ndarray):
        values = np.asarray(mask)
        channels = -1 if values.ndim == 4 or (values.ndim == 3 and values.shape[2] == 1) else None
    else:
        raise ValueError(
            f"{name} must be a PIL image, an array, a tensor, a file, or a list of them, got {type(mask).__name__}."
        )
    if channels is not None and values.shape[channels] == 1:
        values = values.squeeze(channels)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"{name} must have the shape (H, W), (B, H, W), or that of images of one channel, got {tuple(mask.shape)}."
        )
    values = _shares(name, values)
    return values if values.ndim == 3 else values[None]


def _shares(name: str, values: np.ndarray) -> np.ndarray:
    """Values of any type as float32 in [0, 1]."""
    if values.dtype.kind == "b":
        return values.astype(np.float32)
    try:
        whole, _ = scale_to_eight_bits(values)
    except ValueError as error:
        raise ValueError(f"{name} cannot be used: {error}.") from error
    if values.dtype.kind == "f" and values.max() <= 1:
        return values.astype(np.float32)
    if whole.max() not in (0, 1, 255):  # of labels, 3 would be a share of 3 / 255
        raise ValueError(
            f"{name} has values up to {values.max()}; it must be 0 and 1, or 0 and white (255), or shares between. Of "
            "labels take one, for example mask == 2."
        )
    return (whole / max(1, int(whole.max()))).astype(np.float32)


def _read(name: str, mask: Any) -> np.ndarray:
    try:
        with nullcontext(mask) if isinstance(mask, Image.Image) else open_file(mask) as picture:
            if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise ValueError("it is transparent in places, which is neither black nor white")
            return np.asarray(plain_picture(picture, 1))
    except Exception as error:  # of many kinds, which Pillow does not list
        raise ValueError(f"{name} cannot be read: {why_unread(error)}.") from error


def _size_of(image: Any) -> tuple[int, int]:
    """Height and width of an image, upright."""
    if isinstance(image, Tensor):
        return image.shape[-2], image.shape[-1]
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    width, height = read_picture(image).size
    return height, width
