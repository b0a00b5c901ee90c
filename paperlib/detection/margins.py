"""Certified margins between the classes of `ClassVAEs`, for training: a few batched products for all classes.

    margin(x')  =  ELBO_y(x'; 0) - ELBO_k(x'; 0)  >=  c . x' + d      for every x' of a box

The bounds are those of `paperlib.certificates.difference` (CROWN-IBP; the layers that the encoders share are
relaxed once for both), for these layers alone and at the posterior mean. Terms of log p that depend on the target
alone are the same for both classes and are left out. Nothing is allowed for rounding: verdicts are given by the other
bounds, in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import relu_chord
from paperlib.bounds.interval import propagate, propagate_all
from paperlib.bounds.linear import backward_substitute
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.rules import apply_rule, named_layers
from paperlib.detection.class_vaes import ClassVAEs
from paperlib.models import gaussian
from paperlib.models.gaussian import kl_log_var_term
from paperlib.models.likelihood import Gaussian, softplus


@dataclass(frozen=True)
class CertifiedMargins:
    """For every x' of the box around each example."""

    margins: Tensor  # lower bounds of ELBO_y - ELBO_k for the rivals k, [rivals, batch], nats
    own: Tensor  # a lower bound of the own class's ELBO, but for a term in x' alone, [batch], nats
    rivals: Tensor  # k, [rivals, batch]


def certified_margins(model: ClassVAEs, box: Interval, y: Tensor, rivals: int) -> CertifiedMargins:
    """Certified margins to the nearest rivals, those of the highest ELBO at the box's middle; differentiable.

    Args:
        box: of the inputs, [batch, features].
        y: the class of each, [batch].
        rivals: how many, less than the number of classes.
    """
    log_partition = _log_partition(model)
    target, target_radius = box.center, box.radius
    own = y, torch.arange(len(y), device=y.device)

    # Interval propagation. Everything after the shared layers is [classes, batch, units].
    boxes = propagate_all(model.shared, box, "shared")
    mean = _affine(boxes[-1], model.mean_weight, model.mean_bias)
    hidden = _affine(mean, model.hidden_weight, model.hidden_bias)
    units = hidden.map(F.relu)
    output = torch.baddbmm(model.output_bias, units.center, model.output_weight)
    absolute = model.output_weight.abs()
    own_radius = torch.bmm(units.radius, absolute)[own]

    # Minus log p of a rival,  A(l) - t l,  from below: A above its tangent, which touches at the middle. Of the own
    # class -A is above minus its chord. The product by the mean of McCormick's planes, off by the product of the radii.
    with torch.no_grad():
        slope = log_partition.slope(output)
        values = log_partition.value(output)
        offset = (values - slope * output).sum(-1)
        fit = log_partition.precision * torch.einsum("kbf,bf->kb", output, target) - values.sum(-1)
        near = fit - gaussian.kl(mean.center, model.log_var)
        near[own] = -torch.inf
        chosen = near.topk(rivals, 0).indices
    chord_slope, chord_offset = _chord(log_partition, output[own], own_radius)
    precision = log_partition.precision
    coefficients = (slope - precision * target).index_put(own, precision * target - chord_slope)
    product_error = precision * (target_radius @ absolute.transpose(1, 2) * units.radius).sum(-1)
    constant = offset.index_put(own, -chord_offset.sum(-1)) - product_error

    # Backward substitution through decoder and KL to the coefficients of the shared layer's units
    coefficients, constant = _backward_affine(coefficients, constant, model.output_weight, model.output_bias)
    coefficients, constant = _backward_relu(coefficients, constant, hidden)
    coefficients, constant = _backward_affine(coefficients, constant, model.hidden_weight, model.hidden_bias)
    # KL of a rival above its tangent at the middle, minus that of the own class above its chord
    touch = mean.center.detach()
    own_mean = mean.lower[own], mean.upper[own]
    coefficients = coefficients + touch.index_put(own, -mean.center[own])
    kl_constant = (kl_log_var_term(model.log_var) - touch.square()).sum(-1) / 2
    own_constant = (own_mean[0] * own_mean[1] - kl_log_var_term(model.log_var[y, 0])).sum(-1) / 2
    constant = constant + kl_constant.index_put(own, own_constant)
    coefficients, constant = _backward_affine(coefficients, constant, model.mean_weight, model.mean_bias)

    # The margins: what is common cancels here. The last row is of the own class alone.
    pair = chosen, own[1]
    own_row = coefficients[own], constant[own], output[own]
    joint = [
        torch.cat([part[pair] + mine, mine[None]])
        for part, mine in zip((coefficients, constant), own_row[:2], strict=True)
    ]
    difference = precision * torch.cat([own_row[2] - output[pair], own_row[2][None]])
    coefficients, constant = _backward_shared(model, boxes, *joint)
    # McCormick's planes add  (l_y - l_k) . (t - t_c)  to the margin, with the outputs l and the target t_c at the
    # middle of their boxes: 0 at t = t_c, so that it only adds to the slope in t.
    radius = ((coefficients + difference).abs() * target_radius).sum(-1)
    margins = constant + (coefficients * target).sum(-1) - radius
    return CertifiedMargins(margins[:-1], margins[-1], chosen)


def certified_kl_margins(model: ClassVAEs, box: Interval, y: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bounds of KL_k - KL_y for every x' of the box and each class k, by intervals: [classes, batch], nats, with
    0 for the own class; and an upper bound of KL_y, [batch]. Differentiable. They know nothing of the decoders.

    Args:
        box: of the inputs, [batch, features].
        y: the class of each, [batch].
    """
    mean = _affine(propagate(model.shared, box, "shared"), model.mean_weight, model.mean_bias)
    constant = kl_log_var_term(model.log_var).sum(-1) / 2
    nearest = (mean.lower.clamp(min=0) + mean.upper.clamp(max=0)).square().sum(-1) / 2 + constant
    farthest = torch.maximum(mean.lower.square(), mean.upper.square()).sum(-1) / 2 + constant
    own = y, torch.arange(len(y), device=y.device)
    largest = farthest[own]
    return (nearest - largest).index_put(own, torch.zeros_like(largest)), largest


@dataclass(frozen=True)
class _LogPartition:
    """A in  log p(t | l) = precision * t * l - A(l) + a function of t alone."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    precision: float


def _log_partition(model: ClassVAEs) -> _LogPartition:
    if isinstance(model.likelihood, Gaussian):
        precision = torch.exp(-2 * model.likelihood.log_scale).item()
        return _LogPartition(lambda mean: precision * mean.square() / 2, lambda mean: precision * mean, precision)
    return _LogPartition(softplus, torch.sigmoid, 1.0)


def _chord(log_partition: _LogPartition, middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of a line above A between middle - radius and middle + radius."""
    ends = middle - radius, middle + radius
    low, high = map(log_partition.value, ends)
    # the difference of nearly equal numbers is rounded: there any slope will do, as both ends are tried
    slope = torch.where(radius < 1e-3, log_partition.slope(middle), (high - low) / (2 * radius).clamp(min=1e-3))
    return slope, torch.maximum(low - slope * ends[0], high - slope * ends[1])


def _affine(box: Interval, weight: Tensor, bias: Tensor) -> Interval:
    center, radius = box.center @ weight + bias, box.radius @ weight.abs()
    return Interval(center - radius, center + radius)


def _backward_affine(coefficients: Tensor, constant: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients [classes, batch, out] of a layer's output as those of its input."""
    offset = torch.bmm(coefficients, bias.transpose(1, 2))[..., 0]
    return torch.bmm(coefficients, weight.transpose(1, 2)), constant + offset


def _backward_shared(
    model: ClassVAEs, boxes: Sequence[Interval], coefficients: Tensor, constant: Tensor
) -> tuple[Tensor, Tensor]:
    """Coefficients [rows, batch, units] of the shared layers' outputs as those of the input."""
    layers = list(named_layers(model.shared, "shared"))
    for (place, layer), box in reversed([*zip(layers, boxes[:-1], strict=True)]):
        relaxation = apply_rule(relaxation_rule, place, layer, box)
        if isinstance(relaxation, Affine):
            offset = coefficients * relaxation.offset
            coefficients = relaxation.transpose(coefficients)
        else:
            coefficients, offset = backward_substitute(coefficients, relaxation)
        constant = constant + offset.flatten(2).sum(-1)
    return coefficients, constant


def _backward_relu(coefficients: Tensor, constant: Tensor, box: Interval) -> tuple[Tensor, Tensor]:
    """The same for ReLU over a box: above the line of smaller area, below the chord."""
    slope, offset = relu_chord(box)
    alpha = (box.lower + box.upper).detach().sign().clamp(min=0)
    positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
    return positive * alpha + negative * slope, constant + (negative * offset).sum(-1)
