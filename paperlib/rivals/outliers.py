"""Training for the job of a detector: normal rows are certified to score high, and made-up outliers to score low."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib.certificates.backward import linear_upper
from paperlib.certificates.crown import CrownIBP
from paperlib.certificates.interval_elbo import elbo_upper
from paperlib.certificates.intervals import IntervalBounds, target_box
from paperlib.certificates.method import Problem
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.loss import ProVAE
from paperlib.training.objective import OBJECTIVES, TrainingStep


@dataclass(frozen=True)
class MadeUpOutliers(ProVAE):
    """The robust term of proVAE, less `outlier_weight` times how far the certified upper bound of a made-up outlier is
    above the certified lower bound of a normal row: a surrogate of the two-sided guaranteed AUC. No outlier data are
    needed (Hein et al. 2019, arXiv 1812.05720, and Bitterwolf et al. 2020, arXiv 2007.08473, push the confidence of
    classifiers down on noise and on other images).

    Outliers are, a third of the batch each: uniform noise between the smallest and largest value of each feature in the
    batch; rows whose features are shuffled among the batch; rows half of whose features are those of another row. Their
    upper bounds are by CROWN-IBP over the same perturbation set.

    Raises ValueError for a weight that is negative.
    """

    outlier_weight: float = 0.1

    def __post_init__(self) -> None:
        if not self.outlier_weight >= 0:
            raise ValueError(f"outlier_weight must not be negative, got {self.outlier_weight}")

    def draw(self, x: Tensor, ball: PerturbationSet, generator: torch.Generator) -> Tensor:
        """The made-up outliers, of the shape of x."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=x.dtype, device=x.device)

        low, high = x.amin(0), x.amax(0)
        noise = torch.lerp(low, high, uniform(*x.shape)).clamp(low, high)
        shuffled = x.gather(0, uniform(*x.shape).argsort(0))
        mixed = torch.where(uniform(*x.shape) < 0.5, x, x.roll(1, 0))  # batches are in random order
        kind = torch.arange(len(x), device=x.device).remainder(3).view(-1, *[1] * (x.ndim - 1))
        return torch.where(kind == 0, noise, torch.where(kind == 1, shuffled, mixed))

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        lower = super().robust_term(vae, step)
        region = step.ball.unchecked_region(step.start)
        bounds = IntervalBounds.of(vae, region, step.noise, target_box(step.target, region.box, step.start))
        linear = linear_upper(CrownIBP().relax(Problem(vae, step.noise, bounds)))
        upper = torch.fmin(linear, elbo_upper(vae, bounds))  # a NaN bounds nothing
        return lower - self.outlier_weight * F.relu(upper - lower)


OBJECTIVES["detector"] = MadeUpOutliers()
