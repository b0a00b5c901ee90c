"""What rounding can take from a bound by backward substitution.

Coefficients are substituted in float64, through a network whose values are the deployed ones. Each layer takes sums and
products of numbers that are together no larger than  |coefficients| . size,  so that it rounds by at most
ACCUMULATION_ERROR times that.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.linear import AlphaRelaxation, JointLinearFunction, LinearFunction, LinearRelaxation
from paperlib.bounds.relaxation import Affine, Relaxation
from paperlib.bounds.rounding import gamma, linear_size, magnitude, unit_roundoff
from paperlib.certificates import posterior_bounds
from paperlib.certificates.intervals import IntervalBounds

MOST_SUMMANDS = 2**20  # of a sum that the error below covers
ACCUMULATION_ERROR = gamma(MOST_SUMMANDS, unit_roundoff(torch.float64))  # 1e-10


@dataclass(frozen=True)
class PosteriorRounding:
    """What rounding takes from a linear bound of the ELBO between encoder and decoder."""

    deployed: Tensor  # of the latents as they are evaluated, [batch, latent_dim]
    latent: Tensor  # [batch, latent_dim], for each unit of a latent's coefficient
    kl: Tensor  # [batch]

    @classmethod
    def of(cls, bounds: IntervalBounds, noise: Tensor, scale: LinearRelaxation, deployed: torch.dtype) -> Self:
        """`scale` is the relaxation of exp(log_var / 2)."""
        mean, log_var = magnitude(bounds.mean), magnitude(bounds.log_var)
        rounding = posterior_bounds.reparametrize_rounding(bounds.mean, bounds.log_var, noise).bound(deployed)
        latent = rounding + ACCUMULATION_ERROR * (mean + noise.abs() * _relaxation_size(scale, log_var))
        relaxations = (posterior_bounds.negative_kl_below, posterior_bounds.negative_kl_above)
        sizes = (
            _function_size(function, largest)
            for relaxation in relaxations
            for function, largest in zip(relaxation(bounds.mean, bounds.log_var), (mean, log_var), strict=True)
        )
        return cls(rounding, latent, ACCUMULATION_ERROR * torch.stack([*sizes]).sum((0, 2)))


def layer_size(layer: nn.Module, box: Interval, relaxation: Relaxation) -> Tensor:
    """The size of what enters the substitution of a unit coefficient through one layer, [batch, *out_shape]."""
    largest = magnitude(box)
    if isinstance(layer, nn.Linear):
        return linear_size(layer, largest)
    if isinstance(relaxation, Affine):
        return magnitude(interval_rule(layer, Interval(-largest, largest)))  # |W| largest + |b|
    return _relaxation_size(relaxation, relaxation.select(largest))


def joint_size(function: JointLinearFunction, bounds: IntervalBounds) -> Tensor:
    """The same for a linear bound of the likelihood, [batch, *data_shape]."""
    output_size = function.output_slope.abs() * magnitude(bounds.output)
    return output_size + function.target_slope.abs() * magnitude(bounds.target) + function.offset.abs()


def cancellation(coefficients: Tensor, box: Interval) -> Tensor:
    """What a linear bound gives up for the rounding of inputs far from 0, [*rows, batch]; a constant for autograd.

    An allowance, not a proof: it is for bounds in real arithmetic, and sound ones have proven terms in its place.
    Inputs that vary little around a large value have large products with their coefficients, which cancel in the sum,
    so that the result does not show how large they were. Here they count as far as they are beyond [-1, 1]. Inputs
    within, and all other sums of a bound, are covered by `crown.slack`, which goes by the size of the result.

    As there it is 64 epsilons, or 128 unit roundoffs, of the terms' size: the most that 128 additions in a row can lose
    (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 4.2), and what 128**2 usually lose, whose
    errors have both signs and add up like the square root of their number.
    """
    beyond = (magnitude(box) - 1).clamp(min=0)
    if not (coefficients.requires_grad or beyond.any()):  # in training no value is read: a GPU would wait for it
        return coefficients.new_zeros(coefficients.shape[: coefficients.ndim + 1 - beyond.ndim])
    terms = (coefficients.abs() * beyond).flatten(1 - beyond.ndim).sum(-1)
    return 64 * torch.finfo(beyond.dtype).eps * terms.detach()


def _relaxation_size(relaxation: LinearRelaxation, largest: Tensor) -> Tensor:
    size = torch.zeros_like(largest)
    for bound in (relaxation.lower, relaxation.upper):
        for function in (bound.first, bound.second) if isinstance(bound, AlphaRelaxation) else (bound,):
            size = size + _function_size(function, largest)
    return size


def _function_size(function: LinearFunction, largest: Tensor) -> Tensor:
    return function.slope.abs() * largest + function.offset.abs()
