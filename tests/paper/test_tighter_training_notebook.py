"""The experiment of notebook 6 at tiny size: which models are compared, and what is measured of each."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from tiny import TINY

from paperlib import Crown, TrainConfig, certify
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.data.datasets import Dataset
from paperlib.paper import tighter_training as tighter
from paperlib.paper.mnist_training import EPS
from paperlib.training.loop import TrainResult


def test_the_comparison_varies_bound_kappa_radius_and_seed_and_nothing_else() -> None:
    configs = tighter.tradeoff_models("mnist", "paper")
    assert len({config.digest for config in configs}) == len(configs) == 18
    varied = [(c.bound, c.kappa, c.eps, c.seed) for c in configs]
    assert len(set(varied)) == 18
    assert {(bound, kappa, eps) for bound, kappa, eps, _ in varied} == {
        (bound, *pair) for bound in ("ibp", "crown-ibp") for pair in tighter.TRADEOFF
    }
    assert {0.0, 0.5} <= {kappa for kappa, _ in tighter.TRADEOFF} and len(tighter.SEEDS) == 3
    assert len({replace(c, bound="ibp", kappa=0.0, eps=EPS, seed=0, steps=1) for c in configs}) == 1
    for pair in tighter.TRADEOFF:
        assert len({c.steps for c in configs if (c.kappa, c.eps) == pair}) == 1, "steps differ between the bounds"


@pytest.mark.parametrize(("dataset", "profile"), [("mnist", "paper"), ("mnist5k", "smoke")])
def test_the_released_models_are_part_of_the_comparison(dataset: str, profile: str) -> None:
    released = tighter.released_models(dataset, profile)
    assert list(released) == ["06_provae_kappa_0", "06_provae_kappa_0.5"]
    assert [(c.bound, (c.kappa, c.eps), c.seed) for c in released.values()] == [
        ("crown-ibp", pair, 0) for pair in tighter.TRADEOFF[:2]
    ]
    assert set(released.values()) <= set(tighter.tradeoff_models(dataset, profile))


def test_tradeoff_rows_train_and_measure_each_model(
    tiny: None, test: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tighter, "TRADEOFF", ((0.0, EPS), (0.5, 0.12)))
    monkeypatch.setattr(tighter, "SEEDS", (0, 1))
    for sizes, size in ((tighter.TRAINING_STEPS, (2, 3)), (tighter.IMAGES, 5), (tighter.SUBSET, 3)):
        monkeypatch.setitem(sizes, "smoke", size)
    configs = tighter.tradeoff_models("mnist5k", "smoke")

    def train(config: TrainConfig, *, folder: Path) -> TrainResult:
        assert folder == tmp_path / config.digest
        return TrainResult(config.build().eval(), pd.DataFrame(), 0.0)

    monkeypatch.setattr(tighter, "train", train)
    rows = tighter.tradeoff_rows(test, "smoke", tmp_path)
    assert list(rows.columns) == [
        "bound", "kappa", "train_eps", "steps", "seed",
        "clean", "kl", "ibp", "crown_ibp", "subset_clean", "subset_crown", "subset_attacked",
    ]  # fmt: skip
    trained = list(rows[["bound", "kappa", "train_eps", "steps", "seed"]].itertuples(index=False, name=None))
    assert trained == [(c.bound, c.kappa, c.eps, c.steps, c.seed) for c in configs]
    for lower, upper in (
        ("ibp", "crown_ibp"), ("crown_ibp", "clean"),
        ("subset_crown", "subset_attacked"), ("subset_attacked", "subset_clean"),
    ):  # fmt: skip
        assert (rows[lower] < rows[upper]).all()

    for number, row in enumerate(rows.to_dict("records")):
        if number not in (1, 2):
            continue
        vae = configs[number].build()
        x, noise, ball = test.x[:5], evaluation_noise(5, 20)[0], test.ball(EPS)
        plain, linear = certify(vae, x, ball, noise), certify(vae, x, ball, noise, method="crown-ibp")
        attack, method = {"steps": TINY.attack_steps}, Crown(tighter.ALPHA_STEPS)
        subset = certify(vae, x[:3], ball, noise[:3], attack=attack, method=method)
        expected = {
            "clean": plain["clean"], "kl": plain["kl"], "ibp": plain["certified"], "crown_ibp": linear["certified"],
            "subset_clean": subset["clean"], "subset_crown": subset["certified"],
            "subset_attacked": subset["attacked"],
        }  # fmt: skip
        assert {name: row[name] for name in expected} == pytest.approx(
            {name: column.mean() for name, column in expected.items()}, rel=1e-12
        )
