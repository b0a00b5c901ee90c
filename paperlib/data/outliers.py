"""Outliers made of normal images, and noise: a detector that was trained on digits should raise an alarm on them."""

import torch
from torch import Tensor


def inverted(x: Tensor) -> Tensor:
    """Black for white: 1 - x, for values in [0, 1]."""
    return 1 - x


def rotated(x: Tensor) -> Tensor:
    """Square images [..., side * side], given flat, by a quarter turn counter-clockwise.

    Raises ValueError if the number of pixels is no square.
    """
    side = round(x.shape[-1] ** 0.5)
    if side * side != x.shape[-1]:
        raise ValueError(f"rotated needs flat square images, got {x.shape[-1]} pixels")
    return x.unflatten(-1, (side, side)).rot90(1, (-2, -1)).flatten(-2)


def shuffled(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with its pixels in another order, the same for all images. x is [..., pixels]."""
    order = torch.randperm(x.shape[-1], generator=generator, device=generator.device).to(x.device)
    return x[..., order]


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in the place of images: each pixel uniform in [0, 1], of the shape, precision and device of `like`."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
