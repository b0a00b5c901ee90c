"""The exact range of the ELBO over a box of at most three inputs: branch and bound by input splitting.

    minimise  ELBO(x'; noise)  over  x' in box

The linear bound of the ELBO (`paperlib.crown`) closes as a box shrinks. So a box is halved until the bound of each part
meets the least ELBO that is known, to within a tolerance (Bunel et al. 2018, arXiv 1711.00455). The maximum likewise.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from paperlib import crown, gaussian
from paperlib.boxes import boxes
from paperlib.interval import Interval
from paperlib.refine import refine
from paperlib.vae import VAE

DIMENSIONS = 3  # of an input, at most: the number of parts grows exponentially with them
LIMIT = 100_000  # parts of one box in the search for one end
CHUNK = 512  # parts halved at a time; the newest first, so that few wait and memory stays bounded

Value = Callable[[Tensor, Tensor], Tensor]  # points [parts, *data_shape] and their examples [parts] -> [parts]
Bound = Callable[[Interval, Tensor], Tensor]  # boxes [parts, *data_shape] and their examples [parts] -> [parts]


class ToleranceError(ValueError):
    """The bounds do not meet within the tolerance on as many parts as are allowed, so nothing is claimed."""


def exact_bounds(vae: VAE, box: Interval, noise: Tensor, target: Interval, tol: float = 1e-3) -> Interval:
    """Certified: every x' of the box has lower <= ELBO(x'; noise) <= upper, [batch], in nats; and both ends are within
    `tol` of the truth: some x' has an ELBO of at most lower + tol, and some x' one of at least upper - tol.

    Holds for this noise draw and in real arithmetic; float64 rounding is about 1e-12 of a value. No gradients.

    Args:
        vae: in evaluation mode, of layers with an interval and a relaxation rule.
        box: [batch, *data_shape], at most three numbers an example; float64, unless `tol` is far above rounding.
        noise: [batch, latent_dim].
        target: `box`, this very object, where x' explains itself; otherwise a single point, the same for all x'.
        tol: in nats.

    Raises:
        ToleranceError: a box needs more than `LIMIT` parts, or its ELBO is not a number: raise `tol`.
        ValueError: more than three inputs, a `tol` that is not positive and finite, a target of another kind.
        UnsupportedLayerError, NotImplementedError: a layer or a likelihood without linear bounds.
    """
    size = math.prod(box.lower.shape[1:])
    if size > DIMENSIONS:
        raise ValueError(f"exact bounds are for inputs of at most {DIMENSIONS} dimensions, got {size}")
    if not 0 < tol < math.inf:
        raise ValueError(f"tol must be positive and finite, in nats, got {tol}")
    if target is not box and not torch.equal(*target):
        raise ValueError("the target of exact bounds must be the input's own box or a single point")

    def targets(part: Interval, example: Tensor) -> Interval:
        return part if target is box else target.map(lambda end: end[example])

    def value(x: Tensor, example: Tensor) -> Tensor:
        mean, log_var = vae.encode(x)
        output = vae.decoder(gaussian.reparametrize(mean, log_var, noise[example]))
        return vae.likelihood.log_prob(output, targets(Interval(x, x), example).lower) - gaussian.kl(mean, log_var)

    def relaxed(part: Interval, example: Tensor) -> crown.Relaxed:
        return crown.relax(vae, boxes(vae, part, noise[example], targets(part, example)), noise[example])

    def below(part: Interval, example: Tensor) -> Tensor:
        loose = relaxed(part, example)
        known = loose.known
        interval = vae.likelihood.lower(known.output, known.target) - gaussian.kl_upper(known.mean, known.log_var)
        return torch.maximum(interval, crown.lower(refine(loose)))

    def above(part: Interval, example: Tensor) -> Tensor:
        loose = relaxed(part, example)
        known = loose.known
        kl = gaussian.kl_bounds(known.mean, known.log_var)
        return torch.minimum(vae.likelihood.upper(known.output, known.target) - kl.lower, crown.upper(refine(loose)))

    lower = minimum(value, below, box, tol)
    upper = -minimum(lambda x, example: -value(x, example), lambda part, example: -above(part, example), box, tol)
    return Interval(lower, upper)


@dataclass(frozen=True)
class Parts:
    """Boxes inside the examples' boxes, each with a bound of the function from below."""

    box: Interval  # [parts, *data_shape]
    example: Tensor  # [parts], a row of the batch
    bound: Tensor  # [parts]

    def __len__(self) -> int:
        return len(self.example)

    def __getitem__(self, rows: Tensor | slice) -> "Parts":
        return Parts(self.box.map(lambda end: end[rows]), self.example[rows], self.bound[rows])

    def __add__(self, other: "Parts") -> "Parts":
        ends = (torch.cat(both) for both in zip(self.box, other.box, strict=True))
        example, bound = torch.cat([self.example, other.example]), torch.cat([self.bound, other.bound])
        return Parts(Interval(*ends), example, bound)


@torch.no_grad()
def minimum(value: Value, bound: Bound, box: Interval, tol: float) -> Tensor:
    """At most `tol` below and never above the minimum over each of the boxes [batch, *data_shape]: [batch].

    Args:
        value: the function that is minimised.
        bound: below it on a box, and close to it on a small one.

    Raises ToleranceError.
    """
    batch = len(box.lower)
    best = torch.full_like(box.lower.flatten(1)[:, 0], torch.inf)  # the least value met
    settled = best.clone()  # the least bound of the parts that are done: together they cover what is not open
    found = torch.zeros(batch, dtype=torch.long, device=best.device)
    fresh = Parts(box, torch.arange(batch, device=best.device), -best)
    waiting = fresh[:0]
    while len(fresh):
        # what is below the whole is below its halves, too
        fresh = Parts(fresh.box, fresh.example, torch.maximum(fresh.bound, bound(fresh.box, fresh.example)))
        for point in _points(fresh.box):
            best.scatter_reduce_(0, fresh.example, value(point, fresh.example), "amin")
        found += torch.bincount(fresh.example, minlength=batch)
        waiting = waiting + fresh
        done = _close(waiting.bound, best[waiting.example], tol)
        settled.scatter_reduce_(0, waiting.example[done], waiting.bound[done], "amin")
        waiting = waiting[~done]
        if (found[waiting.example] >= LIMIT).any():
            raise ToleranceError(
                f"the bounds of a box do not meet within tol={tol} nats on {LIMIT} parts: raise tol or shrink the box"
            )
        fresh, waiting = _halves(waiting[-CHUNK:]), waiting[:-CHUNK]
    return torch.minimum(settled, best)  # they cross by rounding alone


def _points(box: Interval) -> Iterator[Tensor]:
    # The centre alone would do, but the corners find the minimum sooner, and so need fewer parts.
    yield box.center
    shape, device = box.lower.shape[1:], box.lower.device
    for high in product([False, True], repeat=math.prod(shape)):
        yield torch.where(torch.tensor(high, device=device).view(shape), box.upper, box.lower)


def _close(bound: Tensor, best: Tensor, tol: float) -> Tensor:
    return bound >= best - tol  # never so for a NaN


def _halves(parts: Parts) -> Parts:
    # Across the widest side: every side shrinks in turn, so that the bound must close.
    (lower, upper), center = parts.box, parts.box.center
    widest = (upper - lower).flatten(1).argmax(1, keepdim=True)
    side = torch.zeros_like(lower, dtype=torch.bool).flatten(1).scatter_(1, widest, True).view_as(lower)
    first = Parts(Interval(lower, torch.where(side, center, upper)), parts.example, parts.bound)
    second = Parts(Interval(torch.where(side, center, lower), upper), parts.example, parts.bound)
    return first + second
