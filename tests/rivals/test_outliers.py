"""Training against made-up outliers: what they are made of, and the term that pushes them down."""

import pytest
import torch

from paperlib import LinfBall, TrainingStep, elbo_bounds, mlp_vae
from paperlib.rivals.outliers import MadeUpOutliers
from paperlib.training.loss import ProVAE


def test_outliers_are_noise_shuffled_features_and_mixed_rows() -> None:
    x = torch.arange(12.0).view(12, 1) / 12 + torch.tensor([[0.0, 100.0, 200.0]])
    made = MadeUpOutliers().draw(x, LinfBall(0.1), torch.Generator().manual_seed(0))
    assert made.shape == x.shape and (made >= x.amin(0)).all() and (made <= x.amax(0)).all()
    of_rows = torch.stack([torch.isin(made[:, k], x[:, k]) for k in range(3)], 1)
    assert not of_rows[0::3].any() and of_rows[1::3].all() and of_rows[2::3].all()
    assert not torch.equal(made[1::3], x[1::3])
    mixed, own, other = made[2::3], x[2::3], x.roll(1, 0)[2::3]
    assert ((mixed == own) | (mixed == other)).all() and not torch.equal(mixed, own)


def test_the_term_is_how_far_the_upper_bound_of_an_outlier_is_above_the_lower_bound_of_a_row() -> None:
    vae = mlp_vae((3,), (8,), 2).double()
    x, outliers, noise = torch.rand(6, 3).double(), torch.rand(6, 3).double(), torch.randn(6, 2).double()
    ball = LinfBall(0.05)
    step = TrainingStep(x, outliers, ball, noise, 0.0, "crown-ibp")
    lower = elbo_bounds(vae, x, ball, noise, "crown-ibp").lower
    upper = elbo_bounds(vae, outliers, ball, noise, "crown-ibp").upper
    above = (upper - lower).clamp(min=0)
    assert (above > 0).any()
    torch.testing.assert_close(MadeUpOutliers(0.5).robust_term(vae, step), lower - 0.5 * above, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(MadeUpOutliers(0.0).robust_term(vae, step), ProVAE().robust_term(vae, step))


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="outlier_weight must not be negative"):
        MadeUpOutliers(-0.1)
