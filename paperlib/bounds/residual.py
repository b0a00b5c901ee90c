"""Residual sums x + body(x), bounded with both branches together.

For the bounds a residual sum is unrolled into layers one after the other, on a flat state that carries x beside what
the body makes of it:  x -> (x, x) -> ... -> (x, body(x)) -> x + body(x).  Each of these layers has its three rules from
those of the body's layers. So backward substitution adds up the coefficients of both branches, which cancel where they
can.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.linear import AlphaRelaxation, LinearFunction, LinearRelaxation, Selection
from paperlib.bounds.relaxation import Affine, Relaxation, relaxation_rule
from paperlib.bounds.rounding import Rounding, magnitude, rounding_rule
from paperlib.bounds.rules import apply_rule, named_layers, unrolling_rule


class Residual(nn.Module):
    """x -> x + body(x), with bounds by every method, `sound` ones included.

    Args:
        body: supported layers, which may be residual sums again, for instance in an `nn.Sequential`.
        shape: of one example, without the batch.

    Raises:
        ValueError: the body does not map the shape to itself.
        UnsupportedLayerError: hooks in the body.
    """

    def __init__(self, body: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.shapes = _shapes(body, torch.Size(shape))  # before each of the body's layers, and after the last
        if self.shapes[-1] != self.shapes[0]:
            raise ValueError(
                f"the body of a residual sum must keep the shape: it maps {tuple(shape)} to {tuple(self.shapes[-1])}"
            )
        self.overwrites = any(getattr(module, "inplace", False) for module in body.modules())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x.clone() if self.overwrites else x)


@torch.no_grad()
def _shapes(body: nn.Module, shape: torch.Size) -> list[torch.Size]:
    dtype = next((p.dtype for p in body.parameters()), torch.get_default_dtype())
    value = torch.zeros(1, *shape, dtype=dtype, device="meta")  # no number is computed
    shapes = [value.shape[1:]]
    for _, layer in named_layers(body):
        value = copy.deepcopy(layer).to("meta").eval()(value)
        shapes.append(value.shape[1:])
    return shapes


class _Fork(nn.Module):
    """x -> (x, x) in one flat state."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), x.flatten(1)], 1)


class _Beside(nn.Module):
    """(x, v) -> (x, layer(v)): one layer of the body, beside what is carried along."""

    def __init__(self, place: str, layer: nn.Module, carried: int, in_shape: torch.Size, out_shape: torch.Size) -> None:
        super().__init__()
        self.place, self.layer, self.carried = place, layer, carried
        self.in_shape, self.out_shape = in_shape, out_shape

    def forward(self, state: Tensor) -> Tensor:
        carried, value = self.split(state, self.in_shape)
        return torch.cat([carried, self.layer(value).flatten(1)], 1)

    def split(self, state: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """What is carried, and the rest in its shape; both may have rows before the batch."""
        return state[..., : self.carried], state[..., self.carried :].unflatten(-1, shape)

    def part(self, box: Interval) -> Interval:
        """The box of the layer's input."""
        return box.map(lambda end: self.split(end, self.in_shape)[1])


class _Join(nn.Module):
    """(x, v) -> x + v"""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, state: Tensor) -> Tensor:
        return torch.add(*state.chunk(2, 1)).unflatten(1, self.shape)


@unrolling_rule.register
def _(module: Residual, name: str) -> Iterator[nn.Module]:
    shapes = module.shapes
    yield _Fork()
    layers = named_layers(module.body, f"{name}.body" if name else "body")
    for (place, layer), in_shape, out_shape in zip(layers, shapes[:-1], shapes[1:], strict=True):
        yield _Beside(place, layer, shapes[0].numel(), in_shape, out_shape)
    yield _Join(shapes[0])


# Intervals


@interval_rule.register
def _(layer: _Fork | _Join, box: Interval) -> Interval:
    return box.map(layer)  # copies, and a sum: non-decreasing


@interval_rule.register
def _(layer: _Beside, box: Interval) -> Interval:
    image = apply_rule(interval_rule, layer.place, layer.layer, layer.part(box))
    ends = zip(box, image, strict=True)
    return Interval(*(torch.cat([before[:, : layer.carried], after.flatten(1)], 1) for before, after in ends))


# Linear relaxations


@relaxation_rule.register
def _(layer: _Fork, box: Interval) -> Affine:
    shape = box.lower.shape[1:]

    def transpose(coefficients: Tensor) -> Tensor:
        return torch.add(*coefficients.chunk(2, -1)).unflatten(-1, shape)

    return Affine(transpose, box.lower.new_zeros(2 * shape.numel()))


@relaxation_rule.register
def _(layer: _Join, box: Interval) -> Affine:
    def transpose(coefficients: Tensor) -> Tensor:
        flat = coefficients.flatten(-len(layer.shape))
        return torch.cat([flat, flat], -1)

    return Affine(transpose, box.lower.new_zeros(layer.shape))


@relaxation_rule.register
def _(layer: _Beside, box: Interval) -> Relaxation:
    inner = apply_rule(relaxation_rule, layer.place, layer.layer, layer.part(box))
    return _affine(layer, inner, box) if isinstance(inner, Affine) else _elementwise(layer, inner, box)


def _affine(layer: _Beside, inner: Affine, box: Interval) -> Affine:
    def transpose(coefficients: Tensor) -> Tensor:
        carried, rest = layer.split(coefficients, layer.out_shape)
        return torch.cat([carried, inner.transpose(rest).flatten(-len(layer.in_shape))], -1)

    offset = inner.offset.expand(layer.out_shape).flatten()
    return Affine(transpose, torch.cat([box.lower.new_zeros(layer.carried), offset]))


def _elementwise(layer: _Beside, inner: LinearRelaxation, box: Interval) -> LinearRelaxation:
    batch = len(box.lower)

    def beside(carried: float, rest: Tensor) -> Tensor:
        data = -len(layer.out_shape)
        full = rest.expand(*rest.shape[: data - 1], batch, *layer.out_shape).flatten(data)
        return torch.cat([full.new_full((*full.shape[:-1], layer.carried), carried), full], -1)

    def function(own: LinearFunction) -> LinearFunction:
        return LinearFunction(beside(1.0, own.slope), beside(0.0, own.offset))

    def bound(
        own: LinearFunction | AlphaRelaxation[LinearFunction],
    ) -> LinearFunction | AlphaRelaxation[LinearFunction]:
        if isinstance(own, LinearFunction):
            return function(own)
        at: Callable[[Tensor], LinearFunction] = own.at
        return AlphaRelaxation(
            function(own.initial),
            beside(0.0, own.alpha),
            lambda share: function(at(layer.split(share, layer.out_shape)[1])),
        )

    return LinearRelaxation(bound(inner.lower), bound(inner.upper), selection=_selection(layer, inner.selection, box))


def _selection(layer: _Beside, inner: Selection | None, box: Interval) -> Selection | None:
    if inner is None:
        return None
    own = torch.arange(layer.carried, device=inner.index.device).expand(len(box.lower), -1)
    sizes = (torch.Size([layer.carried + math.prod(shape)]) for shape in (layer.in_shape, layer.out_shape))
    return Selection(torch.cat([own, layer.carried + inner.index], 1), *sizes)


# Rounding


@rounding_rule.register
def _(layer: _Fork, box: Interval) -> Rounding:
    return Rounding(0, magnitude(interval_rule(layer, box)))


@rounding_rule.register
def _(layer: _Join, box: Interval) -> Rounding:
    return Rounding(1, layer(magnitude(box)))


@rounding_rule.register
def _(layer: _Beside, box: Interval) -> Rounding:
    inner = apply_rule(rounding_rule, layer.place, layer.layer, layer.part(box))
    carried = magnitude(box)[:, : layer.carried]

    def beside(own: Tensor | float, value: Tensor) -> Tensor:
        full = torch.as_tensor(own, dtype=value.dtype, device=value.device).expand(len(value), *layer.out_shape)
        return torch.cat([value, full.flatten(1)], 1)

    nothing = torch.zeros_like(carried)
    return Rounding(inner.count, beside(inner.size, nothing), beside(inner.peak, nothing), beside(inner.jump, nothing))
