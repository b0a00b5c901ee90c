"""Training for the job of a detector: normal rows are certified to score high, and made-up outliers to score low."""

import math
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

    Outliers are, a third of the batch each: uniform noise; rows with their own values in another order; rows half of
    whose features are those of another row. Noise is in the data range, so that pixels that no row ever inks count; at
    an end where the range is infinite, it ends at the batch's own smallest or largest value of each feature. Upper
    bounds are by CROWN-IBP over the same perturbation set. An outlier that equals its normal row, as it can where rows
    have few features or few values, is none and has no weight.

    Raises ValueError for a weight that is negative, and for rows of a single feature.
    """

    outlier_weight: float = 0.1

    def __post_init__(self) -> None:
        if not self.outlier_weight >= 0:
            raise ValueError(f"outlier_weight must not be negative, got {self.outlier_weight}")

    def draw(self, x: Tensor, ball: PerturbationSet, generator: torch.Generator) -> Tensor:
        """The made-up outliers, of the shape of x."""
        rows = x.flatten(1)
        if rows.shape[1] < 2:
            raise ValueError(
                "outliers are made up from the features of rows in another order, and these rows have a single one: "
                "train on the normal rows alone"
            )

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=x.dtype, device=x.device)

        low = torch.full_like(x[0], ball.low) if ball.low > -math.inf else x.amin(0)
        high = torch.full_like(x[0], ball.high) if ball.high < math.inf else x.amax(0)
        noise = torch.lerp(low, high, uniform(*x.shape)).clamp(low, high)
        shuffled = rows.gather(1, uniform(*rows.shape).argsort(1)).view_as(x)
        mixed = torch.where(uniform(*x.shape) < 0.5, x, x.roll(1, 0))  # batches are in random order
        kind = torch.arange(len(x), device=x.device).remainder(3).view(-1, *[1] * (x.ndim - 1))
        return torch.where(kind == 0, noise, torch.where(kind == 1, shuffled, mixed))

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        lower = super().robust_term(vae, step)
        region = step.ball.unchecked_region(step.start)
        bounds = IntervalBounds.of(vae, region, step.noise, target_box(step.target, region.box, step.start))
        linear = linear_upper(CrownIBP().relax(Problem(vae, step.noise, bounds)))
        upper = torch.fmin(linear, elbo_upper(vae, bounds))  # a NaN bounds nothing
        same = (step.start == step.x).flatten(1).all(1)
        return lower - self.outlier_weight * F.relu(upper - lower).masked_fill(same, 0)


OBJECTIVES["detector"] = MadeUpOutliers()
