"""The minimum of a function over boxes of few dimensions: they are halved until bounds meet values (branch and bound by
input splitting: Bunel et al. 2018, arXiv 1711.00455).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from time import perf_counter

import torch
from torch import Tensor

from paperlib.bounds.box import Interval

LIMIT = 100_000  # subproblems of one box in the search for one end
CHUNK = 512  # subproblems halved at a time; the newest first, so that the queue and memory stay small

Value = Callable[[Tensor, Tensor], Tensor]  # points [count, *shape] and their examples [count] -> [count]
Bound = Callable[[Interval, Tensor], Tensor]  # boxes [count, *shape] and their examples [count] -> [count]


class ToleranceError(ValueError):
    """The bounds do not meet within the tolerance on as many subproblems as are allowed, so nothing is claimed."""


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
def minimum(
    value: Value,
    bound: Bound,
    box: Interval,
    tol: float,
    time_limit: float = math.inf,
    ceiling: Tensor | None = None,
) -> Tensor:
    """Never above the minimum over each of the boxes [batch, *shape], and at most `tol` below it, or below `ceiling`,
    unless as many seconds as `time_limit` have passed: [batch].

    Args:
        value: the function that is minimised.
        bound: below it on a box, and close to it on a small one.
        ceiling: the result is not above it, [batch]. Values that a search has met save subproblems, and then the centre
            of each is evaluated alone.

    Raises ToleranceError.
    """
    batch = len(box.lower)
    closed_bound = torch.full_like(
        box.lower.flatten(1)[:, 0], torch.inf
    )  # the least of the subproblems that are closed
    best = closed_bound.clone() if ceiling is None else ceiling.clone()  # the least value that was evaluated
    count = torch.zeros(batch, dtype=torch.long, device=best.device)
    new = Subproblems(box, torch.arange(batch, device=best.device), -closed_bound)
    queue = new[:0]
    end = perf_counter() + time_limit
    while len(new):
        # a bound of the whole is a bound of its halves, too
        new = Subproblems(new.box, new.example, torch.maximum(new.bound, bound(new.box, new.example)))
        for point in _points(new.box) if ceiling is None else [new.box.center]:
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
