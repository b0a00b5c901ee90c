"""Branch and bound over a queue of subproblems, those of the least bounds first: anytime, and never lower than before.

    least  sign * ELBO(x'; noise)  over the region  =  least over the parts into which splits cut it

Each part is bounded by one linear function of x', whose slopes alpha and multipliers beta are optimised together; its
bound is never below that of the part which it was cut from.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paperlib.bounds.linear import AlphaRelaxation, AlphaSelector, LinearRelaxation
from paperlib.certificates.backward import ElboTerms, RelaxedVAE, backward_elbo, terms_above, terms_below
from paperlib.certificates.crown import slack
from paperlib.certificates.ladder.branching import choose_splits
from paperlib.certificates.ladder.parts import relax_parts
from paperlib.certificates.ladder.subproblems import Subproblems, Units
from paperlib.certificates.worst_point import least_point
from paperlib.models.elbo import unchecked_elbo

ROOT_STEPS, STEPS = 40, 8  # of the optimisation of alpha and beta, for the whole and for each part of it
ROOT_RATE, RATE = 0.25, 0.1  # learning rates of alpha, in [0, 1], likewise
PARTS = 256  # bounded at a time, at most
NUMBERS = 2**23  # that a latent's coefficients on the widest layer may take, for all parts at a time

Bound = Callable[[AlphaSelector, Tensor], tuple[Tensor, Tensor]]  # (alphas, beta) -> bound [count], x' coefficients


@dataclass(frozen=True)
class Search:
    """The search for the least  sign * ELBO  over each region of a batch, in real arithmetic.

    Args:
        root: relaxed over the whole regions.
        sign: 1 for the lower end of the ELBO, -1 for its upper end, negated.
        scale: the size of the terms of a bound, [batch], in nats, by which its rounding is accounted for.
        reached: values of  sign * ELBO  that inputs of the regions have, [batch]; infinite where none was evaluated.
    """

    root: RelaxedVAE
    sign: float
    scale: Tensor
    reached: Tensor

    @torch.no_grad()
    def bounds(self, tol: float) -> Iterator[Tensor]:
        """Lower bounds of the least  sign * ELBO, [batch], in nats: first without a split, then after each round of
        splits, as long as any is farther than `tol` from a value that was evaluated.
        """
        units = Units.of(self.root)
        best = self.reached.clone()  # the least value that was evaluated
        closed = torch.full_like(best, torch.inf)  # the least bound of the parts that are closed
        queue, alphas = self._bounded(units, Subproblems.whole(len(best), best), None, best)
        chunk = max(2, min(PARTS, NUMBERS // _widest(self.root)))
        while True:
            done = queue.bound >= best[queue.example] - tol
            closed.scatter_reduce_(0, queue.example[done], queue.bound[done], "amin")
            queue = queue[~done]
            yield torch.fmin(closed.scatter_reduce(0, queue.example, queue.bound, "amin"), best)
            if not len(queue):
                return
            chosen = _least(queue, chunk // 2)
            parts, queue = queue[chosen].halves(), queue[~chosen]
            parts, _ = self._bounded(units, parts, alphas, best)
            queue = queue + parts

    def _bounded(
        self, units: Units, parts: Subproblems, alphas: Sequence[Tensor] | None, best: Tensor
    ) -> tuple[Subproblems, list[Tensor]]:
        """The parts with their bounds, multipliers and next splits, and the slopes that gave these.

        Args:
            alphas: where the optimisation begins, one for each example; None: at the initial ones, for the whole.
            best: lowered to the values that are evaluated.
        """
        over = relax_parts(self.root, units, parts)
        relaxed, sign = over.relaxed, self.sign
        terms = terms_below(relaxed) if sign > 0 else terms_above(relaxed)
        families = _families(relaxed, terms)

        def bound(select_alpha: AlphaSelector, beta: Tensor) -> tuple[Tensor, Tensor]:
            constrained, constant = units.constrain(relaxed, parts, beta)
            coefficients, offset = backward_elbo(constrained, sign, terms, select_alpha)
            return constant + offset + relaxed.bounds.region.concretize(coefficients), coefficients

        if alphas is None:
            start, steps, rate = [family.alpha for family in families], ROOT_STEPS, ROOT_RATE
        else:
            start, steps, rate = [alpha[parts.example] for alpha in alphas], STEPS, RATE
        best_alphas, beta = _ascend(bound, families, start, parts, steps, rate)
        select = _selector(families, best_alphas)
        constrained, _ = units.constrain(relaxed, parts, beta)
        value, coefficients = bound(select, beta)
        lost = slack(value, self.scale[parts.example])
        lost = lost + 64 * torch.finfo(lost.dtype).eps * (beta * parts.point.abs()).sum(1)
        value = value - lost
        higher = value > parts.bound
        step = torch.where(higher.unsqueeze(1), parts.step, parts.step / 2)  # too long a step leads nowhere
        value = torch.where(over.empty, torch.inf, torch.where(higher, value, parts.bound))

        region = relaxed.bounds.region
        x = least_point(region, coefficients)
        target = x if relaxed.bounds.target is relaxed.bounds.input else relaxed.bounds.target.lower
        reached = sign * unchecked_elbo(relaxed.vae, x, relaxed.noise, target)
        best.scatter_reduce_(0, parts.example, reached.nan_to_num(nan=torch.inf), "amin")
        parts = replace(parts, bound=value, beta=beta, step=step)
        return choose_splits(parts, units, over, constrained, sign, terms, select, x), best_alphas


def _ascend(
    bound: Bound,
    families: Sequence[AlphaRelaxation[Any]],
    alphas: Sequence[Tensor],
    parts: Subproblems,
    steps: int,
    rate: float,
) -> tuple[list[Tensor], Tensor]:
    """maximise  bound(alpha, beta)  over alpha in [0, 1] and beta >= 0, by Adam: those alphas and betas of each part
    that gave the best bound of it, which is never below the one at the start.
    """
    alphas = [alpha.clone().requires_grad_() for alpha in alphas]
    unit = parts.step.clamp(min=torch.finfo(parts.step.dtype).tiny)
    beta = (parts.beta / unit).requires_grad_()
    parameters, select = [*alphas, beta], _selector(families, alphas)
    groups = [{"params": alphas, "lr": rate}, {"params": [beta], "lr": 1.0}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), maximize=True)
    best = torch.full_like(parts.bound, -torch.inf)
    kept = [parameter.detach().clone() for parameter in parameters]
    for step in range(steps):
        with torch.enable_grad():
            value, _ = bound(select, beta * unit)
            gradients = torch.autograd.grad(value.sum(), parameters)
        better = value.detach() > best
        best = torch.where(better, value.detach(), best)
        for old, parameter, gradient in zip(kept, parameters, gradients, strict=True):
            old.copy_(torch.where(better.view(-1, *[1] * (old.ndim - 1)), parameter.detach(), old))
            parameter.grad = gradient
        for group, initial in zip(optimizer.param_groups, (rate, 1.0), strict=True):
            group["lr"] = initial * (1 - step / steps)
        optimizer.step()
        for alpha in alphas:
            alpha.clamp_(0, 1)
        beta.clamp_(min=0)
    return kept[:-1], kept[-1] * unit


def _families(relaxed: RelaxedVAE, terms: ElboTerms) -> list[AlphaRelaxation[Any]]:
    """All bounds with a free slope."""
    relaxations = [relaxed.scale, *(layer.relaxation for layer in (*relaxed.encoder, *relaxed.decoder))]
    linear = (each for each in relaxations if isinstance(each, LinearRelaxation))
    bounds = [terms.fit, *(bound for each in linear for bound in (each.lower, each.upper))]
    return [bound for bound in bounds if isinstance(bound, AlphaRelaxation)]


def _selector(families: Sequence[AlphaRelaxation[Any]], alphas: Sequence[Tensor]) -> AlphaSelector:
    by_family = {id(family): alpha for family, alpha in zip(families, alphas, strict=True)}
    return lambda bound: bound.at(by_family[id(bound)]) if isinstance(bound, AlphaRelaxation) else bound


def _least(queue: Subproblems, count: int) -> Tensor:
    """Which parts are of the least bounds, about as many of each example: a mask with `count` of them, or all."""
    order = queue.bound.argsort()
    by_example = order[queue.example[order].argsort(stable=True)]
    example = queue.example[by_example]
    rank = torch.arange(len(example), device=example.device) - torch.searchsorted(example, example)
    chosen = torch.zeros(len(queue), dtype=torch.bool, device=example.device)
    chosen[by_example[rank.argsort(stable=True)[:count]]] = True
    return chosen


def _widest(relaxed: RelaxedVAE) -> int:
    boxes = [*relaxed.bounds.encoder, *relaxed.bounds.decoder]
    return relaxed.vae.latent_dim * max(box.lower[0].numel() for box in boxes)
