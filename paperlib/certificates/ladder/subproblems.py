"""Subproblems of branch and bound: parts of the inputs that constraints on single units of the network cut out, and the
network relaxed over each part (beta-CROWN: Wang et al. 2021, arXiv 2103.06624; for units of any layer: Shi et al. 2024,
arXiv 2405.21063).

A split of a unit v at a point p gives two halves, one with v <= p and one with v >= p. Each constraint narrows the
box of its unit, over which layers are relaxed anew. And it joins the backward pass: for every beta >= 0

    min over  side * (v - p) >= 0  of  c . v   >=   min of  (c - beta * side) . v + beta * side * p
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import LinearRelaxation
from paperlib.bounds.relaxation import Affine
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.relaxed_layer import RelaxedLayer

BENT = (nn.ReLU, nn.LeakyReLU, nn.PReLU)  # layers that are linear on both sides of 0


@dataclass(frozen=True)
class Subproblems:
    """Parts of the examples' regions, each with a lower bound and with the split that is to cut it next.

    The columns of a part's constraints are padded on the left, by constraints of side 0, which say nothing.
    """

    example: Tensor  # [count], a row of the batch
    bound: Tensor  # [count], nats
    unit: Tensor  # [count, constraints], in the flat order of `Units`
    side: Tensor  # [count, constraints]: 1 where the unit is at least the point, -1 where it is at most
    point: Tensor  # [count, constraints]
    beta: Tensor  # [count, constraints], the multipliers, not negative
    step: Tensor  # [count, constraints], how far a step of the ascent may move a multiplier
    next_unit: Tensor  # [count]
    next_point: Tensor  # [count]
    next_step: Tensor  # [count]

    @classmethod
    def whole(cls, batch: int, like: Tensor) -> Self:
        """The regions themselves, which no split has cut; nothing is bounded yet."""
        column, row = like.new_zeros(batch), like.new_zeros(batch, 0)
        return cls(
            example=torch.arange(batch, device=like.device),
            bound=column - torch.inf,
            unit=row.long(),
            side=row,
            point=row,
            beta=row,
            step=row,
            next_unit=column.long(),
            next_point=column,
            next_step=column,
        )

    def __len__(self) -> int:
        return len(self.example)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(*(getattr(self, part.name)[rows] for part in fields(self)))

    def __add__(self, other: Self) -> Self:
        width = max(self.unit.shape[1], other.unit.shape[1])
        pairs = zip(self._padded(width), other._padded(width), strict=True)
        return type(self)(*(torch.cat(pair) for pair in pairs))

    def _padded(self, width: int) -> list[Tensor]:
        parts = [getattr(self, part.name) for part in fields(self)]
        return [F.pad(part, (width - part.shape[1], 0)) if part.ndim == 2 else part for part in parts]

    def halves(self) -> Self:
        """Both halves of each part; they begin with the whole's bound and multipliers."""
        return self._half(-1.0) + self._half(1.0)

    def _half(self, side: float) -> Self:
        def joined(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old, new.unsqueeze(1)], 1)

        return replace(
            self,
            unit=joined(self.unit, self.next_unit),
            side=joined(self.side, torch.full_like(self.next_point, side)),
            point=joined(self.point, self.next_point),
            beta=joined(self.beta, torch.zeros_like(self.next_point)),
            step=joined(self.step, self.next_step),
        )

    def cut(self, box: Interval) -> Interval:
        """The box of all units, [count, units], narrowed by the constraints."""
        lower = torch.where(self.side > 0, self.point, -torch.inf)
        upper = torch.where(self.side < 0, self.point, torch.inf)
        return Interval(
            box.lower.scatter_reduce(1, self.unit, lower, "amax"),
            box.upper.scatter_reduce(1, self.unit, upper, "amin"),
        )


@dataclass(frozen=True)
class Place:
    """Units that may be split: the inputs of a layer, or what the encoder puts out."""

    units: slice  # in the flat order of all
    shape: torch.Size  # of one example

    def of(self, values: Tensor) -> Tensor:
        """The values at this place, [count, *shape], from those of all units, [count, units]."""
        return values[:, self.units].unflatten(1, self.shape)


@dataclass(frozen=True)
class Units:
    """All units that may be split: the inputs of each elementwise layer that is not affine, and mean and log_var."""

    encoder: dict[int, Place]  # by the position of the layer in the encoder
    posterior: Place
    decoder: dict[int, Place]
    box: Interval  # [batch, units], of the whole regions
    bends: Tensor  # [units], 1 for those whose layer is linear on both sides of 0, else 0

    @classmethod
    def of(cls, relaxed: RelaxedVAE) -> Self:
        start = 0
        bends: list[Tensor] = []

        def place(box: Interval, layer: nn.Module | None = None) -> Place:
            nonlocal start
            size = box.lower[0].numel()
            bends.append(box.lower.new_full((size,), float(isinstance(layer, BENT))))
            start += size
            return Place(slice(start - size, start), box.lower.shape[1:])

        def places(layers: tuple[RelaxedLayer, ...]) -> dict[int, Place]:
            return {index: place(each.box, each.layer) for index, each in enumerate(layers) if is_elementwise(each)}

        encoder, posterior, decoder = places(relaxed.encoder), place(posterior_box(relaxed)), places(relaxed.decoder)
        return cls(encoder, posterior, decoder, unit_boxes(relaxed), torch.cat(bends))

    def constrain(self, relaxed: RelaxedVAE, parts: Subproblems, beta: Tensor) -> tuple[RelaxedVAE, Tensor]:
        """The relaxed VAE of the parts with the constraints' terms in its backward pass, and their constant, [count].

        Args:
            beta: the multipliers, [count, constraints], not negative.
        """
        terms = beta * parts.side
        coefficients = self.box.lower.new_zeros(len(parts), self.box.lower.shape[1])
        coefficients = coefficients.scatter_add(1, parts.unit, terms)

        def constrained(layers: tuple[RelaxedLayer, ...], places: dict[int, Place]) -> tuple[RelaxedLayer, ...]:
            with_terms: list[RelaxedLayer] = []
            for index, layer in enumerate(layers):
                if index in places:
                    with_terms.append(_less(places[index].of(coefficients), layer.place, layer.box))
                with_terms.append(layer)
            return tuple(with_terms)

        posterior = _less(self.posterior.of(coefficients), "posterior", posterior_box(relaxed))
        return replace(
            relaxed,
            encoder=(*constrained(relaxed.encoder, self.encoder), posterior),
            decoder=constrained(relaxed.decoder, self.decoder),
        ), (terms * parts.point).sum(1)


def unit_boxes(relaxed: RelaxedVAE) -> Interval:
    """The boxes of all units over which the VAE is relaxed, [count, units], in the flat order of `Units`."""
    encoder, decoder = (
        [layer.box for layer in half if is_elementwise(layer)] for half in (relaxed.encoder, relaxed.decoder)
    )
    boxes = [*encoder, posterior_box(relaxed), *decoder]
    return Interval(*(flat(ends) for ends in zip(*boxes, strict=True)))


def posterior_box(relaxed: RelaxedVAE) -> Interval:
    """Of mean and log_var beside each other, [count, 2 * latent]."""
    return Interval(*(torch.cat(ends, 1) for ends in zip(relaxed.bounds.mean, relaxed.bounds.log_var, strict=True)))


def flat(values: Sequence[Tensor]) -> Tensor:
    """Values of the units at each place, [count, *shape], as those of all units, [count, units]."""
    return torch.cat([each.flatten(1) for each in values], 1)


def is_elementwise(layer: RelaxedLayer) -> bool:
    """Whether the layer is relaxed unit by unit."""
    return isinstance(layer.relaxation, LinearRelaxation) and layer.relaxation.selection is None


def _less(terms: Tensor, place: str, box: Interval) -> RelaxedLayer:
    """A layer that changes nothing, but whose transpose takes the terms from all coefficients that pass."""
    nothing = torch.zeros_like(box.lower[0])
    return RelaxedLayer(place, nn.Identity(), box, Affine(lambda c: c - terms, nothing), None, None)
