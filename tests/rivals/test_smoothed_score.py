"""The smoothed score: that of percentile smoothing, against a median that has a formula."""

import math

import pytest
import torch
from scipy.special import chndtrix
from torch import Tensor

from paperlib import Gaussian, L1Ball, L2Ball, LinfBall, mlp_vae
from paperlib.models.vae import VAE
from paperlib.rivals.smoothed_score import SmoothedScore

FEATURES, SIGMA = 4, 0.5
X = 2 * torch.rand(5, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def constant() -> VAE:
    """Posterior and reconstruction are 0 whatever the input is, so that the ELBO is  -|x|^2 / 2  and a constant."""
    vae = mlp_vae((FEATURES,), (3,), 2, Gaussian())
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
    return vae


def median(norms: Tensor) -> Tensor:
    """Of  -|x + G|^2 / 2  without its constant, for inputs of these norms, by scipy."""
    squares = chndtrix(0.5, FEATURES, (norms / SIGMA).square().numpy()) * SIGMA**2  # noncentral chi squared
    return torch.from_numpy(-squares / 2 - FEATURES * math.log(2 * math.pi) / 2)


DETECTOR = SmoothedScore(constant(), SIGMA, samples=2_000)


def test_the_score_is_near_the_median_and_the_bounds_hold_for_the_worst_point() -> None:
    torch.testing.assert_close(DETECTOR.score(X), median(X.norm(dim=1)), rtol=0, atol=0.15)
    lower, upper = DETECTOR.bounds(X, L2Ball(0.3, -math.inf, math.inf))
    norms = X.norm(dim=1)
    assert (lower <= median(norms + 0.3)).all() and (median((norms - 0.3).clamp(min=0)) <= upper).all()
    assert (lower < DETECTOR.score(X)).all() and (DETECTOR.score(X) < upper).all()


def test_an_linf_ball_has_the_bounds_of_the_l2_ball_around_it() -> None:
    linf = DETECTOR.bounds(X, LinfBall(0.1, -math.inf, math.inf))
    l2 = DETECTOR.bounds(X, L2Ball(0.1 * FEATURES**0.5, -math.inf, math.inf))
    assert all(torch.equal(*ends) for ends in zip(linf, l2, strict=True))
    for ball in (L1Ball(0.1), LinfBall(torch.full((FEATURES,), 0.1))):
        with pytest.raises(ValueError, match="smoothing speaks of l2 balls"):
            DETECTOR.bounds(X, ball)


def test_an_attack_that_moves_the_median_the_wrong_way_stays_at_x(monkeypatch: pytest.MonkeyPatch) -> None:
    away = X * torch.tensor([[1.1], [1.1], [0.9], [0.9], [1.1]], dtype=torch.float64)  # the median falls with the norm
    monkeypatch.setattr("paperlib.rivals.smoothed_score.descend", lambda objective, x, *rest: (away, objective(away)))
    ball, generator = L2Ball(9.0, -math.inf, math.inf), torch.Generator().manual_seed(0)
    raised, lowered = (DETECTOR.attack(X, ball, 1, generator, maximize=maximize) for maximize in (True, False))
    assert torch.equal(raised, torch.cat([X[:2], away[2:4], X[4:]]))
    assert torch.equal(lowered, torch.cat([away[:2], X[2:4], away[4:]]))


@pytest.mark.parametrize("ball", [L2Ball(0.4, -math.inf, math.inf), LinfBall(0.2, -math.inf, math.inf)])
def test_the_attack_goes_where_the_smoothed_score_rises_and_falls_most(ball: L2Ball | LinfBall) -> None:
    generator = torch.Generator().manual_seed(0)
    x = X + 1  # no feature is near 0, where the best direction turns
    best = x / x.norm(dim=1, keepdim=True) * 0.4 if isinstance(ball, L2Ball) else torch.full_like(x, 0.2)
    for maximize, sign in ((True, -1.0), (False, 1.0)):
        point = DETECTOR.attack(x, ball, 20, generator, maximize=maximize)
        torch.testing.assert_close(ball.project(point, x), point)
        moved, farthest = (sign * (value.norm(dim=1) - x.norm(dim=1)) for value in (point, x + sign * best))
        assert (moved > 0.8 * farthest).all()
