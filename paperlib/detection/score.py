"""The score of a detector: the ELBO at fixed noise, so that it is a function of the row alone; and its bounds.

Shapes: x is [batch, *data_shape], noise is [draws, latent_dim], the same for all rows; results are [batch], in nats.
"""

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.rounding import gamma, magnitude, unit_roundoff
from paperlib.certificates.api import elbo_bounds
from paperlib.certificates.method import Method
from paperlib.models.elbo import unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet


def score(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """The mean of the ELBO over the rows of `noise`, [batch], nats; higher is more normal.

    A single row of zeros is the ELBO at the posterior mean. Checks shapes alone, for inner loops.
    """
    values = [unchecked_elbo(vae, x, draw.expand(len(x), -1), x) for draw in noise]
    return torch.stack(values).mean(0)


def score_bounds(
    vae: VAE, x: Tensor, perturbation: PerturbationSet, noise: Tensor, method: str | Method, sound: bool = False
) -> Interval:
    """Certified: every x' in the perturbation set around x has  lower <= score(x') <= upper,  [batch], nats.

    The mean over the draws of the bounds of `elbo_bounds`, whose `method` and `sound` these are; errors as there.
    """
    each = [elbo_bounds(vae, x, perturbation, draw.expand(len(x), -1), method, sound=sound) for draw in noise]
    lower, upper = (torch.stack(ends).mean(0) for ends in zip(*each, strict=True))
    mean = Interval(lower, upper)
    if not sound or len(noise) == 1:
        return mean
    # the sum and the division round in the precision of x, and the sums of the bounds in float64
    size = torch.stack([magnitude(bounds) for bounds in each]).sum(0) / len(noise)
    return mean.widen((gamma(len(noise), unit_roundoff(x.dtype)) + gamma(len(noise), 2.0**-53)) * size)
