"""The VAE relaxed over subproblems: their narrower boxes, forward through encoder and decoder.

Through the decoder each quantity is a linear function of the latents plus a rest in a box, as in
`paperlib.certificates.refinement`, so that narrower latents narrow the outputs by a forward pass alone.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paperlib.bounds.box import CROSSING, Interval
from paperlib.bounds.interval import interval_rule, outward
from paperlib.bounds.linear import parallel, unit_rows
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rules import apply_rule
from paperlib.certificates import posterior_bounds
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.ladder.subproblems import Subproblems, Units
from paperlib.certificates.relaxed_layer import RelaxedLayer


@dataclass(frozen=True)
class RelaxedParts:
    """Subproblems relaxed over their own boxes.

    Attributes:
        reach: for the input of each layer of the decoder and for its output, how far each latent moves it within the
            latent's box, [latent, count, *shape].
        empty: [count], where the boxes of one quantity are apart, so that no input is in this part.
    """

    relaxed: RelaxedVAE
    reach: list[Tensor]
    empty: Tensor


class _Overlaps:
    """What lies in two boxes of one quantity, and which of the parts have had nothing there."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.empty = torch.zeros(count, dtype=torch.bool, device=device)

    def of(self, box: Interval, other: Interval) -> Interval:
        """The overlap; where there is none, or none by rounding, it is the first box."""
        lower, upper = torch.fmax(box.lower, other.lower), torch.fmin(box.upper, other.upper)
        size = torch.maximum(lower.abs(), upper.abs())
        apart = lower - upper > CROSSING * torch.finfo(lower.dtype).eps * (1 + size)
        self.empty |= apart.flatten(1).any(1)
        crossed = lower > upper
        return Interval(torch.where(crossed, box.lower, lower), torch.where(crossed, box.upper, upper))


@torch.no_grad()
def relax_parts(root: RelaxedVAE, units: Units, parts: Subproblems) -> RelaxedParts:
    """The VAE relaxed over the boxes of the parts.

    Args:
        root: relaxed over the whole regions of the batch.
    """
    rows = parts.example

    def of_rows(box: Interval) -> Interval:
        return box.map(lambda end: end[rows])

    cut, overlaps = parts.cut(of_rows(units.box)), _Overlaps(len(rows), rows.device)
    encoder, image = [], None
    for index, old in enumerate(root.encoder):
        place = units.encoder.get(index)
        box = of_rows(old.box) if place is None else cut.map(place.of)
        box = box if image is None else overlaps.of(box, image)
        encoder.append(RelaxedLayer.of(old.place, old.layer, box, None))
        if place is not None or image is not None:  # before the first split nothing is narrower
            image = _image(encoder[-1])
    posterior = cut.map(units.posterior.of)
    posterior = posterior if image is None else overlaps.of(posterior, image)
    mean, log_var = posterior.chunk(2, 1)
    noise = root.noise[rows]
    latent = overlaps.of(of_rows(root.bounds.latent), posterior_bounds.reparametrize_bounds(mean, log_var, noise))

    decoder, reach = [], []
    radius = latent.radius.T
    coefficients, rest, image = (
        unit_rows(latent.lower).expand(-1, *latent.lower.shape),
        Interval(latent.center, latent.center),
        latent,
    )
    for index, old in enumerate(root.decoder):
        place = units.decoder.get(index)
        box = overlaps.of(of_rows(old.box) if place is None else cut.map(place.of), image)
        layer = RelaxedLayer.of(old.place, old.layer, box, None)
        decoder.append(layer)
        reach.append(_times(radius, coefficients.abs()))
        image = _image(layer)
        if isinstance(layer.relaxation, Affine):
            moved = layer.layer(coefficients.flatten(0, 1)) - layer.relaxation.offset
            coefficients = moved.unflatten(0, coefficients.shape[:2])
            rest = apply_rule(interval_rule, layer.place, layer.layer, rest)
            image = overlaps.of(image, rest.widen(_times(radius, coefficients.abs()).sum(0)))
        else:
            relaxation = parallel(layer.relaxation, box)
            coefficients = relaxation.slope_times(coefficients)
            middle = relaxation.slope_times(rest.center) + relaxation.middle
            spread = relaxation.spread(rest.radius) + relaxation.radius
            rest = Interval(middle, middle).widen(spread * outward(2, spread.dtype))
    reach.append(_times(radius, coefficients.abs()))
    output = overlaps.of(of_rows(root.bounds.output), image)

    region = root.bounds.region[rows]
    own_target = root.bounds.target is root.bounds.input
    bounds = replace(
        root.bounds,
        region=region,
        target=region.box if own_target else of_rows(root.bounds.target),
        encoder=[region.box, *(layer.box for layer in encoder[1:]), posterior],
        mean=mean,
        log_var=log_var,
        decoder=[*(layer.box for layer in decoder), output],
    )
    scale = posterior_bounds.scale_relaxation(log_var)
    relaxed = RelaxedVAE(root.vae, bounds, noise, tuple(encoder), tuple(decoder), scale, None, None)
    return RelaxedParts(relaxed, reach, overlaps.empty)


def _image(layer: RelaxedLayer) -> Interval:
    return apply_rule(interval_rule, layer.place, layer.layer, layer.box)


def _times(radius: Tensor, sizes: Tensor) -> Tensor:
    """radius [latent, count] times sizes [latent, count, *shape]."""
    return radius.view(*radius.shape, *[1] * (sizes.ndim - 2)) * sizes
