"""Training against made-up outliers: what they are made of, and the term that pushes them down."""

import pytest
import torch

from paperlib import LinfBall, TrainingStep, elbo_bounds, mlp_vae
from paperlib.rivals.outliers import MadeUpOutliers
from paperlib.training.loss import ProVAE


def test_outliers_are_noise_rows_in_another_order_and_mixed_rows() -> None:
    x = torch.arange(12.0).view(12, 1) / 12 + torch.tensor([[0.0, 100.0, 200.0]])
    made = MadeUpOutliers().draw(x, LinfBall(0.1, -torch.inf, torch.inf), torch.Generator().manual_seed(0))
    assert made.shape == x.shape
    noise, shuffled, mixed = (made[kind::3] for kind in range(3))
    assert (noise >= x.amin(0)).all() and (noise <= x.amax(0)).all() and not torch.isin(noise, x).any()
    assert torch.equal(shuffled.sort(1).values, x[1::3]) and not torch.equal(shuffled, x[1::3])
    own, other = x[2::3], x.roll(1, 0)[2::3]
    assert ((mixed == own) | (mixed == other)).all() and not torch.equal(mixed, own)


def test_noise_fills_the_data_range_where_no_row_goes() -> None:
    x = torch.full((30, 4), 0.5)
    noise = MadeUpOutliers().draw(x, LinfBall(0.1, 0.0, 1.0), torch.Generator().manual_seed(0))[0::3]
    assert (noise.amin(0) < 0.4).all() and (noise.amax(0) > 0.6).all() and ((noise >= 0) & (noise <= 1)).all()
    below = MadeUpOutliers().draw(x, LinfBall(0.1, 0.0, torch.inf), torch.Generator().manual_seed(0))[0::3]
    assert (below.amin(0) < 0.4).all() and (below <= 0.5).all()


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


def test_an_outlier_that_equals_its_row_is_not_pushed_down() -> None:
    vae = mlp_vae((2,), (8,), 2).double()
    x, noise = torch.rand(4, 2).double(), torch.randn(4, 2).double()
    outliers = torch.stack([x[0], x[1] + 0.1, x[2], x[3] * torch.tensor([1.0, 0.5])])  # the last differs in one value
    step = TrainingStep(x, outliers, LinfBall(0.2), noise, 0.0, "crown-ibp")
    lower = ProVAE().robust_term(vae, step)
    pushed = lower - MadeUpOutliers(0.5).robust_term(vae, step)
    assert (pushed > 0).tolist() == [False, True, False, True] and (pushed[[0, 2]] == 0).all()


def test_a_single_feature_has_no_other_order() -> None:
    with pytest.raises(ValueError, match="these rows have a single one: train on"):
        MadeUpOutliers().draw(torch.rand(6, 1), LinfBall(0.1), torch.Generator().manual_seed(0))


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="outlier_weight must not be negative"):
        MadeUpOutliers(-0.1)
