"""The diagonal Gaussian posterior: reparametrisation and KL divergence, each with its interval rule.

Shapes: mean, log_var and noise are [batch, latent]; divergences are [batch], in nats.
"""

import torch
from torch import Tensor

from paperlib.interval import Interval
from paperlib.lines import Band, Line, chord_above, chord_below, tangent
from paperlib.rounding import FLOOR, UNITS, Rounding, magnitude


def reparametrize(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z = mean + exp(log_var / 2) * noise, [batch, latent] (Kingma & Welling 2014, section 2.4)."""
    return mean + torch.exp(log_var / 2) * noise


def reparametrize_bounds(mean: Interval, log_var: Interval, noise: Tensor) -> Interval:
    """A box that contains z for every mean and log_var in their boxes, at this fixed noise; exact for each coordinate.

    z is increasing in mean, and in log_var it moves with the sign of the noise.
    """
    low, high = (torch.exp(end / 2) * noise for end in log_var)
    return Interval(mean.lower + torch.minimum(low, high), mean.upper + torch.maximum(low, high))


def reparametrize_rounding(mean: Interval, log_var: Interval, noise: Tensor) -> Rounding:
    """How `reparametrize` rounds, at worst over both boxes, [batch, latent]."""
    scale = torch.exp(log_var.upper / 2)
    return Rounding(UNITS["exp"] + 2, magnitude(mean) + scale.clamp(min=FLOOR) * noise.abs(), peak=scale)


def scale_band(log_var: Interval) -> Band:
    """Lines around exp(log_var / 2), convex: the chord above and the tangent of its slope below."""

    def scale(v: Tensor) -> Tensor:
        return torch.exp(v / 2)

    def slope(v: Tensor) -> Tensor:
        return scale(v) / 2

    above = chord_above(scale, slope, log_var)
    positive = above.slope.clamp(min=torch.finfo(above.slope.dtype).tiny)  # exp underflows, its logarithm must not
    twice = 2 * positive  # exp(v / 2) where its slope is that of the chord
    return Band(Line(positive, twice - twice * torch.log(twice)), above)


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


def kl_rounding(mean: Interval, log_var: Interval) -> Rounding:
    """How `kl` rounds, at worst over both boxes and in any order of summation, [batch]."""
    expm1 = torch.maximum(*(torch.expm1(end).abs() for end in log_var))
    terms = magnitude(mean).square() + expm1 + magnitude(log_var)
    return Rounding(UNITS["expm1"] + 2 + terms.shape[-1], terms.sum(-1) / 2)


def kl_below(mean: Interval, log_var: Interval) -> tuple[Line, Line]:
    """Lines below the two terms of -KL, -mean^2 / 2 and (log_var + 1 - exp(log_var)) / 2: chords of concave terms."""
    of_mean = Line(-mean.center, mean.lower * mean.upper / 2)
    return of_mean, chord_below(_minus_log_var_term, _log_var_slope, log_var)


def kl_above(mean: Interval, log_var: Interval) -> tuple[Line, Line]:
    """Lines above the two terms of -KL: their tangents at the middle."""
    middle = mean.center
    return Line(-middle, middle.square() / 2), tangent(_minus_log_var_term, _log_var_slope, log_var.center)


def _minus_log_var_term(log_var: Tensor) -> Tensor:
    return -_log_var_term(log_var) / 2


def _log_var_slope(log_var: Tensor) -> Tensor:
    return -torch.expm1(log_var) / 2


def _mean_term(mean: Tensor) -> Tensor:
    return mean.square()


def _log_var_term(log_var: Tensor) -> Tensor:
    return torch.expm1(log_var) - log_var


def _nearest_to_zero(interval: Interval) -> Tensor:
    return interval.lower.clamp(min=0) + interval.upper.clamp(max=0)
