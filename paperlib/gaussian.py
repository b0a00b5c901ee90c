"""The diagonal Gaussian posterior: reparametrisation and KL divergence, each with its interval rule.

Shapes: mean, log_var and noise are [batch, latent]; divergences are [batch], in nats.
"""

import torch
from torch import Tensor

from paperlib.interval import Interval


def reparametrize(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z = mean + exp(log_var / 2) * noise, [batch, latent] (Kingma & Welling 2014, section 2.4)."""
    return mean + torch.exp(log_var / 2) * noise


def reparametrize_bounds(mean: Interval, log_var: Interval, noise: Tensor) -> Interval:
    """A box that contains z for every mean and log_var in their boxes, at this fixed noise; exact for each coordinate.

    z is increasing in mean, and in log_var it moves with the sign of the noise.
    """
    low, high = (torch.exp(end / 2) * noise for end in log_var)
    return Interval(mean.lower + torch.minimum(low, high), mean.upper + torch.maximum(low, high))


def kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL( N(mean, diag exp(log_var)) || N(0, I) ) = 1/2 sum( mean^2 + exp(log_var) - 1 - log_var ), [batch], nats."""
    return (_mean_term(mean) + _log_var_term(log_var)).sum(-1) / 2


def kl_bounds(mean: Interval, log_var: Interval) -> Interval:
    """The exact range of the KL over the box of (mean, log_var), [batch], in nats.

    Both terms are convex in one variable with their minimum at 0, so the largest value sits at an end point and the
    smallest at the point of the interval nearest to 0. The sum over coordinates is separable, so both are attained.
    """
    smallest = _mean_term(_nearest_to_zero(mean)) + _log_var_term(_nearest_to_zero(log_var))
    return Interval(smallest.sum(-1) / 2, kl_upper(mean, log_var))


def kl_upper(mean: Interval, log_var: Interval) -> Tensor:
    """The upper end of `kl_bounds`, [batch], in nats: all that a lower bound of the ELBO needs."""
    largest = torch.maximum(*map(_mean_term, mean)) + torch.maximum(*map(_log_var_term, log_var))
    return largest.sum(-1) / 2


def _mean_term(mean: Tensor) -> Tensor:
    return mean.square()


def _log_var_term(log_var: Tensor) -> Tensor:
    return torch.expm1(log_var) - log_var


def _nearest_to_zero(interval: Interval) -> Tensor:
    return interval.lower.clamp(min=0) + interval.upper.clamp(max=0)
