"""Linear sets of images that are often asked for: lighting, and low frequencies."""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from paperlib.threats.linear_set import LinearSet
from paperlib.threats.perturbation import image_shape


def lighting(brightness: float = 0.2, contrast: float = 0.2) -> LinearSet:
    """Brighter or darker images of more or less contrast:  clamp(x + b + c (x - 1/2), 0, 1)  with |b| <= brightness and
    |c| <= contrast. Raises ValueError as `LinearSet`.
    """
    return LinearSet(_ones_and_contrast, (brightness, contrast))


def _ones_and_contrast(x: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(x), x - 0.5], 1)


def low_frequencies(count: int, shape: Sequence[int], radius: float) -> LinearSet:
    """Smooth changes of images in [0, 1]: along the `count` lowest frequencies of the two-dimensional discrete cosine
    transform, each a pattern whose largest value is 1, the constant first.

    Args:
        shape: of the data, [height, width] or [channels, height, width], whose channels all change alike; or the
            [features] of flat square images.
        radius: of each pattern.

    Raises ValueError for a count that is not between 1 and the number of pixels, or a shape that is no image's.
    """
    channels, height, width = image_shape(shape)
    if not 1 <= count <= height * width:
        raise ValueError(f"an image of {height} x {width} has 1 to {height * width} frequencies, not {count}")
    waves = sorted(product(range(height), range(width)), key=lambda wave: (sum(wave), wave))[:count]
    rows, columns = (
        torch.cos(math.pi * torch.outer(torch.arange(side), torch.arange(side) + 0.5).double() / side)
        for side in (height, width)
    )
    patterns = torch.stack([torch.outer(rows[down], columns[across]) for down, across in waves])
    patterns = patterns / patterns.abs().amax((1, 2), keepdim=True)
    return LinearSet(patterns.unsqueeze(1).expand(-1, channels, -1, -1).reshape(count, *shape), radius)
