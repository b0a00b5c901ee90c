"""Which shapes of data are images."""

import math
from collections.abc import Sequence


def image_shape(data_shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of data that are images [height, width], [channels, height, width], or square and flat.

    Raises ValueError for another shape.
    """
    sides = tuple(data_shape)
    if len(sides) == 1 and math.isqrt(sides[0]) ** 2 == sides[0]:
        sides = (math.isqrt(sides[0]),) * 2
    if len(sides) not in (2, 3) or min(sides) < 1:
        raise ValueError(
            f"data of shape {list(data_shape)} are no images: these are [height, width], [channels, height, width], or "
            "flat squares"
        )
    channels, height, width = (1, *sides)[-3:]
    return channels, height, width
