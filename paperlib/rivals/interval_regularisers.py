"""The regularisers of Shi et al. ("Fast certified robust training with short warmup", NeurIPS 2021, arXiv 2103.16944):
while the radius rises, boxes shall grow little on their way, and active and inactive units be balanced.

The initialisation of that work is `TrainConfig(init="interval")`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.rules import named_layers
from paperlib.certificates.intervals import IntervalBounds, target_box
from paperlib.models.vae import VAE
from paperlib.training.loss import ProVAE
from paperlib.training.objective import OBJECTIVES, TrainingStep

TINY = 1e-12  # below which a denominator is not let fall


@dataclass(frozen=True)
class IntervalRegularised(ProVAE):
    """proVAE whose loss has, on the ramp alone,  weight * (1 - ramp) * (tightness + balance)  more, see below.

    Args:
        weight: of both terms where the ramp begins, in nats; not negative and finite.
        tolerance: the ratio of radii or of units from which on nothing is asked for, in (0, 1].

    Raises ValueError for others.
    """

    weight: float = 10.0
    tolerance: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and not negative, got {self.weight}")
        if not 0 < self.tolerance <= 1:
            raise ValueError(f"tolerance must be above 0 and at most 1, got {self.tolerance}")

    def loss(self, vae: VAE, step: TrainingStep) -> Tensor:
        loss = super().loss(vae, step)
        if not 0 < step.ramp < 1:  # before the ramp there are no boxes
            return loss
        region = step.ball.unchecked_region(step.x)
        bounds = IntervalBounds.of(vae, region, step.noise, target_box(step.target, region.box, step.x))
        terms = [
            tightness(first, box, self.tolerance) + balance(box, self.tolerance)
            for first, box in _before_relus(vae, bounds)
        ]
        return loss + self.weight * (1 - step.ramp) * torch.stack(terms).mean() if terms else loss


def tightness(first: Interval, box: Interval, tolerance: float) -> Tensor:
    """0 where boxes are on average at most 1 / tolerance times as wide as those that their network begins with, and up
    to 1 where they are wider: a scalar.
    """
    return F.relu(tolerance - first.radius.mean() / box.radius.mean().clamp(min=TINY)) / tolerance


def balance(box: Interval, tolerance: float) -> Tensor:
    """0 where the units that are active for the whole box and those that are inactive weigh alike, by the mean of their
    centers and by the variance, each at least `tolerance` times the other; up to 2 where they do not: a scalar.
    """
    center = box.center
    active, inactive = (box.lower > 0).to(center), (box.upper < 0).to(center)
    variance = (center - center.mean()).square()
    pairs = (
        ((center * active).mean(), -(center * inactive).mean()),
        (
            (variance * active).mean(),
            (variance * inactive).mean(),
        ),
    )
    ratios = (torch.minimum(one, other) / torch.maximum(one, other).clamp(min=TINY) for one, other in pairs)
    return torch.stack([F.relu(tolerance - ratio) / tolerance for ratio in ratios]).sum()


def _before_relus(vae: VAE, bounds: IntervalBounds) -> Iterator[tuple[Interval, Interval]]:
    """The first box of each network, and in turn each that a ReLU is applied to."""
    for module, name, boxes in ((vae.encoder, "encoder", bounds.encoder), (vae.decoder, "decoder", bounds.decoder)):
        for (_, layer), box in zip(named_layers(module, name), boxes, strict=False):
            if isinstance(layer, nn.ReLU):
                yield boxes[0], box


OBJECTIVES["interval-regularised"] = IntervalRegularised()
