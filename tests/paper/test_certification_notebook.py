"""The experiments of notebook 4 at tiny size: means of `certify`, boxes, rounding, and expectations."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import NAMES, TINY

from paperlib import VAE, Interval, certify, certify_expected
from paperlib.bounds import rounding as rounding_module
from paperlib.certificates.evaluation import NOISE_SEED, evaluation_noise
from paperlib.data.datasets import Dataset
from paperlib.paper import certification
from paperlib.paper.mnist_training import EPS, EPS_GRID, SIZES
from paperlib.threats import balls

PLACES = ["encoder 1", "encoder 2", "decoder 1", "decoder 2", "ELBO", "ELBO", "ELBO"]


@pytest.fixture(autouse=True)
def few(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(certification.EXPECTED_DRAWS, "smoke", (20, 40))
    for constant, value in (("EXPECTED_IMAGES", 3), ("ROUNDED_IMAGES", 5), ("CORNERS", 4)):
        monkeypatch.setattr(certification, constant, value)


def test_certified_rows_are_means_over_draws_and_then_over_images(models: dict[str, VAE], test: Dataset) -> None:
    summary, images = certification.certified_rows(models, test, "smoke")
    assert summary[["model", "eps"]].to_numpy().tolist() == [[name, eps] for name in NAMES for eps in EPS_GRID]
    assert (summary["images"] == TINY.certified).all()
    assert (summary["draws"] == [TINY.draws if eps == EPS else 1 for eps in summary["eps"]]).all()
    assert len(images) == len(NAMES) * TINY.certified and images["model"].unique().tolist() == NAMES

    name = NAMES[2]
    rows = certify(
        models[name], test.x[: TINY.certified], test.ball(EPS), evaluation_noise(TINY.certified, 20, TINY.draws)
    )
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
    _, many = certification.certified_rows(models, test, "smoke")
    monkeypatch.setitem(SIZES, "smoke", replace(TINY, certified=2))
    _, few = certification.certified_rows(models, test, "smoke")
    first = many[many["index"] < 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, first, check_exact=False, rtol=0, atol=1e-9)


def test_looseness_rows_have_boxes_no_narrower_than_what_is_reached(models: dict[str, VAE], test: Dataset) -> None:
    rows = certification.looseness_rows(models, test, "smoke")
    assert list(rows.columns) == ["stage", "box", "reached", "model"] and rows["model"].unique().tolist() == NAMES
    stages = ["input", "encoder 1", "encoder 2", "latent", "decoder 1", "decoder 2", "ELBO"]
    assert all(part["stage"].tolist() == stages for _, part in rows.groupby("model"))
    assert (rows["box"] >= rows["reached"] * (1 - 1e-9)).all() and (rows["reached"] > 0).all()


def test_rounding_rows_find_plain_bounds_broken_and_sound_ones_never(models: dict[str, VAE], test: Dataset) -> None:
    rows = certification.rounding_rows(models, test)
    places, tiny = [*PLACES[:4], *PLACES], certification.TINY_RADII
    assert rows["place"].tolist() == places * 3 and rows["model"].tolist() == [n for n in NAMES for _ in places]
    assert rows["eps"].tolist() == [*[EPS] * 4, *[tiny[0]] * 4, *tiny] * 3
    units = {"encoder 1": 8, "encoder 2": 40, "decoder 1": 8, "decoder 2": 784, "ELBO": 1 + certification.CORNERS}
    assert rows["checked"].tolist() == [5 * units[place] for place in places] * 3
    assert (rows[["sound_broken", "sound_excess"]] == 0).all(axis=None)
    of_layers = rows[rows["place"] != "ELBO"].set_index("eps")["plain_broken"]
    assert (of_layers[EPS] == 0).all(), "a box is enlarged by what its own width rounds"
    assert (of_layers[tiny[0]] > 0.05).all(), "but not by what the layer rounds anywhere"
    assert ((rows["plain_excess"] > 0) == (rows["plain_broken"] > 0)).all()
    assert (rows["plain_excess"] < 1e-3).all()


def test_rounding_rows_would_show_an_unsound_bound(
    models: dict[str, VAE], test: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rounding_module, balls):
        monkeypatch.setattr(module, "gamma", lambda count, unit: 0.0)
    rows = certification.rounding_rows(models, test)
    assert (rows.loc[rows["place"] != "ELBO", "sound_broken"] > 0.05).all()


def test_the_excess_is_the_largest_distance_on_either_side() -> None:
    value = torch.tensor([[0.5, -1.25], [3.0, 1.0]])
    tight, wide = (
        Interval(torch.zeros(2, 2), torch.ones(2, 2)),
        Interval(torch.full((2, 2), -2.0), torch.full((2, 2), 3.0)),
    )
    assert certification._excess(value, tight, wide) == {
        "checked": 4, "plain_broken": 0.5, "plain_excess": 2.0, "sound_broken": 0.0, "sound_excess": 0.0,
    }  # fmt: skip
    assert certification._excess(-value, tight, wide)["plain_excess"] == 3.0


def test_expected_rows_are_those_of_certify_expected(models: dict[str, VAE], test: Dataset) -> None:
    rows = certification.expected_rows(models, test, "smoke")
    assert list(rows.columns) == [
        "index", "eps", "samples", "confidence", "bound", "mean", "width", "tail", "noise_box", "model",
    ]  # fmt: skip
    counts = rows.groupby(["model", "samples"], sort=False)["index"].apply(list)
    assert list(counts.index) == [(name, samples) for name in NAMES[1:] for samples in (20, 40)]
    assert all(index == [0, 1, 2] for index in counts)
    assert (rows["confidence"] == certification.CONFIDENCE).all() and (rows["eps"] == EPS).all()
    generator = torch.Generator().manual_seed(NOISE_SEED)
    found = certify_expected(models[NAMES[2]], test.x[:3], test.ball(EPS), samples=40, generator=generator)
    stored = rows[(rows["model"] == NAMES[2]) & (rows["samples"] == 40)]
    np.testing.assert_allclose(stored["bound"], found["bound"], rtol=1e-12)
    pd.testing.assert_frame_equal(certification.expected_rows(models, test, "smoke"), rows)
