"""Linear networks whose worst perturbations have a formula, and the l2 ball they are asked for in."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from paperlib import VAE, Gaussian, LinfBall
from paperlib.threats.perturbation import BoxRegion

PIXELS, LATENT = 6, 3


def linear_vae(seed: int = 0, log_var: float = -1.0) -> VAE:
    """Mean W x + b, a constant log-variance, a decoder V z + a and a Gaussian likelihood: dec(x) = V (W x + b) + a."""
    torch.manual_seed(seed)
    encoder, decoder = nn.Linear(PIXELS, 2 * LATENT), nn.Linear(LATENT, PIXELS)
    with torch.no_grad():
        encoder.weight[LATENT:] = 0
        encoder.bias[LATENT:] = log_var
    return VAE(encoder, decoder, Gaussian(0.5), LATENT).double()


def mean_weight(vae: VAE) -> Tensor:
    weight = vae.encoder.weight
    assert isinstance(weight, Tensor)
    return weight[:LATENT].detach()


def decoder_weight(vae: VAE) -> Tensor:
    weight = vae.decoder.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def corners(x: Tensor, eps: float) -> Tensor:
    """All corners of the box of radius eps around one x of a few features, [corners, features]."""
    return x + eps * torch.tensor(list(product([-1.0, 1.0], repeat=x.numel())), dtype=x.dtype)


@dataclass(frozen=True)
class RoundRegion(BoxRegion):
    x: Tensor
    eps: float

    def project(self, x_adv: Tensor) -> Tensor:
        return self.x + inside(x_adv - self.x, self.eps)


@dataclass(frozen=True)
class Round(LinfBall):
    """All x' with ||x' - x||_2 <= eps, for x of one axis and a data range that is far away."""

    low: float = -100.0
    high: float = 100.0

    def unchecked_region(self, x: Tensor) -> RoundRegion:
        return RoundRegion(super().unchecked_region(x).box, x, self.size)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x + inside(torch.randn(x.shape, generator=generator, dtype=x.dtype), self.size)

    def steepest(self, gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.size * scale * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-300)


def inside(change: Tensor, eps: float) -> Tensor:
    return change * (eps / change.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)
