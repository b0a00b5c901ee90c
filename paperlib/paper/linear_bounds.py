"""The experiments of notebook 5: linear bounds of the whole ELBO, on the models and images of notebook 3."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from paperlib.certificates.crown import Crown, CrownIBP
from paperlib.certificates.evaluation import certify
from paperlib.certificates.ibp import IBP
from paperlib.certificates.method import Method
from paperlib.data.arrays import Dataset
from paperlib.models.vae import VAE
from paperlib.paper.mnist_training import EPS, SIZES, ModelAtRadius, models_at_radii, models_config
from paperlib.runtime.parallel import in_parallel

RADII = (0.01, 0.05, EPS, 0.2)
ALPHA_STEPS = 10  # of CROWN
COMPARED: dict[str, Method] = {"ibp": IBP(), "crown-ibp": CrownIBP(), "crown": Crown(ALPHA_STEPS)}  # by column
VACUOUS = 0.01  # a radius at which intervals say nothing about the plain VAE


def methods_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `method_rows` depend on."""
    return {
        **models_config(dataset, profile),
        "eps": list(RADII),
        "images": SIZES[profile].attacked,
        "alpha_steps": ALPHA_STEPS,
    }


def method_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """One row for each model, radius and image of the attack's rows, at their noise draw; a column for each method."""
    every = models_at_radii(models, test, SIZES[profile].attacked, RADII)
    frames = zip(every, in_parallel(_by_method, every, name="radii"), strict=True)
    return pd.concat([rows.assign(model=one.name, eps=one.ball.size) for one, rows in frames], ignore_index=True)


def linear_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `linear_rows` depend on."""
    return {
        **models_config(dataset, profile),
        "eps": [EPS, VACUOUS],
        "images": SIZES[profile].certified,
        "alpha_steps": ALPHA_STEPS,
    }


def linear_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """Means over all certified images at one noise draw, with standard errors: a row for each model and radius."""
    every = [
        one
        for one in models_at_radii(models, test, SIZES[profile].certified, [EPS, VACUOUS])
        if one.ball.size == EPS or one.name == "VAE"
    ]
    rows = []
    for one, frame in zip(every, in_parallel(_by_method, every, name="models"), strict=True):
        values = frame.drop(columns="index")
        errors = values.sem().add_suffix("_se")
        rows.append({"model": one.name, "eps": one.ball.size, "images": len(values), **values.mean(), **errors})
    return pd.DataFrame(rows)


def _by_method(one: ModelAtRadius) -> pd.DataFrame:
    columns: dict[str, pd.Series] = {}
    for name, method in COMPARED.items():
        rows = certify(one.vae, one.x, one.ball, one.noise(), method=method)
        columns[name] = rows["certified"]
    return pd.DataFrame({"index": rows["index"], "clean": rows["clean"], **columns})


def mean_gaps(rows: pd.DataFrame, attacked: pd.DataFrame) -> pd.DataFrame:
    """Attacked minus certified ELBO: the mean over the images in nats, by model and radius, a column for each method.

    The truth lies between both, so a gap bounds how loose the certificate and how weak the attack are together.
    """
    both = rows.merge(attacked[["model", "eps", "index", "attacked"]], on=["model", "eps", "index"])
    gaps = both[list(COMPARED)].rsub(both["attacked"], axis=0)
    return gaps.groupby([both["model"], both["eps"]]).mean()
