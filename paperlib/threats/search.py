"""Searches of a set from several starts, and what every attack checks before it begins."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from paperlib.models.elbo import check_inputs
from paperlib.models.vae import VAE
from paperlib.threats.attacks import Objective, check_search, descend, keep_lower
from paperlib.threats.perturbation import PerturbationSet


def lowest(
    objective: Objective, x: Tensor, ball: PerturbationSet, starts: Iterable[Tensor], steps: int
) -> tuple[Tensor, Tensor]:
    """The best point for each example that `descend` meets from any of the starts, and its value, [batch].

    Args:
        starts: points of the set around x, each of the shape of x; at least one.
    """
    first, *others = starts
    best, least = descend(objective, x, ball, first, steps)
    for start in others:
        best, least = keep_lower(best, least, *descend(objective, x, ball, start, steps))
    return best, least


def random_starts(ball: PerturbationSet, x: Tensor, count: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """`count` random points of the set around each x, one after the other."""
    return (ball.sample(x, generator) for _ in range(count))


def check_attack(vae: VAE, x: Tensor, steps: int, restarts: int = 1) -> None:
    """Raises ValueError for fewer than one step or restart, or an x that is not finite or not of the model's dtype and
    device.
    """
    check_search(steps, restarts)
    check_inputs(vae, x, x.new_zeros(len(x), vae.latent_dim))


def check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raises ValueError unless the tensor is finite and has the shape, dtype and device of x."""
    for what, given, needed in (
        ("shape", list(tensor.shape), list(x.shape)),
        ("dtype", tensor.dtype, x.dtype),
        ("device", tensor.device, x.device),
    ):
        if given != needed:
            raise ValueError(f"{name} must have the {what} of x, {needed}, got {given}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} is not finite at index {(~torch.isfinite(tensor)).nonzero()[0].tolist()}")
