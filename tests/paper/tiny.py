"""Sizes at which the experiments on digits run in a moment, and what all tests of them share."""

from dataclasses import replace

import torch

from paperlib import VAE
from paperlib.data.datasets import Dataset
from paperlib.paper.mnist_training import ProfileSizes, digit_models

NAMES = ["VAE", "proVAE kappa=0", "proVAE kappa=0.5"]
TINY = ProfileSizes(
    3, 8, attacked=4, attack_steps=2, certified=6, draws=3, strength=5, looseness=2, strength_steps=(1, 3)
)


def tiny_models() -> dict[str, VAE]:
    """Untrained, each with weights of its own."""
    configs = digit_models("mnist5k", "smoke")
    return {name: replace(config, seed=seed).build() for seed, (name, config) in enumerate(configs.items())}


def tiny_test_set() -> Dataset:
    """Twelve images, mostly of white paper as digits are."""
    kind, grey = torch.rand(2, 12, 784, generator=torch.Generator().manual_seed(0))
    return Dataset("mnist5k", torch.where(kind < 0.8, 0.0, grey), torch.zeros(12).long())
