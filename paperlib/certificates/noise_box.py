"""Standard normal noise inside and outside of a box: draws of the one, moments of the other."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


def noise_inside(box: Tensor, draws: int, latent_dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise given |noise_k| <= box for all k, [draws, batch, latent_dim], by rejection: exact."""
    limit = box[:, None].expand(draws, -1, latent_dim)
    normal = partial(torch.randn, generator=generator, dtype=box.dtype, device=box.device)
    noise = normal(limit.shape)
    while (beyond := noise.abs() > limit).any():
        noise[beyond] = normal((int(beyond.sum()),))
    return noise


class Outside(NamedTuple):
    """Expectations over standard normal noise outside a box: E[f; not all |noise_k| <= c]."""

    chance: float  # of 1
    first: float  # of |noise_k|
    second: float  # of noise_k^2
    cross: float  # of |noise_j| |noise_k| for j != k


def outside(c: float, latent_dim: int) -> Outside:
    """In closed form; no small number is the difference of two large ones."""
    beyond = math.erfc(c / math.sqrt(2))  # P(|noise_k| > c)
    density = math.exp(-c * c / 2) / math.sqrt(2 * math.pi)
    first, second = 2 * density, 2 * c * density + beyond  # E[|noise_k|; |noise_k| > c], E[noise_k^2; |noise_k| > c]
    inner = math.sqrt(2 / math.pi) - first  # E[|noise_k|; |noise_k| <= c]

    def others(count: int) -> float:
        """P(any of so many coordinates is beyond c)"""
        return -math.expm1(max(count, 0) * math.log1p(-beyond))

    # a coordinate of the integrand is beyond c, or none is and one of the others
    return Outside(
        others(latent_dim),
        first + inner * others(latent_dim - 1),
        second + (1 - second) * others(latent_dim - 1),
        first * (first + 2 * inner) + inner**2 * others(latent_dim - 2),
    )
