"""Bounds of the diagonal Gaussian posterior, of its reparametrisation and of the KL: by intervals, by linear functions
and in floating point.

Shapes: mean, log_var and noise are [batch, latent]; divergences are [batch], in nats.
"""

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import chord_above, chord_below, tangent
from paperlib.bounds.linear import LinearFunction, LinearRelaxation
from paperlib.bounds.rounding import FLOOR, FUNCTION_ERRORS, Rounding, magnitude
from paperlib.models.gaussian import kl_log_var_term, kl_mean_term


def reparametrize_bounds(mean: Interval, log_var: Interval, noise: Tensor) -> Interval:
    """A box that contains z for every mean and log_var in their boxes, at this fixed noise; exact for each coordinate.

    z is increasing in mean, and in log_var it moves with the sign of the noise: not at all where the noise is 0, even
    if exp overflows.
    """
    low, high = (torch.where(noise == 0, noise, torch.exp(end / 2) * noise) for end in log_var)
    return Interval(mean.lower + torch.minimum(low, high), mean.upper + torch.maximum(low, high))


def reparametrize_rounding(mean: Interval, log_var: Interval, noise: Tensor) -> Rounding:
    """How `reparametrize` rounds, at worst over both boxes, [batch, latent]."""
    scale = torch.exp(log_var.upper / 2)
    return Rounding(FUNCTION_ERRORS["exp"] + 2, magnitude(mean) + scale.clamp(min=FLOOR) * noise.abs(), peak=scale)


def scale_relaxation(log_var: Interval) -> LinearRelaxation:
    """Of the standard deviation exp(v / 2) in the log-variance v. It is convex, and both bounds have one slope s:

    s v + 2 s (1 - log(2 s))  <=  exp(v / 2)  <=  chord of slope s
    """

    def scale(v: Tensor) -> Tensor:
        return torch.exp(v / 2)

    def slope(v: Tensor) -> Tensor:
        return scale(v) / 2

    above = chord_above(scale, slope, log_var)
    positive = above.slope.clamp(min=torch.finfo(above.slope.dtype).tiny)  # exp underflows, its logarithm must not
    twice = 2 * positive  # the value of exp(v / 2) where its tangent has the slope of the chord
    return LinearRelaxation(LinearFunction(positive, twice - twice * torch.log(twice)), above)


def kl_bounds(mean: Interval, log_var: Interval) -> Interval:
    """The exact range of the KL over the box of (mean, log_var), [batch], in nats.

    Both terms are convex in one variable with their minimum at 0, so the largest value sits at an end point and the
    smallest at the point of the interval nearest to 0. The sum over coordinates is separable, so both are attained.
    """
    smallest = kl_mean_term(_nearest_to_zero(mean)) + kl_log_var_term(_nearest_to_zero(log_var))
    return Interval(smallest.sum(-1) / 2, kl_upper(mean, log_var))


def kl_upper(mean: Interval, log_var: Interval) -> Tensor:
    """The upper end of `kl_bounds`, [batch], in nats: all that a lower bound of the ELBO needs."""
    largest = torch.maximum(*map(kl_mean_term, mean)) + torch.maximum(*map(kl_log_var_term, log_var))
    return largest.sum(-1) / 2


def kl_rounding(mean: Interval, log_var: Interval) -> Rounding:
    """How `kl` rounds, at worst over both boxes and in any order of summation, [batch]."""
    expm1 = torch.maximum(*(torch.expm1(end).abs() for end in log_var))
    terms = magnitude(mean).square() + expm1 + magnitude(log_var)
    return Rounding(FUNCTION_ERRORS["expm1"] + 2 + terms.shape[-1], terms.sum(-1) / 2)


def negative_kl_below(mean: Interval, log_var: Interval) -> tuple[LinearFunction, LinearFunction]:
    """Linear functions below the two terms of -KL, -mean^2 / 2 and (log_var + 1 - exp(log_var)) / 2: both terms are
    concave, so these are their chords.
    """
    mean_chord = LinearFunction(-mean.center, mean.lower * mean.upper / 2)
    return mean_chord, chord_below(_minus_log_var_term, _log_var_slope, log_var)


def negative_kl_above(mean: Interval, log_var: Interval) -> tuple[LinearFunction, LinearFunction]:
    """Linear functions above the two terms of -KL: their tangents at the middle of the box."""
    middle = mean.center
    return LinearFunction(-middle, middle.square() / 2), tangent(_minus_log_var_term, _log_var_slope, log_var.center)


def log_ratio_bounds(mean: Interval, log_var: Interval, noise: Tensor) -> Interval:
    """The exact range over both boxes of  log p(z) - log q(z|x)  at  z = mean + exp(log_var / 2) * noise, [batch],
    nats: of `iwae.log_ratio`.

    For each coordinate it is concave in the mean, and in log_var it rises to one peak and falls. So it is least at a
    corner. It is largest where z is nearest to 0 at the upper end of log_var, or at an end of the mean at that peak.
    """

    def value(at_mean: Tensor, at_log_var: Tensor) -> Tensor:
        z = at_mean + torch.where(noise == 0, noise, torch.exp(at_log_var / 2) * noise)
        return (noise.square() - z.square() + at_log_var) / 2

    def peak(at_mean: Tensor) -> Tensor:
        """The log_var in its box at which the value is largest, where  z * noise * exp(log_var / 2) = 1."""
        signed = at_mean * noise.sign()
        root = (signed.square() + 4).sqrt()
        inverse = noise.abs() * torch.where(signed > 0, (signed + root) / 2, 2 / (root - signed))
        return (-2 * torch.log(inverse)).clamp(*log_var)

    scaled = torch.where(noise == 0, noise, torch.exp(log_var.upper / 2) * noise)
    lowest = torch.stack([value(at_mean, at_log_var) for at_mean in mean for at_log_var in log_var]).amin(0)
    candidates = [(end, peak(end)) for end in mean] + [((-scaled).clamp(*mean), log_var.upper)]
    highest = torch.stack([value(*candidate) for candidate in candidates]).amax(0)
    return Interval(lowest.sum(-1), highest.sum(-1))


def _minus_log_var_term(log_var: Tensor) -> Tensor:
    return -kl_log_var_term(log_var) / 2


def _log_var_slope(log_var: Tensor) -> Tensor:
    return -torch.expm1(log_var) / 2


def _nearest_to_zero(interval: Interval) -> Tensor:
    return interval.lower.clamp(min=0) + interval.upper.clamp(max=0)
