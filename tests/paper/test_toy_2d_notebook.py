"""The experiments of notebook 1, where a dense grid of the plane is the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from paperlib import TrainConfig, elbo, elbo_bounds, load_dataset, pgd
from paperlib.data.datasets import Dataset
from paperlib.paper import toy_2d as toys

CONFIG = TrainConfig(dataset="two-moons", data_shape=(2,), hidden=(16,), latent_dim=2, likelihood="gaussian", scale=0.3)


@pytest.fixture(scope="module")
def moons() -> Dataset:
    return load_dataset("two-moons", "test")


def test_a_toy_comparison_differs_only_in_how_the_models_are_trained() -> None:
    for toy in toys.TOYS:
        models = toys.toy_models(toy, "paper")
        assert list(models) == ["VAE", "proVAE"] and all(c.dataset == toy for c in models.values())
        assert models["VAE"] == replace(models["proVAE"], eps=0.0, kappa=1.0)
    assert toys.toy_config("paper") != toys.toy_config("smoke")


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_minimum_lies_between_certificate_and_attack(seed: int, moons: Dataset) -> None:
    vae, x = replace(CONFIG, seed=seed).build(), moons.x[seed : seed + 1]
    truth = toys.ball_truth(vae, x, moons)
    assert truth["certified"] < truth["exact"] <= truth["values"].max()
    assert truth["attacked"] <= truth["values"][len(truth["values"]) // 2] + 1e-9, "the middle of the grid is x"
    neighbours = truth["values"].view(toys.BALL_GRID, -1).diff(dim=0).abs().max()
    assert (truth["attacked"] - truth["exact"]).abs() <= 2 * neighbours
    lowest = truth["values"].min()
    assert torch.equal(truth["values"][(truth["points"] == truth["worst"]).all(1)], lowest[None])
    assert truth["exact"] <= torch.minimum(lowest, truth["attacked"]) <= truth["exact"] + neighbours + toys.TOL


def test_the_grid_fills_the_ball_with_its_corners_and_centre(moons: Dataset) -> None:
    x = torch.tensor([[3.95, -0.5]])
    points = toys.ball_truth(CONFIG.build(), x, moons)["points"]
    box = moons.ball(toys.EPS).box(x.double())
    assert len(points) == toys.BALL_GRID**2
    assert (points >= box.lower - 1e-12).all() and (points <= box.upper + 1e-12).all()
    torch.testing.assert_close(points.amin(0), box.lower[0])
    torch.testing.assert_close(points.amax(0), box.upper[0])
    assert box.upper[0, 0] == 4.0, "cut at the edge of the plane"
    assert (points[1] - points[0])[0] > 0 and (points[1] - points[0])[1] == 0, "the first coordinate runs fastest"


def test_landscapes_are_means_over_draws_with_the_second_coordinate_down_the_rows(
    moons: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toys, "GRID", 5)
    monkeypatch.setattr(toys, "DRAWS", 3)
    vae = CONFIG.build()
    fields = toys.landscape(vae, moons)
    noise = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(1))
    point = torch.tensor([[-2.0, 4.0]])  # column 1, row 4
    with torch.no_grad():
        clean = torch.stack([elbo(vae, point, draw) for draw in noise]).mean()
        certified = torch.stack([elbo_bounds(vae, point, moons.ball(toys.EPS), draw).lower for draw in noise]).mean()
    torch.testing.assert_close(fields["clean"][4, 1], clean, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(fields["certified"][4, 1], certified, rtol=1e-5, atol=1e-3)
    assert (fields["certified"] <= fields["clean"] + 1e-3).all()


def test_boxes_in_the_plane_contain_what_the_grid_reaches(moons: Dataset) -> None:
    rows = toys.box_growth(CONFIG.build(), moons.x[:1], moons)
    assert rows["stage"].tolist() == ["input", "encoder 1", "encoder 2", "latent", "decoder 1", "decoder 2"]
    assert (rows["box"] >= rows["exact"] * (1 - 1e-9)).all()
    np.testing.assert_allclose(rows["box"][:2], rows["exact"][:2], rtol=1e-9)
    assert rows["box"].iloc[-1] > 1.05 * rows["exact"].iloc[-1]


def test_a_summary_row_is_the_mean_of_the_sandwich(moons: Dataset, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "SUMMARY_POINTS", 5)
    vae = CONFIG.build()
    rows = toys.summary_rows({("two-moons", "VAE"): vae, ("pinwheel", "proVAE"): vae})
    row = rows.iloc[0]
    assert rows[["data", "model"]].to_numpy().tolist() == [["two-moons", "VAE"], ["pinwheel", "proVAE"]]
    assert row["points"] == 5 and rows["clean"].nunique() == 2
    assert row["certified"] <= row["crown"] <= row["exact"] + toys.TOL <= row["attacked"] + toys.TOL
    assert row["attacked"] <= row["clean"]
    x, noise = moons.x[:5].double(), torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double()
    double = vae.in_float64()
    x_adv = pgd(double, x, moons.ball(toys.EPS), noise, steps=40)
    with torch.no_grad():
        assert row["clean"] == pytest.approx(elbo(double, x, noise).mean().item(), abs=1e-9)
        assert row["attacked"] == pytest.approx(elbo(double, x_adv, noise).mean().item(), abs=1e-9)
