"""Auto-PGD: projected gradient descent that chooses its step size by itself, for each example (Croce & Hein 2020,
arXiv 2003.01690, algorithm 1).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from paperlib.models.elbo import Target, check_inputs
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.attacks import (
    Objective,
    check_search,
    elbo_objective,
    keep_lower,
    later_starts,
    per_example,
    value_and_gradient,
)
from paperlib.threats.perturbation import PerturbationSet

FIRST_STEP = 2.0  # of the set's size
MOMENTUM = 0.75  # the share of the gradient step in a move, the rest is the move before: the paper's alpha
RHO = 0.75  # the share of steps that must lower the objective
FIRST_GAP, SHRINKS_BY, LAST_GAP = 22, 3, 6  # between checkpoints, in hundredths of all steps


@outside_inference_mode
def apgd(
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
    """The point of lowest ELBO that Auto-PGD meets (Croce & Hein 2020), [batch, *data_shape].

    Every result lies in the set and in the data range, and its ELBO is never above that of x or of any of the `starts`:
    the best point met is kept for each example. The first restart begins at x (so its first step in an l-infinity ball
    is FGSM), further ones at random points of the set, then one at each of the `starts`. A step costs what one of `pgd`
    costs.

    Args and errors as for `pgd`.
    """
    check_search(steps, restarts)
    check_inputs(vae, x, noise)
    objective = elbo_objective(vae, x, ball, noise, target, maximize)
    later = later_starts(x, ball, restarts, generator, starts)
    if ball.size == 0:
        return ball.project(x, x)
    best, least = auto_descend(objective, x, ball, x, steps)
    for start in later:
        best, least = keep_lower(best, least, *auto_descend(objective, x, ball, start, steps))
    return best


def auto_descend(
    objective: Objective, x: Tensor, ball: PerturbationSet, start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """`descend` with momentum and step sizes of Auto-PGD: the best point met around each x and its value, [batch].

    The start is among those met. No gradient remains in the result.
    """
    region, gaps = ball.region(x), {after: after - before for before, after in pairwise(checkpoints(steps))}
    point, previous, best, gradient_at_best = start, start, start, torch.zeros_like(start)
    infinite = torch.full_like(start.flatten(1)[:, 0], torch.inf)
    least, least_before, value_before, step_size = infinite, infinite, infinite, torch.full_like(infinite, FIRST_STEP)
    improvements, halved = torch.zeros_like(infinite), torch.zeros_like(infinite, dtype=torch.bool)
    for step in range(steps):
        value, gradient = value_and_gradient(objective, point)
        gradient_at_best = torch.where(per_example(value < least, x), gradient, gradient_at_best)
        best, least = keep_lower(best, least, point, value)
        if step == 0:
            least_before = least
        else:
            improvements = improvements + (value < value_before)
        if step in gaps:
            halved = stalled(improvements, gaps[step], halved, least_before == least)
            step_size = torch.where(halved, step_size / 2, step_size)
            # an example that is halved goes on from its best point
            point, gradient = (
                torch.where(per_example(halved, x), *both) for both in ((best, point), (gradient_at_best, gradient))
            )
            value = torch.where(halved, least, value)
            improvements, least_before = torch.zeros_like(improvements), least
        value_before = value
        aim = region.project(point - per_example(step_size, x) * ball.steepest(gradient, x))
        share = 1.0 if step == 0 else MOMENTUM
        moved = region.project(point + share * (aim - point) + (1 - share) * (point - previous))
        point, previous = moved, point
    return keep_lower(best, least, point, objective(point))


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size is reconsidered, from 0 on: [0, 22, 41, 57, ...] of 100, all different."""
    places, gap = [0], FIRST_GAP
    while places[-1] + gap < 100:
        places.append(places[-1] + gap)
        gap = max(gap - SHRINKS_BY, LAST_GAP)
    # in whole numbers, as a product of rounded fractions can be above the whole number that it should be
    return sorted({-(-place * steps // 100) for place in places})


def stalled(improvements: Tensor, gap: int, halved: Tensor, unimproved: Tensor) -> Tensor:
    """Whether each example's step size is to be halved, [batch]: conditions 1 and 2 of the paper.

    Args:
        improvements: how many of the `gap` steps since the last checkpoint lowered the objective.
        halved: whether the step size was halved at the last checkpoint.
        unimproved: whether the best value is still that of the last checkpoint.
    """
    return (improvements < RHO * gap) | (~halved & unimproved)
