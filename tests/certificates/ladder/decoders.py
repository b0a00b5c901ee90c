"""Small decoders whose largest costs are derived by hand, and random ones."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from paperlib import Interval
from paperlib.certificates.ladder.output_cost import OutputCost


def linear(weight: list[list[float]]) -> nn.Linear:
    """A layer of these weights without a bias, float64."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False).double()
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


def cube(latents: int) -> Interval:
    """The box [-1, 1] of each latent, one row."""
    return Interval(-torch.ones(1, latents).double(), torch.ones(1, latents).double())


def hexagon() -> nn.Sequential:
    """y = sum over three latents of z_k (cos, sin)(2 pi k / 3): the image of the cube is a hexagon of radius 2."""
    angles = [2 * math.pi * k / 3 for k in range(3)]
    return nn.Sequential(linear([[math.cos(a) for a in angles], [math.sin(a) for a in angles]]))


def absolute() -> nn.Sequential:
    """z -> (z, |z|) by z = max(z, 0) - max(-z, 0) and |z| = max(z, 0) + max(-z, 0)."""
    return nn.Sequential(linear([[1.0], [-1.0]]), nn.ReLU(), linear([[1.0, -1.0], [1.0, 1.0]]))


def random_decoder(*widths: int) -> nn.Sequential:
    """ReLUs between layers of twice the usual weights, so that many units bend in a box of radius 1."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layer = nn.Linear(fan_in, fan_out).double().requires_grad_(False)
        layer.weight.mul_(2)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def points(box: Interval, count: int) -> Tensor:
    """The corners of each box and random points inside, [points, batch, latent]."""
    latents = box.lower.shape[1]
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * latents).view(-1, 1, latents)
    share = torch.cat([corners.expand(-1, *box.lower.shape), torch.rand(count, *box.lower.shape).double()])
    return torch.lerp(box.lower, box.upper, share)


def attained(decoder: nn.Module, box: Interval, cost: OutputCost) -> Tensor:
    """The largest cost at the corners of each box and at many points inside, [batch]."""
    z = points(box, 3000)
    example = torch.arange(len(box.lower)).repeat(len(z))
    return cost.of(example).value(decoder(z.flatten(0, 1))).view(z.shape[:2]).amax(0)
