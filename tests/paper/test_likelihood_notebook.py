"""Notebook 11 at tiny size: rows true to what they are made of, the table, the statements and the figure."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from tiny import NAMES

from paperlib import VAE, iwae_bounds
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.data.datasets import Dataset
from paperlib.paper import certified_likelihood_tables as tables
from paperlib.paper import likelihood_rows
from paperlib.paper.mnist_training import EPS
from paperlib.paper.plots import certified_likelihood as plots

TINY = likelihood_rows.LikelihoodSizes(2, 100, 2, 2, 2, 2, 4)
ROWS = [
    {"model": model, "eps": eps, "draws": draws, "index": index, **values, "iwae": -140.0, "certified_iwae": -348.0}
    | {"certified": -340.0 + draws / 10, "width": 0.123, "met": -330.0}
    for model, values in {
        "VAE": {"elbo": -100.0, "attacked_elbo": -550.0, "certified_elbo": -33_000.0},
        likelihood_rows.ON_LINEAR: {"elbo": -150.0, "attacked_elbo": -345.0, "certified_elbo": -350.0},
    }.items()
    for eps in (0.0, EPS)
    for draws in likelihood_rows.DRAWS
    for index in range(2)
]
WAYS = [
    {"model": model, "way": way, "images": 2, "bound": bound, "width": 0.1}
    for model in ("VAE", likelihood_rows.ON_LINEAR)
    for way, bound in zip(["expected ELBO", *likelihood_rows.WAYS], (-350.0, -345.0, -336.0, -335.01), strict=True)
]


@pytest.mark.parametrize(("dataset", "profile"), [("mnist", "paper"), ("mnist5k", "smoke")])
def test_the_configuration_survives_a_file(dataset: str, profile: str) -> None:
    config = likelihood_rows.bounds_config(dataset, profile)
    assert json.loads(json.dumps(config)) == config
    assert {*likelihood_rows.likelihood_models(dataset, profile)} == {*NAMES, likelihood_rows.ON_LINEAR}


def test_rows_are_ordered_and_true_to_their_parts(
    models: dict[str, VAE], test: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(likelihood_rows.SIZES, "smoke", TINY)
    monkeypatch.setattr(likelihood_rows, "DRAWS", (1, 4))
    two = {name: models[name] for name in NAMES[:2]}
    rows = likelihood_rows.bounds_rows(two, test, "smoke")
    assert len(rows) == 2 * 2 * 2 * TINY.images
    assert (rows["certified_iwae"] <= rows["iwae"]).all() and (rows["certified_elbo"] <= rows["attacked_elbo"]).all()
    assert (rows["certified"] < rows["met"] + 1).all(), "a certificate far above what a search has met"
    exact = rows[rows["eps"] == 0]
    pd.testing.assert_series_equal(exact["certified_iwae"], exact["iwae"], check_names=False)
    vae = two["VAE"].in_float64()
    x = test.x[: TINY.images].double()
    noise = evaluation_noise(len(x), vae.latent_dim, 4).double()
    with torch.no_grad():
        wanted = iwae_bounds(vae, x, test.ball(EPS), noise, likelihood_rows.METHOD).lower
    own = rows[(rows["model"] == "VAE") & (rows["eps"] == EPS) & (rows["draws"] == 4)]
    assert own["certified_iwae"].to_list() == pytest.approx(wanted.tolist(), rel=1e-12)


def test_ways_have_a_row_for_each_model_and_way(
    models: dict[str, VAE], test: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(likelihood_rows.SIZES, "smoke", replace(TINY, compared=1))
    monkeypatch.setattr(likelihood_rows, "DRAWS", (1, 3))
    rows = likelihood_rows.ways_rows({"VAE": models["VAE"]}, test, "smoke")
    assert rows["way"].to_list() == ["expected ELBO", *likelihood_rows.WAYS] and (rows["width"] > 0).all()


def test_the_tables_round_what_is_certified_down() -> None:
    table = tables.bounds(pd.DataFrame(ROWS))
    assert len(table) == 12 and table["certified log p"].iloc[0] == "-339.9"
    assert (table["price of chance"] == "0.13").all()
    ways = tables.ways(pd.DataFrame(WAYS))
    assert ways["latents"].to_list() == ["expected ELBO", *likelihood_rows.WAYS]
    assert ways["VAE"].to_list() == ["-350.0", "-345.0", "-336.0", "-335.1"]


def test_statements_hold_for_these_rows_and_not_for_others() -> None:
    rows, ways = pd.DataFrame(ROWS), pd.DataFrame(WAYS)
    statements = tables.likelihood_statements(rows, ways)
    assert [*statements.values()][:5] == [True] * 5
    loose = tables.likelihood_statements(
        rows.assign(certified=-400.0 - rows["draws"], attacked_elbo=-300.0), ways.assign(bound=-1.0)
    )
    assert [*loose.values()][:5] == [False] * 5


def test_the_figure_leaves_out_what_is_far_below() -> None:
    figure = plots.by_draws(pd.DataFrame(ROWS), "caption")
    first, last = figure.axes
    assert len(first.lines) == len(last.lines) - 1
    assert last.get_title() == "proVAE $\\kappa=0.5$\non CROWN-IBP"
    plt.close(figure)
