"""The table of likelihoods at tiny size: which models, what is measured, and the ceilings and bits that are derived."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.distributions import Normal

from paperlib import Bernoulli, ContinuousBernoulli, DiscretizedLogistic, Gaussian, LinfBall, Poisson, TrainConfig
from paperlib.data.datasets import Dataset
from paperlib.paper import likelihood_table as table
from paperlib.paper.attacks import entropy_ceiling

X = torch.tensor([[0.0, 1.0, 0.45, 0.8]]).double()


def test_each_likelihood_has_a_plain_and_a_robust_model_of_the_same_budget() -> None:
    models = table.likelihood_models("paper")
    assert len(models) == 10 and len({config.digest for config in models.values()}) == 10
    assert len({(c.steps, c.hidden, c.batch_size, c.lr, c.bound, c.latent_dim) for c in models.values()}) == 1
    for (kind, name), config in models.items():
        assert config.likelihood == kind and config.kappa == table.MODELS[name]
        assert config.eps == (0 if name == "VAE" else 1.0 if kind == "poisson" else 0.1)
    assert table.likelihood_config("paper")["models"] == [config.as_dict() for config in models.values()]


def test_ceilings_are_those_of_the_best_output_at_the_worst_target() -> None:
    ball = LinfBall(0.1)
    torch.testing.assert_close(table.likelihood_ceiling(Bernoulli(), X, ball), entropy_ceiling(X, ball))
    gaussian = table.likelihood_ceiling(Gaussian(0.2).double(), X, ball)
    torch.testing.assert_close(gaussian, 4 * Normal(0.0, 0.2).log_prob(torch.zeros(1)).double())
    continuous = table.likelihood_ceiling(ContinuousBernoulli(), X, ball)
    worst = torch.tensor([0.1, 0.9, 0.5, 0.7]).double()
    outputs = torch.linspace(-40, 40, 400_001).double()[:, None]
    terms = ContinuousBernoulli().terms(outputs, worst)
    torch.testing.assert_close(continuous, terms.amax(0).sum()[None], rtol=0, atol=1e-6)
    assert continuous > 0, "a density is no entropy"
    # no finite ceiling where white and black cannot be moved: it grows like the largest output's logarithm
    assert table.likelihood_ceiling(ContinuousBernoulli(), X, LinfBall(0.0)) > 2 * math.log(1e6) - 1
    logistic = DiscretizedLogistic(0.1).double()
    width = logistic.half_bin.item() / 0.1
    closed = math.log(1 / (1 + math.exp(-width)) - 1 / (1 + math.exp(width)))
    for eps, bins in ((0.0, 2), (0.1, 4), (0.3, 4)):  # it falls once, when black and white are moved by half a level
        ceiling = table.likelihood_ceiling(logistic, X, LinfBall(eps))
        assert ceiling.item() == pytest.approx(bins * closed, rel=1e-6)
    counts = table.likelihood_ceiling(Poisson(), torch.tensor([[0.0, 3.0]]).double(), LinfBall(1.0, 0.0, 16.0))
    assert counts.item() == pytest.approx(-1 + 4 * math.log(4) - 4 - math.lgamma(5))


def test_bits_are_those_of_bins_for_a_density_too() -> None:
    # a uniform density on [0, 1], or 1 / 256 for each level, is 8 bits
    assert table.bits_per_dimension(0.0, "continuous-bernoulli", 784) == 8
    assert table.bits_per_dimension(-784 * math.log(256), "discretized-logistic", 784) == pytest.approx(8)
    assert math.isnan(table.bits_per_dimension(-100.0, "bernoulli", 784))


def test_rows_train_and_measure_each_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sets = {
        "mnist5k": Dataset("mnist5k", torch.rand(12, 784, generator=generator).round(decimals=1)),
        "digit-counts": Dataset("digit-counts", torch.randint(0, 17, (12, 64), generator=generator), high=16.0),
    }
    monkeypatch.setattr(table, "load_dataset", lambda name, split="train": sets[name])
    monkeypatch.setattr(table, "in_parallel", lambda task, items, **_: [task(item) for item in items])

    def untrained(config: TrainConfig, folder: Path) -> object:
        assert folder.parent == tmp_path
        return type("Result", (), {"vae": config.build().eval()})

    monkeypatch.setattr(table, "train", untrained)
    rows = table.likelihood_rows("smoke", tmp_path)
    assert list(zip(rows["likelihood"], rows["model"], strict=True)) == list(table.likelihood_models("smoke"))
    order = ["crown_ibp", "crown", "attacked", "clean", "ceiling"]
    assert (rows[order].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    shown = table.likelihood_table(rows)
    assert isinstance(shown, pd.DataFrame) and len(shown) == 10
    assert float(shown.loc[0, "crown"]) <= rows.loc[0, "crown"]  # type: ignore[arg-type]
    vast = table.likelihood_table(rows.assign(crown_ibp=-3.5e200, crown=-5e8))
    assert float(vast.loc[0, "certified: crown-ibp"]) == -1e201 and float(vast.loc[0, "crown"]) == -1e9
    assert (shown["bits: clean"] == "").tolist() == [True, True] + [False] * 8
