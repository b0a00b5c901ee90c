"""Linear bounds of the scalar ELBO over a box of inputs (CROWN: Zhang et al. 2018, arXiv 1811.00866; CROWN-IBP:
Zhang et al. 2020, arXiv 1906.06316).

    ELBO(x'; noise) = sum over pixels of log p(x'_i | output_i)  -  sum over latents of KL(mean_k, log_var_k)

One linear form is pulled back from the sum over pixels through decoder, reparametrisation and encoder to the input,
where its minimum over the box is known. So pixels and latents are bounded together, not each at its own worst input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib import gaussian
from paperlib.boxes import Boxes
from paperlib.interval import Interval, apply_rule, layers
from paperlib.lines import Band, Choice, Line, Plane, Settle, pull, start
from paperlib.relaxation import Affine, Relaxation, relaxation_rule
from paperlib.rounding import magnitude
from paperlib.sound import UNIT, FormRounding, SoundBoxes, form_size, plane_size
from paperlib.vae import VAE

RATE = 0.25  # of the search for free weights in [0, 1]


@dataclass(frozen=True)
class Stage:
    """One layer, the box of its input [batch, *shape] and its linear bounds over that box."""

    place: str
    layer: nn.Module
    box: Interval
    relaxation: Relaxation
    rounding: Tensor | None  # of the layer as it is deployed, [batch, *out_shape]; None: real arithmetic
    error: Tensor | None  # what rounding takes from a form for each unit of a coefficient, [batch, *out_shape]

    @classmethod
    def of(cls, place: str, layer: nn.Module, box: Interval, rounding: Tensor | None) -> "Stage":
        """The layer's linear bounds over its box; with `rounding`, for the layer as it is deployed."""
        relaxation = apply_rule(relaxation_rule, place, layer, box)
        error = None if rounding is None else rounding + UNIT * form_size(layer, box, relaxation)
        return cls(place, layer, box, relaxation, rounding, error)


@dataclass(frozen=True)
class Relaxed:
    """A VAE at one noise draw over a box of inputs, with linear bounds of each of its parts."""

    vae: VAE
    known: Boxes
    noise: Tensor  # [batch, latent_dim]
    encoder: tuple[Stage, ...]
    decoder: tuple[Stage, ...]
    scale: Band  # of exp(log_var / 2), [batch, latent_dim]
    rounding: FormRounding | None  # None: real arithmetic


def relax(vae: VAE, known: Boxes, noise: Tensor, sound: SoundBoxes | None = None) -> Relaxed:
    """Linear bounds over the boxes of interval propagation (CROWN-IBP); with `sound`, for the deployed network."""
    scale = gaussian.scale_band(known.log_var)
    encoder = _stages(vae.encoder, "encoder", known.encoder, None if sound is None else sound.encoder)
    decoder = _stages(vae.decoder, "decoder", known.decoder, None if sound is None else sound.decoder)
    rounding = None if sound is None else FormRounding.of(sound, known, noise, scale)
    return Relaxed(vae, known, noise, encoder, decoder, scale, rounding)


def _stages(module: nn.Module, name: str, found: list[Interval], rounding: list[Tensor] | None) -> tuple[Stage, ...]:
    places = list(layers(module, name))
    roundings: Sequence[Tensor | None] = rounding or [None] * len(places)
    return tuple(
        Stage.of(place, layer, box, own)
        for (place, layer), box, own in zip(places, found[: len(places)], roundings, strict=True)
    )


def lower(relaxed: Relaxed, steps: int = 0) -> Tensor:
    """A lower bound of the ELBO over the box, [batch], in nats; the best that `steps` of a search for it meet."""
    known = relaxed.known
    fit = relaxed.vae.likelihood.plane_below(known.output, known.target)
    return _search(partial(_minimum, relaxed, 1.0, fit, gaussian.kl_below(known.mean, known.log_var)), steps)


def upper(relaxed: Relaxed, steps: int = 0) -> Tensor:
    """An upper bound of the ELBO over the box, [batch], in nats; the best that `steps` of a search for it meet."""
    known = relaxed.known
    fit = relaxed.vae.likelihood.plane_above(known.output, known.target)
    return -_search(partial(_minimum, relaxed, -1.0, fit, gaussian.kl_above(known.mean, known.log_var)), steps)


def _search(minimum: Callable[[Settle], Tensor], steps: int) -> Tensor:
    # Every mixture of free choices is a bound, so that the search may end anywhere (Xu et al. 2021, arXiv 2011.13824).
    if steps == 0:
        return minimum(start)
    weights: dict[int, Tensor] = {}

    def collect(bound: Any) -> Any:
        if isinstance(bound, Choice):
            weights[id(bound)] = bound.weight.detach().clone().requires_grad_()
        return start(bound)

    def mix(bound: Any) -> Any:
        return bound.at(weights[id(bound)]) if isinstance(bound, Choice) else bound

    best = minimum(collect).detach()
    free = list(weights.values())
    if not free:
        return best
    optimizer = torch.optim.Adam(free, lr=RATE, betas=(0.9, 0.99), maximize=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        with torch.enable_grad():
            value = minimum(mix)
            gradients = torch.autograd.grad(value.sum(), free)
        best = torch.maximum(best, value.detach())
        for weight, gradient in zip(free, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        with torch.no_grad():
            for weight in free:
                weight.clamp_(0, 1)
    with torch.no_grad():
        return torch.maximum(best, minimum(mix))


def _minimum(
    relaxed: Relaxed, sign: float, fit: Plane | Choice[Plane], kl: tuple[Line, Line], settle: Settle
) -> Tensor:
    # minimum over the box of  sign * ELBO,  where  sign * log p >= sign * fit  and  -sign * KL >= sign * sum of kl
    known, plane = relaxed.known, settle(fit)
    constant = sign * _per_example(plane.offset)
    output_slope, of_target = (slope if sign > 0 else -slope for slope in (plane.output_slope, plane.target_slope))
    latent, constant = _pull_back(relaxed.decoder, output_slope, constant, settle)

    # latent = mean + scale * noise, and the KL adds its own terms in mean and log_var
    from_scale, at_zero = pull(latent * relaxed.noise, relaxed.scale, settle)
    of_mean, of_log_var = kl
    heads = torch.cat([latent + sign * of_mean.slope, from_scale + sign * of_log_var.slope], 1)
    constant = constant + _per_example(at_zero + sign * (of_mean.offset + of_log_var.offset))

    form, constant = _pull_back(relaxed.encoder, heads, constant, settle)
    if relaxed.rounding is not None:
        constant = constant - _per_example(latent.abs() * relaxed.rounding.latent) - relaxed.rounding.kl
        constant = constant - UNIT * _per_example(plane_size(plane, known) + (form.abs() * magnitude(known.input)))
    if known.target is known.input:
        form = form + of_target
    else:
        constant = constant + _least(of_target, known.target)
    return constant + _least(form, known.input)


def _pull_back(stages: tuple[Stage, ...], form: Tensor, constant: Tensor, settle: Settle) -> tuple[Tensor, Tensor]:
    for stage in reversed(stages):
        if stage.error is not None:
            constant = constant - _per_example(form.abs() * stage.error)
        if isinstance(stage.relaxation, Affine):
            constant = constant + form.flatten(1) @ stage.relaxation.offset.flatten()
            form = stage.relaxation.transpose(form)
        else:
            form, at_zero = pull(form, stage.relaxation, settle)
            constant = constant + _per_example(at_zero)
    return form, constant


def _least(form: Tensor, box: Interval) -> Tensor:
    # form * upper, and where the form is positive form * lower
    return _per_example(torch.addcmul(form * box.upper, F.relu(form), box.lower - box.upper))


def _per_example(terms: Tensor) -> Tensor:
    return terms.flatten(1).sum(1)
