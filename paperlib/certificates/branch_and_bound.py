"""The exact range of the ELBO over a set with at most three coordinates: branch and bound by input splitting.

    minimise  ELBO(x'(v); noise)  over  v in a box of coordinates

The coordinates are the inputs themselves, or those of a `LinearSet`. The linear bound of the ELBO closes as a box
shrinks. So a box is halved until the bound of each subproblem meets the
least ELBO that was evaluated, to within a tolerance (Bunel et al. 2018, arXiv 1711.00455). The maximum likewise.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.backward import RelaxedVAE, linear_lower, linear_upper
from paperlib.certificates.crown import slack
from paperlib.certificates.interval_elbo import elbo_lower, elbo_upper
from paperlib.certificates.intervals import IntervalBounds, target_box
from paperlib.certificates.method import METHODS, MemoryUse, Method
from paperlib.certificates.zonotope import ROWS, refine
from paperlib.models.elbo import Target, check_inputs, check_target, check_targets, explain_misfit, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import BoxRegion, PerturbationSet, Region

DIMENSIONS = 3  # coordinates, at most: the number of subproblems grows exponentially with them
LIMIT = 100_000  # subproblems of one box in the search for one end
CHUNK = 512  # subproblems halved at a time; the newest first, so that the queue and memory stay small

Value = Callable[[Tensor, Tensor], Tensor]  # points [count, *shape] and their examples [count] -> [count]
Bound = Callable[[Interval, Tensor], Tensor]  # boxes [count, *shape] and their examples [count] -> [count]


class ToleranceError(ValueError):
    """The bounds do not meet within the tolerance on as many subproblems as are allowed, so nothing is claimed."""


@dataclass(frozen=True)
class BranchAndBound(Method):
    """Both ends within `tol` nats of the truth, for inputs of at most three numbers, or for the perturbations of a
    `LinearSet` with at most three directions; no gradients.

    Args:
        tol: in nats.
        time_limit: seconds for a batch, or None. When they have passed, the bounds so far are returned: they hold, but
            may be farther from the truth than `tol`.

    Raises ValueError for a `tol` that is not positive and finite, or a `time_limit` that is not positive.
    """

    tol: float = 1e-3
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.tol < math.inf:
            raise ValueError(f"tol must be positive and finite, in nats, got {self.tol}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit must be positive, in seconds, got {self.time_limit}")

    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        if sound:
            raise ValueError("branch and bound holds in real arithmetic: with sound=True use another method")
        check_target(target)
        check_inputs(vae, x, noise)
        region = ball.region(x)
        targets = target_box(target, region.box, x)
        check_targets(vae, *targets)
        with explain_misfit(x):
            return exact_bounds(vae, region, noise, targets, self.tol, self.time_limit)

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        return MemoryUse(per_image=max(ROWS, 2 * vae.latent_dim) * sum(layer_sizes))


METHODS["exact"] = BranchAndBound()


def exact_bounds(
    vae: VAE,
    inputs: Region | Interval,
    noise: Tensor,
    target: Interval,
    tol: float,
    time_limit: float | None = None,
) -> Interval:
    """Certified: every x' of the region has lower <= ELBO(x'; noise) <= upper, [batch], in nats; and both ends are
    within `tol` of the truth, unless time is up: some x' has an ELBO of at most lower + tol, some one of at least
    upper - tol.

    Holds for this noise draw and in real arithmetic; float64 rounding is about 1e-12 of a value. No gradients.

    Args:
        vae: in evaluation mode, of layers with an interval and a relaxation rule.
        inputs: a region, or a box [batch, *data_shape], with at most three coordinates; float64, unless `tol` is far
            above rounding.
        noise: [batch, latent_dim].
        target: the box of the region, this very object, where x' explains itself; otherwise a single point, the same
            for all x'.
        tol: in nats.
        time_limit: in seconds, half of them for each end; None: no limit.

    Raises:
        ToleranceError: without a time limit, a box needs more than `LIMIT` subproblems, or its ELBO is not a number.
        ValueError: more than three coordinates, or a target of another kind.
        UnsupportedLayerError, NotImplementedError: a layer or a likelihood without linear bounds.
    """
    region = BoxRegion(inputs) if isinstance(inputs, Interval) else inputs
    box = region.coordinates
    size = math.prod((region.box if box is None else box).lower.shape[1:])
    if box is None or size > DIMENSIONS:
        raise ValueError(
            f"exact bounds are for inputs of at most {DIMENSIONS} dimensions, got {size}; or for a LinearSet of as "
            "many directions"
        )
    if target is not region.box and not torch.equal(*target):
        raise ValueError("the target of exact bounds must be the input's own box or a single point")

    def targets(part: Interval, example: Tensor) -> Interval:
        return part if target is region.box else target.map(lambda end: end[example])

    def value(point: Tensor, example: Tensor) -> Tensor:
        x = region.points(point, example)
        return unchecked_elbo(vae, x, noise[example], targets(Interval(x, x), example).lower)

    def interval_bounds(part: Interval, example: Tensor) -> IntervalBounds:
        inputs = region.part(part, example)
        return IntervalBounds.of(vae, inputs, noise[example], targets(inputs.box, example))

    def below(part: Interval, example: Tensor) -> Tensor:
        bounds = interval_bounds(part, example)
        relaxed = refine(RelaxedVAE.of(vae, bounds, noise[example]))
        interval, linear = elbo_lower(vae, bounds), linear_lower(relaxed)
        return torch.fmax(interval, linear - slack(linear, interval))

    def above(part: Interval, example: Tensor) -> Tensor:
        bounds = interval_bounds(part, example)
        relaxed = refine(RelaxedVAE.of(vae, bounds, noise[example]))
        interval, linear = elbo_upper(vae, bounds), linear_upper(relaxed)
        return torch.fmin(interval, linear + slack(linear, interval))

    def negated(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
        return lambda of, example: -function(of, example)

    seconds = math.inf if time_limit is None else time_limit / 2
    lower = minimum(value, below, box, tol, seconds)
    return Interval(lower, -minimum(negated(value), negated(above), box, tol, seconds))


@dataclass(frozen=True)
class Subproblems:
    """Boxes inside the examples' boxes, each with a bound of the function from below."""

    box: Interval  # [count, *shape]
    example: Tensor  # [count], a row of the batch
    bound: Tensor  # [count]

    def __len__(self) -> int:
        return len(self.example)

    def __getitem__(self, rows: Tensor | slice) -> "Subproblems":
        return Subproblems(self.box.map(lambda end: end[rows]), self.example[rows], self.bound[rows])

    def __add__(self, other: "Subproblems") -> "Subproblems":
        ends = (torch.cat(both) for both in zip(self.box, other.box, strict=True))
        example, bound = torch.cat([self.example, other.example]), torch.cat([self.bound, other.bound])
        return Subproblems(Interval(*ends), example, bound)


@torch.no_grad()
def minimum(value: Value, bound: Bound, box: Interval, tol: float, time_limit: float = math.inf) -> Tensor:
    """Never above the minimum over each of the boxes [batch, *shape], and at most `tol` below it unless as many
    seconds as `time_limit` have passed: [batch].

    Args:
        value: the function that is minimised.
        bound: below it on a box, and close to it on a small one.

    Raises ToleranceError.
    """
    batch = len(box.lower)
    best = torch.full_like(box.lower.flatten(1)[:, 0], torch.inf)  # the least value that was evaluated
    closed_bound = best.clone()  # the least bound of the subproblems that are closed
    count = torch.zeros(batch, dtype=torch.long, device=best.device)
    new = Subproblems(box, torch.arange(batch, device=best.device), -best)
    queue = new[:0]
    end = perf_counter() + time_limit
    while len(new):
        # a bound of the whole is a bound of its halves, too
        new = Subproblems(new.box, new.example, torch.maximum(new.bound, bound(new.box, new.example)))
        for point in _points(new.box):
            best.scatter_reduce_(0, new.example, value(point, new.example), "amin")
        count += torch.bincount(new.example, minlength=batch)
        queue = queue + new
        closed = _close(queue.bound, best[queue.example], tol)
        closed_bound.scatter_reduce_(0, queue.example[closed], queue.bound[closed], "amin")
        queue = queue[~closed]
        if perf_counter() > end:
            closed_bound.scatter_reduce_(0, queue.example, queue.bound, "amin")
            break
        if time_limit == math.inf and (count[queue.example] >= LIMIT).any():
            raise ToleranceError(
                f"the bounds of a box do not meet within tol={tol} nats on {LIMIT} subproblems: "
                "raise tol, shrink the box, or set a time_limit"
            )
        new, queue = _halves(queue[-CHUNK:]), queue[:-CHUNK]
    return torch.fmin(closed_bound, best)  # they cross by rounding alone; a NaN in `best` says nothing of the minimum


def _points(box: Interval) -> Iterator[Tensor]:
    # The centre alone would do, but the corners meet the minimum sooner, and so need fewer subproblems.
    yield box.center
    shape, device = box.lower.shape[1:], box.lower.device
    for high in product([False, True], repeat=math.prod(shape)):
        yield torch.where(torch.tensor(high, device=device).view(shape), box.upper, box.lower)


def _close(bound: Tensor, best: Tensor, tol: float) -> Tensor:
    return bound >= best - tol  # never so for a NaN


def _halves(subproblems: Subproblems) -> Subproblems:
    # Across the widest side: every side shrinks in turn, so that the bound must close.
    (lower, upper), center = subproblems.box, subproblems.box.center
    widest = (upper - lower).flatten(1).argmax(1, keepdim=True)
    side = torch.zeros_like(lower, dtype=torch.bool).flatten(1).scatter_(1, widest, True).view_as(lower)
    first = Subproblems(Interval(lower, torch.where(side, center, upper)), subproblems.example, subproblems.bound)
    second = Subproblems(Interval(torch.where(side, center, lower), upper), subproblems.example, subproblems.bound)
    return first + second
