"""Attacks that search a ball for the input of lowest ELBO, at a fixed noise draw.

An attack proves nothing by failing: it bounds the robust ELBO from above, as the certificate bounds it from below.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from paperlib.models.elbo import Target, check_inputs, check_target, check_targets, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet

Objective = Callable[[Tensor], Tensor]  # [batch, *data_shape] -> [batch]; examples do not mix


@outside_inference_mode
def fgsm(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target = "perturbed") -> Tensor:
    """One step of the set's size against the ELBO's gradient at x (Goodfellow et al. 2015: x - eps * sign of it in an
    l-infinity ball): a point of the set.

    Shapes and errors as for `pgd`.
    """
    check_inputs(vae, x, noise)
    _, gradient = value_and_gradient(elbo_objective(vae, x, ball, noise, target), x)
    return ball.project(x - ball.steepest(gradient, x), x)


@outside_inference_mode
def pgd(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    steps: int = 40,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    target: Target = "perturbed",
) -> Tensor:
    """The point of lowest ELBO that projected gradient descent meets (Madry et al. 2018), [batch, *data_shape].

    Every result lies in the ball and in the data range, and its ELBO is never above that of x, of x + eps on all pixels
    or of the FGSM point: these are met on the way and the best point is kept for each example. The first restart
    begins at x and its first step is FGSM; further ones begin at random points of the ball. Later steps shrink
    linearly from eps / 2 to eps / 40, so that the search is wide first and settles in the end.

    Args:
        x: [batch, *data_shape] in the data range.
        noise: [batch, latent_dim], the same draw as the certificate's.
        steps: gradient steps of each restart.
        generator: draws the random starts.
        target: "perturbed" attacks the likelihood of x' itself, "clean" that of x.

    Raises:
        ValueError: fewer than one step or restart, x outside the data range, shapes or dtypes that do not fit, a ball
            with targets that the likelihood does not explain.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"an attack needs at least one step and one restart, got steps={steps}, restarts={restarts}")
    check_inputs(vae, x, noise)
    objective = elbo_objective(vae, x, ball, noise, target)
    if ball.size == 0:
        return ball.project(x, x)
    best, least = descend(objective, x, ball, x, steps)
    shifted = ball.project(x + ball.steepest(torch.ones_like(x), x), x)
    best, least = keep_lower(best, least, shifted, objective(shifted))
    for _ in range(restarts - 1):
        best, least = keep_lower(best, least, *descend(objective, x, ball, ball.sample(x, generator), steps))
    return best


def descend(objective: Objective, x: Tensor, ball: PerturbationSet, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Sign-gradient descent of any per-example objective inside the ball around x: the best point met and its value.

    The start and the point after one step of size eps are among those met. No gradient remains in the result.
    """
    region = ball.region(x)
    point, best, least = start, start, torch.full_like(start.flatten(1)[:, 0], torch.inf)
    for step in range(steps):
        # The point is already projected: a clamp inside the graph would have no gradient at the pixel boundary.
        value, gradient = value_and_gradient(objective, point)
        best, least = keep_lower(best, least, point, value)
        scale = 1.0 if step == 0 else 0.5 - 0.475 * step / steps
        point = region.project(point - ball.steepest(gradient, x, scale))
    return keep_lower(best, least, point, objective(point))


@torch.no_grad()
def keep_lower(best: Tensor, least: Tensor, point: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """For each example the point of lower value, and that value; at equal values the earlier one stays."""
    lower = (value < least).view(-1, *[1] * (best.ndim - 1))
    return torch.where(lower, point, best), torch.minimum(value, least)


@torch.enable_grad()
def value_and_gradient(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """The objective at each x, [batch], and its gradient there, of the shape of x: both without a graph."""
    x = x.detach().requires_grad_()
    value = objective(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def elbo_objective(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target) -> Objective:
    """The ELBO at this noise draw, which an attack on inputs lowers. Raises ValueError as `pgd` for targets."""
    check_target(target)
    check_targets(vae, *(ball.box(x) if target == "perturbed" else (x,)))

    def objective(point: Tensor) -> Tensor:
        return unchecked_elbo(vae, point, noise, x if target == "clean" else point)

    return objective
