"""The committed results keep what README and the notebooks claim: rows, checkpoints and figures of full MNIST."""

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from paperlib import elbo_bounds, experiments, load, load_dataset, plots
from paperlib.certify import check_sandwich
from paperlib.data import CHECKSUMS, checksum, data_root
from paperlib.experiments import EPS, EPS_GRID, digit_models, file_name
from paperlib.rows import read_header, read_rows

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "figures" / "data"
NAMES = ["VAE", "proVAE kappa=0", "proVAE kappa=0.5"]
ROW_FILES = ["03_attacked", "03_strength", "04_certified", "04_certified_images", "04_looseness"]

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
    assert (certified["images"] == 10_000).all() and (certified["draws"] >= 8).all()
    assert (attacked.groupby(["model", "eps"]).size() == 1_000).all()
    assert (certified[["clean_se", "certified_se"]] > 0).all(axis=None)


def test_certificates_only_fall_as_the_radius_grows(certified: pd.DataFrame) -> None:
    for _, part in certified.groupby("model"):
        assert (part.sort_values("eps")["certified"].diff().dropna() < 0).all()
        assert part["clean"].max() - part["clean"].min() < 1e-6


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


@pytest.mark.parametrize("name", ROW_FILES + [file_name(model) for model in NAMES])
def test_each_row_file_says_what_made_it(name: str) -> None:
    header = read_header(DATA / f"{name}.csv")
    assert header["dataset"] == "mnist" and header["checksum"] == checksum("mnist")
    assert {"config", "commit", "packages", "processor", "seconds", "python"} <= header.keys()
    assert "/" not in header["commit"] and header["commit"] != "unknown"


@pytest.mark.parametrize("model", NAMES)
def test_each_history_is_that_of_its_configuration(model: str) -> None:
    config = digit_models("mnist", "paper")[model]
    history = read_rows(DATA / f"{file_name(model)}.csv", config.as_dict())
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
    assert found == set(promised())


def test_the_sandwichs_picture_shows_every_committed_point(certified: pd.DataFrame, attacked: pd.DataFrame) -> None:
    figure = plots.sandwich(certified, attacked, "")
    low, high = figure.axes[0].get_ylim()
    plots.plt.close(figure)
    assert low <= certified["certified"].min() and certified["clean"].max() <= high


@pytest.mark.parametrize("model", ["VAE", "proVAE kappa=0.5"])
def test_a_released_checkpoint_is_small_and_of_its_configuration(model: str) -> None:
    path = DATA / f"{file_name(model)}.safetensors"
    assert path.stat().st_size < 10 * 2**20
    vae = load(path, digit_models("mnist", "paper")[model])
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
