"""The experiment of notebook 12 at tiny size: which models are compared, what is measured, and what is said of it."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from paperlib import TrainConfig
from paperlib.data.datasets import Dataset
from paperlib.paper import front, front_tables
from paperlib.paper import tighter_training as tighter
from paperlib.paper.mnist_training import digit_models
from paperlib.training.config import LATER_FIELDS
from paperlib.training.loop import TrainResult


def grouped(dataset: str, profile: str) -> dict[str, list[front.FrontModel]]:
    models = front.front_models(dataset, profile)
    assert len({model.config for model in models}) == len(models)
    return {group: [m for m in models if m.group == group] for group in (front.OURS, front.NOTEBOOK_2, front.RECIPES)}


def test_each_recipe_is_one_change_of_notebook_6_at_equal_steps() -> None:
    recipes = {model.recipe: model.config for model in grouped("mnist", "long")[front.RECIPES]}
    base = recipes[front.BASE]
    assert replace(base, steps=2_300) in tighter.tradeoff_models("mnist", "paper")
    for name, config in recipes.items():
        changed = {field for field in config.as_dict() if config.as_dict()[field] != base.as_dict().get(field)}
        assert changed == set(front.CHANGES[name]), name
    assert recipes["twice the width"].hidden == (1024,) and recipes["two hidden layers"].hidden == (512, 512)
    objectives = {config.objective.split()[0] for config in recipes.values()}
    assert objectives == {"provae", "interval-regularised", "sabr", "mtl-ibp", "exp-ibp"}
    assert {"init", "kappa_start", "averaging"} < LATER_FIELDS.keys() & set().union(*front.CHANGES.values())


def test_ours_have_three_seeds_and_the_networks_of_notebook_2_whose_models_are_beside_them() -> None:
    groups = grouped("mnist", "long")
    ours = [m.config for m in groups[front.OURS]]
    assert [(config.kappa, config.seed) for config in ours] == [
        (kappa, seed) for kappa in (0, 0.5) for seed in range(3)
    ]
    assert {config.hidden for config in ours} == {(512,)}
    headline = [replace(m, seed=seed) for m in digit_models("mnist", "paper").values() for seed in range(3)]
    assert [m.config for m in groups[front.NOTEBOOK_2]] == headline


@pytest.mark.parametrize(("dataset", "profile"), [("mnist", "long"), ("mnist5k", "smoke")])
def test_the_released_models_are_ours_of_the_first_seed(dataset: str, profile: str) -> None:
    released = front.released_models(dataset, profile)
    assert list(released) == ["12_provae_kappa_0", "12_provae_kappa_0.5"]
    ours = {m.config for m in grouped(dataset, profile)[front.OURS]}
    assert set(released.values()) <= ours and {config.seed for config in released.values()} == {0}


@pytest.fixture
def rows(tiny: None, test: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Of untrained models; each run has taken as many seconds as it has steps."""
    monkeypatch.setattr(front, "in_parallel", lambda task, items, **_: [task(item) for item in items])
    monkeypatch.setattr(front, "CHANGES", {name: front.CHANGES[name] for name in (front.BASE, "twice the width")})
    for sizes, size in ((tighter.IMAGES, 5), (tighter.SUBSET, 3)):
        monkeypatch.setitem(sizes, "smoke", size)

    def trained(config: TrainConfig, folder: Path) -> TrainResult:
        assert folder == tmp_path / config.digest
        return TrainResult(config.build().eval(), pd.DataFrame(), float(config.steps))

    monkeypatch.setattr(front, "trained", trained)
    first = digit_models("mnist5k", "smoke")["VAE"]
    return front.front_rows(test, "smoke", tmp_path, {first: (first.build().eval(), -1.0)})


def test_front_rows_train_and_measure_each_model(rows: pd.DataFrame, test: Dataset) -> None:
    models = front.front_models("mnist5k", "smoke")
    about = ["group", "recipe", "kappa", "train_eps", "steps", "seed"]
    assert list(rows[about].itertuples(index=False, name=None)) == [
        (m.group, m.recipe, m.config.kappa, m.config.eps, m.config.steps, m.config.seed) for m in models
    ]
    before = (rows["recipe"] == "VAE") & (rows["seed"] == 0)
    assert before.any() and rows["seconds"].tolist() == rows["steps"].where(~before, -1).tolist()
    wide = next(m.config for m in models if m.recipe == "twice the width")
    width = wide.hidden[0]
    weights = 784 * width + width + width * 40 + 40 + 20 * width + width + width * 784 + 784
    assert rows.loc[rows["recipe"] == "twice the width", "weights"].item() == weights
    expected = tighter.measured(wide.build().eval(), test, "smoke")
    assert rows.loc[rows["recipe"] == "twice the width", list(expected)].iloc[0].to_dict() == pytest.approx(expected)


def made_up(gain: float, spread: float = 0.5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of notebook 12 and of notebook 6: ours are better by `gain`, and seeds differ by twice `spread`."""
    columns = ["clean", "crown_ibp", "subset_crown", "subset_attacked", "ibp", "kl", "subset_clean"]
    before = pd.DataFrame({"kappa": [0.0, 0.5], **{column: -300.0 for column in columns}})
    ours = [
        {
            "group": front.OURS,
            "recipe": "ours",
            "kappa": kappa,
            "train_eps": 0.1,
            "input_clip": 0.0,
            "steps": 9,
            "batch_size": 64,
            "seconds": 90.0,
            "seed": s,
            "weights": 9,
        }
        | {column: -300.0 + gain + spread * (s - 1) for column in columns}
        for kappa in (0.0, 0.5)
        for s in (0, 1, 2)
    ]
    values = dict(zip(front.CHANGES, (-300.0, -298.0, -299.5, -310.0), strict=False))
    recipes = [
        {"group": front.RECIPES, "recipe": name, "kappa": 0.5, "weights": 1_000, "seconds": 9.0, "steps": 9}
        | {column: value for column in columns}
        for name, value in values.items()
    ]
    return pd.DataFrame(ours + recipes), before


def test_the_claim_holds_only_where_both_ends_gain_more_than_seeds_differ_by() -> None:
    assert list(front_tables.claim(*made_up(5.0)).values()) == [True, True]
    assert list(front_tables.claim(*made_up(0.9)).values()) == [True, False]
    assert list(front_tables.claim(*made_up(-1.0)).values()) == [False, False]
    rows, before = made_up(5.0)
    rows.loc[(rows["group"] == front.OURS) & (rows["kappa"] == 0.5), "clean"] -= 6.0
    assert list(front_tables.claim(rows, before).values()) == [False, False]
    gain = front_tables.improvement(*made_up(5.0))
    assert gain.index.tolist() == [0.0, 0.5] and (gain == 5.0).all(axis=None)


def test_recipes_are_sorted_by_what_they_bring() -> None:
    helped, same, hurt = front_tables.sorted_out(made_up(5.0)[0])
    names = list(front.CHANGES)
    assert (helped, same, hurt) == (f"{names[1]} (+2.0)", f"{names[2]} (+0.5)", f"{names[3]} (-10.0)")


def test_tables_round_certificates_down() -> None:
    rows, _ = made_up(5.04)
    points = front_tables.points(rows)
    assert points["CROWN-IBP"].tolist() == ["-295.0 [-295.5, -294.5]"] * 2
    assert points["clean"].tolist() == ["-295.0 [-295.5, -294.5]"] * 2
    assert points["minutes"].tolist() == ["1.5 [1.5, 1.5]"] * 2
    table = front_tables.recipes(rows.assign(crown_ibp=-300.01))
    assert set(table["CROWN-IBP"]) == {"-300.1"} and table["weights"].iloc[0] == "1,000"
