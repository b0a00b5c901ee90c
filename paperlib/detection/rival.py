"""One class against the labels of images: what of its latents limits a radius, and bounds of it in a box of latents.

The symbols are those of `paperlib.detection.manifold`, which derives what is used here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.detection.latent_box import LatentBox

TINY = torch.finfo(torch.float64).tiny
ALL = slice(None)


@dataclass(frozen=True)
class Rival:
    """A class with the decoder G_c, and for each image what its label makes of it."""

    decoder: nn.Module
    weight: float
    x: Tensor  # [batch, pixels]
    own: Tensor  # g, [batch, pixels]
    score: Tensor  # d_y^2 + K_y, [batch]

    def __getitem__(self, rows: Tensor) -> "Rival":
        return Rival(self.decoder, self.weight, self.x[rows], self.own[rows], self.score[rows])

    @property
    def d_y(self) -> Tensor:
        return (self.x - self.own).norm(dim=1)

    @property
    def k_y(self) -> Tensor:
        return (self.score - self.d_y.square()).clamp(min=0)

    def box(self, radius: Tensor, latent_dim: int) -> Interval:
        """All z that can bring the label nearer than this radius, [batch]: a box around 0, see above."""
        reach = (((self.d_y + radius).square() + self.k_y) / self.weight).sqrt()
        reach = reach.unsqueeze(1).expand(-1, latent_dim)
        return Interval(-reach, reach)

    def published(self, distance: Tensor) -> Tensor:
        """The published radius for d_c = `distance`, in which it grows; 0 instead of a negative one."""
        radius = (distance.square() - self.score) / (2 * (distance + self.d_y)).clamp(min=TINY)
        return radius.clamp(min=0)

    def distance(self, z: Tensor, example: Tensor | slice = ALL) -> Tensor:
        """||x - G_c(z)||, [count]."""
        return (self.x[example] - self.decoder(z)).norm(dim=1)

    def distance_below(self, box: Interval, example: Tensor) -> Tensor:
        """Never above the distance in a box of z."""
        images, x = LatentBox.of(self.decoder, box), self.x[example]
        squared, error = images.squared_distance(x)
        lower = (squared.lower(images.reach) - error).clamp(min=0).sqrt()
        return torch.maximum(lower, images.least_distance(x))

    def joint(self, z: Tensor, example: Tensor | slice = ALL) -> Tensor:
        """R_c(z), or 0 where that is negative, [count]."""
        image = self.decoder(z)
        lead = (self.x[example] - image).square().sum(1) + self.weight * z.square().sum(1) - self.score[example]
        return (lead / (2 * (image - self.own[example]).norm(dim=1)).clamp(min=TINY)).clamp(min=0)

    def joint_below(self, box: Interval, example: Tensor) -> Tensor:
        """Never above R_c in a box of z, or 0.

        The larger of two bounds. One is the formula in u with the least u and the least K of
        the box. The other is of second order: with any r in [0, s] and s > 0, as a root is below its tangent,

            2 (R_c(z) - r) ||G_c(z) - g||  =  N_c(z) - 2 r ||G_c(z) - g||
                                          >=  N_c(z) - (r / s) (||G_c(z) - g||^2 + s^2),

        a convex quadratic function of z but for the errors of the two squared distances.
        """
        images = LatentBox.of(self.decoder, box)
        part = self[example]
        prior = self.weight * images.least_norm().square() - part.k_y
        u = torch.maximum(images.least_distance(part.x) + part.d_y, prior.clamp(min=0).sqrt())
        first = u / 2 - part.d_y + prior / (2 * u.clamp(min=TINY))

        to_x, x_error = images.squared_distance(part.x)
        to_own, own_error = images.squared_distance(part.own)
        s = to_own.constant.sqrt().clamp(min=TINY)  # ||G_c - g|| in the middle of the box
        lead = to_x + images.squared_norm().times(torch.full_like(s, self.weight))
        r = torch.minimum(((lead.constant - part.score) / (2 * s)).clamp(min=0), s)
        own_error = own_error + images.error.square().sum(1)
        rest = x_error + part.score + r / s * (own_error + s.square())
        excess = (lead + to_own.times(-r / s)).lower(images.reach) - rest
        apart = torch.where(excess >= 0, s + images.radius(), (s - images.radius()).clamp(min=TINY))
        return torch.maximum(first, r + excess / (2 * apart)).clamp(min=0)
