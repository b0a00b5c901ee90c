"""The score of a detector: the ELBO at fixed noise, so that it is a function of the row alone; and its bounds.

Shapes: x is [batch, *data_shape], noise is [draws, latent_dim], the same for all rows; results are [batch], in nats.
"""

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.rounding import gamma, magnitude, unit_roundoff
from paperlib.certificates.api import elbo_bounds
from paperlib.certificates.method import Method
from paperlib.models import gaussian
from paperlib.models.elbo import unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet

ROWS = 1_000  # that are scored at a time
INF = torch.inf


def fixed_noise(draws: int, latent_dim: int, seed: int) -> Tensor:
    """The noise of a score, [draws, latent_dim], float64, decided by the seed; for no draws one row of zeros.

    Raises ValueError for a negative number of draws.
    """
    if draws < 0:
        raise ValueError(f"draws must not be negative, got {draws}")
    if draws == 0:
        return torch.zeros(1, latent_dim, dtype=torch.float64)
    return torch.randn(draws, latent_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """The mean of the ELBO over the rows of `noise`, [batch], nats; higher is more normal.

    A single row of zeros is the ELBO at the posterior mean. Where a row is so far out that the model overflows, its
    score is minus infinity. Checks shapes alone, for inner loops.
    """
    values = [unchecked_elbo(vae, x, draw.expand(len(x), -1), x) for draw in noise]
    return torch.stack(values).mean(0).nan_to_num(-INF, INF, -INF)


@torch.no_grad()
def scores(vae: VAE, rows: Tensor, noise: Tensor) -> Tensor:
    """The score of many rows [count, *data_shape], [count], some at a time, so that memory does not grow with them."""
    return torch.cat([score(vae, part, noise) for part in rows.split(ROWS)])


@torch.no_grad()
def score_terms(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """The summands of the score, [batch, features + 1], nats: the log-likelihood of each feature, and minus the KL.

    Raises NotImplementedError for a likelihood without `terms`.
    """
    mean, log_var = vae.encode(x)
    latents = (gaussian.reparametrize(mean, log_var, draw) for draw in noise)
    terms = torch.stack([vae.likelihood.terms(vae.decoder(latent), x).flatten(1) for latent in latents]).mean(0)
    return torch.cat([terms, -gaussian.kl(mean, log_var).unsqueeze(1)], 1)


@torch.no_grad()
def mean_kl(vae: VAE, rows: Tensor) -> float:
    """The mean over rows [count, *data_shape] of the KL of the posterior from the prior, in nats."""
    return torch.cat([gaussian.kl(*vae.encode(part)) for part in rows.split(ROWS)]).mean().item()


def score_bounds(
    vae: VAE, x: Tensor, perturbation: PerturbationSet, noise: Tensor, method: str | Method, sound: bool = False
) -> Interval:
    """Certified: every x' in the perturbation set around x has  lower <= score(x') <= upper,  [batch], nats.

    The mean over the draws of the bounds of `elbo_bounds`, whose `method` and `sound` these are; errors as there.
    """
    each = [elbo_bounds(vae, x, perturbation, draw.expand(len(x), -1), method, sound=sound) for draw in noise]
    lower, upper = (torch.stack(ends).mean(0) for ends in zip(*each, strict=True))
    mean = Interval(lower.nan_to_num(-INF, INF, -INF), upper.nan_to_num(INF, INF, -INF))  # a NaN bounds nothing
    if not sound or len(noise) == 1:
        return mean
    # the sum and the division round in the precision of x, and the sums of the bounds in float64
    size = torch.stack([magnitude(bounds) for bounds in each]).sum(0) / len(noise)
    return mean.widen((gamma(len(noise), unit_roundoff(x.dtype)) + gamma(len(noise), 2.0**-53)) * size)
