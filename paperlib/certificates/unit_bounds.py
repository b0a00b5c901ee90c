"""Bounds of single units by a backward pass of their own for each end, the whole way to the input (CROWN: Zhang et al.
2018, arXiv 1811.00866), with an alpha of their own for every unit (alpha-CROWN: Xu et al. 2021, arXiv 2011.13824).

The passes of a unit depend on the boxes of the layers before it alone, and on no other unit of its layer. So its alphas
can be optimised for the unit itself, and whatever bounds it better bounds all that follows better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import AlphaSelector, LinearRelaxation, backward_substitute, initial_alpha
from paperlib.bounds.relaxation import Affine, Relaxation
from paperlib.bounds.rounding import magnitude
from paperlib.certificates import posterior_bounds
from paperlib.certificates.alpha import optimize_alpha
from paperlib.certificates.backward import RelaxedVAE, backward_pass
from paperlib.certificates.backward_rounding import ACCUMULATION_ERROR, PosteriorRounding, cancellation
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.threats.perturbation import Region

# Of the largest tensor of the passes at a time. A CPU's allocator gives the memory of larger ones back to the system
# each time, and asking for it again costs more than the passes themselves.
BYTES = 1 << 21
BYTES_ON_GPU = 1 << 24


@dataclass(frozen=True)
class EncoderPass:
    """Backward substitution from the last of some layers of the encoder to a region of inputs."""

    layers: tuple[RelaxedLayer, ...]
    region: Region
    rounded: bool  # whether the passes have terms for rounding

    @property
    def is_tighter_than_intervals(self) -> bool:
        """Whether a pass can be: intervals lose nothing in affine layers alone."""
        return any(isinstance(layer.relaxation, LinearRelaxation) for layer in self.layers)

    @property
    def width(self) -> int:
        """Numbers of an example on the way, at most."""
        return max(box.lower[0].numel() for box in (self.region.box, *(layer.box for layer in self.layers)))

    def __call__(self, coefficients: Tensor, constant: Tensor, select_alpha: AlphaSelector) -> Tensor:
        """A lower bound of  coefficients . units + constant  over the region, [rows, batch].

        Args:
            coefficients: [rows, batch, *shape].
            constant: [rows, batch].
        """
        coefficients, constant = backward_pass(self.layers, coefficients, constant, select_alpha)
        lower = constant + self.region.concretize(coefficients)
        if self.rounded:
            size = (coefficients.abs() * magnitude(self.region.box)).flatten(2).sum(2)
            return lower - ACCUMULATION_ERROR * size
        return lower - cancellation(coefficients, self.region.box)


@dataclass(frozen=True)
class DecoderPass:
    """The same from the last of some layers of the decoder, through the reparametrisation and the whole encoder."""

    layers: tuple[RelaxedLayer, ...]
    scale: LinearRelaxation  # of exp(log_var / 2), [batch, latent_dim]
    noise: Tensor  # [batch, latent_dim]
    rounding: PosteriorRounding | None  # None: real arithmetic
    encoder: EncoderPass

    @property
    def rounded(self) -> bool:
        return self.rounding is not None

    @property
    def is_tighter_than_intervals(self) -> bool:
        return True

    @property
    def width(self) -> int:
        return max([self.encoder.width, *(layer.box.lower[0].numel() for layer in self.layers)])

    def __call__(self, coefficients: Tensor, constant: Tensor, select_alpha: AlphaSelector) -> Tensor:
        of_mean, constant = backward_pass(self.layers, coefficients, constant, select_alpha)
        if self.rounding is not None:
            constant = constant - (of_mean.abs() * self.rounding.latent).sum(2)
        of_log_var, offset = backward_substitute(of_mean * self.noise, self.scale, select_alpha)
        return self.encoder(torch.cat([of_mean, of_log_var], 2), constant + offset.sum(2), select_alpha)


Pass = TypeVar("Pass", EncoderPass, DecoderPass)


def has_unit_passes(relaxed: RelaxedVAE) -> bool:
    """Whether units may get backward passes of their own: where a half of the VAE has several nonlinear layers.
    Behind a single one the zonotope of the latents does almost as much, at a part of the cost.
    """
    halves = relaxed.encoder, relaxed.decoder
    return any(sum(isinstance(layer.relaxation, LinearRelaxation) for layer in half) > 1 for half in halves)


@torch.no_grad()
def refine_by_unit(relaxed: RelaxedVAE, alpha_steps: int, examples: Tensor) -> RelaxedVAE:
    """The same VAE relaxed over boxes that passes of single units have tightened, from the encoder's second activation
    to the output.

    Args:
        alpha_steps: of the optimisation of each unit's alphas, for each end.
        examples: whose boxes are tightened, [batch]; those of the others stay.
    """
    bounds, deployed = relaxed.bounds, relaxed.deployed
    tighten = partial(_tighten, deployed=deployed, alpha_steps=alpha_steps, examples=examples)
    encoder, box = tighten(relaxed.encoder, bounds.input, EncoderPass((), bounds.region, deployed is not None))
    before = Interval(*(torch.cat(ends, 1) for ends in zip(bounds.mean, bounds.log_var, strict=True)))
    posterior = bound_units(box.intersect(before), encoder, alpha_steps, examples)
    refined = replace(relaxed.over(*posterior.chunk(2, 1)), encoder=encoder.layers)
    latent = posterior_bounds.reparametrize_bounds(refined.bounds.mean, refined.bounds.log_var, refined.noise)
    if refined.rounding is not None:
        latent = latent.widen(refined.rounding.latent)
    to_latents = DecoderPass((), refined.scale, refined.noise, refined.rounding, encoder)
    decoder, box = tighten(relaxed.decoder, latent, to_latents)
    output = bound_units(box.intersect(bounds.output), decoder, alpha_steps, examples)
    boxes = [*(layer.box for layer in decoder.layers), output]
    return replace(refined, bounds=replace(refined.bounds, decoder=boxes), decoder=decoder.layers)


def _tighten(
    half: Sequence[RelaxedLayer],
    box: Interval,
    backward: Pass,
    deployed: torch.dtype | None,
    alpha_steps: int,
    examples: Tensor,
) -> tuple[Pass, Interval]:
    """The pass through all layers of a half, relaxed over boxes that passes through the layers before have tightened,
    and the box of its output.

    Args:
        box: of the first one's inputs.
        backward: through none of them.
    """
    for old in half:
        box = box.intersect(old.box)
        layer = RelaxedLayer.of(old.place, old.layer, box, deployed)
        if isinstance(layer.relaxation, LinearRelaxation):
            box = bound_units(box, backward, alpha_steps, examples, layer.relaxation)
            layer = RelaxedLayer.of(old.place, old.layer, box, deployed)
        backward = replace(backward, layers=(*backward.layers, layer))
        box = layer.image
    return backward, box


def bound_units(
    box: Interval, backward: Pass, alpha_steps: int, examples: Tensor, relaxation: Relaxation | None = None
) -> Interval:
    """The box [batch, *shape], tightened by backward passes from the units that it bounds.

    Args:
        alpha_steps: of the optimisation of each unit's alphas, for each end.
        examples: whose units are bounded, [batch]; those of the others stay.
        relaxation: of the layer that takes these units over their box. One over which it is straight is tight enough.
    """
    low, high = box.map(partial(torch.flatten, start_dim=1))
    wanted = examples.unsqueeze(1).expand_as(low)
    if isinstance(relaxation, LinearRelaxation):
        wanted = wanted & bends(relaxation, box)
    if not (backward.is_tighter_than_intervals and wanted.any()):
        return box
    lower, upper = torch.full_like(low, -torch.inf), torch.full_like(high, torch.inf)
    affine, before = _affine_end(backward.layers)
    of_inputs = replace(backward, layers=before)
    count = int(wanted.sum(1).max())  # of the examples, those with fewer get some that are not wanted
    numbers = wanted.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
    bytes_of_unit = 2 * len(low) * backward.width * low.element_size()
    for units in numbers.split(max(1, (BYTES_ON_GPU if low.is_cuda else BYTES) // bytes_of_unit), 1):
        ends = optimize_alpha(partial(of_inputs, *_rows_of(affine, units, box.lower)), alpha_steps)
        first, second = ends.chunk(2)
        lower, upper = lower.scatter(1, units, first.T), upper.scatter(1, units, -second.T)
    if not backward.rounded:
        lost = 64 * torch.finfo(low.dtype).eps * (1 + torch.maximum(low.abs(), high.abs()))
        lower, upper = lower - lost, upper + lost
    tighter = Interval(lower.where(wanted, low), upper.where(wanted, high))
    return box.intersect(tighter.map(lambda end: end.view_as(box.lower)))


def _affine_end(layers: tuple[RelaxedLayer, ...]) -> tuple[tuple[RelaxedLayer, ...], tuple[RelaxedLayer, ...]]:
    """The affine layers at the end, and those before them."""
    count = len(layers)
    while count and isinstance(layers[count - 1].relaxation, Affine):
        count -= 1
    return layers[count:], layers[:count]


def _rows_of(affine: Sequence[RelaxedLayer], units: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of affine layers, and their negatives, as linear functions of the input of these layers: coefficients
    [2 * some, batch, *in_shape] and constant [2 * some, batch]. The coefficients of a unit are alike in all examples,
    and computed once.

    Args:
        units: numbers of outputs in flat order, [batch, some].
        like: a tensor of outputs, [batch, *shape].
    """
    numbers, places = units.T.unique(return_inverse=True)
    rows = like.new_zeros(len(numbers), like[0].numel())
    rows = rows.scatter_(1, numbers.unsqueeze(1), 1).view(-1, 1, *like.shape[1:])
    rows = torch.cat([rows, -rows])
    coefficients, constant = backward_pass(affine, rows, rows.new_zeros(len(rows), 1), initial_alpha)
    places = torch.cat([places, places + len(numbers)])
    examples = torch.arange(len(units), device=units.device)
    return coefficients[places, 0], constant.expand(-1, len(units))[places, examples]


def bends(relaxation: LinearRelaxation, box: Interval) -> Tensor:
    """Whether a unit's relaxation over its box is more than rounding away from one straight line, [batch, units]."""
    if relaxation.selection is not None:  # that of a maximum, whose lines are not those of its units
        return torch.ones_like(box.lower, dtype=torch.bool).flatten(1)
    lower, upper = initial_alpha(relaxation.lower), initial_alpha(relaxation.upper)
    slope, offset = upper.slope - lower.slope, upper.offset - lower.offset
    room = torch.maximum(*(slope * end + offset for end in box))
    return (room > 64 * torch.finfo(room.dtype).eps * (1 + magnitude(box))).flatten(1)
