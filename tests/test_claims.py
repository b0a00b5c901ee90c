"""The committed results keep what README and the notebooks claim: rows, checkpoints and figures of full MNIST."""

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from paperlib import certify, elbo_bounds, load, load_dataset
from paperlib.certificates.evaluation import check_sandwich
from paperlib.data.datasets import CHECKSUMS, checksum, data_root
from paperlib.paper import linear_bounds as methods
from paperlib.paper import mnist_training as experiments
from paperlib.paper import tighter_training as front
from paperlib.paper.mnist_training import EPS, EPS_GRID, digit_models, file_name
from paperlib.paper.plots import style as plots
from paperlib.runtime.rows import read_header, read_rows

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "figures" / "data"
NAMES = ["VAE", "proVAE kappa=0", "proVAE kappa=0.5"]
ROW_FILES = [
    *("03_attacked", "03_strength"),
    *("04_certified", "04_certified_images", "04_linear", "04_methods", "04_looseness", "04_rounding", "04_expected"),
    "05_front",
]
TRAINED = {file_name(name): config for name, config in digit_models("mnist", "paper").items()}
TRAINED |= front.released_models("mnist", "paper")
ALLOWED = 1e-9  # of a value's size: float64 rounding, where two rows are equal

pytestmark = pytest.mark.skipif(
    not (DATA / "04_certified.csv").exists(),
    reason="the results of full MNIST are not committed yet: no figures/data rows",
)
needs_mnist = pytest.mark.skipif(
    not all((data_root() / file).is_file() for file in CHECKSUMS["mnist"]),
    reason="full MNIST is not in PAPERLIB_DATA",
)


@pytest.fixture(scope="module")
def certified() -> pd.DataFrame:
    return read_rows(DATA / "04_certified.csv", experiments.certified_config("mnist", "paper"))


@pytest.fixture(scope="module")
def attacked() -> pd.DataFrame:
    return read_rows(DATA / "03_attacked.csv", experiments.attack_config("mnist", "paper"))


@pytest.fixture(scope="module")
def images() -> pd.DataFrame:
    return read_rows(DATA / "04_certified_images.csv", experiments.certified_config("mnist", "paper"))


@pytest.fixture(scope="module")
def linear() -> pd.DataFrame:
    return read_rows(DATA / "04_linear.csv", methods.linear_config("mnist", "paper"))


@pytest.fixture(scope="module")
def by_method(attacked: pd.DataFrame) -> pd.DataFrame:
    """The certificates by each method beside the attack on the same image."""
    rows = read_rows(DATA / "04_methods.csv", methods.methods_config("mnist", "paper"))
    return rows.merge(
        attacked[["model", "eps", "index", "clean", "attacked", "certified"]],
        on=["model", "eps", "index"],
        suffixes=("", "_attacked"),
        validate="one_to_one",
    )


@pytest.fixture(scope="module")
def tighter() -> pd.DataFrame:
    return read_rows(DATA / "05_front.csv", front.front_config("mnist", "paper"))


def at_most(lower: pd.Series, upper: pd.Series) -> bool:
    return bool((lower <= upper + ALLOWED * (1 + upper.abs())).all())


@pytest.mark.parametrize(
    ("model", "column", "floor"),
    [
        ("VAE", "clean", -104),
        ("proVAE kappa=0", "certified", -354),
        ("proVAE kappa=0.5", "clean", -166),
        ("proVAE kappa=0.5", "certified", -374),
    ],
)
def test_the_floors_are_kept_over_all_test_images(
    certified: pd.DataFrame, model: str, column: str, floor: float
) -> None:
    (row,) = certified[(certified["model"] == model) & (certified["eps"] == EPS)].to_dict("records")
    assert row[column] >= floor
    assert row["images"] == 10_000 and row["draws"] >= 8


@pytest.mark.parametrize(("model", "ceiling"), [("VAE", -560), ("proVAE kappa=0.5", -335)])
def test_the_attack_is_strong(attacked: pd.DataFrame, model: str, ceiling: float) -> None:
    part = attacked[(attacked["model"] == model) & (attacked["eps"] == EPS)]
    assert part["index"].tolist() == list(range(1_000))
    assert part["attacked"].mean() <= ceiling


def test_no_row_breaks_the_sandwich(attacked: pd.DataFrame, certified: pd.DataFrame, images: pd.DataFrame) -> None:
    check_sandwich(attacked)
    allowed = 1e-9 * (1 + attacked["clean"].abs())  # float64 rounding; at eps = 0 all three are equal
    assert (attacked["certified"] <= attacked["attacked"] + allowed).all()
    assert (attacked["attacked"] <= attacked["clean"] + allowed).all()
    for rows in (certified, images):
        assert (rows["certified"] <= rows["clean"] + 1e-9 * (1 + rows["clean"].abs())).all()
        assert np.isfinite(rows[["clean", "certified"]].to_numpy()).all()


def test_every_model_and_radius_is_there(attacked: pd.DataFrame, certified: pd.DataFrame) -> None:
    expected = {(name, eps) for name in NAMES for eps in EPS_GRID}
    for rows in (attacked, certified):
        assert set(rows[["model", "eps"]].itertuples(index=False, name=None)) == expected
    assert (certified["images"] == 10_000).all()
    assert (certified["draws"] == np.where(certified["eps"] == EPS, 8, 1)).all()
    assert (attacked.groupby(["model", "eps"]).size() == 1_000).all()
    assert (certified[["clean_se", "certified_se"]] > 0).all(axis=None)


def test_certificates_only_fall_as_the_radius_grows(certified: pd.DataFrame) -> None:
    for _, part in certified.groupby("model"):
        assert (part.sort_values("eps")["certified"].diff().dropna() < 0).all()
        one_draw = part.loc[part["draws"] == 1, "clean"]
        assert one_draw.max() - one_draw.min() < 1e-6 and (part["clean"] - one_draw.mean()).abs().max() < 0.5


def test_each_summary_is_the_mean_of_its_images(certified: pd.DataFrame, images: pd.DataFrame) -> None:
    for name in NAMES:
        part = images[images["model"] == name]
        assert part["index"].tolist() == list(range(10_000))
        (row,) = certified[(certified["model"] == name) & (certified["eps"] == EPS)].to_dict("records")
        for column in ("clean", "certified", "kl", "log_likelihood"):
            assert part[column].mean() == pytest.approx(row[column], rel=1e-12)
        assert part["certified"].sem() == pytest.approx(row["certified_se"], rel=1e-9)


def test_no_model_has_collapsed(certified: pd.DataFrame) -> None:
    assert (certified["kl"] > 1).all()


def test_pgd_is_never_worse_than_fgsm_or_the_shift() -> None:
    rows = read_rows(DATA / "03_strength.csv", experiments.strength_config("mnist", "paper"))
    for _, part in rows.groupby("model"):
        searched = part[part["attack"] == "pgd"]
        assert (searched["worse_than_fgsm"] == 0).all()
        assert searched["elbo"].max() <= part.loc[part["attack"] != "pgd", "elbo"].min()


# Linear bounds


def test_the_linear_bound_is_fifteen_nats_above_intervals_and_close_below_the_attack(by_method: pd.DataFrame) -> None:
    part = by_method[(by_method["model"] == "proVAE kappa=0.5") & (by_method["eps"] == EPS)]
    assert part["index"].tolist() == list(range(1_000))
    assert part["crown"].mean() >= part["ibp"].mean() + 15
    assert part["attacked"].mean() - 12 <= part["crown"].mean() <= part["attacked"].mean()


def test_the_linear_bound_keeps_this_over_all_test_images(linear: pd.DataFrame) -> None:
    (row,) = linear[linear["model"] == "proVAE kappa=0.5"].to_dict("records")
    assert row["images"] == 10_000 and row["eps"] == EPS
    assert row["crown"] >= row["ibp"] + 15


def test_the_linear_bound_says_something_about_the_plain_vae(linear: pd.DataFrame) -> None:
    (row,) = linear[(linear["model"] == "VAE") & (linear["eps"] == methods.VACUOUS)].to_dict("records")
    assert row["images"] == 10_000
    assert row["crown"] >= -220 and row["ibp"] < -10_000


def test_every_method_lies_between_intervals_and_the_attack_on_every_image(by_method: pd.DataFrame) -> None:
    assert len(by_method) == len(NAMES) * len(methods.RADII) * 1_000
    for method in ("crown-ibp", "crown"):
        assert at_most(by_method["ibp"], by_method[method]) and at_most(by_method[method], by_method["attacked"])
    assert at_most(by_method["attacked"], by_method["clean"])
    np.testing.assert_allclose(by_method["clean"], by_method["clean_attacked"], rtol=ALLOWED)
    np.testing.assert_allclose(by_method["ibp"], by_method["certified"], rtol=ALLOWED)


def test_means_by_method_are_in_order_with_errors(linear: pd.DataFrame, certified: pd.DataFrame) -> None:
    assert len(linear) == len(NAMES) + 1 and (linear["images"] == 10_000).all()
    for lower, upper in (("ibp", "crown-ibp"), ("crown-ibp", "crown"), ("crown", "clean")):
        assert (linear[lower] < linear[upper]).all()
    assert (linear[["clean_se", "ibp_se", "crown-ibp_se", "crown_se"]] > 0).all(axis=None)
    both = linear.merge(certified, on=["model", "eps"], suffixes=("", "_draws"))
    assert len(both) == len(linear)
    np.testing.assert_allclose(both["ibp"], both["certified"], rtol=0.005)  # one noise draw against eight
    np.testing.assert_allclose(both["clean"], both["clean_draws"], rtol=0.005)


def test_float32_leaves_plain_bounds_and_never_the_sound_ones() -> None:
    rows = read_rows(DATA / "04_rounding.csv", methods.rounding_config("mnist", "paper"))
    assert set(rows["model"]) == set(NAMES) and (rows["checked"] >= methods.ROUNDED * 40).all()
    assert (rows[["sound_broken", "sound_excess"]] == 0).all(axis=None)
    of_layers = rows[rows["place"] != "ELBO"]
    assert len(of_layers) == 4 * len(NAMES) and (of_layers["plain_broken"] > 0).all()


def test_the_price_of_rigour_for_an_expectation_falls_with_the_draws() -> None:
    rows = read_rows(DATA / "04_expected.csv", methods.expected_config("mnist", "paper"))
    assert set(rows["model"]) == set(NAMES[1:]) and (rows["confidence"] == 0.999).all() and (rows["eps"] == EPS).all()
    assert (rows["bound"] <= rows["mean"]).all() and (rows["width"] > 0).all()
    np.testing.assert_allclose(rows["width"], rows["mean"] - rows["bound"], rtol=0, atol=1e-9)
    for _, part in rows.sort_values("samples").groupby(["model", "index"]):
        assert part["samples"].tolist() == list(methods.SAMPLES["paper"])
        assert (part["width"].diff().dropna() < 0).all()
    most = rows[rows["samples"] == max(methods.SAMPLES["paper"])]
    assert (most["width"] < 2).all()


# Training on the linear bound


@pytest.mark.parametrize(
    ("kappa", "column", "floor"),
    [(0.5, "clean", -158), (0.5, "crown_ibp", -356), (0.0, "clean", -200), (0.0, "crown_ibp", -343)],
)
def test_the_front_keeps_its_floors_over_three_seeds(
    tighter: pd.DataFrame, kappa: float, column: str, floor: float
) -> None:
    part = tighter[(tighter["bound"] == "crown-ibp") & (tighter["kappa"] == kappa)]
    assert part["seed"].tolist() == [0, 1, 2]
    assert part[column].mean() >= floor


@pytest.mark.parametrize("kappa", [0.0, 0.5, 0.75])
def test_training_on_the_linear_bound_pays_ten_nats_for_no_certificate(tighter: pd.DataFrame, kappa: float) -> None:
    part = tighter[tighter["kappa"] == kappa]
    mean = part.groupby("bound")[["clean", "crown_ibp", "few_crown"]].mean()
    assert mean.loc["crown-ibp", "clean"] > mean.loc["ibp", "clean"] + 10
    for certificate in ("few_crown", "crown_ibp"):  # by CROWN on the first images, by CROWN-IBP on all of them
        assert mean.loc["crown-ibp", certificate] >= mean.loc["ibp", certificate]


def test_every_model_of_the_front_is_in_order(tighter: pd.DataFrame) -> None:
    configs = front.front_models("mnist", "paper")
    points = tighter[["bound", "kappa", "train_eps", "seed"]].itertuples(index=False, name=None)
    assert list(points) == [(c.bound, c.kappa, c.eps, c.seed) for c in configs]
    chains = (("ibp", "crown_ibp", "clean"), ("few_crown", "few_attacked", "few_clean"))
    for lower, middle, upper in chains:
        assert (tighter[lower] <= tighter[middle]).all() and (tighter[middle] <= tighter[upper]).all()
    assert (tighter["kl"] > 1).all(), "a model has collapsed"


# What is committed


@pytest.mark.parametrize("name", [*ROW_FILES, *TRAINED])
def test_each_row_file_says_what_made_it(name: str) -> None:
    header = read_header(DATA / f"{name}.csv")
    assert header["dataset"] == "mnist" and header["checksum"] == checksum("mnist")
    assert {"config", "commit", "packages", "processor", "seconds", "python"} <= header.keys()
    assert "/" not in header["commit"] and header["commit"] != "unknown"


@pytest.mark.parametrize("name", TRAINED)
def test_each_history_is_that_of_its_configuration(name: str) -> None:
    config = TRAINED[name]
    history = read_rows(DATA / f"{name}.csv", config.as_dict())
    assert history["step"].is_monotonic_increasing and history["step"].iloc[-1] == config.steps
    assert history["eps"].iloc[-1] == config.eps


def promised() -> list[str]:
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return [name for path in paths for name in nbformat.read(path, as_version=4).metadata["paperlib"]["figures"]]


@pytest.mark.parametrize("name", promised())
def test_each_promised_figure_is_committed_as_png_and_pdf(name: str) -> None:
    png, pdf = ((ROOT / "figures" / f"{name}.{kind}").read_bytes() for kind in ("png", "pdf"))
    assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF")
    assert b"Software" not in png and b"CreationDate" not in pdf


def test_no_figure_lies_about_without_a_notebook() -> None:
    found = {path.stem for kind in ("png", "pdf") for path in (ROOT / "figures").glob(f"*.{kind}")}
    assert found == {*promised(), "00_cost"}  # by make bench


def test_the_sandwichs_picture_shows_every_committed_point(certified: pd.DataFrame, attacked: pd.DataFrame) -> None:
    figure = plots.sandwich(certified, attacked, "")
    low, high = figure.axes[0].get_ylim()
    plots.plt.close(figure)
    assert low <= certified["certified"].min() and certified["clean"].max() <= high


@pytest.mark.parametrize("name", TRAINED)
def test_a_released_checkpoint_is_small_and_of_its_configuration(name: str) -> None:
    path = DATA / f"{name}.safetensors"
    assert path.stat().st_size < 10 * 2**20
    vae = load(path, TRAINED[name])
    assert not vae.training and all(parameter.isfinite().all() for parameter in vae.parameters())


@needs_mnist
@pytest.mark.parametrize("model", ["VAE", "proVAE kappa=0.5"])
def test_a_released_checkpoint_gives_the_committed_certificates(images: pd.DataFrame, model: Any) -> None:
    count, draws = 500, experiments.SIZES["paper"].draws
    vae = load(DATA / f"{file_name(model)}.safetensors").double()
    test = load_dataset("mnist", "test")
    x, noise = test.x[:count].double(), experiments.test_noise(count, vae.latent_dim, draws).double()
    with torch.no_grad():
        lower = torch.stack([elbo_bounds(vae, x, test.ball(EPS), draw).lower for draw in noise]).mean(0).numpy()
    stored = images[(images["model"] == model) & (images["index"] < count)]["certified"].to_numpy()
    assert abs(lower.mean() - stored.mean()) <= 0.1
    np.testing.assert_allclose(lower, stored, rtol=1e-6)


@needs_mnist
@pytest.mark.parametrize("name", front.released_models("mnist", "paper"))
def test_a_released_checkpoint_of_the_front_gives_its_row(tighter: pd.DataFrame, name: str) -> None:
    config = TRAINED[name]
    (stored,) = tighter[
        (tighter["bound"] == config.bound) & (tighter["kappa"] == config.kappa) & (tighter["train_eps"] == config.eps)
        & (tighter["seed"] == config.seed)
    ].to_dict("records")  # fmt: skip
    vae, test = load(DATA / f"{name}.safetensors"), load_dataset("mnist", "test")
    x = test.x[: front.IMAGES["paper"]]
    noise = experiments.test_noise(len(x), vae.latent_dim, draws=1)[0]
    interval = certify(vae, x, test.ball(EPS), noise)
    linear = certify(vae, x, test.ball(EPS), noise, method="crown-ibp")
    found = {"clean": interval["clean"], "kl": interval["kl"], "ibp": interval["certified"]}
    found |= {"crown_ibp": linear["certified"], "few_clean": interval["clean"][: front.ATTACKED["paper"]]}
    means = {column: values.mean() for column, values in found.items()}
    assert means == pytest.approx({column: stored[column] for column in means}, rel=1e-6)


@needs_mnist
def test_the_plain_vae_is_certified_by_linear_bounds_as_committed(by_method: pd.DataFrame) -> None:
    count, name = 20, "VAE"
    vae, test = load(DATA / f"{file_name(name)}.safetensors"), load_dataset("mnist", "test")
    noise = experiments.test_noise(count, vae.latent_dim, draws=1)[0]
    ball = test.ball(methods.VACUOUS)
    rows = certify(vae, test.x[:count], ball, noise, method="crown", steps=methods.SEARCH)
    part = by_method[
        (by_method["model"] == name) & (by_method["eps"] == methods.VACUOUS) & (by_method["index"] < count)
    ]
    np.testing.assert_allclose(rows["certified"], part["crown"], rtol=1e-4)
