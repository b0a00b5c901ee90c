"""Lines and planes of free slope: for every slope the best offset, in closed form.

Any slope will do for a line below a function over a box, as long as the offset is the minimum of what is between them:

    f(v)  >=  slope * v + offset      with  offset = min over the box of  f(v) - slope * v

The minimum is at an end of the box or at a turning point, where f' = slope. A slope outside the range of f' over the
box is never better than the nearest one inside, so alpha in [0, 1] is the place in this range. Above f likewise.

A function that is convex needs no free line above it, nor a concave one below: no line is better than its chord.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import AlphaRelaxation, JointLinearFunction, LinearFunction, LinearRelaxation, initial_alpha
from paperlib.bounds.relaxation import Affine
from paperlib.certificates.bernoulli_bounds import UnitBounds
from paperlib.certificates.gaussian_bounds import GaussianBounds
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.posterior_bounds import negative_kl_above, scale_relaxation
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.models.gaussian import kl_log_var_term
from paperlib.models.likelihood import ExponentialFamily, Likelihood, normal_log_density

Curve = Callable[[Tensor], Tensor]  # elementwise
Points = Callable[[Tensor], Sequence[Tensor]]  # from slopes to the points where a curve may have them

FitBound = JointLinearFunction | AlphaRelaxation[JointLinearFunction]


def free_lines(
    curve: Curve, turning: Points, slopes: Interval, box: Interval, start: LinearFunction, side: int
) -> AlphaRelaxation[LinearFunction]:
    """All lines below a curve (side = -1), or above it (side = 1), over the box.

    Args:
        turning: from slopes to the points where the derivative has them, or jumps; may give other points, too.
        slopes: the range of the derivative over the box.
        start: the line whose slope the search begins with; its offset is not used.
    """
    outer = torch.amin if side < 0 else torch.amax

    def at(alpha: Tensor) -> LinearFunction:
        slope = torch.lerp(slopes.lower, slopes.upper, alpha)
        points = [*box, *(point.clamp(*box) for point in turning(slope.detach()))]
        return LinearFunction(slope, outer(torch.stack([curve(point) - slope * point for point in points]), 0))

    alpha = _place(start.slope, slopes)
    return AlphaRelaxation(at(alpha), alpha, at)


def _place(value: Tensor, range_: Interval) -> Tensor:
    """Where a value is in its range: 0 at the lower end, 1 at the upper one."""
    width = range_.upper - range_.lower
    return ((value - range_.lower) / torch.where(width > 0, width, 1.0)).clamp(0, 1)


# Layers


def free_layer(relaxed: RelaxedLayer) -> RelaxedLayer:
    """The layer with the lines of free slope of `Sigmoid`, `Tanh` and `ELU`. Other layers are as they were: the lines
    of ReLU are free already, below it, and its chord is above it.
    """
    if isinstance(relaxed.relaxation, Affine) or (curve := _curve(relaxed.layer)) is None:
        return relaxed
    function, derivative, turning = curve
    box, lines = relaxed.box, relaxed.relaxation
    derivatives = torch.stack([derivative(v) for v in (*box, torch.zeros_like(box.lower).clamp(*box))])
    slopes = Interval(derivatives.amin(0), derivatives.amax(0))  # they rise up to 0 and then fall, or do not
    lower = free_lines(function, turning, slopes, box, initial_alpha(lines.lower), -1)
    upper = lines.upper
    if not isinstance(relaxed.layer, nn.ELU):
        upper = free_lines(function, turning, slopes, box, initial_alpha(lines.upper), 1)
    return replace(relaxed, relaxation=LinearRelaxation(lower, upper))


def _curve(layer: nn.Module) -> tuple[Curve, Curve, Points] | None:
    """The layer as a function, its derivative and where the derivative has a given value."""
    if type(layer) is nn.Sigmoid:

        def where_sigmoid(slope: Tensor) -> list[Tensor]:
            # s (1 - s) = slope  for  s = (1 +- root) / 2,  and the logit of s without a difference of near numbers
            root = (1 - 4 * slope).clamp(min=0).sqrt()
            point = torch.log((1 + root).square() / (4 * slope))
            return [point, -point]

        return torch.sigmoid, lambda v: torch.sigmoid(v) * torch.sigmoid(-v), where_sigmoid
    if type(layer) is nn.Tanh:

        def where_tanh(slope: Tensor) -> list[Tensor]:
            point = torch.log((1 + (1 - slope).clamp(min=0).sqrt()) / slope.sqrt())
            return [point, -point]

        return torch.tanh, lambda v: 4 * torch.sigmoid(2 * v) * torch.sigmoid(-2 * v), where_tanh
    if type(layer) is nn.ELU and 0 < layer.alpha <= 1:
        share = layer.alpha

        def elu(v: Tensor) -> Tensor:  # never in place
            return torch.where(v > 0, v, share * torch.expm1(v.clamp(max=0)))

        def where_elu(slope: Tensor) -> list[Tensor]:
            return [torch.log(slope / share).clamp(max=0), torch.zeros_like(slope)]

        return elu, lambda v: torch.where(v >= 0, 1.0, share * torch.exp(v.clamp(max=0))), where_elu
    return None


# The posterior


def free_scale(log_var: Interval) -> LinearRelaxation:
    """Of the standard deviation exp(v / 2): every tangent below it, and the chord above."""
    lines = scale_relaxation(log_var)
    slopes = log_var.map(lambda end: torch.exp(end / 2) / 2)
    lower = free_lines(
        lambda v: torch.exp(v / 2),
        lambda slope: [2 * torch.log(2 * slope)],
        slopes,
        log_var,
        initial_alpha(lines.lower),
        -1,
    )
    return LinearRelaxation(lower, lines.upper)


def free_kl_above(
    mean: Interval, log_var: Interval
) -> tuple[AlphaRelaxation[LinearFunction], AlphaRelaxation[LinearFunction]]:
    """Every line above the two terms of -KL, as `negative_kl_above` has one above each."""
    of_mean, of_log_var = negative_kl_above(mean, log_var)
    return (
        free_lines(
            lambda m: -m.square() / 2, lambda slope: [-slope], Interval(-mean.upper, -mean.lower), mean, of_mean, 1
        ),
        free_lines(
            negative_kl_of_log_var,
            lambda slope: [torch.log1p(-2 * slope)],
            Interval(-torch.expm1(log_var.upper) / 2, -torch.expm1(log_var.lower) / 2),
            log_var,
            of_log_var,
            1,
        ),
    )


def negative_kl_of_log_var(log_var: Tensor) -> Tensor:
    """The part of -KL that a log-variance v has:  (v + 1 - exp(v)) / 2,  elementwise, in nats."""
    return -kl_log_var_term(log_var) / 2


def log_var_minimum(scale: Tensor, sign: float, slope: Tensor, log_var: Interval) -> Tensor:
    """The minimum of  scale * exp(v / 2) + sign * (v + 1 - exp(v)) / 2 - slope * v  over v in the box, elementwise.

    What the standard deviation and the KL have of a log-variance is minimised together, not each at a place of its own.
    """
    # s = exp(v / 2) at a turning point:  s^2 - sign * scale * s - (1 - 2 * sign * slope) = 0
    half, constant = sign * scale.detach() / 2, 1 - 2 * sign * slope.detach()
    root = (half.square() + constant).clamp(min=0).sqrt()
    tiny = torch.finfo(root.dtype).tiny
    farther = half + torch.copysign(root, half)
    nearer = -constant / farther  # from the product of both roots: no difference of near numbers
    turning = [2 * torch.log(point.nan_to_num(0).clamp(min=tiny)) for point in (farther, nearer)]
    values = [
        scale * torch.exp(v / 2) + sign * negative_kl_of_log_var(v) - slope * v
        for v in (*log_var, *(point.clamp(*log_var) for point in turning))
    ]
    return torch.stack(values).amin(0)


# The likelihood


def free_fit(likelihood: Likelihood, output: Interval, target: Interval, sign: float, start: FitBound) -> FitBound:
    """Planes of free slopes in output and target, below log p for sign = 1 and above it for sign = -1.

    Of the Gaussian, and above the Bernoulli, binary or continuous, for which all planes below are mixtures of the two
    of `start`. Other likelihoods keep `start`.
    """
    bounds = bounds_of(likelihood)
    if type(bounds) is GaussianBounds:
        assert isinstance(likelihood.log_scale, Tensor)
        return _gaussian_planes(likelihood.log_scale, output, target, sign, start)
    if isinstance(bounds, UnitBounds) and sign < 0:
        return _unit_planes_above(bounds.likelihood, output, target, start)
    return start


Pairs = Callable[[Tensor, Tensor], Sequence[tuple[Tensor, Tensor]]]  # from slopes to points (output, target)


def _free_planes(
    density: Callable[[Tensor, Tensor], Tensor], turning: Pairs, slopes: Interval, start: FitBound, side: int
) -> AlphaRelaxation[JointLinearFunction]:
    """As `free_lines`; slopes and alpha are [2, batch, *data_shape], of output and target, and of the points that
    `turning` gives one is the farthest from any plane of these slopes.
    """
    outer = torch.amin if side < 0 else torch.amax

    def at(alpha: Tensor) -> JointLinearFunction:
        of_output, of_target = torch.lerp(slopes.lower, slopes.upper, alpha)
        points = turning(of_output.detach(), of_target.detach())
        gaps = [density(y, t) - of_output * y - of_target * t for y, t in points]
        return JointLinearFunction(of_output, of_target, outer(torch.stack(gaps), 0))

    first = initial_alpha(start)
    alpha = _place(torch.stack([first.output_slope, first.target_slope.expand_as(first.output_slope)]), slopes)
    return AlphaRelaxation(at(alpha), alpha, at)


def _gaussian_planes(
    log_scale: Tensor, output: Interval, target: Interval, sign: float, start: FitBound
) -> AlphaRelaxation[JointLinearFunction]:
    variance = torch.exp(2 * log_scale)
    least, most = (target.lower - output.upper) / variance, (target.upper - output.lower) / variance

    def corners(of_output: Tensor, of_target: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(y, t) for y in output for t in target]  # concave, so that the minimum is at a corner

    def edges(of_output: Tensor, of_target: Tensor) -> list[tuple[Tensor, Tensor]]:
        # Concave, and constant along lines of one distance or without a turning point: the maximum is on an edge.
        along_output = [((t - variance * of_output).clamp(*output), t) for t in target]
        return along_output + [(y, (y - variance * of_target).clamp(*target)) for y in output]

    return _free_planes(
        lambda y, t: normal_log_density((y - t).abs(), log_scale),
        corners if sign > 0 else edges,
        Interval(torch.stack([least, -most]), torch.stack([most, -least])),
        start,
        -1 if sign > 0 else 1,
    )


def _unit_planes_above(
    likelihood: ExponentialFamily, output: Interval, target: Interval, start: FitBound
) -> AlphaRelaxation[JointLinearFunction]:
    mean = output.map(likelihood.mean_parameter)
    least = torch.stack([target.lower - mean.upper, output.lower])
    most = torch.stack([target.upper - mean.lower, output.upper])

    def edges(of_output: Tensor, of_target: Tensor) -> list[tuple[Tensor, Tensor]]:
        # linear in the target, and concave in the logit
        return [(likelihood.natural_parameter((t - of_output).clamp(0, 1)).clamp(*output), t) for t in target]

    return _free_planes(likelihood.log_density, edges, Interval(least, most), start, 1)
