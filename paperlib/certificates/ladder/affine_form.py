"""Affine forms, of which zonotopes are made:

    quantity  =  center + sum over symbols of coefficient * symbol  +  an independent error of at most `error`

Symbols are shared: the same number enters all quantities of an example, and cancels where their coefficients do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import outward
from paperlib.bounds.linear import unit_rows
from paperlib.certificates.ladder.symbols import Changes, Errors, Sums, Symbols, Term
from paperlib.threats.perturbation import BoxRegion, ChangeRegion, Region


@dataclass(frozen=True)
class AffineForm:
    """All quantities of one shape: center + terms + an error of its own for each, of at most `error`."""

    center: Tensor  # [batch, *shape]
    terms: tuple[Term, ...]
    error: Tensor  # [batch, *shape], not negative

    @classmethod
    def of_region(cls, region: Region) -> "AffineForm":
        """The inputs of a region, [batch, *data_shape]: a symbol for each feature, or those of `Region.zonotope`."""
        lower, upper = region.box
        nothing = torch.zeros_like(lower)
        if isinstance(region, BoxRegion):
            center = region.box.center
            radius = torch.maximum(upper - center, center - lower)  # the center is rounded
            return cls(center, (_each_unit(Errors(radius.flatten(1)), center),), nothing)
        zonotope = region.zonotope(unit_rows(lower).expand(-1, *lower.shape))
        if zonotope is None:
            assert isinstance(region, ChangeRegion)
            return cls(region.x, (_each_unit(Changes(region), lower),), nothing)
        center, generators = zonotope[0].T.reshape(lower.shape), zonotope[1]  # generators: [inputs, batch, symbols]
        coefficients = generators.permute(2, 1, 0).unflatten(2, lower.shape[1:])
        return cls(center, (Term(Errors(torch.ones_like(generators[0])), coefficients),), nothing)

    @property
    def box(self) -> Interval:
        """A box that contains all quantities, [batch, *shape], outward of the rounding of its own width."""
        lower, upper, summands = -self.error, self.error, 1
        for term in self.terms:
            of_term = term.symbols.range(term.coefficients.flatten(2))
            lower, upper = (end + part.view_as(end) for end, part in zip((lower, upper), of_term, strict=True))
            summands += term.symbols.summands
        margin = torch.maximum(upper, -lower) * (outward(summands, lower.dtype) - 1)
        return Interval(self.center + (lower - margin), self.center + (upper + margin))

    @property
    def minimum(self) -> Tensor:
        """The least sum of center, terms and error, [batch], for a form of the shape [batch]."""
        return sum((term.symbols.minimum(term.coefficients) for term in self.terms), self.center - self.error)

    def as_symbols(self) -> "AffineForm":
        """The same quantities [batch, count], whose terms are together one symbol for each.

        What follows a narrow layer is linear in few symbols then.
        """
        return replace(self, terms=(_each_unit(Sums(self.terms), self.center),))

    def share_errors(self) -> "AffineForm":
        """The same quantities, whose independent errors are new symbols: what follows shares them."""
        (used,) = self.error.detach().flatten(1).any(0).nonzero(as_tuple=True)  # by any example
        if not len(used):
            return self
        new = Term(Errors(self.error.flatten(1)[:, used]), unit_rows(self.center)[used], units=used)
        return AffineForm(self.center, (*self.terms, new), torch.zeros_like(self.error))

    def halves(self) -> tuple["AffineForm", "AffineForm"]:
        """The first and the second half along the last dimension."""
        centers, errors = self.center.chunk(2, -1), self.error.chunk(2, -1)
        terms = zip(*(_halves(term) for term in self.terms), strict=True)
        first, second = (AffineForm(*parts) for parts in zip(centers, terms, errors, strict=True))
        return first, second

    def scaled(self, factor: Tensor) -> "AffineForm":
        """Each quantity times its factor, [batch, *shape]."""
        return AffineForm(
            self.center * factor, tuple(term.times(factor) for term in self.terms), self.error * factor.abs()
        )

    def dot(self, weights: Tensor) -> "AffineForm":
        """weights . quantities  for weights [batch, *shape]: a form of the shape [batch]."""
        flat = weights.flatten(1)
        terms: list[Term] = []
        for term in self.terms:
            coefficients = term.coefficients.flatten(2).expand(-1, len(flat), -1)
            terms += term.symbols.expand(torch.einsum("bu,sbu->sb", flat, coefficients))
        center, error = (flat * self.center.flatten(1)).sum(1), (flat.abs() * self.error.flatten(1)).sum(1)
        return AffineForm(center, tuple(terms), error)


def total(forms: Sequence[AffineForm]) -> AffineForm:
    """The sum of forms of one shape, in which the coefficients of the same symbols add up."""
    coefficients: dict[Symbols, Tensor] = {}
    for term in (term for form in forms for term in form.terms):
        before = coefficients.get(term.symbols)
        coefficients[term.symbols] = term.coefficients if before is None else before + term.coefficients
    terms = tuple(Term(symbols, own) for symbols, own in coefficients.items())
    center, error = (reduce(torch.add, parts) for parts in zip(*((f.center, f.error) for f in forms), strict=True))
    return AffineForm(center, terms, error)


def _each_unit(symbols: Symbols, values: Tensor) -> Term:
    """The units of values [batch, *shape] as the symbols themselves."""
    return Term(symbols, unit_rows(values), units=torch.arange(math.prod(values.shape[1:]), device=values.device))


def _halves(term: Term) -> tuple[Term, ...]:
    return tuple(Term(term.symbols, part) for part in term.coefficients.chunk(2, -1))
