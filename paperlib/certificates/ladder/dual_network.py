"""The convex outer polytope by its dual network (Wong & Kolter 2018, arXiv 1711.00851).

The polytope is that of the triangle between an unstable ReLU over [l, u] and its chord. The paper's dual solution is a
pass backward through the network in which this ReLU multiplies by one slope, u / (u - l), whatever the sign of the
coefficient: that of the two parallel lines below and above it. Other layers have two lines of one slope as well.

The bounds of every layer come from such passes, too, layer by layer from the input on. As no slope depends on a sign,
passes compose: the latents are linear functions of the input that are computed once, and the decoder's units are
functions of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule, outward
from paperlib.bounds.linear import LinearFunction, LinearRelaxation, ParallelRelaxation, parallel, unit_rows
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rules import apply_rule
from paperlib.certificates import posterior_bounds
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.crown import CrownIBP
from paperlib.certificates.method import METHODS, MemoryUse, Problem, TrainableMethod
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet, Region

ROWS = 128  # units that are bounded at a time


@dataclass(frozen=True)
class DualNetwork(TrainableMethod):
    """The ELBO over the convex outer polytope by the fixed slopes of the dual network, over boxes that the dual network
    gives every layer after the encoder's first activation.

    Never looser than `IBP`, whose boxes it intersects. Differentiable in the parameters, through the boxes of every
    layer, as the paper trains on it; where a line above a sigmoid or tanh is a tangent, its point counts as a constant.
    Raises ValueError for `sound`.
    """

    @property
    def differentiable(self) -> bool:
        return True

    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        problem = Problem.checked(vae, x, ball, noise, target, sound)
        return CrownIBP().bounds_over(problem, _relax(problem))

    def lower_over(self, problem: Problem) -> Tensor:
        return CrownIBP().lower_from(problem, _relax(problem))

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        return MemoryUse(per_image=(4 * ROWS + 4 * vae.latent_dim) * sum(layer_sizes), largest_batch=100)


METHODS["dual-network"] = DualNetwork()


def _relax(problem: Problem) -> RelaxedVAE:
    if problem.sound is not None:
        raise ValueError("the dual network holds in real arithmetic: with sound=True use another method")
    return dual_network(RelaxedVAE.of(problem.vae, problem.bounds, problem.noise))


@dataclass(frozen=True)
class DualFunctions:
    """Quantities as functions of the input, one a row:  center + errors . eta + inputs . x'  for some eta in [-1, 1],
    which all rows share.
    """

    center: Tensor  # [rows, batch]
    errors: Tensor  # [rows, batch, errors]
    inputs: Tensor | None  # [rows, batch, *data_shape]; None: the errors hold those of a box of inputs

    @classmethod
    def of_input(cls, region: Region, coefficients: Tensor, center: Tensor, errors: Tensor) -> "DualFunctions":
        """coefficients . x' + center + errors . eta.

        Args:
            coefficients: [rows, batch or 1, *data_shape]; center and errors likewise.
        """
        coefficients = coefficients.expand(-1, len(region.box.lower), *coefficients.shape[2:])
        center, errors = center.expand(coefficients.shape[:2]), errors.expand(*coefficients.shape[:2], -1)
        if (of_box := region.zonotope(coefficients)) is None:
            return cls(center, errors, coefficients)
        return cls(center + of_box[0], torch.cat([errors, of_box[1]], 2), None)

    def compose(self, coefficients: Tensor, center: Tensor, errors: Tensor) -> "DualFunctions":
        """coefficients . (these quantities) + center + errors . eta'  with errors of its own.

        Args:
            coefficients: [new rows, batch or 1, rows]; center and errors likewise.
        """
        coefficients = coefficients.expand(-1, self.center.shape[1], -1)
        center, errors = center.expand(coefficients.shape[:2]), errors.expand(*coefficients.shape[:2], -1)

        def product(rows: Tensor) -> Tensor:
            flat = coefficients.transpose(0, 1) @ rows.flatten(2).transpose(0, 1)
            return flat.transpose(0, 1).unflatten(2, rows.shape[2:])

        inputs = None if self.inputs is None else product(self.inputs)
        shared = product(self.errors)
        return DualFunctions(center + product(self.center.unsqueeze(2))[..., 0], torch.cat([errors, shared], 2), inputs)

    def box(self, region: Region) -> Interval:
        """[batch, rows]"""
        radius = self.errors.abs().sum(2) * outward(self.errors.shape[2], self.errors.dtype)
        lower, upper = self.center - radius, self.center + radius
        if self.inputs is not None:
            lower, upper = lower + region.concretize(self.inputs), upper - region.concretize(-self.inputs)
        return Interval(lower.T, upper.T)


Bound = Callable[[Sequence[RelaxedLayer], Interval], Interval]  # (layers, box) -> of what they put out, within the box


def dual_network(relaxed: RelaxedVAE) -> RelaxedVAE:
    """The same VAE with two lines of one slope for each layer, over boxes from the dual network."""
    bounds, noise, region = relaxed.bounds, relaxed.noise, relaxed.bounds.region
    of_input = partial(DualFunctions.of_input, region)

    def box_by(compose: Callable[[Tensor, Tensor, Tensor], DualFunctions]) -> Bound:
        return lambda layers, box: box.intersect(_unit_box(layers, box, compose, region))

    encoder, posterior = over_boxes(relaxed.encoder, bounds.encoder[-1], box_by(of_input), first_is_tight=True)
    mean, log_var = posterior.chunk(2, 1)
    scale = posterior_bounds.scale_relaxation(log_var)  # of one slope, too
    functions = of_input(*_backward_pass(encoder, unit_rows(posterior.lower)))
    latents = _latents(functions, noise, parallel(scale, log_var))
    decoder, output = over_boxes(relaxed.decoder, bounds.output, box_by(latents.compose), first_is_tight=False)
    return over(relaxed, encoder, (mean, log_var), scale, decoder, output)


def over(
    relaxed: RelaxedVAE,
    encoder: tuple[RelaxedLayer, ...],
    posterior: tuple[Interval, Interval],
    scale: LinearRelaxation,
    decoder: tuple[RelaxedLayer, ...],
    output: Interval,
) -> RelaxedVAE:
    """The same VAE over tighter boxes of its layers, of mean and log_var, and of the output."""
    mean, log_var = posterior
    latent = decoder[0].box.intersect(posterior_bounds.reparametrize_bounds(mean, log_var, relaxed.noise))
    boxes = [latent, *(layer.box for layer in decoder[1:]), output]
    bounds = replace(relaxed.bounds, mean=mean, log_var=log_var, decoder=boxes)
    return replace(relaxed, bounds=bounds, encoder=encoder, decoder=decoder, scale=scale)


def _latents(posterior: DualFunctions, noise: Tensor, scale: ParallelRelaxation) -> DualFunctions:
    """mean + noise * exp(log_var / 2)  from the functions of mean and log_var."""
    slope = (noise * scale.slope).T
    identity = torch.eye(len(slope), dtype=slope.dtype, device=slope.device)
    coefficients = torch.cat(
        [identity.unsqueeze(1).expand(-1, slope.shape[1], -1), torch.diag_embed(slope.T).transpose(0, 1)], 2
    )
    errors = torch.diag_embed(noise * scale.radius).transpose(0, 1)
    return posterior.compose(coefficients, (noise * scale.middle).T, errors)


def over_boxes(
    layers: Sequence[RelaxedLayer], output: Interval, bound: Bound, first_is_tight: bool
) -> tuple[tuple[RelaxedLayer, ...], Interval]:
    """The layers with two lines of one slope, over tighter boxes of the activations' inputs, and that of the output.

    Args:
        output: the box of the last layer's output so far.
        bound: tightens the box of what the layers before put out.
        first_is_tight: whether the box of the first activation is as tight as it can be.
    """
    relaxed: list[RelaxedLayer] = []
    box, tight = layers[0].box, first_is_tight
    for old in layers:
        box = box.intersect(old.box)
        if isinstance(old.relaxation, Affine):
            relaxed.append(replace(old, box=box))
        else:
            box = box if tight else bound(relaxed, box)
            relaxed.append(of_one_slope(RelaxedLayer.of(old.place, old.layer, box, None)))
            tight = False
        box = apply_rule(interval_rule, old.place, old.layer, box)
    return tuple(relaxed), bound(relaxed, box.intersect(output))


def of_one_slope(layer: RelaxedLayer) -> RelaxedLayer:
    """The layer, not an affine one, with two parallel lines below and above it: of slope u / (u - l) for ReLU."""
    assert isinstance(layer.relaxation, LinearRelaxation)
    lines = parallel(layer.relaxation, layer.box)
    lower, upper = (LinearFunction(lines.slope, lines.middle + sign * lines.radius) for sign in (-1, 1))
    return replace(layer, relaxation=LinearRelaxation(lower, upper, selection=lines.selection))


def _unit_box(
    layers: Sequence[RelaxedLayer],
    like: Interval,
    compose: Callable[[Tensor, Tensor, Tensor], DualFunctions],
    region: Region,
) -> Interval:
    """The box of each unit that the layers put out, of the shape of `like`, by a pass for each."""
    boxes = [compose(*_backward_pass(layers, rows)).box(region) for rows in unit_rows(like.lower).split(ROWS)]
    lower, upper = (torch.cat(ends, 1).view_as(like.lower) for ends in zip(*boxes, strict=True))
    return Interval(lower, upper)


def _backward_pass(layers: Sequence[RelaxedLayer], coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """coefficients . (the last layer's output)  as  c . v + center + errors . eta  for inputs v of the first layer.

    Args:
        coefficients: [rows, batch or 1, *shape].

    Returns:
        c [rows, batch or 1, *in_shape], center [rows, batch or 1] and errors [rows, batch or 1, errors].
    """
    center, errors = torch.zeros_like(coefficients.flatten(2)[..., 0]), []
    for layer in reversed(layers):
        if isinstance(layer.relaxation, Affine):
            center = center + (coefficients * layer.relaxation.offset).flatten(2).sum(2)
            coefficients = layer.relaxation.transpose(coefficients)
        else:
            lines = parallel(layer.relaxation, layer.box)
            center = center + (coefficients * lines.middle).flatten(2).sum(2)
            errors.append((coefficients * lines.radius).flatten(2))
            coefficients = lines.transpose(coefficients)
    return coefficients, center, torch.cat([*errors, coefficients.new_zeros(*center.shape, 0)], 2)
