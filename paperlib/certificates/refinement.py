"""Tighter boxes of everything after the encoder's first activation, by linear bounds of each quantity (CROWN: Zhang et
al. 2018, arXiv 1811.00866) through the latent bottleneck.

Over the box of inputs every quantity lies in a zonotope:  center + generators . eta  with eta in [-1, 1] shared by all
quantities of an example, plus an independent error for each. Over another region the inputs themselves are shared.
The latents' zonotope takes one backward pass for each latent. The decoder's layers are then linear functions of the
latents, plus a rest in a box: composed with the zonotope they bound a unit at a small part of the cost of a backward
pass of its own.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule, outward
from paperlib.bounds.linear import LinearRelaxation, parallel, unit_rows
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rounding import magnitude
from paperlib.bounds.rules import apply_rule
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.backward_rounding import ACCUMULATION_ERROR, layer_size
from paperlib.certificates.input_term import InputTerm
from paperlib.certificates.latent_zonotope import Zonotope, reduce_order, reparametrize
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.certificates.unit_bounds import has_unit_passes, refine_by_unit
from paperlib.threats.perturbation import ChangeRegion, Region

LOST = 0.2  # share of the output's boxes from which on units get passes of their own


def refine(relaxed: RelaxedVAE, alpha_steps: int = 0) -> RelaxedVAE:
    """The same VAE relaxed over tighter boxes of everything after the encoder's first activation (CROWN).

    Args:
        alpha_steps: of the optimisation of the alphas of each unit, where units have passes of their own.
    """
    refined, loose = refine_by_zonotope(relaxed)
    return refine_by_unit(refined, alpha_steps, loose) if loose.any() else refined


@torch.no_grad()
def refine_by_zonotope(relaxed: RelaxedVAE) -> tuple[RelaxedVAE, Tensor]:
    """What `refine` gives without backward passes of single units, and the examples that want them, [batch]: those in
    which more than LOST of the output's boxes is what the decoder's relaxations lose, which is no function of the
    latents. In networks that were trained for the radius it is about a tenth, and such passes gain next to nothing.
    """
    region, raw = relaxed.bounds.region, relaxed.bounds.encoder[-1].lower
    posterior = _backward_zonotope(relaxed.encoder, region, unit_rows(raw).expand(-1, *raw.shape))
    mean, log_var = posterior.box.intersect(relaxed.bounds.encoder[-1]).chunk(2, 1)
    latents, latent = reparametrize(relaxed, posterior, mean, log_var)
    refined = relaxed.over(mean, log_var)
    decoder, output, lost = _refine_decoder(refined, latent, latents)
    boxes = [*(layer.box for layer in decoder), output]
    refined = replace(refined, bounds=replace(refined.bounds, decoder=boxes), decoder=decoder)
    return refined, lost > (LOST if has_unit_passes(relaxed) else torch.inf)


def _backward_zonotope(layers: Sequence[RelaxedLayer], region: Region, coefficients: Tensor) -> Zonotope:
    """The zonotope of linear functions of the last layer's output, over a region of the first layer's inputs.

    Args:
        coefficients: [rows, batch, *shape] on the last layer's output.
    """
    center = torch.zeros_like(coefficients.flatten(2)[..., 0])
    independent_error = torch.zeros_like(center)
    generators = []
    for layer in reversed(layers):
        if layer.error is not None:
            independent_error = independent_error + (coefficients.abs() * layer.error).flatten(2).sum(2)
        if isinstance(layer.relaxation, Affine):
            center = center + (coefficients * layer.relaxation.offset).flatten(2).sum(2)
            coefficients = layer.relaxation.transpose(coefficients)
        else:
            relaxation = parallel(layer.relaxation, layer.box)
            center = center + (coefficients * relaxation.middle).flatten(2).sum(2)
            generators.append((coefficients * relaxation.radius).flatten(2))
            coefficients = relaxation.transpose(coefficients)
    of_region, inputs = region.zonotope(coefficients), None
    if of_region is None:
        assert isinstance(region, ChangeRegion)
        inputs = InputTerm(coefficients, region)
    else:
        center = center + of_region[0]
        generators.append(of_region[1])
    if any(layer.error is not None for layer in layers):
        size = (coefficients.abs() * magnitude(region.box)).flatten(2).sum(2)
        independent_error = independent_error + ACCUMULATION_ERROR * size
    errors = torch.cat([*generators, center.new_zeros(*center.shape, 0)], 2)
    return Zonotope(center.T, errors.transpose(0, 1), independent_error.T, inputs)


def _varies(layer: RelaxedLayer) -> Tensor:
    """Which inputs of a nonlinear layer need a tighter box: not those over whose box it is constant, as over most of a
    ReLU's in a robust network. [batch, *shape].
    """
    if isinstance(layer.relaxation, LinearRelaxation) and layer.relaxation.selection is not None:
        return torch.ones_like(layer.box.lower, dtype=torch.bool)
    image = apply_rule(interval_rule, layer.place, layer.layer, layer.box)
    return image.lower < image.upper


def _refine_decoder(
    relaxed: RelaxedVAE, latent: Interval, latents: Zonotope
) -> tuple[tuple[RelaxedLayer, ...], Interval, Tensor]:
    """The decoder relaxed over refined boxes, the refined box of its output, and the share of it that is lost."""
    layers: list[RelaxedLayer] = []
    box = latent
    # each layer's output is  coefficients . (latent - center)  plus a rest in its box
    coefficients = unit_rows(latent.lower).expand(-1, *latent.lower.shape)
    rest = Interval(latents.center, latents.center)
    reach = torch.maximum(latents.box.upper - latents.center, latents.center - latents.box.lower)
    errors = torch.cat([latents.generators, torch.diag_embed(latents.independent_error)], 2)
    generators = [own[:, own.any(0)] for own in errors]  # a unit whose sign is fixed has no error
    if has_unit_passes(relaxed):  # so many errors that their products with all units are most of the cost
        generators = [reduce_order(own) for own in generators]
    for old in relaxed.decoder:
        layer = RelaxedLayer.of(old.place, old.layer, box.intersect(old.box), relaxed.deployed)
        if isinstance(layer.relaxation, LinearRelaxation):
            tighter = layer.box.intersect(_spread(rest, coefficients, generators, latents.inputs, _varies(layer)))
            layer = RelaxedLayer.of(old.place, old.layer, tighter, relaxed.deployed)
        layers.append(layer)
        box = layer.image
        rounding = _forward_rounding(layer, coefficients, rest, reach)
        if isinstance(layer.relaxation, Affine):
            image = layer.layer(coefficients.flatten(0, 1)) - layer.relaxation.offset
            coefficients = image.unflatten(0, coefficients.shape[:2])
            rest = apply_rule(interval_rule, layer.place, layer.layer, rest).widen(rounding)
        else:
            relaxation = parallel(layer.relaxation, layer.box)
            coefficients = relaxation.slope_times(coefficients)
            middle = relaxation.slope_times(rest.center) + relaxation.middle
            radius = relaxation.spread(rest.radius) + relaxation.radius + rounding
            rest = Interval(middle, middle).widen(radius * outward(2, radius.dtype))
    every = torch.ones_like(box.lower, dtype=torch.bool)
    spread = _spread(rest, coefficients, generators, latents.inputs, every)
    lost = rest.radius.flatten(1).sum(1) / spread.radius.flatten(1).sum(1)
    return tuple(layers), box.intersect(spread), lost


def _forward_rounding(layer: RelaxedLayer, coefficients: Tensor, rest: Interval, reach: Tensor) -> Tensor:
    """How far rounding moves a layer's output from  coefficients . (latent - center) + rest,  [batch, *out_shape].

    Args:
        reach: of latents from their center, [batch, latent].
    """
    if layer.rounding is None:
        return torch.zeros(())
    latent_radius = reach.T.reshape(*coefficients.shape[:2], *[1] * (coefficients.ndim - 2))  # [latent, batch, 1, ...]
    largest = magnitude(rest) + (coefficients.abs() * latent_radius).sum(0)
    size = layer_size(layer.layer, Interval(-largest, largest), layer.relaxation)
    # the offset of an affine layer is added to the coefficients of each latent and taken from them again
    times = 2 * (1 + reach.sum(1)).view(-1, *[1] * (size.ndim - 1))
    return layer.rounding + ACCUMULATION_ERROR * times * size


def _spread(
    rest: Interval, coefficients: Tensor, generators: list[Tensor], inputs: InputTerm | None, wanted: Tensor
) -> Interval:
    """The box of  coefficients . (latent - center) + rest,  [batch, *shape]; unbounded where it is not wanted."""
    box = rest.widen(_radius(coefficients, generators, wanted.flatten(1)).view_as(rest.lower))
    if inputs is None:
        return box
    lower, upper = inputs.box_of_combinations(coefficients.flatten(2).permute(1, 2, 0))
    return Interval(box.lower + lower.view_as(box.lower), box.upper + upper.view_as(box.upper))


def _radius(coefficients: Tensor, generators: list[Tensor], wanted: Tensor) -> Tensor:
    """sum over errors of |coefficients . generators|, [batch, units]; infinite where it is not wanted.

    Args:
        coefficients: [latent, batch, *shape], with as many units as shape has numbers.
        generators: of each example, [latent, errors].
        wanted: [batch, units].
    """
    units = coefficients.flatten(2).permute(1, 2, 0)
    # at once: small results between large ones would fragment the memory
    radius = torch.full_like(units[..., 0], torch.inf)
    # one by one: the product stays in the cache
    for part, own, some, out in zip(units, generators, wanted, radius, strict=True):
        out[some] = (part[some] @ own).abs_().sum(1) * outward(sum(own.shape), radius.dtype)
    return radius
