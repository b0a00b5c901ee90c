"""A plain autoencoder (Hinton & Salakhutdinov 2006) as an outlier detector: its squared error of reconstruction."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from paperlib.rivals.outlier_score import OutlierScore


@dataclass(frozen=True)
class Autoencoder(OutlierScore):
    """score(x) = -|x - network(x)|^2. Nothing is proven of it: it is attacked alone."""

    network: nn.Module

    @classmethod
    def fit(
        cls,
        x: Tensor,
        hidden: Sequence[int] = (64,),
        latent_dim: int = 8,
        *,
        steps: int = 2_500,
        batch_size: int = 128,
        lr: float = 2e-3,
        seed: int = 0,
    ) -> Self:
        """A network of ReLU layers that narrows to `latent_dim` and widens again, trained by Adam on the squared error.

        The learning rate falls linearly to a fiftieth. The seed decides weights and batches.

        Args:
            x: normal rows, [rows, features].
        """
        widths = [x.shape[1], *hidden, latent_dim, *reversed(hidden), x.shape[1]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Sequential(nn.Linear(wide, to), nn.ReLU()) for wide, to in pairwise(widths[:-1])]
            # no ReLU at the code and at the output
            layers[len(hidden)] = nn.Sequential(layers[len(hidden)][0])
            network = nn.Sequential(*(part for layer in layers for part in layer), nn.Linear(widths[-2], widths[-1]))
            optimizer = torch.optim.Adam(network.parameters(), lr=lr)
            falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
            rows = x.float()  # as the library trains
            for _ in range(steps):
                batch = rows[torch.randint(len(rows), (batch_size,))]
                optimizer.zero_grad()
                (network(batch) - batch).square().sum(1).mean().backward()
                optimizer.step()
                falling.step()
        return cls(network.to(x).requires_grad_(False))

    def score(self, x: Tensor) -> Tensor:
        return -(x - self.network(x)).square().sum(1)
