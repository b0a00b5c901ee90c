"""The relaxations of notebook 5 on dense grids: curves, and the lines below and above them that the library uses."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import AlphaRelaxation, JointLinearFunction, LinearFunction, LinearRelaxation, initial_alpha
from paperlib.bounds.relaxation import relaxation_rule
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.posterior_bounds import scale_relaxation
from paperlib.models.likelihood import Bernoulli
from paperlib.paper.words import Axis

ALPHAS = (0.0, 0.5, 1.0)  # whose lines are drawn below ReLU
POINTS = 1_201  # of each grid; one of them is ReLU's corner

# The boxes that are drawn
RELU = (-1.0, 2.0)
LOG_VAR = (-3.0, 1.0)
LOGIT = (-2.0, 3.0)
TARGET = (0.4, 0.6)  # a grey pixel of 0.5 at radius 0.1
FIXED_TARGET = 0.8  # of the curve in the logit alone


@dataclass(frozen=True)
class RelaxedCurve:
    """Values on a grid over a box: of a function, and of the linear functions below and above it, by label."""

    title: str
    labels: tuple[str, str]  # of the coordinate and the value; of both coordinates where there are two
    axes: tuple[Tensor, ...]  # the grid's coordinate in each dimension, float64
    exact: Tensor  # [*grid], the function
    below: Mapping[str, Tensor]
    above: Mapping[str, Tensor]

    @property
    def margin(self) -> float:
        """The smallest distance from a line to the function, negative if any line is on the wrong side of it."""
        distances = [self.exact - line for line in self.below.values()]
        distances += [line - self.exact for line in self.above.values()]
        return min(distance.min().item() for distance in distances)


def relu_curve() -> RelaxedCurve:
    """ReLU with the lines alpha * v below it and its chord above."""
    v, box = _grid(RELU)
    relaxation = relaxation_rule(nn.ReLU(), box)
    assert isinstance(relaxation, LinearRelaxation) and isinstance(relaxation.lower, AlphaRelaxation)
    lines = {alpha: relaxation.lower.at(torch.tensor([alpha]).double()) for alpha in ALPHAS}
    below = {f"α = {alpha:g}": _line(line, v) for alpha, line in lines.items()}
    return RelaxedCurve(
        "ReLU",
        (Axis.BEFORE_RELU, Axis.RELU),
        (v,),
        torch.relu(v),
        below,
        {"chord": _line(initial_alpha(relaxation.upper), v)},
    )


def scale_curve() -> RelaxedCurve:
    """The standard deviation exp(v / 2): its chord, and its tangent of the same slope."""
    v, box = _grid(LOG_VAR)
    relaxation = scale_relaxation(box)
    tangent, chord = (_line(initial_alpha(line), v) for line in (relaxation.lower, relaxation.upper))
    return RelaxedCurve(
        "standard deviation",
        (Axis.LOG_VARIANCE, Axis.DEVIATION),
        (v,),
        torch.exp(v / 2),
        {"tangent": tangent},
        {"chord": chord},
    )


def likelihood_curve() -> RelaxedCurve:
    """The log-likelihood of a pixel at a fixed target t: t * l is linear, so only -softplus(l) needs lines."""
    logit, box = _grid(LOGIT)
    target = torch.full((1,), FIXED_TARGET).double()
    bounds, point = bounds_of(Bernoulli()), Interval(target, target)
    lines = [initial_alpha(bound(box, point)) for bound in (bounds.linear_below, bounds.linear_above)]
    below, above = (_joint(line, logit, target) for line in lines)
    values = target * logit - torch.logaddexp(logit, torch.zeros_like(logit))
    return RelaxedCurve(
        f"log-likelihood, $t$ = {FIXED_TARGET}",
        (Axis.LOGIT, Axis.LOG_LIKELIHOOD),
        (logit,),
        values,
        {"chord": below},
        {"tangent": above},
    )


def product_curve() -> RelaxedCurve:
    """The product t * l, [target, logit], McCormick's two planes below it, and the mixture at the initial alpha."""
    (logit, box), (target, target_box) = _grid(LOGIT), _grid(TARGET)
    bounds, zero = bounds_of(Bernoulli()), torch.zeros(1).double()
    planes = bounds.linear_below(box, target_box)
    assert isinstance(planes, AlphaRelaxation)
    chord = initial_alpha(bounds.linear_below(box, Interval(zero, zero)))  # of -softplus alone: no product at t = 0

    def plane(function: JointLinearFunction) -> Tensor:
        return _joint(function, logit, target[:, None]) - _joint(chord, logit, zero)

    below = {"first plane": planes.first, "second plane": planes.second, "initial mixture": planes.initial}
    values = target[:, None] * logit
    return RelaxedCurve(
        "$t\\,l$",
        (Axis.PIXEL, Axis.LOGIT),
        (target, logit),
        values,
        {k: plane(f) for k, f in below.items()},
        {},
    )


def _grid(ends: tuple[float, float]) -> tuple[Tensor, Interval]:
    """A dense grid between both ends, and the box of one unit that has these ends."""
    lower, upper = (torch.tensor([end], dtype=torch.float64) for end in ends)
    return torch.linspace(*ends, POINTS, dtype=torch.float64), Interval(lower, upper)


def _line(function: LinearFunction, v: Tensor) -> Tensor:
    return function.slope * v + function.offset


def _joint(function: JointLinearFunction, output: Tensor, target: Tensor) -> Tensor:
    return function.output_slope * output + function.target_slope * target + function.offset
