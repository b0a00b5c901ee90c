"""Notebook 10 at tiny size: every rung below the attack, branch and bound above its barrier, tables and statements."""

import pandas as pd
import pytest

from paperlib import VAE, mlp_vae
from paperlib.certificates.ladder.lagrangian import Lagrangian
from paperlib.data.datasets import Dataset
from paperlib.paper import branching, ladder, ladder_claims, ladder_tables
from paperlib.paper.ladder import ATTACK, RANDOM, RUNGS


@pytest.fixture(autouse=True)
def tiny_ladder(monkeypatch: pytest.MonkeyPatch, tiny: None) -> None:
    for module in (ladder, branching):
        monkeypatch.setattr(module, "in_parallel", lambda task, items, **_: [task(item) for item in items])
    monkeypatch.setattr(ladder, "PROJECTIONS", 11)
    monkeypatch.setattr(ladder, "AGAIN", 0.0)  # each bound once
    monkeypatch.setitem(ladder.RUNGS, "alpha-CROWN", Lagrangian(steps=2))
    monkeypatch.setitem(ladder.RUNGS, "Lagrangian dual", Lagrangian(steps=2))
    monkeypatch.setitem(branching.SECONDS, "smoke", (0.01, 0.02))


@pytest.fixture
def small() -> VAE:
    return mlp_vae((784,), (8,), 2)


def test_each_rung_is_below_the_attack_and_none_but_the_projections_says_less_than_certain(
    small: VAE, test: Dataset
) -> None:
    rows = ladder.ladder_rows({"small": (small, 0.05)}, test, "smoke")
    assert list(rows["rung"].unique()) == [*RUNGS, RANDOM] and ATTACK not in set(rows["rung"])
    assert len(rows) == len(rows["rung"].unique()) * ladder.IMAGES["smoke"]
    assert (rows["bound"] <= rows["attacked"]).all() and (rows["attacked"] <= rows["clean"]).all()
    assert (rows["ms"] > 0).all()
    assert set(rows.loc[rows["confidence"] < 1, "rung"]) == {RANDOM}


def test_means_are_distances_from_the_attack_and_tables_round_them_up() -> None:
    rows = pd.DataFrame(
        {
            "model": "VAE",
            "rung": ["intervals", "intervals", RANDOM],
            "eps": 0.1,
            "clean": [-1.0, -3.0, -1.0],
            "attacked": [-10.0, -20.0, -10.0],
            "bound": [-20.0, -40.01, -11.0],
            "ms": [1.0, 3.0, 7.0],
            "confidence": [1.0, 1.0, 0.999],
        }
    )
    means = ladder.ladder_means(rows)
    assert means["gap"].tolist() == pytest.approx([15.005, 1.0])
    table = ladder_tables.ladder_table(means)
    assert table["VAE, radius 0.1"].tolist() == ["15.1 (2.0 ms)", "1.0 (7.0 ms, no certificate)"]


def test_the_search_begins_no_lower_than_where_single_units_end_and_time_never_hurts(small: VAE, test: Dataset) -> None:
    models = {name: (small, 0.05) for name in branching.SEARCHED}
    rows = branching.branching_rows(models, test, "smoke")
    assert list(rows["model"].unique()) == list(models) and set(rows["seconds"]) == {0.01, 0.02}
    assert (rows["images"] == branching.IMAGES["smoke"]).all() and (rows["gap"] >= -1e-9).all()
    statements = ladder_claims.branching(rows.assign(gap=[3.0, 1.0, 3.0, 1.5], barrier=4.0))
    assert all(statements.values())
    worse = ladder_claims.branching(rows.assign(gap=[1.0, 3.0, 3.0, 1.5], barrier=2.0))
    assert not any(worse.values())


def test_each_trainable_bound_trains_its_own_small_model() -> None:
    for profile in ("paper", "smoke"):
        models = ladder.small_models("mnist", profile)
        assert {config.bound for config in models.values()} == set(ladder.TRAINED_ON) == set(models)
        assert len({config.digest for config in models.values()}) == len(models)
    rows = pd.DataFrame(
        {"bound": list(ladder.TRAINED_ON), "clean": [-9.0, -8, -8, -7], "kl": 1.0, "own": -20.04, "crown": -19.0}
    )
    table = ladder_tables.training_table(rows)
    assert table["certified by that bound"].tolist() == ["-20.1"] * 4
    assert all(ladder_claims.training(rows).values())
    assert not any(ladder_claims.training(rows.assign(clean=[-7.0, -8, -8, -9])).values())
