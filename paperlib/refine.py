"""Tighter boxes of everything after the encoder's first activation, by linear bounds of each quantity (CROWN: Zhang et
al. 2018, arXiv 1811.00866) through the latent bottleneck.

Over the box of inputs a quantity is  center + errors . eta  with eta in [-1, 1] shared by all quantities of an example:
a zonotope. The latents' is found by pulling latent_dim forms back to the input. The decoder's layers are forms on the
latents and a rest: both composed bound a unit at a small part of the cost of a form of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paperlib import gaussian
from paperlib.crown import Relaxed, Stage
from paperlib.interval import Interval, apply_rule, interval_rule
from paperlib.lines import Band, strip
from paperlib.relaxation import Affine
from paperlib.rounding import magnitude, widen
from paperlib.sound import UNIT, form_size

ROWS = 64  # units of the encoder at a time


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
    return replace(relaxed, known=known, encoder=encoder, decoder=decoder, scale=gaussian.scale_band(log_var))


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
        stage = Stage.of(old.place, old.layer, _meet(box, old.box), old.rounding)
        if isinstance(stage.relaxation, Band):
            if bent:
                parts = [_zonotope(stages, start_box, rows).box for rows in _identity(stage.box).split(ROWS)]
                lower, upper = (torch.cat(ends, 1).view_as(old.box.lower) for ends in zip(*parts, strict=True))
                stage = Stage.of(old.place, old.layer, _meet(stage.box, Interval(lower, upper)), old.rounding)
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
        stage = Stage.of(old.place, old.layer, _meet(box, old.box), old.rounding)
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
