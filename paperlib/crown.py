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
from torch.nn import functional as F

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
from paperlib.rounding import magnitude, widen
from paperlib.sound import UNIT, FormRounding, SoundBoxes, form_size, plane_size
from paperlib.vae import VAE

RATE = 0.25  # of the search for free weights in [0, 1]
ROWS = 64  # units of the encoder at a time


@dataclass(frozen=True)
class Stage:
    """One layer, the box of its input [batch, *shape] and its linear bounds over that box."""

    place: str
    layer: nn.Module
    box: Interval
    relaxation: Relaxation
    rounding: Tensor | None  # of the layer as it is deployed, [batch, *out_shape]; None: real arithmetic
    error: Tensor | None  # what rounding takes from a form for each unit of a coefficient, [batch, *out_shape]


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
    rounding: FormRounding | None  # None: real arithmetic


def relax(vae: VAE, known: Boxes, noise: Tensor, sound: SoundBoxes | None = None) -> Relaxed:
    """Linear bounds over the boxes of interval propagation (CROWN-IBP); with `sound`, for the deployed network."""
    rounding = (None, None) if sound is None else (sound.encoder, sound.decoder)
    encoder = _stages(vae.encoder, "encoder", known.encoder, rounding[0])
    decoder = _stages(vae.decoder, "decoder", known.decoder, rounding[1])
    return _relaxed(vae, known, noise, encoder, decoder, sound)


def _relaxed(
    vae: VAE,
    known: Boxes,
    noise: Tensor,
    encoder: tuple[Stage, ...],
    decoder: tuple[Stage, ...],
    sound: SoundBoxes | None,
) -> Relaxed:
    scale, kl_mean, kl_log_var = gaussian.scale_band(known.log_var), *gaussian.kl_bands(known.mean, known.log_var)
    rounding = None if sound is None else FormRounding.of(sound, known, noise, scale, kl_mean, kl_log_var)
    return Relaxed(vae, known, noise, encoder, decoder, scale, kl_mean, kl_log_var, rounding)


def _stages(module: nn.Module, name: str, found: list[Interval], rounding: list[Tensor] | None) -> tuple[Stage, ...]:
    places = list(layers(module, name))
    roundings: Sequence[Tensor | None] = rounding or [None] * len(places)
    return tuple(
        _stage(place, layer, box, own)
        for (place, layer), box, own in zip(places, found[: len(places)], roundings, strict=True)
    )


def _stage(place: str, layer: nn.Module, box: Interval, rounding: Tensor | None) -> Stage:
    relaxation = apply_rule(relaxation_rule, place, layer, box)
    error = None if rounding is None else rounding + UNIT * form_size(layer, box, relaxation)
    return Stage(place, layer, box, relaxation, rounding, error)


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
    constant = sign * _per_example(plane.offset)
    output_slope, of_target = (slope if sign > 0 else -slope for slope in (plane.output_slope, plane.target_slope))
    latent, constant = _pull_back(relaxed.decoder, output_slope, constant, settle)

    # latent = mean + scale * noise, and the KL adds its own terms in mean and log_var
    from_scale, at_zero = pull(latent * relaxed.noise, relaxed.scale, settle)
    kl_mean, kl_log_var = (settle(b.lower if sign > 0 else b.upper) for b in (relaxed.kl_mean, relaxed.kl_log_var))
    heads = torch.cat([latent + sign * kl_mean.slope, from_scale + sign * kl_log_var.slope], 1)
    constant = constant + _per_example(at_zero + sign * (kl_mean.offset + kl_log_var.offset))

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


# Intermediate bounds. Over the box a quantity is  center + errors . eta  with eta in [-1, 1] shared by all quantities
# of an example: a zonotope. The latents' is found by pulling latent_dim forms back to the input. The decoder's layers
# are forms on the latents and a rest: both composed bound a unit at a small part of the cost of a form of its own.


@torch.no_grad()
def refine(relaxed: Relaxed) -> Relaxed:
    """The same VAE with tighter boxes of everything after the encoder's first activation (CROWN)."""
    known, noise, rounding = relaxed.known, relaxed.noise, relaxed.rounding
    encoder = _refined_encoder(relaxed)
    heads = _zonotope(encoder, known.input, _identity(known.encoder[-1]))
    mean, log_var = _meet(heads.box, known.encoder[-1]).chunk(2, 1)

    # latent = mean + noise * exp(log_var / 2): their errors cancel where they can before a box is taken
    of_scale = strip(gaussian.scale_band(log_var), log_var)
    slope = noise * of_scale.slope
    (mean_center, log_var_center), (mean_errors, log_var_errors) = (t.chunk(2, 1) for t in (heads.center, heads.errors))
    center = mean_center + slope * log_var_center + noise * of_scale.middle
    own = noise.abs() * of_scale.radius
    exact = gaussian.reparametrize_bounds(mean, log_var, noise)
    if rounding is not None:
        of_mean, of_log_var = heads.own.chunk(2, 1)
        mean_size, log_var_size = (magnitude(part) for part in heads.box.chunk(2, 1))
        own = own + of_mean + slope.abs() * of_log_var + rounding.latent
        own = own + UNIT * (mean_size + slope.abs() * log_var_size + (noise * of_scale.middle).abs())
        exact = widen(exact, rounding.latent)
    latents = Zonotope(center, mean_errors + slope.unsqueeze(2) * log_var_errors, own)
    latent = _meet(latents.box, exact)
    decoder, output = _refined_decoder(relaxed, latent, latents)
    known = replace(known, mean=mean, log_var=log_var, decoder=[*(stage.box for stage in decoder), output])
    return replace(_relaxed(relaxed.vae, known, noise, encoder, decoder, None), rounding=rounding)


@dataclass(frozen=True)
class Zonotope:
    """center + errors . eta + own * eta'  with eta [all], shared by all rows, and eta' [rows] in [-1, 1]."""

    center: Tensor  # [batch, rows]
    errors: Tensor  # [batch, rows, all]
    own: Tensor  # [batch, rows]

    @property
    def box(self) -> Interval:
        reach = self.errors.abs().sum(2) + self.own
        return Interval(self.center - reach, self.center + reach)


def _zonotope(stages: Sequence[Stage], box: Interval, forms: Tensor) -> Zonotope:
    """Forms [rows, batch, *shape] on the last stage's output, over a box of the first one's inputs."""
    center = torch.zeros_like(forms.flatten(2)[..., 0])
    own = torch.zeros_like(center)
    errors = []
    for stage in reversed(stages):
        if stage.error is not None:
            own = own + (forms.abs() * stage.error).flatten(2).sum(2)
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
    if any(stage.error is not None for stage in stages):
        own = own + UNIT * (forms.abs() * magnitude(box)).flatten(2).sum(2)
    return Zonotope(center.T, torch.cat(errors, 2).transpose(0, 1), own.T)


def _refined_encoder(relaxed: Relaxed) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    bent = False  # an earlier layer is not affine, so that the interval box is not tight
    start_box = box = relaxed.known.input
    for old in relaxed.encoder:
        stage = _stage(old.place, old.layer, _meet(box, old.box), old.rounding)
        if isinstance(stage.relaxation, Band):
            if bent:
                parts = [_zonotope(stages, start_box, rows).box for rows in _identity(stage.box).split(ROWS)]
                lower, upper = (torch.cat(ends, 1).view_as(old.box.lower) for ends in zip(*parts, strict=True))
                stage = _stage(old.place, old.layer, _meet(stage.box, Interval(lower, upper)), old.rounding)
            bent = True
        stages.append(stage)
        box = _image(stage)
    return tuple(stages)


def _image(stage: Stage) -> Interval:
    image = apply_rule(interval_rule, stage.place, stage.layer, stage.box)
    return image if stage.rounding is None else widen(image, stage.rounding)


def _refined_decoder(relaxed: Relaxed, latent: Interval, latents: Zonotope) -> tuple[tuple[Stage, ...], Interval]:
    """The decoder over refined boxes, and the refined box of its output."""
    stages: list[Stage] = []
    box = latent
    # each layer's output is  forms . (latent - center)  and a rest in its box
    forms, rest = _identity(latent), Interval(latents.center, latents.center)
    errors = torch.cat([latents.errors, torch.diag_embed(latents.own)], 2)
    for old in relaxed.decoder:
        stage = _stage(old.place, old.layer, _meet(box, old.box), old.rounding)
        stages.append(stage)
        box = _image(stage)
        rounded = _rounded(stage, forms, rest, latents)
        if isinstance(stage.relaxation, Affine):
            forms = (stage.layer(forms.flatten(0, 1)) - stage.relaxation.offset).unflatten(0, forms.shape[:2])
            rest = widen(apply_rule(interval_rule, stage.place, stage.layer, rest), rounded)
            box = _meet(box, widen(rest, _reach(forms, errors).view_as(rest.lower)))
        else:
            band = strip(stage.relaxation, stage.box)
            forms = band.slope * forms
            middle = band.slope * rest.center + band.middle
            rest = widen(Interval(middle, middle), band.slope.abs() * rest.radius + band.radius + rounded)
    return tuple(stages), box


def _rounded(stage: Stage, forms: Tensor, rest: Interval, latents: Zonotope) -> Tensor:
    """How far rounding moves a stage's output from  forms . (latent - center) + rest  and its reach: [batch, *]."""
    if stage.rounding is None:
        return torch.zeros(())
    radius = latents.box.radius
    reach = radius.T.reshape(*forms.shape[:2], *[1] * (forms.ndim - 2))  # [latent, batch, 1, ...]
    largest = magnitude(rest) + (forms.abs() * reach).sum(0)
    size = form_size(stage.layer, Interval(-largest, largest), stage.relaxation)
    # the offset of an affine layer is added to each form and taken from it again
    times = 2 * (1 + radius.sum(1)).view(-1, *[1] * (size.ndim - 1))
    return stage.rounding + UNIT * times * size


def _identity(box: Interval) -> Tensor:
    """One form for each unit of the box: [units, batch, *shape]."""
    batch, *shape = box.lower.shape
    units = math.prod(shape)
    eye = torch.eye(units, dtype=box.lower.dtype, device=box.lower.device)
    return eye.view(units, 1, *shape).expand(-1, batch, *shape)


def _reach(forms: Tensor, errors: Tensor) -> Tensor:
    """sum over all errors of |forms . errors|:  [latent, batch, *shape], [batch, latent, all] -> [batch, units]."""
    rows = forms.flatten(2).permute(1, 2, 0)
    found = rows.new_empty(rows.shape[:2])  # at once: small results between large ones would fragment the memory
    for part, own, out in zip(rows, errors, found, strict=True):  # one by one, so that the product stays in the cache
        some = own[:, own.any(0)]  # a unit whose sign is known has no error
        torch.sum((part @ some).abs_(), 1, out=out)
    return found


def _meet(a: Interval, b: Interval) -> Interval:
    return Interval(torch.maximum(a.lower, b.lower), torch.minimum(a.upper, b.upper))
