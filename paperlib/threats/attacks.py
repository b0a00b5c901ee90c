"""Attacks that search a set for the input of lowest (or highest) ELBO, at a fixed noise draw.

An attack proves nothing by failing: it bounds the robust ELBO from above, as the certificate bounds it from below.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from paperlib.models.elbo import Target, check_inputs, check_target, check_targets, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet

Objective = Callable[[Tensor], Tensor]  # [batch, *data_shape] -> [batch]; the adversary lowers it; examples do not mix


@outside_inference_mode
def fgsm(
    vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target = "perturbed", *, maximize: bool = False
) -> Tensor:
    """One step of the set's size against the ELBO's gradient at x (Goodfellow et al. 2015: x - eps * sign of it in an
    l-infinity ball): a point of the set.

    Shapes, `maximize` and errors as for `pgd`.
    """
    check_inputs(vae, x, noise)
    return fgsm_point(elbo_objective(vae, x, ball, noise, target, maximize), x, ball)


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
    *,
    starts: Sequence[Tensor] = (),
    maximize: bool = False,
) -> Tensor:
    """The point of lowest ELBO that projected gradient descent meets (Madry et al. 2018), [batch, *data_shape].

    Every result lies in the set and in the data range, and its ELBO is never above that of x, of x + eps on all pixels,
    of the FGSM point or of any of the `starts`: these are met on the way and the best point is kept for each example.
    The first restart begins at x and its first step is FGSM; further ones begin at random points of the set, then one
    at each of the `starts`. Later steps shrink linearly from eps / 2 to eps / 40, so that the search is wide first and
    settles in the end. Momentum (Dong et al. 2018) is left to `apgd`: here it lowered the mean of no released model by
    more than 0.02 nats.

    Args:
        x: [batch, *data_shape] in the data range.
        noise: [batch, latent_dim], the same draw as the certificate's.
        steps: gradient steps of each restart.
        generator: draws the random starts.
        target: "perturbed" attacks the likelihood of x' itself, "clean" that of x.
        starts: more points to begin at, each of the shape of x; they are projected to the set first.
        maximize: raise the ELBO instead, so that an outlier looks likely: never below those points.

    Raises:
        ValueError: fewer than one step or restart, x outside the data range, shapes or dtypes that do not fit, a ball
            with targets that the likelihood does not explain.
    """
    check_search(steps, restarts)
    check_inputs(vae, x, noise)
    objective = elbo_objective(vae, x, ball, noise, target, maximize)
    later = later_starts(x, ball, restarts, generator, starts)
    if ball.size == 0:
        return ball.project(x, x)
    best, least = descend(objective, x, ball, x, steps)
    shifted = ball.project(x + ball.steepest(torch.ones_like(x), x), x)
    best, least = keep_lower(best, least, shifted, objective(shifted))
    for start in later:
        best, least = keep_lower(best, least, *descend(objective, x, ball, start, steps))
    return best


def shrinking(step: int, steps: int) -> float:
    """The whole size first, as FGSM; then from a half down to a fortieth."""
    return 1.0 if step == 0 else 0.5 - 0.475 * step / steps


def constant(step: int, steps: int) -> float:
    """All alike, and together two and a half times the size (Madry et al. 2018)."""
    return min(2.5 / steps, 1.0)


def descend(
    objective: Objective,
    x: Tensor,
    ball: PerturbationSet,
    start: Tensor,
    steps: int,
    schedule: Callable[[int, int], float] = shrinking,
) -> tuple[Tensor, Tensor]:
    """Sign-gradient descent of any per-example objective inside the set around x: the best point met and its value.

    The start is among those met and, with the default schedule, the point after one step of the set's size. No gradient
    remains in the result.

    Args:
        schedule: (step, steps) -> the step size, as a share of the set's size.
    """
    region = ball.region(x)
    point, best, least = start, start, torch.full_like(start.flatten(1)[:, 0], torch.inf)
    for step in range(steps):
        # The point is already projected: a clamp inside the graph would have no gradient at the pixel boundary.
        value, gradient = value_and_gradient(objective, point)
        best, least = keep_lower(best, least, point, value)
        point = region.project(point - ball.steepest(gradient, x, schedule(step, steps)))
    return keep_lower(best, least, point, objective(point))


def fgsm_point(objective: Objective, x: Tensor, ball: PerturbationSet) -> Tensor:
    """`fgsm` for any objective."""
    _, gradient = value_and_gradient(objective, x)
    return ball.project(x - ball.steepest(gradient, x), x)


@torch.no_grad()
def keep_lower(best: Tensor, least: Tensor, point: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """For each example the point of lower value, and that value; the earlier one stays where they are equal, or where
    the new value is NaN.
    """
    lower = value < least
    return torch.where(per_example(lower, best), point, best), torch.where(lower, value, least)


@torch.enable_grad()
def value_and_gradient(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """The objective at each x, [batch], and its gradient there, of the shape of x: both without a graph."""
    x = x.detach().requires_grad_()
    value = objective(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def elbo_objective(
    vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target, maximize: bool = False
) -> Objective:
    """The ELBO at this noise draw, which attacks on inputs lower; with `maximize` its negative.

    Raises ValueError as `pgd` for targets and for x.
    """
    check_explained(vae, x, ball, target)

    def objective(point: Tensor) -> Tensor:
        value = unchecked_elbo(vae, point, noise, x if target == "clean" else point)
        return -value if maximize else value

    return objective


def check_explained(vae: VAE, x: Tensor, ball: PerturbationSet, target: Target) -> None:
    """Raises ValueError for an unknown target, or a set with targets that the likelihood does not explain."""
    check_target(target)
    check_targets(vae, *(ball.box(x) if target == "perturbed" else (x,)))


def per_example(values: Tensor, x: Tensor) -> Tensor:
    """[batch] as [batch, *1s], which broadcasts to x."""
    return values.view(-1, *[1] * (x.ndim - 1))


def check_search(steps: int, restarts: int = 1) -> None:
    """Raises ValueError for fewer than one step or restart."""
    if steps < 1 or restarts < 1:
        raise ValueError(f"an attack needs at least one step and one restart, got steps={steps}, restarts={restarts}")


def later_starts(
    x: Tensor, ball: PerturbationSet, restarts: int, generator: torch.Generator | None, starts: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Where restarts after the first begin: random points of the set, then the given ones, projected to it.

    Raises ValueError, at once, for a given start that is not finite or not of the shape and dtype of x.
    """
    for start in starts:
        if start.shape != x.shape or start.dtype != x.dtype or not torch.isfinite(start).all():
            raise ValueError(
                f"a start must be finite and of the shape and dtype of x, {list(x.shape)} and {x.dtype}, "
                f"got {list(start.shape)} and {start.dtype}"
            )
    random = (ball.sample(x, generator) for _ in range(restarts - 1))
    return chain(random, (ball.project(start, x) for start in starts))
