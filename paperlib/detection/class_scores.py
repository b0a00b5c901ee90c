"""What a classifier of one VAE a class compares: the ELBOs at noise 0, each plus the logarithm of its prior."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from paperlib.models.elbo import unchecked_elbo
from paperlib.models.vae import VAE


@dataclass(frozen=True)
class ClassScores:
    """The same numbers as `elbo` gives of each model at noise 0, plus its prior: the functions that certificates bound.

    A call takes x, [batch, *data_shape], to [classes, batch], nats; differentiable. The layers that all encoders begin
    with are evaluated once.
    """

    vaes: Sequence[VAE]
    prior: Tensor  # logarithm of the classes' probabilities, [classes]
    shared: nn.Sequential
    behind: Sequence[VAE]  # each model without the shared layers

    @classmethod
    def of(cls, vaes: Sequence[VAE], prior: Tensor) -> Self:
        """Of models whose encoders are the same layers but for the last, such as `ClassVAEs.vaes` makes."""
        encoders = [vae.encoder for vae in vaes]
        sequences = [encoder for encoder in encoders if isinstance(encoder, nn.Sequential)]
        first = [*sequences[0]][:-1]
        assert all(list(encoder)[:-1] == first for encoder in sequences) and len(sequences) == len(vaes)
        behind = [
            VAE(nn.Sequential(encoder[-1]), vae.decoder, vae.likelihood, vae.latent_dim).eval()
            for encoder, vae in zip(sequences, vaes, strict=True)
        ]
        return cls(vaes, prior, nn.Sequential(*first), behind)

    def __call__(self, x: Tensor) -> Tensor:
        units = self.shared(x)
        return torch.stack([self._score(number, units, x) for number in range(len(self.vaes))])

    def of_classes(self, x: Tensor, classes: Tensor) -> Tensor:
        """The scores of a few classes of each example alone, whose numbers are [count, batch]; of that shape."""
        units = self.shared(x)
        scores = torch.zeros(classes.shape, dtype=x.dtype)
        for number in classes.unique().tolist():
            place, rows = (classes == number).nonzero(as_tuple=True)
            scores = scores.index_put((place, rows), self._score(number, units[rows], x[rows]))
        return scores

    def _score(self, number: int, units: Tensor, x: Tensor) -> Tensor:
        noise = x.new_zeros(len(x), self.vaes[number].latent_dim)
        return unchecked_elbo(self.behind[number], units, noise, x) + self.prior[number]
