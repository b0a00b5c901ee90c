"""Three toy sets in the plane, made from a seed."""

import math
from collections.abc import Callable

import numpy as np


def toy_points(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [count, 2] of the toy set of this name, and the part of the set to which each belongs, [count]."""
    return TOYS[name](count, np.random.default_rng(seed))


def _two_moons(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    kind = rng.integers(2, size=count)
    angle = rng.uniform(0, math.pi, count)
    outer = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], 1)
    return 1.6 * np.where(kind[:, None] == 0, outer, -outer) + rng.normal(0, 0.12, (count, 2)), kind


def _eight_gaussians(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    kind = rng.integers(8, size=count)
    angle = kind * math.pi / 4
    return 2.4 * np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.2, (count, 2)), kind


def _pinwheel(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    kind = rng.integers(5, size=count)
    radius = 1.6 + rng.normal(0, 0.5, count)
    angle = kind * 2 * math.pi / 5 + 0.35 * np.exp(0.5 * radius) + rng.normal(0, 0.1, count)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), kind


TOYS: dict[str, Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "two-moons": _two_moons,
    "eight-gaussians": _eight_gaussians,
    "pinwheel": _pinwheel,
}
