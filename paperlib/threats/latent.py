"""Attacks on the latent code: away from the code of x, or towards the code of another input.

A latent loss shrinks when a posterior collapses, whatever the model is worth: compare models by the ELBO or by the
distance of outputs, never by a latent loss.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from paperlib.models import gaussian
from paperlib.models.elbo import explain_misfit
from paperlib.models.gaussian import Posterior
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.search import check_attack, check_like, lowest, random_starts

Divergence = Literal["kl", "reverse-kl", "symmetric-kl", "mean", "wasserstein"]

_DIVERGENCES: dict[str, Callable[[Posterior, Posterior], Tensor]] = {
    "kl": gaussian.kl_between,
    "reverse-kl": lambda p, q: gaussian.kl_between(q, p),
    "symmetric-kl": gaussian.symmetric_kl,
    "mean": gaussian.squared_mean_distance,
    "wasserstein": gaussian.squared_wasserstein,
}


@outside_inference_mode
def latent_attack(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    divergence: Divergence = "kl",
    toward: Tensor | None = None,
    steps: int = 40,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The point of the set whose posterior is nearest to that of `toward`, or without it farthest from that of x, among
    all that projected gradient descent meets: [batch, *data_shape].

        toward given:   min over x' in B(x) of  D( q(z|x'), q(z|toward) )      (Tabacof et al. 2016; Kos et al. 2018)
        toward None:    max over x' in B(x) of  D( q(z|x'), q(z|x) )

    With a target its first restart begins at x and once more at the point of the set nearest to it: where the set holds
    the target itself, the divergence comes down to 0, and it is never above that of x. Away from the clean code all
    restarts begin at random points, since at x itself the divergence has no gradient.

    A latent loss shrinks when a posterior collapses: compare models by the ELBO or by the distance of outputs, never by
    what this attack reaches (`latent_divergence`).

    Args:
        x: [batch, *data_shape] in the data range.
        divergence: D(p, q) with p the posterior of x' and q the other: "kl" is KL(p || q), "reverse-kl" KL(q || p),
            "symmetric-kl" their mean, "mean" the squared distance of the means, "wasserstein" the squared 2-Wasserstein
            distance.
        toward: of the shape of x.
        steps: gradient steps of each restart.
        generator: draws the random starts.

    Raises:
        ValueError: fewer than one step or restart, an unknown divergence, x outside the data range, shapes or dtypes
            that do not fit.
    """
    check_attack(vae, x, steps, restarts)
    measure = measure_of(divergence)
    if toward is not None:
        check_like("toward", toward, x)
    ball.check(x)
    code = encode(vae, x if toward is None else toward)
    sign = -1 if toward is None else 1

    def objective(point: Tensor) -> Tensor:
        return sign * measure(vae.encode(point), code)

    fixed = [] if toward is None else [x, ball.project(toward, x)]
    drawn = random_starts(ball, x, restarts if toward is None else restarts - 1, generator)
    best, _ = lowest(objective, x, ball, (*fixed, *drawn), steps)
    return best


@torch.no_grad()
def latent_divergence(vae: VAE, x_adv: Tensor, x: Tensor, divergence: Divergence = "kl") -> Tensor:
    """D( q(z|x_adv), q(z|x) ) for each example, [batch], which `latent_attack` searches; models are not compared by it.

    Raises ValueError for an unknown divergence, and shapes or dtypes that do not fit.
    """
    check_attack(vae, x, steps=1)
    check_like("x_adv", x_adv, x)
    return measure_of(divergence)(encode(vae, x_adv), encode(vae, x))


def measure_of(divergence: str) -> Callable[[Posterior, Posterior], Tensor]:
    """D of two posteriors by its word, [batch]. Raises ValueError for an unknown one."""
    if divergence not in _DIVERGENCES:
        words = ", ".join(f'"{word}"' for word in _DIVERGENCES)
        raise ValueError(f"divergence must be one of {words}, got {divergence!r}")
    return _DIVERGENCES[divergence]


@torch.no_grad()
def encode(vae: VAE, x: Tensor) -> Posterior:
    """q(z|x) without a gradient. Raises ValueError for an x that the network cannot take."""
    with explain_misfit(x):
        return vae.encode(x)
