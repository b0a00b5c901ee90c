"""The suite: several attacks, of which the worst point counts for each example."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from paperlib.models.elbo import Target, check_inputs
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.apgd import auto_descend
from paperlib.threats.attacks import (
    check_search,
    constant,
    descend,
    elbo_objective,
    fgsm_point,
    keep_lower,
    later_starts,
)
from paperlib.threats.perturbation import PerturbationSet

DIMENSIONS = 3  # coordinates of a set up to which all their corners are tried

Reached = tuple[Tensor, Tensor]  # a point for each example, [batch, *data_shape], and its value, [batch]


@dataclass(frozen=True)
class SuiteResult:
    """Where the attacks of a suite end.

    Attributes:
        x_adv: the worst point for each example, [batch, *data_shape].
        elbo: its ELBO, [batch], in nats.
        attack: the name of the attack that reached it first, one an example.
        elbos: the ELBO where each attack ends, [batch], by its name.
        evaluated: how many inputs the attacks looked at, of all examples together.
    """

    x_adv: Tensor
    elbo: Tensor
    attack: list[str]
    elbos: Mapping[str, Tensor]
    evaluated: int


@outside_inference_mode
def strongest(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    steps: int = 40,
    generator: torch.Generator | None = None,
    target: Target = "perturbed",
    *,
    starts: Sequence[Tensor] = (),
    maximize: bool = False,
) -> Tensor:
    """The point of lowest ELBO over a suite of attacks, for each example: [batch, *data_shape].

    Every result lies in the set and in the data range. Its ELBO is never above that of any attack of the suite: the
    clean x; the guesses, which are a random point, a shift of all features up, one down, for likelihoods of targets in
    [0, 1] the greyest point, and the corners of a set with at most three coordinates; FGSM; `pgd` from x; half as many
    small steps of it; and `apgd` from x, from the random point, with half as many steps from the best guess, and from
    each of the given `starts`. So more starts never help less. Costs about four times `pgd` of as many steps, and once
    more for each start. `run_suite` gives the parts.

    Args:
        generator: draws the random point.
        starts: more points to begin at, each of the shape of x, such as `linear_bound_point`; they are projected to the
            set first.

    Other arguments and errors as for `pgd`.
    """
    return run_suite(vae, x, ball, noise, steps, generator, target, starts=starts, maximize=maximize).x_adv


@outside_inference_mode
def run_suite(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    steps: int = 40,
    generator: torch.Generator | None = None,
    target: Target = "perturbed",
    *,
    starts: Sequence[Tensor] = (),
    maximize: bool = False,
) -> SuiteResult:
    """`strongest`, with the attack that won and the ELBO that each one reached. Arguments and errors as there."""
    check_search(steps)
    check_inputs(vae, x, noise)
    value_of, evaluated = elbo_objective(vae, x, ball, noise, target, maximize), 0

    def objective(point: Tensor) -> Tensor:
        nonlocal evaluated
        evaluated += len(point)
        return value_of(point)

    random, *given = later_starts(x, ball, 2, generator, starts)
    up = ball.steepest(torch.ones_like(x), x)

    @torch.no_grad()
    def at(point: Tensor) -> Reached:
        return point, objective(point)

    guesses = {"random": at(random), "shift up": at(ball.project(x + up, x)), "shift down": at(ball.project(x - up, x))}
    if vae.likelihood.support == (0.0, 1.0):
        guesses["greyest"] = at(greyest_point(x, ball))
    guesses |= {f"corner {number}": at(corner) for number, corner in enumerate(_corners(x, ball), 1)}
    guess, _, _ = _lowest(guesses)
    reached = {"clean": at(x), **guesses, "fgsm": at(fgsm_point(objective, x, ball))}
    half = max(steps // 2, 1)
    reached["pgd"] = descend(objective, x, ball, x, steps)
    reached["pgd in small steps"] = descend(objective, x, ball, x, half, constant)
    reached["apgd from x"] = auto_descend(objective, x, ball, x, steps)
    reached["apgd from random"] = auto_descend(objective, x, ball, random, steps)
    reached["apgd from best guess"] = auto_descend(objective, x, ball, guess, half)
    for number, start in enumerate(given, 1):
        reached[f"apgd from start {number}"] = auto_descend(objective, x, ball, start, steps)
    x_adv, value, attack = _lowest(reached)
    sign = -1 if maximize else 1
    elbos = {name: sign * value for name, (_, value) in reached.items()}
    return SuiteResult(x_adv, sign * value, attack, elbos, evaluated)


def _corners(x: Tensor, ball: PerturbationSet) -> Iterator[Tensor]:
    """The points at the ends of a set's coordinates, where these are few enough."""
    region = ball.region(x)
    if region.coordinates is None or region.coordinates.lower[:1].numel() > DIMENSIONS:
        return
    lower, upper = region.coordinates
    for high in product([False, True], repeat=lower[:1].numel()):
        corner = torch.where(torch.tensor(high, device=x.device).view(lower.shape[1:]), upper, lower)
        yield region.points(corner, torch.arange(len(x), device=x.device))


def greyest_point(x: Tensor, ball: PerturbationSet) -> Tensor:
    """Each pixel moved towards 1/2 as far as the set allows, of the shape of x: in a box its point of greatest entropy.

    In other sets it is the point nearest to 1/2. Raises ValueError for an x outside the data range.
    """
    return ball.project(torch.full_like(x, 0.5), x)


def _lowest(reached: Mapping[str, Reached]) -> tuple[Tensor, Tensor, list[str]]:
    """For each example the point of lowest value, the value and its name: of equal ones the first."""
    names, (best, least) = list(reached), next(iter(reached.values()))
    winner = torch.zeros_like(least, dtype=torch.long)
    for number, (point, value) in enumerate(reached.values()):
        winner = torch.where(value < least, number, winner)
        best, least = keep_lower(best, least, point, value)
    return best, least, [names[number] for number in winner.tolist()]
