"""Linear bounds of the scalar ELBO over a box of inputs (CROWN: Zhang et al. 2018, arXiv 1811.00866; CROWN-IBP:
Zhang et al. 2020, arXiv 1906.06316).

    ELBO(x'; noise) = sum over pixels of log p(x'_i | output_i)  -  sum over latents of KL(mean_k, log_var_k)

One linear form is pulled back from the sum over pixels through decoder, reparametrisation and encoder to the input,
where its minimum over the box is known. So pixels and latents are bounded together, not each at its own worst input.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paperlib import gaussian
from paperlib.boxes import Boxes
from paperlib.interval import Interval, apply_rule, interval_rule, layers
from paperlib.relaxation import (
    Affine,
    Band,
    Choice,
    Plane,
    Relaxation,
    Settle,
    pull,
    relaxation_rule,
    start,
    strip,
)
from paperlib.vae import VAE

RATE = 0.25  # of the search for free weights in [0, 1]
CHUNK = 2  # examples at a time in the products of `refine`, small enough for caches
ROWS = 64  # units of the encoder at a time


@dataclass(frozen=True)
class Stage:
    """One layer, the box of its input [batch, *shape] and its linear bounds over that box."""

    layer: nn.Module
    box: Interval
    relaxation: Relaxation


@dataclass(frozen=True)
class Relaxed:
    """A VAE at one noise draw over a box of inputs, with linear bounds of each of its parts."""

    vae: VAE
    known: Boxes
    noise: Tensor  # [batch, latent_dim]
    encoder: tuple[Stage, ...]
    decoder: tuple[Stage, ...]
    scale: Band  # of exp(log_var / 2), [batch, latent_dim]
    kl_mean: Band  # of -mean^2 / 2
    kl_log_var: Band  # of (log_var + 1 - exp(log_var)) / 2


def relax(vae: VAE, known: Boxes, noise: Tensor) -> Relaxed:
    """Linear bounds over the boxes of interval propagation (CROWN-IBP)."""
    encoder = _stages(vae.encoder, known.encoder, "encoder")
    decoder = _stages(vae.decoder, known.decoder, "decoder")
    return _relaxed(vae, known, noise, encoder, decoder)


def _stages(module: nn.Module, found: list[Interval], name: str) -> tuple[Stage, ...]:
    return tuple(
        Stage(layer, box, apply_rule(relaxation_rule, place, layer, box))
        for (place, layer), box in zip(layers(module, name), found, strict=False)
    )


def _relaxed(vae: VAE, known: Boxes, noise: Tensor, encoder: tuple[Stage, ...], decoder: tuple[Stage, ...]) -> Relaxed:
    parts = gaussian.scale_band(known.log_var), *gaussian.kl_bands(known.mean, known.log_var)
    return Relaxed(vae, known, noise, encoder, decoder, *parts)


def lower(relaxed: Relaxed, steps: int = 0) -> Tensor:
    """A lower bound of the ELBO over the box, [batch], in nats; the best that `steps` of a search for it meet."""
    fit = relaxed.vae.likelihood.plane_below(relaxed.known.output, relaxed.known.target)
    return _search(partial(_minimum, relaxed, 1.0, fit), steps)


def upper(relaxed: Relaxed, steps: int = 0) -> Tensor:
    """An upper bound of the ELBO over the box, [batch], in nats; the best that `steps` of a search for it meet."""
    fit = relaxed.vae.likelihood.plane_above(relaxed.known.output, relaxed.known.target)
    return -_search(partial(_minimum, relaxed, -1.0, fit), steps)


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


def _minimum(relaxed: Relaxed, sign: float, fit: Plane | Choice[Plane], settle: Settle) -> Tensor:
    # minimum over the box of  sign * ELBO,  where sign * log p  >=  sign * fit
    known, plane = relaxed.known, settle(fit)
    constant = _per_example(sign * plane.offset)
    latent, constant = _pull_back(relaxed.decoder, sign * plane.output_slope, constant, settle)

    # latent = mean + scale * noise, and the KL adds its own terms in mean and log_var
    unit = torch.full_like(latent, sign)
    from_scale, at_zero = pull(latent * relaxed.noise, relaxed.scale, settle)
    from_mean, more = pull(unit, relaxed.kl_mean, settle)
    from_log_var, most = pull(unit, relaxed.kl_log_var, settle)
    heads = torch.cat([latent + from_mean, from_scale + from_log_var], 1)
    constant = constant + _per_example(at_zero + more + most)

    form, constant = _pull_back(relaxed.encoder, heads, constant, settle)
    of_target = sign * plane.target_slope
    if known.target is known.input:
        form = form + of_target
    else:
        constant = constant + _least(of_target, known.target)
    return constant + _least(form, known.input)


def _pull_back(stages: tuple[Stage, ...], form: Tensor, constant: Tensor, settle: Settle) -> tuple[Tensor, Tensor]:
    for stage in reversed(stages):
        if isinstance(stage.relaxation, Affine):
            constant = constant + _per_example(form * stage.relaxation.offset)
            form = stage.relaxation.transpose(form)
        else:
            form, at_zero = pull(form, stage.relaxation, settle)
            constant = constant + _per_example(at_zero)
    return form, constant


def _least(form: Tensor, box: Interval) -> Tensor:
    return _per_example(form * box.center - form.abs() * box.radius)


def _per_example(terms: Tensor) -> Tensor:
    return terms.flatten(1).sum(1)


# Intermediate bounds. Over the box a quantity is  center + errors . eta  with eta in [-1, 1] shared by all quantities of
# an example: a zonotope. The latents' is found by pulling latent_dim forms back to the input. The decoder's layers are
# forms on the latents and a rest, so that both composed bound a unit at a small part of the cost of a form of its own.


@torch.no_grad()
def refine(relaxed: Relaxed) -> Relaxed:
    """The same VAE with tighter boxes of everything after the encoder's first activation (CROWN)."""
    vae, known, noise = relaxed.vae, relaxed.known, relaxed.noise
    encoder, heads = _refined_encoder(vae, known)
    center, errors = _zonotope(encoder, known.input, heads)
    mean, log_var = _meet(_around(center, errors), known.encoder[-1]).chunk(2, 1)

    # latent = mean + noise * exp(log_var / 2): their errors cancel where they can before a box is taken
    of_scale = strip(gaussian.scale_band(log_var), log_var)
    slope = noise * of_scale.slope
    (mean_center, log_var_center), (mean_errors, log_var_errors) = center.chunk(2, 1), errors.chunk(2, 1)
    center = mean_center + slope * log_var_center + noise * of_scale.middle
    own = torch.diag_embed(noise * of_scale.radius)
    errors = torch.cat([mean_errors + slope.unsqueeze(2) * log_var_errors, own], 2)
    latent = _meet(_around(center, errors), gaussian.reparametrize_bounds(mean, log_var, noise))

    decoder, output = _refined_decoder(vae, latent, center, errors)
    boxes = [stage.box for stage in decoder]
    known = replace(known, mean=mean, log_var=log_var, decoder=[*boxes, output])
    return _relaxed(vae, known, noise, encoder, decoder)


def _refined_encoder(vae: VAE, known: Boxes) -> tuple[tuple[Stage, ...], Tensor]:
    """The encoder over refined boxes, and the identity [features, batch, features] on its output."""
    stages: list[Stage] = []
    bent = False  # an earlier layer is not affine, so that the interval box is not tight
    box = known.input
    for (place, layer), found in zip(layers(vae.encoder, "encoder"), known.encoder, strict=False):
        box = _meet(box, found)
        relaxation = apply_rule(relaxation_rule, place, layer, box)
        if isinstance(relaxation, Band):
            if bent:
                rows = [_around(*_zonotope(stages, known.input, part)) for part in _identity(box).split(ROWS)]
                lower, upper = (torch.cat(ends, 1).view_as(box.lower) for ends in zip(*rows, strict=True))
                box = _meet(box, Interval(lower, upper))
                relaxation = apply_rule(relaxation_rule, place, layer, box)
            bent = True
        stages.append(Stage(layer, box, relaxation))
        box = apply_rule(interval_rule, place, layer, box)
    return tuple(stages), _identity(box)


def _refined_decoder(vae: VAE, latent: Interval, center: Tensor, errors: Tensor) -> tuple[tuple[Stage, ...], Interval]:
    """The decoder over refined boxes, from the latents' zonotope, and the refined box of its output."""
    stages: list[Stage] = []
    box = latent
    # each layer's output is  forms . (latent - center)  and a rest in its box
    forms, rest = _identity(latent), Interval(center, center)
    for place, layer in layers(vae.decoder, "decoder"):
        stage = Stage(layer, box, apply_rule(relaxation_rule, place, layer, box))
        stages.append(stage)
        box = apply_rule(interval_rule, place, layer, box)
        if isinstance(stage.relaxation, Affine):
            forms = (layer(forms.flatten(0, 1)) - stage.relaxation.offset).unflatten(0, forms.shape[:2])
            rest = apply_rule(interval_rule, place, layer, rest)
            reach = _reach(forms, errors).view_as(rest.lower)
            box = _meet(box, Interval(rest.lower - reach, rest.upper + reach))
        else:
            band = strip(stage.relaxation, stage.box)
            forms = band.slope * forms
            middle, radius = band.slope * rest.center + band.middle, band.slope.abs() * rest.radius + band.radius
            rest = Interval(middle - radius, middle + radius)
    return tuple(stages), box


def _zonotope(stages: Sequence[Stage], box: Interval, forms: Tensor) -> tuple[Tensor, Tensor]:
    """Forms [rows, batch, *shape] on the last stage's output: center [batch, rows] and errors [batch, rows, all]."""
    center = torch.zeros_like(forms.flatten(2)[..., 0])
    errors = []
    for stage in reversed(stages):
        if isinstance(stage.relaxation, Affine):
            center = center + (forms * stage.relaxation.offset).flatten(2).sum(2)
            forms = stage.relaxation.transpose(forms)
        else:
            band = strip(stage.relaxation, stage.box)
            center = center + (forms * band.middle).flatten(2).sum(2)
            errors.append((forms * band.radius).flatten(2))
            forms = forms * band.slope
    center = center + (forms * box.center).flatten(2).sum(2)
    errors.append((forms * box.radius).flatten(2))
    return center.T, torch.cat(errors, 2).transpose(0, 1)


def _identity(box: Interval) -> Tensor:
    """One form for each unit of the box: [units, batch, *shape]."""
    batch, *shape = box.lower.shape
    units = math.prod(shape)
    eye = torch.eye(units, dtype=box.lower.dtype, device=box.lower.device)
    return eye.view(units, 1, *shape).expand(-1, batch, *shape)


def _around(center: Tensor, errors: Tensor) -> Interval:
    reach = errors.abs().sum(2)
    return Interval(center - reach, center + reach)


def _reach(forms: Tensor, errors: Tensor) -> Tensor:
    """sum over all errors of |forms . errors|:  [latent, batch, *shape], [batch, latent, all] -> [batch, units]."""
    pairs = zip(forms.flatten(2).permute(1, 2, 0).split(CHUNK), errors.split(CHUNK), strict=True)
    return torch.cat([torch.linalg.vector_norm(rows @ part, 1, 2) for rows, part in pairs])


def _meet(a: Interval, b: Interval) -> Interval:
    return Interval(torch.maximum(a.lower, b.lower), torch.minimum(a.upper, b.upper))
