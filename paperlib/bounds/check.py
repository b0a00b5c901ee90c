"""Checks the rules of a layer by looking for an input that breaks them, as whoever writes a rule should."""

import copy

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.linear import AlphaRelaxation, LinearFunction, initial_alpha
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.rounding import rounding_rule
from paperlib.bounds.rules import apply_rule, registered_type

NUMBERS = 2**18  # in the points of each box together, about
UNITS = 64  # outputs of each example whose worst corners are taken
ROUNDING = 1e-10  # of both sides of an inequality: more than float64 is off by
CANCELLATION = 2**-46  # of the largest input: what may be left in a small result of large inputs


def check_rules(layer: nn.Module, box: Interval, generator: torch.Generator | None = None) -> tuple[str, ...]:
    """Looks for a counterexample to the rules of a layer, over a box and smaller ones inside; raises with the first.

    Tried are points at random and in a grid, and corners, among them those to which the gradient of an output points.
    That no counterexample shows is no proof, but the usual mistakes do not survive it: a rule for increasing functions
    on one that falls, a missing absolute value, a tangent where a chord belongs.

    Args:
        layer: with an interval rule; relaxation rule and rounding rule are checked where it has them.
        box: [batch, *shape], of the size that the layer meets in use and across its bends; taken in float64.
        generator: of the random points; by default they are the same each time.

    Returns:
        the names of the rules that were checked.

    Raises:
        ValueError: a rule is broken: which one, at which input and by how much.
        UnsupportedLayerError: there is no interval rule.
    """
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    box = box.map(lambda end: end.detach().double())
    generator = generator or torch.Generator(box.lower.device).manual_seed(0)
    checks = {"interval_rule": _check_interval}
    for name, rules, check in (
        ("relaxation_rule", relaxation_rule, _check_relaxation),
        ("rounding_rule", rounding_rule, _check_rounding),
    ):
        if registered_type(rules, type(layer)) is not None:
            checks[name] = check
    for part in (box, *_smaller(box, generator)):
        points = _points(layer, part, generator)
        values = _evaluate(layer, points)
        for check in checks.values():
            check(layer, part, points, values)
    return tuple(checks)


def _smaller(box: Interval, generator: torch.Generator) -> list[Interval]:
    """Boxes inside of the box: both halves, some at random, and a point."""
    boxes = [Interval(box.lower, box.center), Interval(box.center, box.upper)]
    for size in (1.0, 1.0, 0.1, 1e-3, 0.0):
        first, second = _random_points(box, 2, generator)
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        boxes.append(Interval(low, low + size * (high - low)))
    return boxes


def _random_points(box: Interval, count: int, generator: torch.Generator) -> Tensor:
    end = box.lower
    return _between(box, torch.rand(count, *end.shape, generator=generator, dtype=end.dtype, device=end.device))


def _between(box: Interval, share: Tensor) -> Tensor:
    return (box.lower + (box.upper - box.lower) * share).clamp(box.lower, box.upper)


def _points(layer: nn.Module, box: Interval, generator: torch.Generator) -> Tensor:
    """Points of the box, [points, batch, *shape]."""
    count = max(16, min(1000, NUMBERS // box.lower.numel()))
    share = torch.linspace(0, 1, count, dtype=box.lower.dtype, device=box.lower.device)
    grid = _between(box, share.view(-1, *[1] * box.lower.ndim))
    inside = _random_points(box, count, generator)
    corners = torch.where(_random_points(box, count, generator) > box.center, box.upper, box.lower)
    return torch.cat([grid, inside, corners, *_worst_corners(layer, box)])


def _worst_corners(layer: nn.Module, box: Interval) -> list[Tensor]:
    """For some outputs the corners to which their gradient at the centre points, up and down."""
    with torch.enable_grad():
        at = box.center.requires_grad_()
        outputs = layer(at.clone()).flatten(1)
        if not outputs.requires_grad:
            return []
        picked = torch.linspace(0, outputs.shape[1] - 1, min(UNITS, outputs.shape[1])).long().tolist()
        slopes = [torch.autograd.grad(outputs[:, unit].sum(), at, retain_graph=True)[0] for unit in picked]
    return [torch.where(slope * sign > 0, box.upper, box.lower)[None] for slope in slopes for sign in (1, -1)]


def _evaluate(layer: nn.Module, points: Tensor) -> Tensor:
    """The layer at points [points, batch, *shape]: [points, batch, *out_shape]."""
    return layer(points.flatten(0, 1).clone()).unflatten(0, points.shape[:2])


def _check_interval(layer: nn.Module, box: Interval, points: Tensor, values: Tensor) -> None:
    image = apply_rule(interval_rule, type(layer).__name__, layer, box)
    for end, sign, name in ((image.lower, 1, "the lower end"), (image.upper, -1, "the upper end")):
        excess = sign * (end - values) - ROUNDING * (end.abs() + values.abs()) - CANCELLATION * points.abs().max()
        _raise_at_worst("interval rule", name, excess, end.expand_as(values), values, points)


def _check_relaxation(layer: nn.Module, box: Interval, points: Tensor, values: Tensor) -> None:
    relaxation = apply_rule(relaxation_rule, type(layer).__name__, layer, box)
    if isinstance(relaxation, Affine):
        _check_affine(relaxation, points, values)
        return
    inputs = relaxation.select(points)
    for bound, sign, name in ((relaxation.lower, 1, "the lower line"), (relaxation.upper, -1, "the upper line")):
        for function in _members(bound):
            line = function.slope * inputs + function.offset
            size = (function.slope * inputs).abs() + function.offset.abs() + values.abs()
            excess = sign * (line - values) - ROUNDING * size - CANCELLATION * points.abs().max()
            _raise_at_worst("relaxation rule", name, excess, line, values, points)


def _members(bound: LinearFunction | AlphaRelaxation[LinearFunction]) -> list[LinearFunction]:
    """The bound; or of a family of bounds the initial one, the first, the last and one between them."""
    if isinstance(bound, LinearFunction):
        return [bound]
    return [initial_alpha(bound), bound.first, bound.second, bound.at(torch.full_like(bound.alpha, 0.3))]


def _check_affine(relaxation: Affine, points: Tensor, values: Tensor) -> None:
    """c . layer(v) == transpose(c) . v + c . offset  for several c at once, as the rows of one tensor."""
    waves = torch.arange(1, 9, dtype=values.dtype, device=values.device).view(-1, *[1] * (values.ndim - 1))
    numbers = torch.arange(values[0].numel(), dtype=values.dtype, device=values.device).view_as(values[0])
    coefficients = torch.cos(waves * (1 + numbers))  # [rows, batch, *out_shape]
    transposed = relaxation.transpose(coefficients)

    def product(c: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("rbn,pbn->prb", c.flatten(2), v.flatten(2))

    constant = (coefficients * relaxation.offset).flatten(2).sum(2)
    expected, by_rule = product(coefficients, values), product(transposed, points) + constant
    size = product(coefficients.abs(), values.abs()) + product(transposed.abs(), points.abs()) + constant.abs()
    excess = (by_rule - expected).abs() - ROUNDING * size - CANCELLATION * points.abs().max()
    _raise_at_worst("relaxation rule", "c' . v + d", excess, by_rule, expected, points)


def _check_rounding(layer: nn.Module, box: Interval, points: Tensor, values: Tensor) -> None:
    # of the layer with float32 weights, at float32 inputs
    deployed, points = copy.deepcopy(layer).float(), points.float()
    exact = copy.deepcopy(deployed).double()
    reached = Interval(points.double().amin(0), points.double().amax(0))
    bound = apply_rule(rounding_rule, type(layer).__name__, exact, reached).bound(torch.float32)
    computed, values = _evaluate(deployed, points).double(), _evaluate(exact, points.double())
    excess = (computed - values).abs() - bound - ROUNDING * torch.finfo(torch.float32).eps * values.abs()
    _raise_at_worst("rounding rule", "what float32 computes", excess, computed, values, points)


def _raise_at_worst(rule: str, what: str, excess: Tensor, claimed: Tensor, values: Tensor, points: Tensor) -> None:
    """Raises at the largest excess over 0, [points, ...], or where it is not a number."""
    if (excess <= 0).all():
        return
    at = torch.unravel_index(excess.nan_to_num(nan=torch.inf).argmax(), excess.shape)
    value_at = points[at] if points.shape == excess.shape else points[at[0]].flatten()
    raise ValueError(
        f"the {rule} is wrong at output {[int(place) for place in at[1:]]}: {what} is {claimed[at].item():.9g} "
        f"where the layer gives {values[at].item():.9g}, for the input {value_at.tolist()}"
    )
