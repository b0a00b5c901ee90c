"""A layer of a network relaxed over the box of its inputs: what backward substitution passes through."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.relaxation import Relaxation, relaxation_rule
from paperlib.bounds.rounding import rounding_rule
from paperlib.bounds.rules import apply_rule, named_layers
from paperlib.certificates.backward_rounding import ACCUMULATION_ERROR, layer_size


@dataclass(frozen=True)
class RelaxedLayer:
    """One layer, the box of its input [batch, *shape] and its linear relaxation over that box."""

    place: str
    layer: nn.Module
    box: Interval
    relaxation: Relaxation
    rounding: Tensor | None  # of the layer as it is deployed, [batch, *out_shape]; None: real arithmetic
    error: Tensor | None  # what rounding takes from a bound for each unit of a coefficient, [batch, *out_shape]

    @classmethod
    def of(
        cls, place: str, layer: nn.Module, box: Interval, deployed: torch.dtype | None, rounding: Tensor | None = None
    ) -> Self:
        """The layer relaxed over its box; with `deployed`, as it is evaluated in that precision.

        Args:
            rounding: that of the layer over this box, where it was computed before.
        """
        relaxation = apply_rule(relaxation_rule, place, layer, box)
        if deployed is None:
            return cls(place, layer, box, relaxation, None, None)
        if rounding is None:
            rounding = apply_rule(rounding_rule, place, layer, box).bound(deployed)
        error = rounding + ACCUMULATION_ERROR * layer_size(layer, box, relaxation)
        return cls(place, layer, box, relaxation, rounding, error)

    @property
    def image(self) -> Interval:
        """The box of the layer's output, as the interval rule gives it."""
        image = apply_rule(interval_rule, self.place, self.layer, self.box)
        return image if self.rounding is None else image.widen(self.rounding)


def relaxed_layers(
    module: nn.Module,
    name: str,
    boxes: list[Interval],
    deployed: torch.dtype | None,
    roundings: Sequence[Tensor] | None = None,
) -> tuple[RelaxedLayer, ...]:
    """Each layer of a module over its box; arguments as for `RelaxedLayer.of`, `roundings` of all layers."""
    layers = list(named_layers(module, name))
    each = [None] * len(layers) if roundings is None else roundings
    return tuple(
        RelaxedLayer.of(place, layer, box, deployed, rounding)
        for (place, layer), box, rounding in zip(layers, boxes[: len(layers)], each, strict=True)
    )
