"""CIVET: certified training over a set of latents (Xu et al., "Support is all you need for certified VAE training",
ICLR 2025, arXiv 2504.11831), with the coverage of the set as it must be.

A box of noise, |xi_k| <= c for all k, holds a draw with probability 1 - delta *jointly*, so each coordinate must stay
inside with probability (1 - delta)^(1/latent_dim). Then one pass of intervals bounds what the decoder makes of every
input of the perturbation set and every draw inside.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.interval_elbo import elbo_lower
from paperlib.certificates.intervals import IntervalBounds, target_box
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.models.elbo import check_inputs, explain_misfit
from paperlib.models.gaussian import reparametrize
from paperlib.models.likelihood import sum_per_example
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.objective import OBJECTIVES, Objective, TrainingStep


@dataclass(frozen=True)
class Civet(Objective):
    """Maximises  kappa * ELBO + (1 - kappa) * bound:  with probability at least 1 - delta over the noise no x' of the
    perturbation set has an ELBO below `bound`.

    The bound is that of the log-likelihood over the box of latents, minus the largest KL: both in nats, on one scale.
    The published loss bounds the squared error, weighed against the KL by hand; with a Gaussian likelihood of a fixed
    scale the two are the same up to that weight. The clean ELBO is at the noise of the step, the bound needs none.

    Args:
        delta: probability of a draw outside the box, in (0, 1).

    Raises ValueError for another delta.
    """

    delta: float = 0.05

    def __post_init__(self) -> None:
        noise_reach(self.delta, 1)

    @property
    def bounds_layers(self) -> bool:
        return True

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        region = step.ball.unchecked_region(step.x)
        target = target_box(step.target, region.box, step.x)
        reach = noise_reach(self.delta, vae.latent_dim)
        bounds = IntervalBounds.of(vae, region, step.noise.new_zeros(step.noise.shape), target, reach)
        return elbo_lower(vae, bounds, step.beta)


def noise_reach(delta: float, latent_dim: int) -> float:
    """The c with P(|xi_k| <= c for all k) = 1 - delta for standard normal noise of so many coordinates.

    Raises ValueError for a delta outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta}")
    outside = -math.expm1(math.log1p(-delta) / latent_dim)  # 1 - (1 - delta)^(1/latent_dim), for one coordinate
    return -NormalDist().inv_cdf(outside / 2)


def civet_error(vae: VAE, x: Tensor, ball: PerturbationSet, delta: float = 0.05) -> Tensor:
    """Certified: with probability at least 1 - delta over the noise, for all x' of the perturbation set at once, the
    expected data that the decoder makes of x' are within this squared error of the clean x, [batch], in squared data
    units, summed over the features. It holds for each example by itself, and in real arithmetic.

    Args:
        x: [batch, *data_shape] in the data range.

    Raises:
        ValueError: a delta outside (0, 1), x outside the data range, or a shape or dtype that does not fit the model.
        UnsupportedLayerError: a layer or a likelihood without the rule that is needed.
    """
    reach = noise_reach(delta, vae.latent_dim)
    noise = x.new_zeros(len(x), vae.latent_dim)
    check_inputs(vae, x, noise)
    region = ball.region(x)
    with explain_misfit(x):
        bounds = IntervalBounds.of(vae, region, noise, Interval(x, x), reach)
    mean = bounds_of(vae.likelihood, "mean").mean(bounds.output)
    farthest = (x - mean.lower).maximum(mean.upper - x)  # not negative, as one end of a box is at either side of it
    return sum_per_example(farthest.square()).nan_to_num(math.inf, math.inf)


def reconstruction_error(vae: VAE, x: Tensor, noise: Tensor, target: Tensor) -> Tensor:
    """What `civet_error` bounds: the squared distance of  mean(decoder(z))  to `target`, [batch], at the latent z of x
    and this noise. Checks nothing, for inner loops and attacks.
    """
    mean, log_var = vae.encode(x)
    data = vae.likelihood.mean(vae.decoder(reparametrize(mean, log_var, noise)))
    return sum_per_example((data - target).square())


OBJECTIVES["civet"] = Civet()
