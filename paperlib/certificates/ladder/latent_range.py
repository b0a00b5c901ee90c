"""The largest cost of a decoder's outputs over a box of latents: by intervals, by linear bounds, and exactly, by branch
and bound, for at most three latents. `semidefinite` has one more bound between the second and the third.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule, propagate, propagate_all
from paperlib.bounds.linear import LinearRelaxation, concretize, initial_alpha
from paperlib.bounds.rules import apply_rule, named_layers
from paperlib.certificates.backward import backward_pass
from paperlib.certificates.ladder.output_cost import OutputCost
from paperlib.certificates.relaxed_layer import RelaxedLayer, relaxed_layers
from paperlib.certificates.splitting import minimum
from paperlib.models.likelihood import sum_per_example

LATENTS = 3  # at most, for the exact range: the number of subproblems grows exponentially with them


@dataclass(frozen=True)
class RelaxedDecoder:
    """A decoder over boxes of latents: its layers with their boxes and relaxations, and the box of its outputs."""

    latent: Interval  # [batch, latent]
    layers: tuple[RelaxedLayer, ...]
    output: Interval  # [batch, *data_shape]

    @classmethod
    def by_intervals(cls, decoder: nn.Module, latent: Interval) -> Self:
        """Relaxed over the boxes of interval propagation."""
        *boxes, output = propagate_all(decoder, latent, "decoder")
        return cls(latent, relaxed_layers(decoder, "decoder", boxes, None), output)

    @classmethod
    def by_linear_bounds(cls, decoder: nn.Module, latent: Interval) -> Self:
        """Relaxed over boxes of which each is from linear bounds through the layers before it (CROWN), for one box of
        latents, [1, latent].
        """
        layers: list[RelaxedLayer] = []
        box, curved = latent, False
        for place, layer in named_layers(decoder, "decoder"):
            relaxed = RelaxedLayer.of(place, layer, box, None)
            if isinstance(relaxed.relaxation, LinearRelaxation):
                if curved:
                    relaxed = RelaxedLayer.of(place, layer, _tightened(layers, latent, box), None)
                curved = True
            layers.append(relaxed)
            box = apply_rule(interval_rule, place, layer, relaxed.box)
        return cls(latent, tuple(layers), _tightened(layers, latent, box))

    def upper(self, cost: OutputCost) -> Tensor:
        """Above the cost of every output, [batch]: from the box of outputs alone, or by the cost's chords, substituted
        backward to the latents.
        """
        chord = cost.quadratic(self.output).chord(self.output)
        coefficients, constant = backward_pass(self.layers, -chord.slope, -sum_per_example(chord.offset), initial_alpha)
        return torch.fmin(cost.upper(self.output), -concretize(coefficients, self.latent) - constant)


def check_latents(decoder: nn.Module, latent: Interval, cost: OutputCost) -> None:
    """Raises ValueError for a box that is not finite, and for images of another shape than that of the outputs."""
    if not all(end.isfinite().all() for end in latent):
        raise ValueError("the box of latents must be finite at both ends")
    shape = decoder(latent.center).shape
    if cost.x.shape != shape:
        raise ValueError(
            f"the images must be {list(shape)}, like the decoder's outputs for these latents; got {list(cost.x.shape)}"
        )


def each_box(latent: Interval) -> Iterator[tuple[Tensor, Interval]]:
    """Each of the boxes [batch, latent] by itself, [1, latent], with the number of its row, [1]."""
    for row in torch.arange(len(latent.lower), device=latent.lower.device).split(1):
        yield row, Interval(latent.lower[row], latent.upper[row])


def _tightened(layers: list[RelaxedLayer], latent: Interval, box: Interval) -> Interval:
    """The box of what the layers give, at least as tight as `box`, [1, *shape]."""
    units = math.prod(box.lower.shape[1:])
    rows = torch.eye(units, dtype=box.lower.dtype, device=box.lower.device).view(units, *box.lower.shape[1:])
    # the rows take the place of the batch, whose one box of latents all of them share
    ends = []
    for sign in (1.0, -1.0):
        coefficients, constant = backward_pass(tuple(layers), sign * rows, rows.new_zeros(units), initial_alpha)
        ends.append(sign * (concretize(coefficients.unsqueeze(1), latent).squeeze(1) + constant))
    return box.intersect(Interval(*(end.view_as(box.lower) for end in ends)))


@torch.no_grad()
def interval_upper(decoder: nn.Module, latent: Interval, cost: OutputCost) -> Tensor:
    """Above the cost of every output that latents of the box have, [batch], in real arithmetic: by intervals.

    Args:
        decoder: latents [batch, latent] -> outputs [batch, *data_shape], in evaluation mode.
        latent: [batch, latent].

    Raises:
        UnsupportedLayerError: a layer without an interval rule.
        ValueError: a box that is not finite, or images of another shape than that of the outputs.
    """
    check_latents(decoder, latent, cost)
    return cost.upper(propagate(decoder, latent, "decoder"))


@torch.no_grad()
def linear_upper(decoder: nn.Module, latent: Interval, cost: OutputCost) -> Tensor:
    """The same by linear bounds of each layer and of the cost (CROWN: Zhang et al. 2018, arXiv 1811.00866), [batch].

    Arguments and errors as for `interval_upper`.
    """
    check_latents(decoder, latent, cost)
    boxes = each_box(latent)
    return torch.cat([RelaxedDecoder.by_linear_bounds(decoder, box).upper(cost.of(row)) for row, box in boxes])


@torch.no_grad()
def exact_upper(decoder: nn.Module, latent: Interval, cost: OutputCost, tol: float) -> Tensor:
    """Never below the largest cost over the box [batch, latent], and at most `tol` above it, [batch].

    Arguments and errors as for `interval_upper`, and ToleranceError where the bounds do not meet within `tol`;
    ValueError for more than three latents, too, and for a `tol` that is not positive.
    """
    check_latents(decoder, latent, cost)
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    latents = latent.lower.shape[1]
    if latents > LATENTS:
        raise ValueError(f"branch and bound is for at most {LATENTS} latents, got {latents}: use another bound")

    def value(z: Tensor, example: Tensor) -> Tensor:
        return -cost.of(example).value(decoder(z))

    def below(part: Interval, example: Tensor) -> Tensor:
        return -RelaxedDecoder.by_intervals(decoder, part).upper(cost.of(example))

    return -minimum(value, below, latent, tol)
