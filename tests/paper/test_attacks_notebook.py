"""The experiments of notebook 3 at tiny size: the rows that they promise, true to `certify` and to each attack."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import NAMES, TINY

from paperlib import VAE, Bernoulli, LinfBall, TrainConfig, certificate, elbo, fgsm, mlp_vae, pgd
from paperlib.certificates.evaluation import check_sandwich, evaluation_noise
from paperlib.data.datasets import Dataset
from paperlib.paper import attacks
from paperlib.paper.attacks import entropy_ceiling
from paperlib.paper.mnist_training import EPS, EPS_GRID
from paperlib.threats.suite import greyest_point


def test_attacked_rows_are_complete_and_in_order(models: dict[str, VAE], test: Dataset) -> None:
    rows = attacks.attacked_rows(models, test, "smoke")
    assert len(rows) == len(NAMES) * len(EPS_GRID) * TINY.attacked
    assert "draw" not in rows and rows["model"].unique().tolist() == NAMES
    counts = rows.groupby(["model", "eps"])["index"].apply(list)
    assert all(index == [0, 1, 2, 3] for index in counts) and len(counts) == 21
    assert rows[["clean", "attacked", "certified"]].notna().all(axis=None)
    check_sandwich(rows)
    closed = rows[rows["eps"] == 0]
    assert (closed["attacked"] == closed["clean"]).all()
    means = rows.groupby(["model", "eps"], sort=False)["certified"].mean()
    for name in NAMES:
        assert (means[name].diff().dropna() < 0).all(), "a larger ball has a lower certificate"


def test_strength_rows_measure_each_attack(models: dict[str, VAE], test: Dataset) -> None:
    rows = attacks.strength_rows(models, test, "smoke")
    settings = [("none", 0, 1), ("random", 0, 1), ("shift", 0, 1), ("fgsm", 1, 1)]
    settings += [("pgd", steps, restarts) for steps in TINY.strength_steps for restarts in TINY.strength_restarts]
    for name, part in rows.groupby("model", sort=False):
        assert list(part[["attack", "steps", "restarts"]].itertuples(index=False, name=None)) == settings
        assert (part["images"] == TINY.strength).all()
        searched = part[part["attack"] == "pgd"]
        assert (searched["worse_than_fgsm"] == 0).all()
        rivals = part.loc[part["attack"] != "pgd", "elbo"].min()
        assert (searched["elbo"] <= rivals + 1e-9).all()

        vae, x = models[str(name)].in_float64(), test.x[: TINY.strength].double()
        noise = evaluation_noise(TINY.strength, 20, 1)[0].double()
        with torch.no_grad():
            for attack, point in (
                ("none", x),
                ("fgsm", fgsm(vae, x, test.ball(EPS), noise)),
                ("shift", (x + EPS).clamp(max=1)),
            ):
                value = elbo(vae, point, noise)
                (row,) = part[part["attack"] == attack].to_dict("records")
                assert row["elbo"] == pytest.approx(value.mean().item(), abs=1e-9)
                assert row["se"] == pytest.approx(value.std().item() / TINY.strength**0.5)
    assert rows.loc[rows["attack"] == "none", "worse_than_fgsm"].gt(0).all()


# The ceiling of any model


def entropy(t: float) -> float:
    return sum(-p * math.log(p) for p in (t, 1 - t) if p > 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0, 0.6))
def test_the_ceiling_is_the_least_negative_entropy_of_the_ball_by_brute_force(pixels: list[float], eps: float) -> None:
    x, ball = torch.tensor([pixels], dtype=torch.float64), LinfBall(eps)
    by_hand = 0.0
    for pixel in pixels:
        low, high = max(pixel - eps, 0.0), min(pixel + eps, 1.0)
        grid = [low + (high - low) * step / 400 for step in range(401)] + [0.5] * (low <= 0.5 <= high)
        by_hand -= max(entropy(min(max(t, 0.0), 1.0)) for t in grid)
    assert entropy_ceiling(x, ball).item() == pytest.approx(by_hand, abs=1e-9)
    grey = greyest_point(x, ball)
    assert ball.box(x).contains(grey).all()
    assert entropy_ceiling(x, ball).item() == pytest.approx(-sum(map(entropy, grey[0].tolist())), abs=1e-12)


@given(st.floats(0, 1), st.floats(-60, 60))
def test_no_logit_explains_a_grey_pixel_better_than_its_entropy(target: float, logit: float) -> None:
    t, at = (torch.tensor([[value]], dtype=torch.float64) for value in (target, logit))
    value = Bernoulli().log_prob(at, t)
    assert value.item() <= -entropy(target) + 1e-12 * (1 + abs(logit))
    best = torch.logit(t.clamp(1e-9, 1 - 1e-9))
    assert Bernoulli().log_prob(best, t).item() == pytest.approx(-entropy(target), abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3])
def test_no_model_and_no_noise_is_above_the_ceiling(seed: int, eps: float) -> None:
    torch.manual_seed(seed)
    vae = mlp_vae((6,), (5,), 2).double()
    with torch.no_grad():
        for weight in vae.parameters():
            weight.mul_(3.0)
    x, noise, ball = torch.rand(20, 6).double(), torch.randn(20, 2).double(), LinfBall(eps)
    ceiling, grey = entropy_ceiling(x, ball), greyest_point(x, ball)
    x_adv = pgd(vae, x, ball, noise)
    with torch.no_grad():
        attacked = torch.minimum(elbo(vae, x_adv, noise), elbo(vae, grey, noise))
        assert (certificate(vae, x, ball, noise) <= attacked + 1e-9).all()
        assert (attacked <= ceiling).all()


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.2])
def test_the_exact_worst_case_is_not_above_the_ceiling(eps: float) -> None:
    config = TrainConfig("mnist5k", data_shape=(2,), hidden=(6,), latent_dim=2, likelihood="bernoulli")
    vae = config.build().double()
    x, noise, ball = torch.tensor([[0.0, 0.7], [0.45, 1.0]]).double(), torch.zeros(2, 2).double(), LinfBall(eps)
    exact = certificate(vae, x, ball, noise, method="exact")
    assert (exact <= entropy_ceiling(x, ball)).all()


def test_the_ceiling_is_attained_by_a_decoder_that_is_right_about_the_greyest_point() -> None:
    x, ball = torch.tensor([[0.0, 0.3, 0.95, 0.5]], dtype=torch.float64), LinfBall(0.1)
    grey = greyest_point(x, ball)
    torch.testing.assert_close(grey, torch.tensor([[0.1, 0.4, 0.85, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(Bernoulli().log_prob(torch.logit(grey), grey), entropy_ceiling(x, ball))


def test_the_ceiling_falls_with_the_radius_and_never_below_that_of_grey_paper() -> None:
    x = torch.rand(9, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    ceilings = torch.stack([entropy_ceiling(x, LinfBall(eps)) for eps in (0.0, 0.1, 0.2, 0.5, 0.9)])
    assert ceilings.shape == (5, 9) and (ceilings.diff(dim=0) <= 0).all()
    torch.testing.assert_close(ceilings[3:], torch.full((2, 9), -6 * math.log(2)).double())


@pytest.mark.parametrize("ball", [LinfBall(0.1, -1.0, 1.0), LinfBall(0.1, 0.0, 2.0)])
def test_a_pixel_beyond_zero_and_one_has_no_entropy(ball: LinfBall) -> None:
    with pytest.raises(ValueError, match=r"data range within \[0, 1\]"):
        entropy_ceiling(torch.full((1, 3), 0.5), ball)
    with pytest.raises(ValueError, match="x must be finite and in"):
        entropy_ceiling(torch.full((1, 3), 1.5), LinfBall(0.1))


def test_ceiling_rows_are_means_over_all_and_over_the_attacked_images(tiny: None, test: Dataset) -> None:
    rows = attacks.ceiling_rows(test, "smoke")
    assert list(rows.columns) == ["eps", "images", "ceiling", "attacked_images", "attacked_ceiling"]
    assert rows["eps"].tolist() == list(EPS_GRID)
    assert (rows["images"] == TINY.certified).all() and (rows["attacked_images"] == TINY.attacked).all()
    values = entropy_ceiling(test.x[: TINY.certified].double(), test.ball(EPS))
    (row,) = rows[rows["eps"] == EPS].to_dict("records")
    assert row["ceiling"] == pytest.approx(values.mean().item(), rel=1e-12)
    assert row["attacked_ceiling"] == pytest.approx(values[: TINY.attacked].mean().item(), rel=1e-12)
