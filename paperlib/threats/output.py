"""Attacks on the reconstruction, dec(x') = the expected data of the decoder at the posterior mean of x'.

Distances of outputs are in the units of the data, so that models can be compared by them.
"""

import torch
from torch import Tensor

from paperlib.models.elbo import check_shape, explain_misfit
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.search import check_attack, check_like, lowest, random_starts


@outside_inference_mode
def damage_attack(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    toward: Tensor | None = None,
    steps: int = 40,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The point of the set whose reconstruction is farthest from that of x, or nearest to the data `toward`, among all
    that projected gradient descent meets: [batch, *data_shape].

        toward None:    max over x' in B(x) of  ||dec(x') - dec(x)||_2         (maximum damage, Camuto et al. 2021)
        toward given:   min over x' in B(x) of  ||dec(x') - toward||_2

    With a target the first restart begins at x and once more at the point of the set nearest to it, so the distance is
    never above that of dec(x). For maximum damage all restarts begin at random points, since at x itself the distance
    has no gradient. The noise is zero: the attack moves the posterior mean, not a draw from it.

    Args:
        x: [batch, *data_shape] in the data range.
        toward: of the shape of x.
        steps: gradient steps of each restart.
        generator: draws the random starts.

    Raises:
        ValueError: fewer than one step or restart, x outside the data range, shapes or dtypes that do not fit.
    """
    check_attack(vae, x, steps, restarts)
    if toward is not None:
        check_like("toward", toward, x)
    ball.check(x)
    reference = reconstruct(vae, x) if toward is None else toward
    sign = -1 if toward is None else 1

    def objective(point: Tensor) -> Tensor:
        return sign * distance(vae(point), reference)

    fixed = [] if toward is None else [x, ball.project(toward, x)]
    drawn = random_starts(ball, x, restarts if toward is None else restarts - 1, generator)
    best, _ = lowest(objective, x, ball, (*fixed, *drawn), steps)
    return best


@torch.no_grad()
def damage(vae: VAE, x_adv: Tensor, x: Tensor) -> Tensor:
    """||dec(x_adv) - dec(x)||_2 for each example, [batch], in the units of the data: a measure to compare models by.

    Raises ValueError for shapes or dtypes that do not fit.
    """
    check_attack(vae, x, steps=1)
    check_like("x_adv", x_adv, x)
    return distance(reconstruct(vae, x_adv), reconstruct(vae, x))


@torch.no_grad()
def reconstruct(vae: VAE, x: Tensor) -> Tensor:
    """dec(x), [batch, *data_shape], without a gradient. Raises ValueError for an x that the network cannot take."""
    with explain_misfit(x):
        output: Tensor = vae(x)
    check_shape("the reconstruction", output, "x", x, x)
    return output


def distance(output: Tensor, reference: Tensor) -> Tensor:
    """||output - reference||_2 for each example, [batch]."""
    return torch.linalg.vector_norm((output - reference).flatten(1), dim=1)
