"""The rows of affine layers: each output as a linear function of the inputs."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.rules import UnsupportedLayerError, apply_rule, named_layers

ROWS = 128  # units at a time, where rows have to be computed


def affine_rows(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """For each output u of an affine module the r with  module(v)_u - module(0)_u == r . v: some outputs at a time, in
    flat order, [count, *data_shape]; differentiable in the parameters.

    A final linear layer gives its weight, all rows at once; other layers are transposed for `ROWS` outputs at a time.

    Args:
        module: a layer or a `nn.Sequential` of layers whose relaxation rule gives an `Affine`.
        x: [batch, *data_shape]; only its shape, dtype and device count.

    Raises UnsupportedLayerError for a layer that is not affine.
    """
    value = torch.zeros_like(x[:1])
    layers: list[tuple[nn.Module, Affine, torch.Size]] = []
    for place, layer in named_layers(module):
        relaxation = apply_rule(relaxation_rule, place, layer, Interval(value, value))
        if not isinstance(relaxation, Affine):
            raise UnsupportedLayerError(f"{place} is not affine, so it has no rows")
        layers.append((layer, relaxation, value.shape[1:]))
        with torch.no_grad():
            value = layer(value)
    rows = _identity(value)
    if layers and isinstance(last := layers[-1][0], nn.Linear) and value.ndim == 2:
        rows = iter([last.weight])
        layers.pop()
    for part in rows:
        for layer, relaxation, shape in reversed(layers):
            reshapes = isinstance(layer, nn.Flatten | nn.Unflatten | nn.Identity)
            part = part.reshape(-1, *shape) if reshapes else relaxation.transpose(part)
        yield part


def _identity(output: Tensor) -> Iterator[Tensor]:
    """The coefficients that pick each unit of an output [1, *shape], [count, *shape] at a time."""
    shape = output.shape[1:]
    units = math.prod(shape)
    for start in range(0, units, ROWS):
        part = output.new_zeros(min(ROWS, units - start), units)
        part.diagonal(start).fill_(1)
        yield part.view(-1, *shape)
