"""The rows of the semidefinite rung, in the small."""

import json

import pytest
import torch

from paperlib.data.datasets import load_dataset
from paperlib.paper.semidefinite_rows import (
    METHODS,
    TOL,
    semidefinite_config,
    semidefinite_models,
    semidefinite_rows,
    small_digits,
)


def test_a_small_digit_is_made_of_means() -> None:
    small, data = small_digits("test"), load_dataset("mnist5k", "test")
    assert small.x.shape == (len(data.x), 49) and torch.equal(small.y, data.y)
    picture = data.x[7].view(28, 28)
    assert small.x[7].view(7, 7)[3, 2].item() == pytest.approx(picture[12:16, 8:12].mean().item())


def test_the_configuration_is_json_and_names_each_decoder() -> None:
    for profile in ("paper", "smoke"):
        config = semidefinite_config(profile)
        assert json.loads(json.dumps(config)) == config
        assert len({model.digest for model in semidefinite_models(profile)}) == len(config["models"])


def test_rows_keep_the_order_of_the_bounds() -> None:
    rows = semidefinite_rows("smoke")
    assert set(rows["decoder"]) == {"2-4-49", "2-3-3-49"} and set(rows["method"]) == set(METHODS)
    assert not rows.isna().any(axis=None) and (rows["seconds"] > 0).all()
    keys = ["decoder", "quantity", "index", "radius"]
    for (decoder, quantity, *_), group in rows.groupby(keys):
        sign = 1 if quantity == "squared distance" else -1
        bounds = sign * group.set_index("method")["bound"]
        assert (bounds >= bounds["exact"] - TOL).all()
        assert bounds["semidefinite, products"] <= bounds["semidefinite"] + TOL
        assert bounds["semidefinite"] <= bounds["linear"] <= bounds["intervals"]
        assert ("gradient" in bounds) == (decoder == "2-4-49")
        assert (group["exact"] == sign * bounds["exact"]).all()
