"""Which unit of a subproblem to split: the one whose relaxation takes most from the bound.

A linear bound is least at some input. There the ELBO is above it by what each relaxation loses: its coefficients times
its distance from the curve, in nats, unit by unit (after BaBSR: Bunel et al. 2020, arXiv 1909.06588; for any curve:
Shi et al. 2024, arXiv 2405.21063). A split of a layer's input ends the loss there. A split of a latent's mean or
log-variance narrows everything in the decoder, and takes from each loss the share that the latent has in the box over
which it arises.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import AlphaSelector, LinearFunction, LinearRelaxation, backward_substitute
from paperlib.certificates.backward import ElboTerms, RelaxedVAE, backward_pass, backward_posterior
from paperlib.certificates.ladder.parts import RelaxedParts
from paperlib.certificates.ladder.subproblems import Subproblems, Units, flat, is_elementwise, unit_boxes
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.models.gaussian import kl_log_var_term, kl_mean_term, reparametrize
from paperlib.models.likelihood import Likelihood

BETA_RATE = 0.3  # the first step of a multiplier, in units of the coefficient that it is to cancel


@torch.no_grad()
def choose_splits(
    parts: Subproblems,
    units: Units,
    over: RelaxedParts,
    constrained: RelaxedVAE,
    sign: float,
    terms: ElboTerms,
    select_alpha: AlphaSelector,
    x: Tensor,
) -> Subproblems:
    """The parts with the split that is to cut each of them next.

    Args:
        over: the parts, relaxed.
        constrained: the same with the constraints' terms, whose bound of  sign * ELBO  is to be raised.
        x: where that bound is least, [count, *data_shape].
    """
    posterior = backward_posterior(constrained, sign, terms, select_alpha)
    encoder, raw = _losses(constrained.encoder, x, posterior.coefficients, select_alpha)
    bounds, noise = constrained.bounds, constrained.noise
    mean, log_var = (part.clamp(*box) for part, box in zip(raw.chunk(2, 1), (bounds.mean, bounds.log_var), strict=True))

    fit = posterior.fit
    decoder, output = _losses(
        constrained.decoder, reparametrize(mean, log_var, noise), sign * fit.output_slope, select_alpha
    )
    output = output.clamp(*bounds.output)
    if terms.target is not None:
        target = terms.target.x
    else:
        target = x if bounds.target is bounds.input else bounds.target.lower
    linear = fit.output_slope * output + fit.target_slope * target + fit.offset
    fit_loss = (sign * (_log_density(constrained.vae.likelihood, output, target) - linear)).clamp(min=0)

    of_latent = _shares(fit_loss, over.reach[-1], bounds.output)
    for index, (loss, _) in zip(units.decoder, decoder, strict=True):
        of_latent = of_latent + _shares(loss, over.reach[index], over.relaxed.decoder[index].box)
    low, high = (noise.abs() * torch.exp(end / 2) for end in bounds.log_var)
    latent_radius = bounds.mean.radius + (high - low) / 2
    of_mean = bounds.mean.radius / latent_radius.clamp(min=torch.finfo(low.dtype).tiny)
    mean_loss = of_latent * of_mean + _loss_of_kl(sign, kl_mean_term(mean), mean, terms.mean)
    slopes, offsets = backward_substitute(posterior.latent_coefficients * noise, constrained.scale, select_alpha)
    scale_loss = posterior.latent_coefficients * noise * torch.exp(log_var / 2) - slopes * log_var - offsets
    log_var_loss = _loss_of_kl(sign, kl_log_var_term(log_var), log_var, terms.log_var) + scale_loss
    posterior_loss = torch.cat([mean_loss, of_latent * (1 - of_mean) + log_var_loss], 1)

    losses, sizes = (
        flat([*(each[part] for each in encoder), here, *(each[part] for each in decoder)])
        for part, here in enumerate((posterior_loss, posterior.coefficients))
    )
    return _with_splits(parts, units, unit_boxes(over.relaxed), losses, sizes.abs())


def _with_splits(parts: Subproblems, units: Units, box: Interval, losses: Tensor, sizes: Tensor) -> Subproblems:
    unit = torch.where(box.upper > box.lower, losses, -1.0).argmax(1, keepdim=True)
    lower, upper, size = (values.gather(1, unit).squeeze(1) for values in (*box, sizes))
    at_zero = units.bends[unit.squeeze(1)] * (lower < 0) * (upper > 0)
    point = (1 - at_zero) * (lower + upper) / 2
    step = BETA_RATE * torch.maximum(size, sizes.mean(1))
    return replace(parts, next_unit=unit.squeeze(1), next_point=point, next_step=step)


def _losses(
    layers: Sequence[RelaxedLayer], value: Tensor, coefficients: Tensor, select_alpha: AlphaSelector
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """For each elementwise layer that is not affine what it loses, and the coefficients on its input, both
    [count, *shape]; and what the last layer puts out.

    Args:
        value: the input of the first layer; where it leads out of a box, the nearest value in the box counts.
        coefficients: on the output of the last layer.
    """
    values = []
    for layer in layers:
        values.append(value.clamp(*layer.box))
        value = layer.layer(values[-1])
    losses = []
    zero = value.new_zeros(len(value))
    for layer, at in zip(reversed(layers), reversed(values), strict=True):
        if is_elementwise(layer):
            assert isinstance(layer.relaxation, LinearRelaxation)
            below, offset = backward_substitute(coefficients, layer.relaxation, select_alpha)
            losses.append(((coefficients * layer.layer(at) - below * at - offset).clamp(min=0), below))
            coefficients = below
        else:
            coefficients, _ = backward_pass((layer,), coefficients, zero, select_alpha)
    return losses[::-1], value


def _shares(loss: Tensor, reach: Tensor, box: Interval) -> Tensor:
    """The part of the loss that is each latent's, [count, latent].

    Args:
        reach: [latent, count, *shape]
    """
    per_radius = loss / box.radius.clamp(min=torch.finfo(loss.dtype).tiny)
    return torch.einsum("lcu,cu->cl", reach.flatten(2), per_radius.flatten(1))


def _loss_of_kl(sign: float, term: Tensor, value: Tensor, line: LinearFunction) -> Tensor:
    return -sign * (term / 2 + line.slope * value + line.offset)


def _log_density(likelihood: Likelihood, output: Tensor, target: Tensor) -> Tensor:
    """The summands of `log_prob`, [count, *data_shape]; where a likelihood does not tell them apart, their mean."""
    try:
        return likelihood.terms(output, target)
    except NotImplementedError:
        mean = likelihood.log_prob(output, target) / output[0].numel()
        return mean.view(-1, *[1] * (output.ndim - 1)).expand_as(output)
