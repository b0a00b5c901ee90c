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
ROOT_RATE, RATE, BETA_RATE = 0.25, 0.1, 0.3  # learning rates of alpha, in [0, 1], and of beta, in units of its scale
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
    """

    root: RelaxedVAE
    sign: float
    scale: Tensor

    @torch.no_grad()
    def bounds(self, tol: float) -> Iterator[Tensor]:
        """Lower bounds of the least  sign * ELBO, [batch], in nats: first without a split, then after each round of
        splits, as long as any is farther than `tol` from a value that was evaluated.
        """
        units = Units.of(self.root)
        batch, like = len(self.root.noise), self.scale
        best = torch.full_like(like, torch.inf)  # the least value that was evaluated
        closed = best.clone()  # the least bound of the parts that are closed
        queue, alphas = self._bounded(units, Subproblems.whole(batch, like), None, best)
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
        value, best_alphas, beta = _ascend(bound, families, start, parts.beta, steps, rate)
        select = _selector(families, best_alphas)
        constrained, _ = units.constrain(relaxed, parts, beta)
        last, coefficients = bound(select, beta)
        lost = slack(value, self.scale[parts.example])
        lost = lost + 64 * torch.finfo(lost.dtype).eps * (beta * parts.scale * parts.point.abs()).sum(1)
        value = torch.fmax(torch.fmax(value, last) - lost, parts.bound)
        value = torch.where(over.empty, torch.inf, value)

        region = relaxed.bounds.region
        x = least_point(region, coefficients)
        target = x if relaxed.bounds.target is relaxed.bounds.input else relaxed.bounds.target.lower
        reached = sign * unchecked_elbo(relaxed.vae, x, relaxed.noise, target)
        best.scatter_reduce_(0, parts.example, reached.nan_to_num(nan=torch.inf), "amin")
        parts = replace(parts, bound=value, beta=beta)
        return choose_splits(parts, units, over, constrained, sign, terms, select, x), best_alphas


def _ascend(
    bound: Bound,
    families: Sequence[AlphaRelaxation[Any]],
    alphas: Sequence[Tensor],
    beta: Tensor,
    steps: int,
    rate: float,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """maximise  bound(alphas, beta)  over alpha in [0, 1] and beta >= 0, by Adam: the largest bound that was met for
    each part, [count], and where the ascent ends.
    """
    alphas = [alpha.clone().requires_grad_() for alpha in alphas]
    beta = beta.clone().requires_grad_()
    parameters, select = [*alphas, beta], _selector(families, alphas)
    groups = [{"params": alphas, "lr": rate}, {"params": [beta], "lr": BETA_RATE}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), maximize=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    best = torch.full_like(beta[:, :0].sum(1), -torch.inf).detach()
    for step in range(steps):
        for group, initial in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = initial * (1 - step / steps)
        with torch.enable_grad():
            value, _ = bound(select, beta)
            gradients = torch.autograd.grad(value.sum(), parameters)
        best = torch.fmax(best, value.detach())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        for alpha in alphas:
            alpha.clamp_(0, 1)
        beta.clamp_(min=0)
    return best, [alpha.detach() for alpha in alphas], beta.detach()


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
