"""Boxes that hold the numbers which the deployed network computes in floating point, not only those it means.

The certificate is computed in float64 on the same weights. After each step its box is widened by what that step can
round, in the deployed precision and in the certificate's own.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from paperlib import gaussian
from paperlib.boxes import Boxes, same_shape
from paperlib.interval import Interval, LinfBall, apply_rule, interval_rule, layers
from paperlib.lines import Band, Choice, Line, Plane
from paperlib.relaxation import Affine, Relaxation
from paperlib.rounding import Rounding, check_deployed, gamma, magnitude, rounding_rule, unit_roundoff, widen
from paperlib.vae import VAE


@dataclass(frozen=True)
class SoundBoxes:
    """Boxes of the deployed network's values, and how much the rounding of each step has to do with them.

    For every x' of deployed precision in the ball, `elbo(vae, x', noise)` as it is evaluated lies between
    likelihood.lower(known.output, known.target) - kl_upper(known.mean, known.log_var) - value  and the mirror image.
    Each step's value is within its rounding of the exact step at the deployed value before it. All are float64.
    """

    network: VAE  # the deployed weights in float64
    known: Boxes
    encoder: list[Tensor]  # after each layer, of its output's shape
    latent: Tensor  # [batch, latent_dim]
    decoder: list[Tensor]  # after each layer, of its output's shape
    value: Tensor  # [batch], nats: log p, KL and their difference; infinite where any step may overflow


@torch.no_grad()
def sound_boxes(
    vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, target: Literal["perturbed", "clean"]
) -> SoundBoxes:
    """The boxes of the interval certificate, sound for the network as it is evaluated in the precision of its weights.

    Covers any order of summation, with or without fused multiply-add, and every point that `LinfBall.project` returns
    in that precision. Computed in float64, whose own rounding is included.

    Raises:
        ValueError: arithmetic that no bound is known for, see `check_deployed`; x out of range, shapes that do not fit.
        UnsupportedLayerError: a layer without interval rule or rounding rule.
        NotImplementedError: a likelihood without `rounding`.
    """
    check_deployed(vae, x)
    deployed = x.dtype
    network = copy.deepcopy(vae).double()  # modes stay as they are: the rules refuse what is random
    noise = noise.double()

    box = input_box(x, ball)
    encoder, of_encoder = _trace(network.encoder, box, "encoder", deployed)
    mean, log_var = encoder[-1].chunk(2, dim=-1)
    same_shape("the encoder's mean", mean.lower, "noise", noise, x)
    of_latent = gaussian.reparametrize_rounding(mean, log_var, noise).bound(deployed)
    latent = widen(gaussian.reparametrize_bounds(mean, log_var, noise), of_latent)
    decoder, of_decoder = _trace(network.decoder, latent, "decoder", deployed)
    same_shape("the decoder's output", decoder[-1].lower, "target", x, x)

    goal = {"perturbed": box, "clean": Interval(x.double(), x.double())}[target]
    known = Boxes(goal, encoder, mean, log_var, decoder)
    value = _value_rounding(network, known, deployed)
    for rounding in (*of_encoder, of_latent, *of_decoder):
        value = torch.where(rounding.isfinite().flatten(1).all(1), value, torch.inf)
    return SoundBoxes(network, known, of_encoder, of_latent, of_decoder, value)


def input_box(x: Tensor, ball: LinfBall) -> Interval:
    """All numbers of x's precision that x - eps, x + eps and the range mean there, rounded, in float64: [batch, *]."""
    ball.check(x)
    deployed, center = x.dtype, x.double()
    radius = gamma(4, unit_roundoff(deployed)) * (center.abs() + ball.eps)  # eps is rounded, then the difference
    low, high = (torch.tensor(end, dtype=deployed).item() for end in (ball.low, ball.high))
    return Interval(
        (center - ball.eps - radius).clamp(min=min(ball.low, low)),
        (center + ball.eps + radius).clamp(max=max(ball.high, high)),
    )


def _trace(module: nn.Module, box: Interval, name: str, deployed: torch.dtype) -> tuple[list[Interval], list[Tensor]]:
    found, roundings = [box], []
    for place, layer in layers(module, name):
        image = apply_rule(interval_rule, place, layer, found[-1])
        roundings.append(apply_rule(rounding_rule, place, layer, found[-1]).bound(deployed))
        found.append(widen(image, roundings[-1]))
    return found, roundings


def _value_rounding(network: VAE, known: Boxes, deployed: torch.dtype) -> Tensor:
    fit = network.likelihood.rounding(known.output, known.target).bound(deployed)
    kl = gaussian.kl_rounding(known.mean, known.log_var).bound(deployed)
    largest_fit = magnitude(network.likelihood.bounds(known.output, known.target)) + fit
    largest_kl = magnitude(gaussian.kl_bounds(known.mean, known.log_var)) + kl
    return fit + kl + Rounding(1, largest_fit + largest_kl).bound(deployed)  # the ELBO is their difference


# Linear forms, pulled back in float64 through a network whose values are the deployed ones. Each stage takes sums and
# products of numbers that are together no larger than  |form| . size,  so that it rounds by at most UNIT times that.

UNIT = gamma(2**20, unit_roundoff(torch.float64))  # 1e-10: for sums of at most a million terms


@dataclass(frozen=True)
class FormRounding:
    """What rounding takes from a linear form of the ELBO between the networks' stages."""

    latent: Tensor  # [batch, latent_dim], for each unit of a coefficient
    kl: Tensor  # [batch]

    @classmethod
    def of(cls, sound: SoundBoxes, known: Boxes, noise: Tensor, scale: Band) -> "FormRounding":
        mean, log_var = magnitude(known.mean), magnitude(known.log_var)
        latent = sound.latent + UNIT * (mean + noise.abs() * _band_size(scale, log_var))
        below, above = (side(known.mean, known.log_var) for side in (gaussian.kl_below, gaussian.kl_above))
        of_kl = (
            _line_size(line, largest)
            for lines in (below, above)
            for line, largest in zip(lines, (mean, log_var), strict=True)
        )
        return cls(latent, UNIT * torch.stack([*of_kl]).sum((0, 2)))


def form_size(layer: nn.Module, box: Interval, relaxation: Relaxation) -> Tensor:
    """The size of what enters the pulling of a unit coefficient through one layer, [batch, *out_shape]."""
    largest = magnitude(box)
    if isinstance(relaxation, Affine):
        return magnitude(interval_rule(layer, Interval(-largest, largest)))  # |W| largest + |b|
    return _band_size(relaxation, largest)


def plane_size(plane: Plane, known: Boxes) -> Tensor:
    """The same for the planes of a likelihood, [batch, *data_shape]."""
    of_output = plane.output_slope.abs() * magnitude(known.output)
    return of_output + plane.target_slope.abs() * magnitude(known.target) + plane.offset.abs()


def _band_size(band: Band, largest: Tensor) -> Tensor:
    size = torch.zeros_like(largest)
    for bound in (band.lower, band.upper):
        for line in (bound.first, bound.second) if isinstance(bound, Choice) else (bound,):
            size = size + _line_size(line, largest)
    return size


def _line_size(line: Line, largest: Tensor) -> Tensor:
    return line.slope.abs() * largest + line.offset.abs()
