"""The experiments at tiny size: the rows that they promise, true to the definitions, on digits and in the plane."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from paperlib import VAE, TrainConfig, certify, elbo, elbo_bounds, fgsm, load_dataset, pgd
from paperlib.certificates.evaluation import check_sandwich
from paperlib.data.datasets import Dataset
from paperlib.paper import mnist_training as experiments
from paperlib.paper import toy_2d as toys
from paperlib.paper.mnist_training import EPS, EPS_GRID, ProfileSizes, digit_models

NAMES = ["VAE", "proVAE kappa=0", "proVAE kappa=0.5"]
TINY = ProfileSizes(
    3, 8, attacked=4, attack_steps=2, certified=6, draws=3, strength=5, looseness=2, strength_steps=(1, 3)
)
noise_of = experiments.test_noise  # by another name: pytest would collect it


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experiments.SIZES, "smoke", TINY)
    monkeypatch.setattr(experiments, "in_parallel", lambda task, items, **_: [task(item) for item in items])


@pytest.fixture
def models() -> dict[str, VAE]:
    configs = digit_models("mnist5k", "smoke")
    return {name: replace(config, seed=seed).build() for seed, (name, config) in enumerate(configs.items())}


@pytest.fixture
def test() -> Dataset:
    kind, grey = torch.rand(2, 12, 784, generator=torch.Generator().manual_seed(0))
    return Dataset("mnist5k", torch.where(kind < 0.8, 0.0, grey), torch.zeros(12).long())


def test_the_three_models_differ_only_in_how_they_are_trained() -> None:
    configs = digit_models("mnist", "paper")
    assert list(configs) == NAMES
    assert [(c.eps, c.kappa) for c in configs.values()] == [(0.0, 1.0), (EPS, 0.0), (EPS, 0.5)]
    assert len({replace(c, eps=EPS, kappa=0.5, steps=1) for c in configs.values()}) == 1


def test_the_full_size_is_the_one_that_is_promised() -> None:
    size = experiments.SIZES["paper"]
    assert (size.certified, size.attacked, size.attack_steps) == (10_000, 1_000, 40) and size.draws >= 8
    assert EPS == 0.1 and EPS_GRID == (0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)


def test_file_names_are_distinct_and_plain() -> None:
    names = [experiments.file_name(name) for name in NAMES]
    assert names == ["02_vae", "02_provae_kappa_0", "02_provae_kappa_0.5"]


@pytest.mark.parametrize(("images", "draws"), [(1, 1), (3, 2), (10, 5)])
def test_noise_does_not_depend_on_how_much_of_it_is_asked_for(images: int, draws: int) -> None:
    whole = noise_of(20, 4, 6)
    assert torch.equal(noise_of(images, 4, draws), whole[:draws, :images])
    assert whole.shape == (6, 20, 4) and len({tuple(row) for draw in whole.tolist() for row in draw}) == 120


def test_noise_is_standard_normal_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    noise = noise_of(10_000, 4, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02


@pytest.mark.parametrize(
    "config_of",
    [
        experiments.attack_config,
        experiments.strength_config,
        experiments.certified_config,
        experiments.looseness_config,
    ],
)
def test_what_a_row_file_depends_on_is_in_its_configuration(config_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = config_of("mnist5k", "smoke")
    assert list(before["models"]) == NAMES
    assert before["models"]["VAE"]["dataset"] == "mnist5k"
    monkeypatch.setattr(experiments, "NOISE_SEED", 99)
    assert config_of("mnist5k", "smoke") != before, "the noise counts"
    monkeypatch.undo()
    monkeypatch.setitem(
        experiments.SIZES, "smoke", replace(TINY, attacked=9, certified=9, strength=9, looseness=9, draws=3)
    )
    assert config_of("mnist5k", "smoke")["images"] == 9 != before["images"]
    assert config_of("mnist", "smoke") != config_of("mnist5k", "smoke")


def test_attacked_rows_are_complete_and_in_order(models: dict[str, VAE], test: Dataset) -> None:
    rows = experiments.attacked_rows(models, test, "smoke")
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


def test_certified_rows_are_means_over_draws_and_then_over_images(models: dict[str, VAE], test: Dataset) -> None:
    summary, images = experiments.certified_rows(models, test, "smoke")
    assert summary[["model", "eps"]].to_numpy().tolist() == [[name, eps] for name in NAMES for eps in EPS_GRID]
    assert (summary["images"] == TINY.certified).all()
    assert (summary["draws"] == [TINY.draws if eps == EPS else 1 for eps in summary["eps"]]).all()
    assert len(images) == len(NAMES) * TINY.certified and images["model"].unique().tolist() == NAMES

    name = NAMES[2]
    rows = certify(models[name], test.x[: TINY.certified], test.ball(EPS), noise_of(TINY.certified, 20, TINY.draws))
    cube = rows["certified"].to_numpy().reshape(TINY.draws, TINY.certified)
    (row,) = summary[(summary["model"] == name) & (summary["eps"] == EPS)].to_dict("records")
    assert row["certified"] == pytest.approx(cube.mean(), abs=1e-9)
    assert row["certified_se"] == pytest.approx(cube.mean(0).std(ddof=1) / TINY.certified**0.5)
    assert row["draw_sd"] == pytest.approx(cube.mean(1).std(ddof=1))
    assert row["clean"] == pytest.approx(row["log_likelihood"] - row["kl"], abs=1e-9)
    np.testing.assert_allclose(images.loc[images["model"] == name, "certified"], cube.mean(0), rtol=0, atol=1e-9)
    assert images.loc[images["model"] == name, "index"].tolist() == list(range(TINY.certified))


def test_the_first_certified_images_do_not_depend_on_how_many_follow(
    models: dict[str, VAE], test: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, many = experiments.certified_rows(models, test, "smoke")
    monkeypatch.setitem(experiments.SIZES, "smoke", replace(TINY, certified=2))
    _, few = experiments.certified_rows(models, test, "smoke")
    first = many[many["index"] < 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, first, check_exact=False, rtol=0, atol=1e-9)


def test_strength_rows_measure_each_attack(models: dict[str, VAE], test: Dataset) -> None:
    rows = experiments.strength_rows(models, test, "smoke")
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
        noise = noise_of(TINY.strength, 20, 1)[0].double()
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


def test_looseness_rows_have_boxes_no_narrower_than_what_is_reached(models: dict[str, VAE], test: Dataset) -> None:
    rows = experiments.looseness_rows(models, test, "smoke")
    assert list(rows.columns) == ["stage", "box", "reached", "model"] and rows["model"].unique().tolist() == NAMES
    stages = ["input", "encoder 1", "encoder 2", "latent", "decoder 1", "decoder 2", "ELBO"]
    assert all(part["stage"].tolist() == stages for _, part in rows.groupby("model"))
    assert (rows["box"] >= rows["reached"] * (1 - 1e-9)).all() and (rows["reached"] > 0).all()


# The plane, where a dense grid is the truth.

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


def test_a_summary_row_is_the_mean_of_the_sandwich(moons: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "POINTS", 5)
    monkeypatch.setattr(toys, "in_parallel", lambda task, items, **_: [task(item) for item in items])
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
