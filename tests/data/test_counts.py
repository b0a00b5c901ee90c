"""Real counts: whole numbers in their range, no row on both sides, and a Poisson VAE that trains and certifies."""

import sys

import pytest
import torch

from paperlib import Poisson, TrainConfig, certify, load_dataset, train
from paperlib.data.arrays import DataError
from paperlib.data.datasets import CHECKSUMS


def test_the_counts_are_those_of_scikit_learn_in_a_fixed_split() -> None:
    from sklearn.datasets import load_digits

    train_set, test_set = (load_dataset("digit-counts", split) for split in ("train", "test"))
    assert (len(train_set.x), len(test_set.x)) == (1_438, 359) and (test_set.low, test_set.high) == (0.0, 16.0)
    both, source = torch.cat([train_set.x, test_set.x]), load_digits()
    assert torch.equal(both, both.round()) and both.aminmax() == (0, 16)
    expected = torch.cat([torch.from_numpy(source.data), torch.from_numpy(source.target)[:, None]], 1).float()
    assert train_set.y is not None and test_set.y is not None
    rows = torch.cat([both, torch.cat([train_set.y, test_set.y])[:, None]], 1)
    assert torch.equal(rows.unique(dim=0), expected.unique(dim=0)) and len(rows) == len(expected)
    assert torch.equal(load_dataset("digit-counts", "test").x, test_set.x)
    assert test_set.y.bincount().min() > 20, "every digit is tested"


def test_other_numbers_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKSUMS, "digit-counts", {"scikit-learn": "0" * 64})
    with pytest.raises(DataError, match=r"scikit-learn's digits have SHA-256 \w{64}, expected 0{64}"):
        load_dataset("digit-counts")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="digit-counts is scikit-learn's: pip install scikit-learn"):
        load_dataset("digit-counts")


def test_a_poisson_vae_trains_on_them_and_is_certified_at_one_count() -> None:
    how = {"hidden": (32,), "latent_dim": 4, "steps": 60, "lr": 5e-3, "batch_size": 64, "bound": "crown-ibp"}
    config = TrainConfig("digit-counts", (64,), likelihood="poisson", eps=1.0, kappa=0.5, **how)
    result, test_set = train(config), load_dataset("digit-counts", "test")
    x, noise = test_set.x[:20], torch.zeros(20, 4)
    rows = certify(result.vae, x, test_set.ball(1.0), noise, method="crown", attack={"steps": 3})
    mean = load_dataset("digit-counts").x.mean()
    flat = Poisson().log_prob(mean.log().expand(20, 64), x).mean().item()  # one rate for all blocks, about -330 nats
    assert rows["clean"].mean() > flat + 50
    assert (rows["certified"] < rows["attacked"]).all() and (rows["attacked"] < rows["clean"]).all()
