"""What a decoder's output costs against a fixed image: the squared distance, or the negative log-likelihood.

Upper bounds of a cost over a box of latents are in `latent_range` and `semidefinite`; with their sign turned, those of
the second one are lower bounds of the log-likelihood. Over a box of outputs each cost has a convex quadratic function
above it, which a semidefinite relaxation takes as it is, and which linear bounds replace by its chords.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import LinearFunction, initial_alpha
from paperlib.certificates.bernoulli_bounds import BernoulliBounds
from paperlib.certificates.gaussian_bounds import GaussianBounds
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.models.likelihood import Likelihood, softplus, sum_per_example


@dataclass(frozen=True)
class OutputQuadratic:
    """y -> sum of  curvature * y^2 + slope * y + offset,  elementwise, with a curvature of at least 0.

    Each is [batch, *data_shape].
    """

    curvature: Tensor
    slope: Tensor
    offset: Tensor

    @classmethod
    def below_chord(cls, chord: LinearFunction, curvature: Tensor, output: Interval) -> Self:
        """The functions of this curvature that have these chords over a box of outputs."""
        low, high = output
        return cls(curvature, chord.slope - curvature * (low + high), chord.offset + curvature * low * high)

    def chord(self, output: Interval) -> LinearFunction:
        """The chords over a box of outputs: elementwise above the function, and equal to it at both ends."""
        low, high = output
        return LinearFunction(self.slope + self.curvature * (low + high), self.offset - self.curvature * low * high)


@dataclass(frozen=True)
class OutputCost(ABC):
    """A cost of outputs [batch, *data_shape] against images of the same shape, [batch]."""

    x: Tensor

    @abstractmethod
    def value(self, output: Tensor) -> Tensor:
        """The cost, [batch]."""

    @abstractmethod
    def upper(self, output: Interval) -> Tensor:
        """The largest cost over a box of outputs, or a bound above it, [batch]."""

    @abstractmethod
    def quadratic(self, output: Interval) -> OutputQuadratic:
        """A function whose sum over the elements is above the cost everywhere in a box of outputs."""

    @abstractmethod
    def of(self, example: Tensor) -> Self:
        """The cost against these of the images, [count] numbers of rows."""


@dataclass(frozen=True)
class SquaredDistance(OutputCost):
    """||output - x||^2: the specification that Dathathri et al. 2020 (arXiv 2010.11645) verify of a decoder."""

    def value(self, output: Tensor) -> Tensor:
        return sum_per_example((output - self.x).square())

    def upper(self, output: Interval) -> Tensor:
        return sum_per_example(torch.maximum(self.x - output.lower, output.upper - self.x).square())

    def quadratic(self, output: Interval) -> OutputQuadratic:
        return OutputQuadratic(torch.ones_like(self.x), -2 * self.x, self.x.square())

    def of(self, example: Tensor) -> Self:
        return type(self)(self.x[example])


@dataclass(frozen=True)
class NegativeLogLikelihood(OutputCost):
    """-log p(x | output), in nats.

    Bounds need a likelihood with bounds of its own: UnsupportedLayerError or NotImplementedError says so.
    """

    likelihood: Likelihood

    def value(self, output: Tensor) -> Tensor:
        return -self.likelihood.log_prob(output, self.x)

    def upper(self, output: Interval) -> Tensor:
        return -bounds_of(self.likelihood).lower(output, Interval(self.x, self.x))

    def quadratic(self, output: Interval) -> OutputQuadratic:
        bounds = bounds_of(self.likelihood)
        below = initial_alpha(bounds.linear_below(output, Interval(self.x, self.x)))
        line = LinearFunction(-below.output_slope, -(below.target_slope * self.x + below.offset))
        curvature = torch.zeros_like(output.lower)
        if type(bounds) is BernoulliBounds:
            curvature = softplus_curvature(output)
        elif type(bounds) is GaussianBounds:  # whose log-density is quadratic itself
            curvature = torch.exp(-2 * bounds.likelihood.log_scale).expand_as(curvature) / 2
        return OutputQuadratic.below_chord(line, curvature, output)

    def of(self, example: Tensor) -> Self:
        return type(self)(self.x[example], self.likelihood)


def softplus_curvature(box: Interval) -> Tensor:
    """The largest c with  softplus(l) <= chord(l) - c (l - low) (high - l)  for all l in [low, high], elementwise.

    The difference of both sides, g = softplus - chord + c (l - low) (high - l), is 0 at both ends. For
        c = min( chord slope - sigmoid(low), sigmoid(high) - chord slope ) / (high - low)
    it falls from the lower end and rises to the upper one; any larger c lets it rise above 0 beside an end. Its second
    derivative is that of softplus, which rises to one peak and falls, minus 2c. So g is concave, then convex, then
    concave. On the first part it is not above 0, as it starts level or downward; nor on the last one, likewise; nor
    between them, where it is convex and not above 0 at both ends.
    """
    low, high = box
    width = high - low
    wide = width > 1e-3  # over narrower boxes the quotients are rounding noise, and c = 0 loses less than 1e-7 a pixel
    slope = (softplus(high) - softplus(low)) / torch.where(wide, width, 1.0)
    least = torch.minimum(slope - torch.sigmoid(low), torch.sigmoid(high) - slope).clamp(min=0)
    return torch.where(wide, least / torch.where(wide, width, 1.0), 0.0)
