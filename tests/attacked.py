"""Models, images and sets that tests of attacks share, among them a model whose worst points are known."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from paperlib import VAE, Gaussian, Interval, LinfBall, elbo, mlp_vae, propagate
from paperlib.threats.perturbation import PerturbationSet, Region

PIXELS, LATENT, COUNT = 36, 3, 20
BALL = LinfBall(0.1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits(count: int = COUNT, seed: int = 0) -> Tensor:
    """Like MNIST: most pixels exactly 0, some exactly 1, the others grey."""
    kind, grey = torch.rand(2, count, PIXELS, generator=seeded(seed), dtype=torch.float64)
    return torch.where(kind < 0.6, 0.0, torch.where(kind > 0.85, 1.0, grey))


def curved(seed: int = 0, scale: float = 2.0) -> VAE:
    """A random network with weights so large that its ELBO is far from linear inside the ball."""
    torch.manual_seed(seed)
    vae = mlp_vae((PIXELS,), (16,), LATENT).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter *= scale
    return vae


def draw(count: int = COUNT, seed: int = 1) -> Tensor:
    return torch.randn(count, LATENT, generator=seeded(seed), dtype=torch.float64)


@torch.no_grad()
def value(vae: VAE, x: Tensor, noise: Tensor, target: str | Tensor = "perturbed") -> Tensor:
    return elbo(vae, x, noise, target)


def linear_vae(size: int = 8, seed: int = 0) -> VAE:
    """A linear encoder with a constant variance, a linear decoder, a Gaussian likelihood: the ELBO is a concave
    quadratic function of the input, so that it is least at a corner of a box.
    """
    torch.manual_seed(seed)
    encoder, decoder = nn.Linear(size, 2 * LATENT), nn.Linear(LATENT, size)
    with torch.no_grad():
        encoder.weight[LATENT:] = 0
    return VAE(nn.Sequential(encoder), nn.Sequential(decoder), Gaussian(0.3), LATENT).double()


def corners(box: Interval) -> Tensor:
    """All corners of the box of each example: [2 ** size, batch, size]."""
    choices = torch.tensor(list(product([False, True], repeat=box.lower.shape[1])))
    return torch.where(choices[:, None], box.upper, box.lower)


def constant_vae(output: Tensor) -> VAE:
    """Puts out the same whatever its input is: the ELBO is  -|x' - output|^2 / 2  and a constant."""
    vae = mlp_vae((len(output),), (), LATENT, Gaussian()).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        vae.decoder[-1].bias.copy_(output)  # type: ignore[union-attr, operator]
    return vae


@dataclass(frozen=True)
class DiscRegion(Region):
    center: Tensor
    radius: float

    @property
    def box(self) -> Interval:  # type: ignore[override]
        return Interval(self.center - self.radius, self.center + self.radius)

    def concretize(self, coefficients: Tensor) -> Tensor:
        return (coefficients * self.center).sum(-1) - self.radius * coefficients.norm(dim=-1)

    def first_layer(self, layer: nn.Module) -> Interval:
        return propagate(layer, self.box)

    def project(self, x_adv: Tensor) -> Tensor:
        away = x_adv - self.center
        return self.center + away * (self.radius / away.norm(dim=-1, keepdim=True).clamp(min=self.radius))

    def __getitem__(self, rows: Tensor | slice) -> "DiscRegion":
        return DiscRegion(self.center[rows], self.radius)


@dataclass(frozen=True)
class Disc(PerturbationSet):
    """All inputs [batch, size] within a Euclidean distance, of any value: a set that is no box."""

    radius: float
    low: float = -1e6
    high: float = 1e6

    def unchecked_region(self, x: Tensor) -> DiscRegion:
        return DiscRegion(x, self.radius)

    def sound_region(self, x: Tensor) -> DiscRegion:
        raise NotImplementedError

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.project(x + self.radius * torch.randn(x.shape, generator=generator, dtype=x.dtype), x)

    def steepest(self, gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.radius * scale * torch.nn.functional.normalize(gradient, dim=-1)

    @property
    def size(self) -> float:
        return self.radius

    @property
    def label(self) -> str:
        return f"a disc of {self.radius}"
