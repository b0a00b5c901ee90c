"""What the tests of the paper's experiments share: tiny sizes, untrained models, and no other process."""

from types import ModuleType

import pytest
from tiny import TINY, tiny_models, tiny_test_set

from paperlib import VAE
from paperlib.data.datasets import Dataset
from paperlib.paper import (
    attacks,
    certification,
    likelihood_rows,
    linear_bounds,
    mnist_training,
    tighter_training,
    toy_2d,
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke profile at tiny size, in this process."""
    monkeypatch.setitem(mnist_training.SIZES, "smoke", TINY)
    modules: list[ModuleType] = [attacks, certification, likelihood_rows, linear_bounds, tighter_training, toy_2d]
    for module in modules:
        monkeypatch.setattr(module, "in_parallel", lambda task, items, **_: [task(item) for item in items])


@pytest.fixture
def models(tiny: None) -> dict[str, VAE]:
    return tiny_models()


@pytest.fixture
def test() -> Dataset:
    return tiny_test_set()
