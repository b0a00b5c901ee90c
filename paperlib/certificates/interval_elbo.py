"""Interval bounds of the ELBO from the boxes of all quantities: those of the log-likelihood less those of the KL."""

import torch
from torch import Tensor

from paperlib.certificates import posterior_bounds
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.perturbed_target import TargetTerm
from paperlib.models.vae import VAE

INF = float("inf")  # what overflows may be NaN, and then bounds nothing


def elbo_lower(vae: VAE, bounds: IntervalBounds, beta: float = 1.0) -> Tensor:
    """A lower bound of the ELBO from the boxes of both its terms, [batch], nats: lower(log p) - upper(KL).

    Or one of  log p - beta * KL  for any beta >= 0.
    """
    fit = fit_lower(vae, bounds)
    return (fit - beta * posterior_bounds.kl_upper(bounds.mean, bounds.log_var)).nan_to_num(-INF, INF, -INF)


def elbo_upper(vae: VAE, bounds: IntervalBounds) -> Tensor:
    """An upper bound of the ELBO from the boxes of both its terms, [batch], nats: upper(log p) - lower(KL)."""
    fit = fit_upper(vae, bounds)
    return (fit - posterior_bounds.kl_bounds(bounds.mean, bounds.log_var).lower).nan_to_num(INF, INF, -INF)


def fit_lower(vae: VAE, bounds: IntervalBounds) -> Tensor:
    """A lower bound of log p from the boxes of output and target, [batch], nats; NaN where they overflow."""
    fit = bounds_of(vae.likelihood).lower(bounds.output, bounds.target)
    if (term := TargetTerm.of(vae.likelihood, bounds)) is not None:
        fit = torch.fmax(fit, bounds_of(vae.likelihood).lower(bounds.output, term.point) + term.bounds.lower)
    return fit


def fit_upper(vae: VAE, bounds: IntervalBounds) -> Tensor:
    """An upper bound of log p from the same boxes, [batch], nats; NaN where they overflow."""
    fit = bounds_of(vae.likelihood).upper(bounds.output, bounds.target)
    if (term := TargetTerm.of(vae.likelihood, bounds)) is not None:
        fit = torch.fmin(fit, bounds_of(vae.likelihood).upper(bounds.output, term.point) + term.bounds.upper)
    return fit
