"""Symbols that the quantities of an example share, each kind with the set in which its symbols lie together."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paperlib.bounds.box import Interval
from paperlib.threats.perturbation import ChangeRegion


@dataclass(frozen=True, eq=False)
class Symbols(ABC):
    """Some symbols s of each example. Equal only to itself."""

    @property
    @abstractmethod
    def summands(self) -> int:
        """How many numbers `range` adds up for a unit."""

    @abstractmethod
    def range(self, coefficients: Tensor) -> Interval:
        """A box that contains  coefficients . s,  [batch, units].

        Args:
            coefficients: [symbols, batch or 1, units]; 1: all examples have the same.
        """

    @abstractmethod
    def range_of_product(self, factors: Tensor, coefficients: Tensor) -> Interval:
        """`range` of  factors @ coefficients,  without holding that product for all examples at a time.

        Args:
            factors: [batch or 1, units, quantities].
            coefficients: of those quantities, [symbols, batch or 1, quantities].
        """

    @abstractmethod
    def minimum(self, coefficients: Tensor) -> Tensor:
        """The minimum of  coefficients . s,  or a number below it, [batch], for coefficients [symbols, batch]."""

    def expand(self, coefficients: Tensor) -> list["Term"]:
        """coefficients . s  by symbols that are no sums of others, for coefficients [symbols, batch]."""
        return [Term(self, coefficients)]


@dataclass(frozen=True)
class Term:
    """coefficients . symbols,  with coefficients  rows * factor."""

    symbols: Symbols
    rows: Tensor  # [symbols, batch or 1, *shape]; 1: all examples have the same
    factor: Tensor | None = None  # [batch, *shape]; None: 1. Apart, as the product of both is large
    units: Tensor | None = None  # where each symbol is one unit alone: its place in flat order, [symbols]

    @property
    def coefficients(self) -> Tensor:
        """[symbols, batch or 1, *shape]"""
        return self.rows if self.factor is None else self.rows * self.factor

    def times(self, factor: Tensor) -> "Term":
        """With the coefficients times a factor, [batch, *shape]."""
        return Term(self.symbols, self.rows, factor if self.factor is None else self.factor * factor)


@dataclass(frozen=True, eq=False)
class Errors(Symbols):
    """Symbols in [-radius, radius], each on its own."""

    radius: Tensor  # [batch, symbols], not negative

    @property
    def summands(self) -> int:
        return self.radius.shape[1]

    def range(self, coefficients: Tensor) -> Interval:
        if coefficients.shape[1] == 1:
            return _around_zero(self.radius @ coefficients[:, 0].abs())
        return _around_zero(torch.einsum("bs,sbu->bu", self.radius, coefficients.abs()))

    def range_of_product(self, factors: Tensor, coefficients: Tensor) -> Interval:
        scaled = coefficients.permute(1, 2, 0) * self.radius.unsqueeze(1)
        return _around_zero(_AbsoluteRowSums.apply(factors.expand(len(scaled), -1, -1), scaled))

    def minimum(self, coefficients: Tensor) -> Tensor:
        return -(coefficients.T.abs() * self.radius).sum(1)


@dataclass(frozen=True, eq=False)
class Changes(Symbols):
    """The changes x' - x of a region that is no box."""

    region: ChangeRegion

    @property
    def summands(self) -> int:
        return self.region.x[0].numel()

    def range(self, coefficients: Tensor) -> Interval:
        rows = coefficients.permute(1, 2, 0)
        return self.region.change(self._shaped(rows[0])) if len(rows) == 1 else self._of_examples(rows)

    def range_of_product(self, factors: Tensor, coefficients: Tensor) -> Interval:
        batch = len(self.region.x)
        rows = coefficients.permute(1, 2, 0).expand(batch, -1, -1)
        return self._of_examples(own @ each for own, each in zip(factors.expand(batch, -1, -1), rows, strict=True))

    def minimum(self, coefficients: Tensor) -> Tensor:
        x = self.region.x
        shaped = coefficients.T.reshape(x.shape)
        return self.region.concretize(shaped) - (shaped * x).flatten(1).sum(1)

    def _of_examples(self, rows: Iterable[Tensor]) -> Interval:
        """The box [batch, units] from the rows [units, features] of each example."""
        boxes = [self.region[place : place + 1].change(self._shaped(own)) for place, own in enumerate(rows)]
        return Interval(torch.cat([box.lower for box in boxes]), torch.cat([box.upper for box in boxes]))

    def _shaped(self, rows: Tensor) -> Tensor:
        return rows.unflatten(1, self.region.x.shape[1:])


@dataclass(frozen=True, eq=False)
class Sums(Symbols):
    """Each symbol is a sum of others: what follows a narrow layer is linear in few of these."""

    terms: tuple[Term, ...]  # coefficients of [symbols of the term, batch or 1, symbols]

    @property
    def summands(self) -> int:
        return sum(term.coefficients.shape[2] + term.symbols.summands for term in self.terms)

    def range(self, coefficients: Tensor) -> Interval:
        factors = coefficients.permute(1, 2, 0)
        boxes = [term.symbols.range_of_product(factors, term.coefficients) for term in self.terms]
        return Interval(_sum_of([box.lower for box in boxes]), _sum_of([box.upper for box in boxes]))

    def range_of_product(self, factors: Tensor, coefficients: Tensor) -> Interval:
        return self.range((factors @ coefficients.permute(1, 2, 0)).permute(2, 0, 1))

    def minimum(self, coefficients: Tensor) -> Tensor:
        return _sum_of([term.symbols.minimum(term.coefficients) for term in self.expand(coefficients)])

    def expand(self, coefficients: Tensor) -> list[Term]:
        expanded = []
        for term in self.terms:
            products = torch.einsum("qb,sbq->sb", coefficients, term.coefficients.expand(-1, coefficients.shape[1], -1))
            expanded += term.symbols.expand(products)
        return expanded


def _sum_of(parts: list[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    return torch.stack(parts).sum(0)


def _around_zero(radius: Tensor) -> Interval:
    return Interval(-radius, radius)


class _AbsoluteRowSums(torch.autograd.Function):
    """sum over the columns of |left @ right|:  [batch, units]  from  [batch, units, inner] and [batch, inner, columns].

    The product of one example at a time stays in the cache; the backward pass makes it again.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        sums = left.new_empty(left.shape[:2])
        for own_left, own_right, out in zip(left, right, sums, strict=True):
            torch.sum((own_left @ own_right).abs_(), 1, out=out)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        left_gradient, right_gradient = left.new_empty(left.shape), torch.empty_like(right)
        for place, (own_left, own_right) in enumerate(zip(left, right, strict=True)):
            of_product = (own_left @ own_right).sign_().mul_(gradient[place].unsqueeze(1))
            torch.matmul(of_product, own_right.T, out=left_gradient[place])
            torch.matmul(own_left.T, of_product, out=right_gradient[place])
        return left_gradient, right_gradient
