"""Linear functions as bounds, and backward substitution: how coefficients on a layer's output become coefficients on
its input (CROWN: Zhang et al. 2018, arXiv 1811.00866; Xu et al. 2020, arXiv 2002.12920).

Coefficients c stand for the linear function c . v of a layer's output v. They are a tensor [*rows, batch, *shape]; rows
are optional, one function for each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paperlib.bounds.box import Interval


@dataclass(frozen=True)
class LinearFunction:
    """v -> slope * v + offset, elementwise; both are [batch, *shape] or broadcast to it."""

    slope: Tensor
    offset: Tensor


@dataclass(frozen=True)
class JointLinearFunction:
    """(output, target) -> output_slope * output + target_slope * target + offset, each [batch, *data_shape]."""

    output_slope: Tensor
    target_slope: Tensor
    offset: Tensor


Linear = TypeVar("Linear", LinearFunction, JointLinearFunction)


@dataclass(frozen=True)
class AlphaRelaxation(Generic[Linear]):
    """A family of bounds on the same side, one for each alpha in [0, 1], elementwise: each of them is valid.

    Alpha is the free slope of alpha-CROWN (Xu et al. 2021, arXiv 2011.13824).
    """

    initial: Linear  # at(alpha)
    alpha: Tensor  # where the optimisation of alpha begins
    at: Callable[[Tensor], Linear]  # differentiable in alpha, and in the ends of the box at this alpha

    @property
    def first(self) -> Linear:
        return self.at(torch.zeros_like(self.alpha))

    @property
    def second(self) -> Linear:
        return self.at(torch.ones_like(self.alpha))


@dataclass(frozen=True)
class Selection:
    """Picks one input for each output of a layer, such as one of each window of a max-pooling."""

    index: Tensor  # [batch, outputs], of the inputs in flat order
    in_shape: torch.Size  # of one example
    out_shape: torch.Size

    def of(self, values: Tensor) -> Tensor:
        """The picked ones of values [*rows, batch, *in_shape]: [*rows, batch, *out_shape]."""
        flat = values.flatten(-len(self.in_shape))
        return flat.gather(-1, self.index.expand(*flat.shape[:-1], -1)).unflatten(-1, self.out_shape)

    def transpose(self, coefficients: Tensor) -> Tensor:
        """The coefficients [*rows, batch, *in_shape] of the inputs, from those of the outputs."""
        flat = coefficients.flatten(-len(self.out_shape))
        sums = flat.new_zeros(*flat.shape[:-1], self.in_shape.numel())
        return sums.scatter_add(-1, self.index.expand_as(flat), flat).unflatten(-1, self.in_shape)


@dataclass(frozen=True)
class LinearRelaxation:
    """Of a layer over a box:  lower(w) <= layer(v) <= upper(w)  for every v in the box, elementwise.

    An elementwise layer has w = v; else w is what the `selection` picks of v.
    """

    lower: LinearFunction | AlphaRelaxation[LinearFunction]
    upper: LinearFunction | AlphaRelaxation[LinearFunction]
    selection: Selection | None = field(default=None, kw_only=True)

    def select(self, values: Tensor) -> Tensor:
        """w for v = values, [*rows, batch, *in_shape]."""
        return values if self.selection is None else self.selection.of(values)


def unit_rows(values: Tensor) -> Tensor:
    """The coefficients that pick each unit of values [batch, *shape], alike for all examples: [units, 1, *shape]."""
    shape = values.shape[1:]
    units = math.prod(shape)
    return torch.eye(units, dtype=values.dtype, device=values.device).view(units, 1, *shape)


AlphaSelector = Callable[[Any], Any]  # AlphaRelaxation[Linear] | Linear -> Linear


def initial_alpha(bound: Linear | AlphaRelaxation[Linear]) -> Linear:
    """The bound itself; of a family of bounds, the initial one."""
    return bound.initial if isinstance(bound, AlphaRelaxation) else bound


def backward_substitute(
    coefficients: Tensor, relaxation: LinearRelaxation, select_alpha: AlphaSelector = initial_alpha
) -> tuple[Tensor, Tensor]:
    """A linear function of f(v) is bounded below by one of v:  c . f(v) >= c' . v + d,  for every v in the box.

        c' = c * lower.slope  and  d = sum( c * lower.offset )    where c >= 0,
        c' = c * upper.slope  and  d = sum( c * upper.offset )    where c < 0

    Args:
        coefficients: c, [*rows, batch, *shape].
        relaxation: of f over the box; with a selection, c' is moved to the selected inputs.
        select_alpha: picks one bound of each `AlphaRelaxation`.

    Returns:
        c' of the shape of the rows and the layer's input, and the summands of d, to be added up over `shape`.
    """
    lower, upper = select_alpha(relaxation.lower), select_alpha(relaxation.upper)
    substituted, offset = _BackwardSubstitution.apply(
        coefficients, lower.slope, lower.offset, upper.slope, upper.offset
    )
    return substituted if relaxation.selection is None else relaxation.selection.transpose(substituted), offset


class _BackwardSubstitution(torch.autograd.Function):
    """`backward_substitute` by sums and products alone: selection by a mask is not vectorised on the CPU and slower."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, *functions: Tensor) -> tuple[Tensor, Tensor]:
        lower_slope, lower_offset, upper_slope, upper_offset = functions
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        ctx.save_for_backward(coefficients, *functions)
        offset = (positive * lower_offset).addcmul_(negative, upper_offset)
        return positive.mul_(lower_slope).addcmul_(negative, upper_slope), offset

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_gradient: Tensor, offset_gradient: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, *functions = ctx.saved_tensors
        needs_coefficients, *needs_functions = ctx.needs_input_grad
        gradient = None
        if needs_coefficients:
            lower_slope, lower_offset, upper_slope, upper_offset = functions
            sign = coefficients.sign().clamp_(min=0)
            slope, offset = torch.lerp(upper_slope, lower_slope, sign), torch.lerp(upper_offset, lower_offset, sign)
            gradient = torch.addcmul(slope_gradient * slope, offset_gradient, offset)
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        pairs = (
            (positive, slope_gradient),
            (positive, offset_gradient),
            (negative, slope_gradient),
            (negative, offset_gradient),
        )
        return gradient, *(
            (part * of_part).sum_to_size(function.shape) if needed else None
            for (part, of_part), function, needed in zip(pairs, functions, needs_functions, strict=True)
        )


@dataclass(frozen=True)
class ParallelRelaxation:
    """|f(v) - slope * w - middle| <= radius  for every v in a box, elementwise: two bounds of the same slope.

    As in a `LinearRelaxation`, w is v or what a selection picks of it.
    """

    slope: Tensor
    middle: Tensor
    radius: Tensor
    selection: Selection | None = None

    def slope_times(self, values: Tensor) -> Tensor:
        """slope * w  for v = values, [*rows, batch, *in_shape]."""
        return self.slope * (values if self.selection is None else self.selection.of(values))

    def transpose(self, coefficients: Tensor) -> Tensor:
        """Coefficients of v, [*rows, batch, *in_shape], from those of  slope * w."""
        scaled = coefficients * self.slope
        return scaled if self.selection is None else self.selection.transpose(scaled)

    def spread(self, radius: Tensor) -> Tensor:
        """How far  slope * w  can move while v moves by `radius`, [batch, *out_shape]."""
        return self.slope.abs() * (radius if self.selection is None else self.selection.of(radius))


def parallel(relaxation: LinearRelaxation, box: Interval) -> ParallelRelaxation:
    """Two bounds with one slope, so that their distance from f does not depend on v: the slope of the upper one, or the
    least one of two families of lines where it leaves less room. Differentiable in the ends of the box, but that the
    alpha of the upper bound, such as the point where a tangent touches, counts as a constant.
    """
    upper, lower = relaxation.upper, relaxation.lower
    of_upper = _with_slope(relaxation, box, initial_alpha(upper).slope)
    if not (isinstance(upper, AlphaRelaxation) and isinstance(lower, AlphaRelaxation)):
        return of_upper
    of_least = _with_slope(relaxation, box, torch.minimum(lower.first.slope, upper.first.slope))
    better = of_least.radius < of_upper.radius
    slope, middle, radius = (
        torch.where(better, least, other)
        for least, other in (
            (of_least.slope, of_upper.slope),
            (of_least.middle, of_upper.middle),
            (of_least.radius, of_upper.radius),
        )
    )
    return ParallelRelaxation(slope, middle, radius, relaxation.selection)


def _with_slope(relaxation: LinearRelaxation, box: Interval, slope: Tensor) -> ParallelRelaxation:
    """The bounds of this slope that those of a relaxation imply over the box, from the members nearest to it."""
    ends = [relaxation.select(end) for end in box]
    # a bound is  slope * v + (tilt * v + offset),  whose second part is least and largest at an end of the box
    lower, upper = (_nearest(bound, slope) for bound in (relaxation.lower, relaxation.upper))
    bottom = lower.offset + torch.minimum(*((lower.slope - slope) * end for end in ends))
    top = upper.offset + torch.maximum(*((upper.slope - slope) * end for end in ends))
    return ParallelRelaxation(slope, (top + bottom) / 2, (top - bottom) / 2, relaxation.selection)


def _nearest(bound: LinearFunction | AlphaRelaxation[LinearFunction], slope: Tensor) -> LinearFunction:
    """The bound itself; of a family one whose slope is near, and nearest if slopes are linear in alpha."""
    if isinstance(bound, LinearFunction):
        return bound
    first = bound.first.slope
    span = bound.second.slope - first
    return bound.at(((slope - first) / torch.where(span == 0, 1.0, span)).clamp(0, 1))


def concretize(coefficients: Tensor, box: Interval) -> Tensor:
    """The minimum of  coefficients . v  over the box: v is the lower end where a coefficient is positive.

    Args:
        coefficients: [*rows, batch, *shape].

    Returns:
        [*rows, batch].
    """
    # not through the difference of the ends, beside which the smaller one would be lost
    terms = torch.minimum(coefficients * box.lower, coefficients * box.upper)
    return terms.flatten(1 - box.lower.ndim).sum(-1)
