"""The images of a decoder over a box of latents: a linear function of the latent, and an error of each pixel.

    decoder(center + t) = middle + slope . t + e,    |e_i| <= error_i,    for every t with |t_k| <= reach_k

With it a squared distance to an image is a convex quadratic function of t, up to an error that falls with the square of
the box's sides, or with the sides where a ReLU bends inside.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule, outward
from paperlib.bounds.linear import parallel
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.rules import apply_rule, named_layers
from paperlib.models.likelihood import sum_per_example

SWEEPS = 8  # of coordinate descent; any number gives a lower bound


@dataclass(frozen=True)
class Quadratic:
    """t -> t' hessian t + 2 gradient . t + constant,  one for each of `count` boxes."""

    hessian: Tensor  # [count, latent, latent], symmetric
    gradient: Tensor  # [count, latent]
    constant: Tensor  # [count]

    def __add__(self, other: "Quadratic") -> "Quadratic":
        return Quadratic(self.hessian + other.hessian, self.gradient + other.gradient, self.constant + other.constant)

    def times(self, factor: Tensor) -> "Quadratic":
        """The function times a number for each box, [count]."""
        column = factor.unsqueeze(1)
        return Quadratic(self.hessian * column.unsqueeze(2), self.gradient * column, self.constant * factor)

    def lower(self, reach: Tensor) -> Tensor:
        """Never above the minimum over |t_k| <= reach_k, [count], for a positive semidefinite hessian.

        A convex function is above its tangent at any point; here at the end of a coordinate descent, which approaches
        the minimiser, where the tangent's minimum over the box is that of the function.
        """
        t, diagonal = torch.zeros_like(self.gradient), self.hessian.diagonal(dim1=1, dim2=2)
        for _ in range(SWEEPS):
            for k in range(t.shape[1]):
                slope = self.gradient[:, k] + (self.hessian[:, k] * t).sum(1)
                step = slope / diagonal[:, k].clamp(min=torch.finfo(t.dtype).tiny)
                t[:, k] = torch.minimum(torch.maximum(t[:, k] - step, -reach[:, k]), reach[:, k])
        product = torch.einsum("bij,bj->bi", self.hessian, t)
        slope = 2 * (product + self.gradient)
        value = ((product + 2 * self.gradient) * t).sum(1) + self.constant
        return value - (slope.abs() * reach + slope * t).sum(1)


@dataclass(frozen=True)
class LatentBox:
    """A decoder over `count` boxes of latents, with flat images, in real arithmetic."""

    center: Tensor  # [count, latent]
    reach: Tensor  # [count, latent], half of the sides
    middle: Tensor  # [count, pixels]
    slope: Tensor  # [latent, count, pixels]
    error: Tensor  # [count, pixels]
    image: Interval  # [count, pixels], of all images of a box

    @classmethod
    def of(cls, decoder: nn.Module, box: Interval) -> Self:
        """Raises UnsupportedLayerError for a layer without an interval and a relaxation rule.

        Args:
            decoder: latents [count, latent] -> images [count, *data_shape], in evaluation mode.
            box: [count, latent].
        """
        center, reach = box.center, box.radius
        count, latent = center.shape
        slope = torch.eye(latent, dtype=center.dtype, device=center.device)[:, None].expand(-1, count, -1)
        rest = Interval(center, center)  # what a layer gives is  slope . t  plus a rest in this box
        for place, layer in named_layers(decoder, "decoder"):
            relaxation = apply_rule(relaxation_rule, place, layer, box)
            image = apply_rule(interval_rule, place, layer, box)
            if isinstance(relaxation, Affine):
                slope = (layer(slope.flatten(0, 1)) - relaxation.offset).unflatten(0, (latent, count))
                rest = apply_rule(interval_rule, place, layer, rest)
            else:
                band = parallel(relaxation, box)
                slope = band.slope_times(slope)
                middle = band.slope_times(rest.center) + band.middle
                radius = band.spread(rest.radius) + band.radius
                rest = Interval(middle, middle).widen(radius * outward(2, radius.dtype))
            box = image.intersect(rest.widen(_spread(slope, reach)))
        flat = box.map(lambda end: end.flatten(1))
        return cls(center, reach, rest.center.flatten(1), slope.flatten(2), rest.radius.flatten(1), flat)

    def squared_distance(self, point: Tensor) -> tuple[Quadratic, Tensor]:
        """Of the images to a flat `point` [count, pixels]: a convex quadratic function q of t and an error, [count].

        For every t of the box    q(t) - error  <=  ||decoder(center + t) - point||^2  <=  q(t) + error + ||e||^2,
        with ||e||^2 at most the sum of the squares of this box's `error`.
        """
        gap = self.middle - point
        hessian = torch.einsum("kbi,lbi->bkl", self.slope, self.slope)
        gradient = torch.einsum("kbi,bi->bk", self.slope, gap)
        error = 2 * ((gap.abs() + _spread(self.slope, self.reach)) * self.error).sum(1)
        return Quadratic(hessian, gradient, sum_per_example(gap.square())), error

    def squared_norm(self) -> Quadratic:
        """Of the latents, ||center + t||^2, exactly."""
        eye = torch.eye(self.center.shape[1], dtype=self.center.dtype, device=self.center.device)
        return Quadratic(eye.expand(len(self.center), -1, -1), self.center, self.center.square().sum(1))

    def radius(self) -> Tensor:
        """No image of a box is farther than this from `middle`, [count]."""
        return (self.slope.norm(dim=2).T * self.reach).sum(1) + self.error.norm(dim=1)

    def least_distance(self, point: Tensor) -> Tensor:
        """Below the distance of each of the images to `point` [count, pixels], [count]: from the box of images."""
        outside = torch.maximum(self.image.lower - point, point - self.image.upper).clamp(min=0)
        return outside.norm(dim=1)

    def least_norm(self) -> Tensor:
        """The least ||z|| of each box, [count]."""
        return (self.center.abs() - self.reach).clamp(min=0).norm(dim=1)


def _spread(slope: Tensor, reach: Tensor) -> Tensor:
    """How far  slope . t  reaches in the box, [count, *shape]; slope [latent, count, *shape], reach [count, latent]."""
    weights = reach.T.reshape(*slope.shape[:2], *[1] * (slope.ndim - 2))
    return (slope.abs() * weights).sum(0)
