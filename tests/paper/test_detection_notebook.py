"""The experiments of notebook 8 at tiny size: what is certified is attacked in vain, and what is said of the rows."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from paperlib import LinfBall, elbo_bounds, load_dataset
from paperlib.data.datasets import Dataset
from paperlib.models.elbo import elbo_terms
from paperlib.paper import detection_claims, detection_tables, heartbeats, measurements, odd_images
from paperlib.paper.plots import certified_detection as plots

pytestmark = pytest.mark.filterwarnings("ignore::paperlib.training.loop.CollapsedPosteriorWarning")


def in_turn(task: Callable[[Any], Any], items: Sequence[Any], **_: object) -> list[Any]:
    return [task(item) for item in items]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (heartbeats, measurements, odd_images):
        monkeypatch.setattr(module, "in_parallel", in_turn)
        monkeypatch.setitem(module.STEPS, "smoke", 5)
    for module in (heartbeats, odd_images):
        monkeypatch.setitem(module.ATTACK_STEPS, "smoke", 2)
    monkeypatch.setitem(heartbeats.BEATS, "smoke", 8)
    monkeypatch.setitem(odd_images.IMAGES, "smoke", 6)
    monkeypatch.setitem(odd_images.ATTACKED, "smoke", 2)
    heartbeats.studies.cache_clear()


def check_order(rows: pd.DataFrame) -> None:
    for kind in ("detection", "calm"):
        shares = [rows[f"certified_{kind}"], rows[f"attacked_{kind}"], rows[kind]]
        assert all((low <= high).all() for low, high in zip([0, *shares], [*shares, 1], strict=True))


def test_heartbeats_are_attacked_and_certified_in_order(tiny: None) -> None:
    rows, radii = heartbeats.detection_rows("smoke"), heartbeats.radius_rows("smoke")
    check_order(rows)
    assert rows["model"].drop_duplicates().tolist() == list(heartbeats.RECIPES)
    assert rows["eps"].tolist() == [*heartbeats.RADII["smoke"]] * 2
    assert (rows["two_sided_auc"] <= rows["guaranteed_auc"]).all() and (rows["guaranteed_auc"] <= rows["auc"]).all()
    assert (rows["broken"] == 0).all() and (rows["met"] > 100).all()
    assert radii.groupby(["model", "abnormal"]).size().tolist() == [8] * 4
    decided = radii["radius"] >= heartbeats.EPS
    assert (radii.loc[decided, "verdict"] != "undecided").all()
    stored = heartbeats.pictures("smoke")
    for name in heartbeats.RECIPES:
        assert ((stored[f"{name} attacked"] - stored["beat"]).abs() <= heartbeats.EPS + 1e-12).all()
        clean, attacked, lower, upper = stored[f"{name} scores"].tolist()
        assert lower <= clean < attacked <= upper
    assert not torch.equal(stored["VAE attacked"], stored["proVAE attacked"]), "each model is attacked itself"
    for figure in (
        plots.heartbeat(stored, 0.1, "a"),
        plots.against_radius(rows, "b"),
        plots.certified_radii(radii, "c"),
    ):
        assert figure.axes


def test_tumours_have_one_error_a_feature_and_frozen_features_keep_verdicts(tiny: None) -> None:
    radius = measurements.errors(0.2, frozen=True)
    errors = radius.index.str.endswith("error")
    assert errors.sum() == 10 and (radius[errors] == 0).all() and (radius[~errors] > 0).all()
    assert measurements.errors(0.2, frozen=False)[~errors].equals(radius[~errors])
    rows = measurements.measurement_rows("smoke")
    check_order(rows)
    for _, part in rows.groupby(["model", "share"]):
        of_all, measured = (part.set_index("features").loc[name] for name in ("all", "measured"))
        assert measured["certified_calm"] >= of_all["certified_calm"]
        assert measured["certified_detection"] >= of_all["certified_detection"]


def test_digits_are_told_from_the_rest(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odd_images, "RECIPES", {"detector": odd_images.RECIPES["detector"]})
    rows = odd_images.image_rows("mnist5k", "smoke", tmp_path)
    assert rows["model"].drop_duplicates().tolist() == [*odd_images.RECIPES, odd_images.MEANS]
    assert set(rows["outliers"]) == set(odd_images.outlier_names("mnist5k")) and (rows["broken"] == 0).all()
    assert (rows["guaranteed_auc"] <= rows["auc"]).all()
    attacked, clean = rows[rows["eps"] > 0], rows[rows["eps"] == 0]
    assert (attacked["attacked"] == 2).all() and (attacked["met"] >= 4).all()
    assert (clean[["attacked", "met"]] == 0).all(axis=None), "nothing is attacked at radius 0"
    assert (clean["auc"] - clean["guaranteed_auc"]).max() < 0.05, "ties alone are lost"
    values = rows.pivot_table(index=["model", "outliers"], columns="eps", values="guaranteed_auc")
    assert (values[0.3] <= values[0.1]).all() and (values[0.1] <= values[0.0]).all()
    shown = odd_images.examples("mnist5k")["images"]
    assert plots.odd_images(rows, shown, "caption").axes


def test_the_constant_decoder_has_no_latent_and_its_bounds_are_exact() -> None:
    x = load_dataset("mnist5k").x[:200]
    vae = odd_images.pixel_means(x).double()
    images, noise = x[:5].double(), torch.zeros(5, 1, dtype=torch.float64)
    fit, kl = elbo_terms(vae, images, noise, images)
    logits = torch.logit(x.mean(0).clamp(1e-4, 1 - 1e-4)).double()
    assert (kl == 0).all()
    torch.testing.assert_close(fit, (images * logits - torch.nn.functional.softplus(logits)).sum(1), rtol=1e-6, atol=0)
    best = (images + 0.3 * logits.sign()).clamp(0, 1)  # linear in the pixels: each moves as its logit says
    upper = elbo_bounds(vae, images, LinfBall(0.3), noise, "crown-ibp").upper
    torch.testing.assert_close(upper, elbo_terms(vae, best, noise, best)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("profile", ["paper", "smoke"])
def test_configurations_equal_themselves_after_a_round_trip_through_a_file(profile: str) -> None:
    configs = (
        heartbeats.heartbeats_config(profile),
        measurements.measurements_config(profile),
        odd_images.images_config("mnist", profile),
    )
    for config in configs:
        assert json.loads(json.dumps(config)) == config


def test_outliers_of_other_sets_are_asked_for_with_full_sets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def loaded(name: str, split: str = "train") -> Dataset:
        asked.append((name, split))
        return Dataset(name, torch.rand(4, 784), torch.zeros(4).long())

    monkeypatch.setattr(odd_images, "load_dataset", loaded)
    assert len(odd_images.examples("mnist5k")["images"]) == 4 and set(asked) == {("mnist5k", "test")}
    assert len(odd_images.examples("mnist")["images"]) == 6
    assert {("fashion-mnist", "test"), ("notmnist", "test")} <= set(asked)


def image_rows(**guaranteed: float) -> pd.DataFrame:
    """On two sets of outliers at two radii, the same values on each."""
    models = {"VAE": 0.1, "proVAE": 0.5, "detector": 0.9549, odd_images.MEANS: 0.8, **guaranteed}
    return pd.DataFrame(
        {"model": model, "kl": 5.0, "outliers": name, "eps": eps, "guaranteed_auc": value, "broken": 0, "met": 30_000}
        for model, value in models.items()
        for name in ("fashion-mnist", "rotated digits")
        for eps in (0.1, 0.3)
    )


def test_published_numbers_stand_at_their_radius_alone_and_certified_ones_are_rounded_down() -> None:
    at = {eps: detection_tables.odd_images(image_rows(), eps) for eps in (0.1, 0.3)}
    assert [model for model in at[0.3]["model"] if model.startswith("GOOD")] == [*detection_tables.GOOD]
    assert not at[0.1]["model"].str.startswith("GOOD").any()
    ours = at[0.3].set_index("model").loc["detector"]
    assert ours["fashion-mnist"] == "95.4" and ours["KL"] == "5.0"
    published = at[0.3].set_index("model").loc["GOOD, one of two models"]
    assert published["rotated digits"] == "" and published["fashion-mnist"] == "55.5"


def test_what_is_said_of_images_needs_the_rows_for_it() -> None:
    assert all(detection_claims.odd_images(image_rows(), 0.3).values())
    assert not all(detection_claims.odd_images(image_rows(detector=0.7), 0.3).values())
    assert not all(detection_claims.odd_images(image_rows().assign(kl=1.0), 0.3).values())
    assert not all(detection_claims.odd_images(image_rows().assign(broken=1), 0.3).values())
    assert not all(detection_claims.odd_images(image_rows().assign(met=20_000), 0.3).values())
    assert len(detection_claims.odd_images(image_rows(), 0.3)) == 5
    made = image_rows(detector=0.7)
    said = detection_claims.odd_images(made[made["outliers"] == "rotated digits"], 0.3)
    beside_means = [holds for statement, holds in said.items() if "pixel means" in statement]
    assert beside_means == [False], "they are compared without other images as well"


def test_what_is_said_of_heartbeats_and_rivals_needs_the_rows_for_it() -> None:
    rows = pd.DataFrame(
        {"model": model, "eps": 0.1, "certified_detection": share, "certified_calm": share, "met": 200_000, "broken": 0}
        for model, share in (("VAE", 0.5), ("proVAE", 0.95))
    )
    assert all(detection_claims.heartbeats(rows, 0.1).values())
    for wrong in ({"certified_calm": 0.7}, {"certified_detection": 0.9}, {"met": 10}, {"broken": 1}):
        assert not all(detection_claims.heartbeats(rows.assign(**wrong), 0.1).values()), wrong
    compared = pd.DataFrame(
        {
            **{"detector": name, "threat": "linf", "eps": 0.1, "outliers": 99, "detection": detected},
            **{"certified_detection": value, "certified_calm": value},
        }
        for name, detected, value in (
            ("forest", 1.0, 0.2),
            ("autoencoder", 1.0, float("nan")),
            ("certified detector", 0.9, 0.8),
        )
    )
    assert all(detection_claims.rivals(compared, 0.1).values())
    better = compared.assign(certified_detection=0.8, certified_calm=0.8)
    assert not any(detection_claims.rivals(better, 0.1).values()), "who detects more certifies no less"
    for wrong in ({"detection": 0.9}, {"outliers": [98, 98, 99]}):
        assert [*detection_claims.rivals(compared.assign(**wrong), 0.1).values()] == [True, False], wrong


def test_what_is_said_of_tumours_needs_the_rows_for_it() -> None:
    rows = pd.DataFrame(
        {"model": model, "share": share, "features": features, "certified_calm": calm, "certified_detection": 0.7}
        for model, calm in (("VAE", 0.3), ("proVAE", 0.6))
        for share, features in ((0.1, "all"), (0.1, "measured"), (0.2, "measured"))
    )
    assert all(detection_claims.measurements(rows).values())
    not_trained_for = rows.assign(certified_calm=[0.9, 0.3, 0.9, 0.6, 0.3, 0.6])
    assert all(detection_claims.measurements(not_trained_for).values()), "it is not said of other errors"
    for kind in ("certified_calm", "certified_detection"):
        less = rows.assign(**{kind: [0.3, 0.8, 0.3, 0.6, 0.7, 0.6]})
        assert not any(detection_claims.measurements(less).values()), kind


def test_verdicts_and_rivals_in_per_cent() -> None:
    shares = {"detection": 1.0, "attacked_detection": 0.99, "certified_detection": 0.9886}
    shares |= {"calm": 0.95, "attacked_calm": 0.9, "certified_calm": 0.8569}
    row = {"model": "proVAE", "eps": 0.1, "kl": 6.73, **shares}
    table = detection_tables.verdicts(pd.DataFrame([row]), "model", "eps")
    assert table.iloc[0].tolist() == ["proVAE", "0.1", "6.7", "100.0", "99.0 / 98.8", "95.0", "90.0 / 85.6"]
    rival = {**row, "detector": "autoencoder", "threat": "l2", "certified_calm": float("nan"), "promise": "none"}
    rival |= {"outliers": 2_081, "normals": 1_167, "kl": float("nan")}
    lines = detection_tables.rivals(pd.DataFrame([rival, {**rival, "threat": "linf", "kl": 3.0}]))
    assert lines["change"].tolist() == ["l2 0.1", "l-infinity 0.1"] and lines["KL"].tolist() == ["", "3.0"]
    assert lines["calm: attacked / certified"][0] == "90.0 / none"
    assert lines["abnormal / normal"][0] == "2,081 / 1,167"


def test_the_kl_stands_beside_what_is_guaranteed() -> None:
    row = {"model": "proVAE", "eps": 0.1, "kl": 6.73, "auc": 1.0, "guaranteed_auc": 0.9999, "two_sided_auc": 0.5}
    line = detection_tables.separation(pd.DataFrame([row])).iloc[0]
    assert line.tolist() == ["proVAE", "0.1", "6.7", "100.0", "99.9", "50.0"]


def test_the_pixel_means_are_not_those_of_the_digits_behind_the_threshold(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    constant = odd_images.pixel_means
    monkeypatch.setattr(odd_images, "RECIPES", {})
    monkeypatch.setattr(odd_images, "RADII", ())
    monkeypatch.setattr(odd_images, "pixel_means", lambda x: seen.append(len(x)) or constant(x))
    odd_images.image_rows("mnist5k", "smoke", tmp_path)
    count = len(load_dataset("mnist5k").x)
    assert seen == [count - count // 10]
