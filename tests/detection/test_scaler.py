"""Standard units inside: bounds in the user's units are those of the standardized model, but for the units' density."""

import math

import pandas as pd
import pytest
import torch
from torch import Tensor

from paperlib import VAE, Gaussian, LinfBall, elbo, elbo_bounds, mlp_vae
from paperlib.detection.scaler import Scaler, TrainingRows, feature_radii


def case() -> tuple[VAE, Scaler, Tensor, Tensor]:
    """A model in standard units, a scaler of very different features, rows in the user's units, noise."""
    vae = mlp_vae((4,), (8,), 2, Gaussian(0.3))
    scaler = Scaler(torch.tensor([0.0, 1e4, -3.0, 0.1]).double(), torch.tensor([1.0, 50.0, 1e-3, 7.0]).double())
    rows = scaler.mean + scaler.spread * torch.randn(5, 4).double()
    return vae, scaler, rows, torch.randn(5, 2).double()


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_bounds_are_those_in_standard_units_less_the_logarithm_of_the_spreads(method: str) -> None:
    vae, scaler, rows, noise = case()
    outside, inside = scaler.in_user_units(vae), vae.in_float64()
    standard = (rows - scaler.mean) / scaler.spread
    density = scaler.spread.log().sum()
    torch.testing.assert_close(
        elbo(outside, rows, noise), elbo(inside, standard, noise) - density, rtol=1e-8, atol=1e-8
    )
    radius = torch.tensor([0.1, 0.0, 0.02, 0.3]).double()
    everywhere = {"low": -math.inf, "high": math.inf}
    bounds = elbo_bounds(outside, rows, LinfBall(radius * scaler.spread, **everywhere), noise, method)
    expected = elbo_bounds(inside, standard, LinfBall(radius, **everywhere), noise, method)
    torch.testing.assert_close(bounds.lower, expected.lower - density, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bounds.upper, expected.upper - density, rtol=1e-6, atol=1e-6)
    sound = elbo_bounds(outside, rows, LinfBall(radius * scaler.spread, **everywhere), noise, method, sound=True)
    assert (sound.lower <= bounds.lower + 1e-9).all() and (bounds.upper <= sound.upper + 1e-9).all()
    torch.testing.assert_close(sound.lower, bounds.lower, rtol=1e-4, atol=1e-4)


def test_standardized_rows_have_mean_0_and_spread_1() -> None:
    rows = torch.tensor([[1.0, 1e4], [2.0, 1e4 + 1], [4.0, 1e4 + 5]]).double()
    standard = Scaler.of(rows, ["a", "b"]).standardized(rows)
    assert standard.dtype == torch.float32
    torch.testing.assert_close(standard.mean(0), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(standard.std(0), torch.ones(2))


def test_a_constant_feature_is_named() -> None:
    with pytest.raises(ValueError, match=r"column 'b' is constant in the 2 rows to train on"):
        Scaler.of(torch.tensor([[1.0, 2.0], [2.0, 2.0]]).double(), ["a", "b"])


def test_a_feature_that_seems_constant_is_named() -> None:
    rows = torch.tensor([[0.0, 1e6], [1.0, 1e6 + 1]]).double()
    with pytest.raises(
        ValueError, match=r"column 'b' varies by 0\.7\d+ only around a mean of 1e\+06.*subtract the mean"
    ):
        Scaler.of(rows, ["a", "b"])


def test_the_eps_of_a_run_is_a_factor_of_the_radii() -> None:
    rows = TrainingRows(torch.zeros(3, 2), torch.tensor([0.1, 0.2]).double(), -1.0, 1.0)
    ball = rows.ball(0.5)
    assert isinstance(ball.eps, Tensor) and ball.eps.tolist() == pytest.approx([0.05, 0.1])
    assert (ball.low, ball.high) == (-1.0, 1.0)


def test_radii_are_one_number_or_one_a_feature() -> None:
    assert feature_radii(0.1, 2).tolist() == feature_radii([0.1, 0.1], 2).tolist() == [0.1, 0.1]
    assert feature_radii(pd.Series([0.1, 0.2]).to_numpy(), 2).tolist() == [0.1, 0.2]  # read-only, as warnings say
    for bad in ([0.1] * 3, -0.1, math.nan, math.inf, torch.full((1, 2), 0.1)):
        with pytest.raises(ValueError, match="eps must be"):
            feature_radii(bad, 2)
