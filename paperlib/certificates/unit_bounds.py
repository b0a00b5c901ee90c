"""Bounds of single units by a backward pass of their own for each end, the whole way to the input (CROWN: Zhang et al.
2018, arXiv 1811.00866), with an alpha of their own for every unit (alpha-CROWN: Xu et al. 2021, arXiv 2011.13824).

The passes of a unit depend on the boxes of the layers before it alone, and on no other unit of its layer. So its alphas
can be optimised for the unit itself, and whatever bounds it better bounds all that follows better.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import AlphaSelector, LinearRelaxation, backward_substitute, initial_alpha
from paperlib.bounds.relaxation import Relaxation
from paperlib.bounds.rounding import magnitude
from paperlib.certificates.alpha import optimize_alpha
from paperlib.certificates.backward import RelaxedVAE, backward_pass
from paperlib.certificates.backward_rounding import ACCUMULATION_ERROR, PosteriorRounding, cancellation
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.threats.perturbation import Region

ROWS = 64  # units that are bounded at a time


@dataclass(frozen=True)
class EncoderPass:
    """Backward substitution from the last of some layers of the encoder to a region of inputs."""

    layers: Sequence[RelaxedLayer]
    region: Region

    @property
    def rounded(self) -> bool:
        """Whether the passes have terms for rounding."""
        return any(layer.error is not None for layer in self.layers)

    def __call__(self, coefficients: Tensor, select_alpha: AlphaSelector) -> Tensor:
        """A lower bound of  coefficients . units  over the region, [rows, batch].

        Args:
            coefficients: [rows, batch, *shape].
        """
        return self.from_posterior(coefficients, coefficients.new_zeros(coefficients.shape[:2]), select_alpha)

    def from_posterior(self, coefficients: Tensor, constant: Tensor, select_alpha: AlphaSelector) -> Tensor:
        coefficients, constant = backward_pass(self.layers, coefficients, constant, select_alpha)
        lower = constant + self.region.concretize(coefficients)
        if self.rounded:
            size = (coefficients.abs() * magnitude(self.region.box)).flatten(2).sum(2)
            return lower - ACCUMULATION_ERROR * size
        return lower - cancellation(coefficients, self.region.box)


@dataclass(frozen=True)
class DecoderPass:
    """The same from the last of some layers of the decoder, through the reparametrisation and the whole encoder."""

    layers: Sequence[RelaxedLayer]
    scale: LinearRelaxation  # of exp(log_var / 2), [batch, latent_dim]
    noise: Tensor  # [batch, latent_dim]
    rounding: PosteriorRounding | None  # None: real arithmetic
    encoder: EncoderPass

    @property
    def rounded(self) -> bool:
        return self.rounding is not None

    def __call__(self, coefficients: Tensor, select_alpha: AlphaSelector) -> Tensor:
        constant = coefficients.new_zeros(coefficients.shape[:2])
        of_mean, constant = backward_pass(self.layers, coefficients, constant, select_alpha)
        if self.rounding is not None:
            constant = constant - (of_mean.abs() * self.rounding.latent).sum(2)
        of_log_var, offset = backward_substitute(of_mean * self.noise, self.scale, select_alpha)
        posterior = torch.cat([of_mean, of_log_var], 2)
        return self.encoder.from_posterior(posterior, constant + offset.sum(2), select_alpha)


def has_unit_passes(relaxed: RelaxedVAE) -> bool:
    """Whether units may get backward passes of their own: where a half of the VAE has several nonlinear layers.
    Behind a single one the zonotope of the latents does almost as much, at a part of the cost.
    """
    halves = relaxed.encoder, relaxed.decoder
    return any(sum(isinstance(layer.relaxation, LinearRelaxation) for layer in half) > 1 for half in halves)


def bound_units(
    box: Interval,
    backward: EncoderPass | DecoderPass,
    alpha_steps: int,
    examples: Tensor,
    relaxation: Relaxation | None = None,
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
    lower, upper = torch.full_like(low, -torch.inf), torch.full_like(high, torch.inf)
    for units, picked in own_units(wanted):
        rows = picked.to(low).view(-1, *box.lower.shape)
        ends = optimize_alpha(partial(backward, torch.cat([rows, -rows])), alpha_steps)
        first, second = ends.chunk(2)
        lower, upper = lower.scatter(1, units, first.T), upper.scatter(1, units, -second.T)
    if not backward.rounded:
        lost = 64 * torch.finfo(low.dtype).eps * (1 + torch.maximum(low.abs(), high.abs()))
        lower, upper = lower - lost, upper + lost
    tighter = Interval(lower.where(wanted, low), upper.where(wanted, high))
    return box.intersect(tighter.map(lambda end: end.view_as(box.lower)))


def own_units(wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The wanted units [batch, units] of each example, up to ROWS at a time.

    Yields:
        their numbers [batch, some], and 0 and 1 in rows that pick them, [some, batch, units]. Examples with fewer units
        get some that are not wanted.
    """
    count = int(wanted.sum(1).max())
    if count == 0:
        return
    for units in wanted.byte().argsort(dim=1, descending=True, stable=True)[:, :count].split(ROWS, 1):
        rows = wanted.new_zeros(units.shape[1], *wanted.shape)
        yield units, rows.scatter_(2, units.T.unsqueeze(2), True)


def bends(relaxation: LinearRelaxation, box: Interval) -> Tensor:
    """Whether a unit's relaxation over its box is more than rounding away from one straight line, [batch, units]."""
    if relaxation.selection is not None:  # that of a maximum, whose lines are not those of its units
        return torch.ones_like(box.lower, dtype=torch.bool).flatten(1)
    lower, upper = initial_alpha(relaxation.lower), initial_alpha(relaxation.upper)
    slope, offset = upper.slope - lower.slope, upper.offset - lower.offset
    room = torch.maximum(*(slope * end + offset for end in box))
    return (room > 64 * torch.finfo(room.dtype).eps * (1 + magnitude(box))).flatten(1)
