"""What the committed rows of notebook 12 say: the front that is claimed, and that released models give their rows."""

from pathlib import Path

import pandas as pd
import pytest
from test_claims import needs_mnist

from paperlib import certify, load, load_dataset
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.paper import conv_front, conv_tables, front, front_tables
from paperlib.paper import tighter_training as tighter
from paperlib.paper.mnist_training import EPS
from paperlib.runtime.rows import read_header, read_rows

DATA = Path(__file__).resolve().parents[1] / "figures" / "data"

pytestmark = pytest.mark.skipif(
    not (DATA / "12_front.csv").exists(), reason="the results of notebook 12 are not committed yet: no rows"
)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return read_rows(DATA / "12_front.csv", front.front_config("mnist", "long"))


@pytest.fixture(scope="module")
def ours(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["group"] == front.OURS]


def test_every_model_of_the_front_is_there_and_in_order(rows: pd.DataFrame) -> None:
    models = front.front_models("mnist", "long")
    assert [(row.group, row.recipe, row.seed) for row in rows.itertuples()] == [
        (m.group, m.recipe, m.config.seed) for m in models
    ]
    for lower, middle, upper in (("ibp", "crown_ibp", "clean"), ("subset_crown", "subset_attacked", "subset_clean")):
        assert (rows[lower] <= rows[middle]).all() and (rows[middle] <= rows[upper]).all()
    assert (rows["kl"] > 1).all() and (rows["seconds"] > 0).all()


def test_means_over_three_seeds_keep_what_was_reached(ours: pd.DataFrame) -> None:
    assert len(ours) == 6
    for kappa, clean, certified in ((0.0, -190, -334), (0.5, -148, -348)):
        point = ours[ours["kappa"] == kappa]
        assert len(point) == 3 and point["clean"].mean() >= clean and point["crown_ibp"].mean() >= certified


def test_the_claim_of_notebook_12_holds(rows: pd.DataFrame) -> None:
    tradeoff = read_rows(DATA / "06_tradeoff.csv", tighter.tradeoff_config("mnist", "paper"))
    statements = front_tables.claim(rows, tradeoff[tradeoff["bound"] == "crown-ibp"])
    assert all(statements.values()), statements


def test_crown_takes_at_most_four_times_as_long_for_a_convolutional_network_on_mnist() -> None:
    compared = conv_tables.comparison(read_rows(DATA / "12_conv.csv", conv_front.conv_config("mnist", "long")))
    assert compared.loc["mnist", "crown_times"] <= 4


@needs_mnist
@pytest.mark.parametrize("name", front.released_models("mnist", "long"))
def test_a_released_model_of_the_front_gives_its_row(ours: pd.DataFrame, name: str) -> None:
    config = front.released_models("mnist", "long")[name]
    vae, test = load(DATA / f"{name}.safetensors", config), load_dataset("mnist", "test")
    (stored,) = ours[(ours["kappa"] == config.kappa) & (ours["seed"] == config.seed)].to_dict("records")
    x = test.x[: tighter.IMAGES["paper"]]
    found = certify(vae, x, test.ball(EPS), evaluation_noise(len(x), vae.latent_dim)[0], method="crown-ibp")
    means = {"clean": found["clean"].mean(), "kl": found["kl"].mean(), "crown_ibp": found["certified"].mean()}
    assert means == pytest.approx({column: stored[column] for column in means}, rel=1e-6)
    assert (DATA / f"{name}.safetensors").stat().st_size < 4 * 2**20
    assert read_header(DATA / f"{name}.csv")["config"] == config.as_dict()
