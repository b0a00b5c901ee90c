"""Convolutional networks of notebook 12 at tiny size: what is trained and measured, and what is said of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny import TINY

from paperlib import certify
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.data.datasets import load_dataset
from paperlib.paper import conv_front, conv_tables, front, mnist_training
from paperlib.paper.conv_front import CONV, MLP, ConvModel


def test_networks_differ_in_their_shape_alone_and_the_connected_ones_in_one_recipe_from_notebook_6() -> None:
    models = conv_front.conv_models("mnist", "long")
    kinds = [(model.config.dataset, model.network) for model in models]
    assert kinds == [(name, network) for name in ("mnist", "fashion-mnist") for network in (MLP, CONV)]
    recipes = {model.recipe: model.config for model in front.front_models("mnist", "long")}
    assert models[0].config == replace(recipes[front.BASE], **conv_front.RECIPE) and models[0].config.kappa == 0.5
    for model in models:
        shape: dict[str, Any] = {"data_shape": (784,), "hidden": (512,), "dataset": "mnist"}
        assert replace(model.config, **shape) == models[0].config
    assert len({model.config.digest for model in models}) == len(models)


def test_a_convolutional_model_has_the_channels_of_its_configuration_and_weights_of_its_seed() -> None:
    mlp, model = conv_front.conv_models("mnist5k", "smoke")
    state = torch.get_rng_state()
    one, other = model.build(), model.build()
    assert one is not None and other is not None and mlp.build() is None
    assert torch.equal(torch.get_rng_state(), state)
    assert one.latent_dim == 20 and tuple(one.encoder[0].weight.shape) == (2, 1, 4, 4)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    another = ConvModel(CONV, replace(model.config, seed=1)).build()
    assert another is not None and not torch.equal(another.encoder[0].weight, one.encoder[0].weight)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.setitem(mnist_training.SIZES, "smoke", TINY)
    monkeypatch.setattr(front, "RECIPE_STEPS", {"smoke": 1})
    for sizes, size in ((conv_front.IMAGES, 3), (conv_front.SUBSET, 2)):
        monkeypatch.setitem(sizes, "smoke", size)
    monkeypatch.setattr(conv_front, "in_parallel", lambda task, items, **_: [task(item) for item in items])
    return conv_front.conv_rows("mnist5k", "smoke", tmp_path)


def test_rows_train_and_measure_each_network_and_find_finished_ones(rows: pd.DataFrame, tmp_path: Path) -> None:
    models = conv_front.conv_models("mnist5k", "smoke")
    about = ["dataset", "network", "kappa", "train_eps", "steps", "seed"]
    assert list(rows[about].itertuples(index=False, name=None)) == [
        (m.config.dataset, m.network, m.config.kappa, m.config.eps, 1, 0) for m in models
    ]
    assert rows["weights"].tolist()[1] == 34 + 132 + 196 * 40 + 40 + 20 * 196 + 196 + 130 + 33
    assert (rows["crown"] <= rows["attacked"]).all() and (rows["attacked"] <= rows["subset_clean"]).all()
    assert (rows[["seconds", "crown_ibp_ms", "crown_ms"]] > 0).all(axis=None)
    model = models[1]
    done = conv_front.trained(model, tmp_path / model.config.digest)
    vae = done.vae
    assert done.seconds == rows["seconds"][1]
    test = model.images(load_dataset("mnist5k", "test"))
    again = certify(vae, test.x[:3], test.ball(0.1), evaluation_noise(3, 20)[0], method="crown-ibp")
    assert rows["crown_ibp"][1] == pytest.approx(again["certified"].mean(), rel=1e-9)
    assert rows["clean"][1] == pytest.approx(again["clean"].mean(), rel=1e-9)
    config = conv_front.conv_config("mnist5k", "smoke")
    assert json.loads(json.dumps(config)) == config and config["attack_steps"] == TINY.attack_steps


def made_up(clean: float, certified: float, times: float) -> pd.DataFrame:
    """Two data sets; the convolutional network differs by so many nats."""
    fixed = {"weights": 1_000, "steps": 9, "seconds": 90.0, "kl": 9.0, "kappa": 0.5, "crown_ibp_ms": 1.0}
    fixed |= {"subset_clean": -150.0, "attacked": -330.0, "crown": -340.01}
    return pd.DataFrame(
        fixed
        | {"dataset": name, "network": network}
        | {"clean": -150.0 + conv * clean, "crown_ibp": -350.0 + conv * certified, "crown_ms": 10.0 + conv * times}
        for name in ("one", "other")
        for network, conv in ((MLP, 0), (CONV, 1))
    )


def test_at_equal_clean_elbo_a_nat_of_it_is_worth_a_nat_of_certificate() -> None:
    compared = conv_tables.comparison(made_up(3.0, -2.0, 30.0))
    assert compared.index.tolist() == ["one", "other"]
    assert compared.loc["one"].to_dict() == {"clean": 3.0, "crown_ibp": -2.0, "at_equal_clean": 1.0, "crown_times": 4.0}
    assert list(conv_tables.claim(made_up(3.0, -2.0, 41.0)).values()) == [False, False, False]
    assert list(conv_tables.claim(made_up(2.0, -3.0, 40.0)).values()) == [True, True, True]


def test_the_table_rounds_certificates_down() -> None:
    table = conv_tables.networks(made_up(0.0, -0.01, 0.0))
    assert table["CROWN-IBP"].tolist() == ["-350.0", "-350.1"] * 2 and set(table["CROWN"]) == {"-340.1"}
    assert set(table["minutes"]) == {"1.5"} and set(table["weights"]) == {"1,000"}
