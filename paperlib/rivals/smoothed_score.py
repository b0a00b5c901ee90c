"""A VAE under percentile smoothing as an outlier detector: what it promises, it promises with a probability."""

from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.models.elbo import unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.rivals.outlier_score import OutlierScore
from paperlib.rivals.percentile_smoothing import percentile_smoothing
from paperlib.threats.attacks import descend
from paperlib.threats.balls import LinfBall
from paperlib.threats.l2_ball import L2Ball
from paperlib.threats.perturbation import PerturbationSet

ATTACK_DRAWS = 8  # whose mean an attack moves


@dataclass(frozen=True)
class SmoothedScore(OutlierScore):
    """The median of the ELBO at noisy inputs and noisy latents, see `percentile_smoothing`, of rows of any range.

    The median itself has no formula: `score` estimates it, in nats, from `samples` draws of this seed, and `bounds`
    hold for the median, each end of each row with probability at least `confidence`. They hold in l2; an l-infinity
    ball of radius eps has that of the l2 ball around it, of radius sqrt(features) * eps.

    Attributes:
        sigma: standard deviation of the noise on the inputs, in their units.
    """

    vae: VAE
    sigma: float
    samples: int = 1_000
    confidence: float = 0.999
    seed: int = 0

    def score(self, x: Tensor) -> Tensor:
        return self._smoothed(x, 0.0, "estimate")[0]

    def bounds(self, x: Tensor, ball: PerturbationSet) -> Interval:
        """Raises ValueError for another set than an `L2Ball`, or a `LinfBall` of one radius."""
        if isinstance(ball, L2Ball):
            radius = ball.eps
        elif isinstance(ball, LinfBall) and not isinstance(ball.eps, Tensor):
            radius = x[0].numel() ** 0.5 * ball.eps
        else:
            raise ValueError(f"smoothing speaks of l2 balls, and of l-infinity balls inside them, not of {ball}")
        return Interval(*self._smoothed(x, radius, "lower", "upper"))

    def _smoothed(self, x: Tensor, radius: float, *columns: str) -> list[Tensor]:
        rows = percentile_smoothing(
            self.vae,
            x.to(next(self.vae.parameters())),
            self.sigma,
            radius,
            samples=self.samples,
            confidence=self.confidence,
            low=-torch.inf,
            high=torch.inf,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return [torch.from_numpy(rows[name].to_numpy(copy=True)) for name in columns]

    def attack(
        self, x: Tensor, ball: PerturbationSet, steps: int, generator: torch.Generator, *, maximize: bool
    ) -> Tensor:
        """By the gradient of the mean over a few draws that stay the same (expectation over transformation: Athalye et
        al. 2018), from x. A point that does not move the estimated median that way is given up for x.
        """
        dtype, sign = next(self.vae.parameters()).dtype, -1.0 if maximize else 1.0
        shape = (ATTACK_DRAWS, len(x))
        noise = self.sigma * torch.randn(*shape, *x.shape[1:], generator=generator, dtype=dtype)
        draws = torch.randn(*shape, self.vae.latent_dim, generator=generator, dtype=dtype)

        def mean(point: Tensor) -> Tensor:
            noisy = (point.to(dtype) + noise).flatten(0, 1)
            return sign * unchecked_elbo(self.vae, noisy, draws.flatten(0, 1), noisy).view(shape).mean(0).to(point)

        point = descend(mean, x, ball, x, steps)[0]
        moved = sign * (self.score(point) - self.score(x)) < 0  # by the same draws
        return torch.where(moved.view(-1, *[1] * (x.dim() - 1)), point, x)
