"""The experiments of notebook 7 at tiny size: fair recipes, what is measured of each, and what is said of the rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from paperlib import VAE, elbo, mlp_vae
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.data.datasets import Dataset
from paperlib.paper import attack_checks, fashion, rival_claims, rival_recipes, rival_tables, rivals, worst_cases
from paperlib.paper.mnist_training import EPS, ModelAtRadius
from paperlib.paper.plots.rivals import FLOOR, defences
from paperlib.paper.rival_recipes import CONVOLUTIONAL, RECIPES, Run

# what a recipe may change; all else is the same for all
TUNED = {"lr", "beta", "weight_decay", "kappa", "eps", "objective", "bound", "threat"}


@pytest.mark.parametrize("profile", ["paper", "smoke"])
def test_recipes_share_network_data_steps_and_number_of_trials(profile: str) -> None:
    assert {len(one.trials) for one in RECIPES} == {3}
    runs = [Run.of(one.name, trial, "mnist", 0, profile) for one in RECIPES for trial in range(3)]
    shared = {name for name in runs[0].config.as_dict() | {"threat": ""} if name not in TUNED}
    configs = [run.config.as_dict() for run in runs]
    for name in shared:
        assert len({str(config.get(name)) for config in configs}) == 1, name
    assert {run.config.steps for run in runs} == {rival_recipes.STEPS[profile]}
    assert len({(run.recipe, run.tuned) for run in runs}) == len(runs)


def test_each_objective_is_that_of_its_recipe() -> None:
    words = {one.name: Run.of(one.name, 0, "mnist", 0, "paper").config.objective.split()[0] for one in RECIPES}
    assert words == {
        **dict.fromkeys(("VAE", "beta-VAE", "weight decay", "Lipschitz VAE"), "provae"),
        **{"noise-trained VAE": "noise", "smooth encoder": "smooth-encoder", "adversarial training": "adversarial"},
        **{"CIVET": "civet", "proVAE, intervals": "provae", "proVAE, linear bound": "provae"},
        "proVAE, linear bound, l2": "provae",
    }
    for name in ("VAE", "beta-VAE", "weight decay", "Lipschitz VAE"):
        assert Run.of(name, 0, "mnist", 0, "paper").config.kappa == 1.0
    bounds = {
        name: Run.of(name, 0, "mnist", 0, "paper").config for name in ("proVAE, intervals", "proVAE, linear bound")
    }
    assert [config.bound for config in bounds.values()] == ["ibp", "crown-ibp"]
    l2 = Run.of("proVAE, linear bound, l2", 0, "mnist", 0, "paper").config
    assert (l2.threat, l2.eps, l2.bound) == ("l2", 1.0, "crown-ibp")


def test_models_that_no_configuration_builds_are_those_of_the_seed() -> None:
    first, again, other = (Run.of("Lipschitz VAE", 0, "mnist5k", seed, "smoke").model() for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    weights = [vae.decoder[0].weight for vae in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    conv = Run.of(CONVOLUTIONAL[0].name, 0, "mnist5k", 0, "smoke").model()
    assert conv is not None and conv(torch.zeros(1, 1, 28, 28)).shape == (1, 1, 28, 28)
    assert Run.of("VAE", 0, "mnist5k", 0, "smoke").model() is None


def test_full_mnist_is_compared_beside_fashion_mnist_and_a_subset_alone() -> None:
    assert rival_recipes.datasets("mnist") == ("mnist", "fashion-mnist")
    assert rival_recipes.datasets("mnist5k") == ("mnist5k",)
    assert [run.config.eps for run in fashion.longer_runs("mnist", "paper")] == pytest.approx([0.0525, 0.105])
    assert {(run.config.dataset, run.config.kappa) for run in fashion.longer_runs("mnist", "paper")} == {
        ("fashion-mnist", 0.5)
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a run takes a second."""
    for sizes, value in (
        (rival_recipes.STEPS, 4), (rival_recipes.HIDDEN, 8), (rivals.IMAGES, 2), (rivals.HELD_OUT, 3),
        (rivals.SMOOTHED, 1), (rivals.ATTACK_STEPS, 2),
    ):  # fmt: skip
        monkeypatch.setitem(sizes, "smoke", value)
    monkeypatch.setattr(rivals, "RADII", (("linf", 0.1), ("l2", 0.5)))
    monkeypatch.setattr(rivals, "SAMPLES", 20)


@pytest.mark.parametrize("name", ["VAE", "noise-trained VAE", "Lipschitz VAE", "proVAE, convolutional"])
@pytest.mark.filterwarnings("ignore::paperlib.training.loop.CollapsedPosteriorWarning")
def test_a_run_is_trained_once_attacked_and_certified_in_order(small: None, name: str, tmp_path: Path) -> None:
    run = Run.of(name, 0, "mnist5k", 0, "smoke")
    rows = rivals._measured(run, tmp_path)
    again = rivals._measured(run, tmp_path)
    pd.testing.assert_frame_equal(rows, again)  # the seconds of the one training, too
    assert rows["norm"].tolist() == ["linf", "l2"] and rows["eps"].tolist() == [0.1, 0.5]
    assert (rows["certified"] <= rows["attacked"]).all() and (rows["attacked"] <= rows["clean"]).all()
    assert (rows["broken"] == 0).all() and (rows["met"] > 2 * 2 * 4).all()
    assert (rows["error_clean"] <= rows["error_certified"]).all()
    assert (rows["error_attacked"] <= rows["error_certified"]).all()
    assert rows["theirs"].notna().tolist() == {
        "Lipschitz VAE": [True, True],
        "noise-trained VAE": [False, True],
    }.get(name, [False, False])


@pytest.mark.filterwarnings("ignore::paperlib.training.loop.CollapsedPosteriorWarning")
def test_a_trial_is_judged_on_held_out_training_images(small: None, tmp_path: Path) -> None:
    row = rivals._trial(Run.of("proVAE, intervals", 1, "mnist5k", 0, "smoke"), tmp_path)
    assert row["tuned"] == "kappa 0.5" and row["attacked"] <= row["clean"] < 0 <= row["kl"]
    l2, noisy, plain = (Run.of(name, 0, "mnist", 0, "paper").threat for name in
                        ("proVAE, linear bound, l2", "noise-trained VAE", "CIVET"))  # fmt: skip
    assert (l2, noisy, plain) == ("l2", "l2", "linf")


def compared() -> pd.DataFrame:
    """Rows in which everything holds that the notebook says."""
    certified = {one.name: -600.0 for one in RECIPES} | {
        **{"proVAE, linear bound": -340.0, "proVAE, intervals": -350.0, "adversarial training": -500.0},
        "proVAE, linear bound, l2": -300.0,
    }
    rows = [
        {
            **{"dataset": dataset, "recipe": name, "tuned": "x 1", "seed": seed, "norm": norm, "eps": eps, "images": 5},
            **{"clean": -100.0, "kl": 20.0, "broken": 0, "seconds": 3.0 + seed},
            "attacked": -320.0 if name == "adversarial training" else max(low + 10.0, -330.0),
            "certified": low if (name, norm) != ("proVAE, linear bound, l2", "linf") else -560.0,
            "theirs": -400.0 if (name, norm) == ("noise-trained VAE", "l2") else float("nan"),
            **{
                "error_clean": 20.0,
                "error_attacked": 30.0,
                "error_certified": (52.0 if name == "CIVET" else 700.01) + seed,
                "met": 100,
            },
        }
        for dataset in ("mnist", "fashion-mnist")
        for name, low in certified.items()
        for seed in (0, 1)
        for norm, eps in (("linf", 0.1), ("l2", 1.0))
    ]
    return pd.DataFrame(rows)


def test_statements_hold_of_rows_that_bear_them_out_and_of_no_others() -> None:
    rows = compared()
    smoothed = pd.DataFrame({"sigma": [0.25, 0.5], "eps": 1.0, "lower": [-float("inf"), -400.0]})
    assert all(rival_claims.defences(rows, smoothed).values())
    spoilt = rows.assign(certified=-rows["certified"] - 900, attacked=-400.0, error_certified=50.0, broken=1)
    assert not any(rival_claims.defences(spoilt, smoothed.assign(lower=0.0)).values())

    suite = pd.DataFrame({"suite": [-3.0, -4.0], "pgd": [-3.0, -3.9], "broken": [0, 0]})
    checks = pd.DataFrame({"holds": [True, True]})
    assert all(rival_claims.strength(suite, checks).values())
    for worse in (suite.assign(suite=[-3.0, -3.8]), suite.assign(broken=[0, 1])):
        assert not any(rival_claims.strength(worse, checks.assign(holds=[True, False])).values())
    near = pd.DataFrame({"attacked": [-300.0, -400.0], "certified": [-311.0, -412.0]})
    assert all(rival_claims.fashion(near).values())
    assert not any(rival_claims.fashion(near.assign(certified=-413.0)).values())
    lit = pd.DataFrame({"attacked": [-300.0, -400.0], "exact": [-300.09, -400.1]})
    assert all(rival_claims.lighting(lit, 0.1).values())
    assert not any(rival_claims.lighting(lit.assign(exact=-400.2), 0.1).values())


def test_tables_show_seeds_and_round_certificates_outwards() -> None:
    rows = compared().assign(certified=lambda r: r["certified"] - 0.01 * r["seed"])
    table = rival_tables.defences(rows[rows["dataset"] == "mnist"], "linf").set_index("recipe")
    assert list(table.columns) == ["clean", "KL", "attacked 0.1", "certified 0.1"]
    assert table.loc["proVAE, linear bound", "certified 0.1"] == "-340.1 [-340.1, -340.0]"
    l2 = rival_tables.defences(rows[rows["dataset"] == "mnist"], "l2").set_index("recipe")
    assert l2.loc["noise-trained VAE", "theirs 1"] == "-400.0 [-400.0, -400.0]" and l2.loc["VAE", "theirs 1"] == ""
    errors = rival_tables.errors(rows[rows["dataset"] == "mnist"]).set_index("recipe")
    assert errors.loc["VAE", "certified"] == "700.6 [700.1, 701.1]" and errors.loc["VAE", "training (s)"] == "4"
    lower = pd.DataFrame(
        {"sigma": [0.5, 0.5], "eps": [1.0, 1.5], "estimate": -200.0, "lower": [-400.01, -float("inf")]}
    )
    (line,) = rival_tables.smoothing(lower).to_dict("records")
    assert line["certified 1"] == "-400.1" and line["certified 1.5"] == "none"
    infinite = rows.assign(theirs=-float("inf"))
    assert rival_tables.defences(infinite[infinite["dataset"] == "mnist"], "l2")["theirs 1"][0] == "none [none, none]"


def test_the_figure_shows_every_recipe_and_marks_what_is_beyond_its_floor() -> None:
    rows = compared()
    rows.loc[rows["recipe"] == "VAE", "certified"] = 10 * FLOOR
    figure = defences(rows, [("linf", 0.1), ("l2", 1.0)], "caption")
    assert len(figure.axes) == 4
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == [one.name for one in RECIPES][::-1]
    for axis in figure.axes:
        (edge,) = [line for line in axis.lines if line.get_markerfacecolor() == "none"]
        assert list(edge.get_xdata()) == [FLOOR] and labels[int(np.asarray(edge.get_ydata())[0])] == "VAE"
        for kind in ("clean", "attacked", "certified"):
            drawn = [box for box in axis.containers if box.get_label() == kind]
            assert len(drawn) == 1 and len(drawn[0][0].get_xdata()) == len(RECIPES) - (kind == "certified")


def tiny_vae() -> VAE:
    torch.manual_seed(0)
    return mlp_vae((784,), (6,), 2)


def test_the_suite_and_the_checks_have_a_row_for_each_model_and_set(
    small: None, test: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attack_checks.IMAGES, "smoke", 3)
    monkeypatch.setitem(attack_checks.SANITY, "smoke", (2, (1, 2), 4))
    monkeypatch.setattr(attack_checks, "RADII", (("linf", 0.1), ("l2", 0.5)))
    rows = pd.DataFrame(
        [attack_checks._suite(("VAE", tiny_vae(), threat), test, "smoke") for threat in attack_checks.threats(test)]
    )
    assert rows["threat"].tolist() == ["linf 0.1", "l2 0.5", "patch 5 x 5", "lighting 0.2"]
    assert rows["images"].tolist() == [3, 3, 1, 3]
    assert (rows["certified"] <= rows["suite"]).all() and (rows["suite"] <= rows["pgd"]).all()
    assert (rows["pgd"] <= rows["clean"]).all() and (rows["broken"] == 0).all()
    one = ModelAtRadius("VAE", test.ball(EPS), tiny_vae(), test.x)
    checks, along = attack_checks._sanity(one, "smoke")
    assert set(checks["check"]) == {"steps", "unbounded", "gradient-free"} and set(checks["model"]) == {"VAE"}
    assert along["share"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert along["attack"].iloc[0] == along["random"].iloc[0] > along["attack"].iloc[-1]


def test_lighting_is_exact_and_pictures_lie_in_their_sets(test: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worst_cases.LIT, "smoke", 2)
    vae = tiny_vae()
    rows = worst_cases._lighting(("VAE", vae, 0), test, "smoke")
    assert rows["index"].tolist() == [0, 1]
    assert (rows["exact"] <= rows["attacked"]).all() and (rows["attacked"] <= rows["clean"]).all()
    steps = torch.linspace(-attack_checks.LIGHTING, attack_checks.LIGHTING, 81).double()
    x, noise, grid = test.x[:2].double(), evaluation_noise(2, 2)[0].double(), torch.cartesian_prod(steps, steps)
    for image, draw, exact in zip(x, noise, rows["exact"], strict=True):
        lit = (image + grid[:, :1] + grid[:, 1:] * (image - 0.5)).clamp(0, 1)
        with torch.no_grad():
            least = elbo(vae.double(), lit, draw.expand(len(lit), -1)).min().item()
        assert exact <= least <= exact + worst_cases.TOLERANCE + 0.05  # which the grid may miss between its points
    stored = worst_cases.pictures({"VAE": vae.float()}, test, "smoke")
    x = test.x[:2]
    assert torch.equal(stored["x"], x)
    for threat in ("lighting", "patch", "l2"):
        assert (stored[f"VAE {threat} certified"] <= stored[f"VAE {threat} attacked"]).all()
        assert (stored[f"VAE {threat} attacked"] <= stored["VAE clean"]).all()
    moved = stored["VAE l2"].double() - x.double()
    assert (moved.norm(dim=1) <= worst_cases.L2_EPS + 1e-6).all()
    changed = (stored["VAE patch"] != x).view(2, 28, 28)
    for one in changed:
        for side in (one.any(0), one.any(1)):
            hit = side.nonzero().flatten()
            assert hit[-1] - hit[0] < attack_checks.PATCH
