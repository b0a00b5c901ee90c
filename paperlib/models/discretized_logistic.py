"""The discretised logistic likelihood of 8-bit images (Salimans et al. 2017, PixelCNN++, arXiv 1701.05517)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib.models.likelihood import Likelihood, sum_per_example

LEVELS = 256  # k / 255 for k = 0, ..., 255


class DiscretizedLogistic(Likelihood):
    """Independent pixels of 256 levels k / 255, each the probability of a bin under a logistic density around the
    output m, with F its distribution function, F(v) = 1 / (1 + exp(-v / scale)):

        log p(t | m)  =  log( F(t + w - m) - F(t - w - m) ),        w = 1 / 510

    A bin that reaches beyond the end of the range is open there: F(t - w - m) is 0 for t < w, F(t + w - m) is 1 for
    t > 1 - w. For levels these are the probabilities of PixelCNN++, which add up to 1. A perturbed target is any real
    number in [0, 1]: its bin has the same width and lies around it, so that log p jumps where a bin becomes open.

    Args:
        scale: of the logistic density in data units; its standard deviation is scale * pi / sqrt(3).

    Raises:
        ValueError: a scale that is not positive and finite.
    """

    support = (0.0, 1.0)

    def __init__(self, scale: float):
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        # Both are float32 numbers in any precision, so that which bins are open is no matter of rounding.
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("half_bin", torch.tensor(0.5 / (LEVELS - 1), dtype=torch.float32))

    scale: Tensor
    half_bin: Tensor

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return sum_per_example(self._density(output, target))

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        return self._density(output, target)

    def _density(self, output: Tensor, target: Tensor) -> Tensor:
        distance = output - target
        open_below, open_above = self.open_ends(target)
        below = torch.where(open_below, 0.0, self.log_above_lower_edge(distance))
        above = torch.where(open_above, 0.0, self.log_below_upper_edge(distance))
        return below + above + torch.where(open_below | open_above, 0.0, self.log_width())

    def open_ends(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the bin of a target has no lower edge, and whether it has no upper one."""
        return target < self.half_bin, 1 - target < self.half_bin

    # With the edges a < b of a bin, in units of the scale and from the output:
    #   F(b) - F(a)  =  F(b) * (1 - F(a)) * (1 - exp(a - b))

    def log_above_lower_edge(self, distance: Tensor) -> Tensor:
        """log(1 - F(a)) at the distance  output - target: increasing and concave."""
        return F.logsigmoid((distance + self.half_bin) / self.scale)

    def log_below_upper_edge(self, distance: Tensor) -> Tensor:
        """log(F(b)): decreasing and concave."""
        return F.logsigmoid((self.half_bin - distance) / self.scale)

    def log_width(self) -> Tensor:
        """log(1 - exp(a - b))."""
        return torch.log(-torch.expm1(-2 * self.half_bin / self.scale))

    def mean(self, output: Tensor) -> Tensor:
        # the sum over k > 0 of the probability of at least k / 255, each times 1 / 255
        total = torch.zeros_like(output)
        for k in range(1, LEVELS):
            total += torch.sigmoid((output - (2 * k - 1) * self.half_bin) / self.scale)
        return total / (LEVELS - 1)
