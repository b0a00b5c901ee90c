"""The configuration names a run: every field counts, nothing out of range gets in, and files give it back unchanged."""

import dataclasses
import inspect
import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperlib import (
    OBJECTIVES,
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Poisson,
    TrainConfig,
)
from paperlib.rivals.smooth_encoder import SmoothEncoder
from paperlib.runtime.files import ConfigMismatchError
from paperlib.training.config import LATER_FIELDS
from paperlib.training.objective import find_objective

OTHER: dict[str, Any] = {
    "dataset": "mnist5k",
    "data_shape": (1, 28, 28),
    "hidden": (512, 512),
    "latent_dim": 21,
    "likelihood": "gaussian",
    "scale": 0.5,
    "target": "clean",
    "eps": 0.2,
    "kappa": 0.25,
    "bound": "crown-ibp",
    "steps": 10,
    "batch_size": 128,
    "lr": 1e-3,
    "lr_final": 0.5,
    "ramp_start": 0.2,
    "ramp_end": 0.6,
    "clip": 10.0,
    "seed": 1,
    "beta": 4.0,
    "objective": "civet",
    "weight_decay": 0.01,
    "threat": "l2",
    "init": "interval",
    "kappa_start": 0.5,
    "averaging": 0.99,
    "input_clip": 0.1,
}
FIELDS = [field.name for field in dataclasses.fields(TrainConfig)]


@pytest.mark.parametrize("name", FIELDS)
def test_the_digest_changes_with_each_field(name: str) -> None:
    assert TrainConfig(**{name: OTHER[name]}).digest != TrainConfig().digest


def test_the_digests_of_single_changes_all_differ() -> None:
    assert len({TrainConfig(**{name: OTHER[name]}).digest for name in FIELDS}) == len(FIELDS)


def test_a_digest_is_twelve_hexadecimal_digits() -> None:
    digest = TrainConfig().digest
    assert len(digest) == 12 and set(digest) <= set("0123456789abcdef")


@given(
    eps=st.floats(0, 1e6),
    lr=st.floats(1e-12, 1e3),
    hidden=st.lists(st.integers(1, 2_000), max_size=4).map(tuple),
    seed=st.integers(0, 2**40),
    dataset=st.text('aβ"\\\n{}', max_size=6),
)
def test_a_round_trip_through_json_changes_nothing(**fields: Any) -> None:
    config = TrainConfig(**fields)
    stored = json.loads(json.dumps(config.as_dict()))
    assert stored == config.as_dict()
    back = TrainConfig.from_dict(stored)
    assert back == config and back.digest == config.digest and hash(back) == hash(config)


@pytest.mark.parametrize("fields", [{"eps": 0}, {"kappa": 1}, {"scale": 1}])
def test_equal_values_make_the_same_configuration_and_digest(fields: dict[str, Any]) -> None:
    as_written = TrainConfig(**fields)
    as_float = TrainConfig(**{name: float(value) for name, value in fields.items()})
    assert as_written == as_float
    assert as_written.digest == as_float.digest


EQUAL = """
import numpy as np
import torch
from paperlib import TrainConfig
plain = TrainConfig(data_shape=(3, 4), hidden=(8,), latent_dim=4, steps=1000, seed=2, eps=0.5)
for shape in ([3, 4], np.array([3, 4]), torch.Size([3, 4]), torch.tensor([3, 4])):
    other = TrainConfig(
        data_shape=shape, hidden=[np.int64(8)], latent_dim=4.0, steps=1e3, seed=np.int32(2), eps=np.float32(0.5)
    )
    assert other == plain and other.digest == plain.digest and repr(other) == repr(plain), other
    assert TrainConfig.from_dict(other.as_dict()) == other
for bad in ({"hidden": 8}, {"hidden": "12"}, {"steps": 1.5}, {"steps": float("nan")}, {"seed": "x"}, {"hidden": [8.5]}):
    try:
        print(TrainConfig(**bad))
    except ValueError as error:
        assert f"TrainConfig.{next(iter(bad))} " in str(error), error
"""


def test_lists_whole_floats_and_numbers_of_numpy_make_the_same_configuration_and_digest() -> None:
    """In a process without type checks, as most users'."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", EQUAL], capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_fields_of_later_versions_leave_digests_and_files_from_before_as_they_are() -> None:
    assert TrainConfig().digest == "69d6389c88da"  # as it was without them: the name of runs that exist
    assert not LATER_FIELDS.keys() & TrainConfig().as_dict().keys()
    assert TrainConfig.from_dict(TrainConfig().as_dict()) == TrainConfig()


@pytest.mark.parametrize("name", LATER_FIELDS)
def test_a_field_of_a_later_version_is_in_files_where_it_counts(name: str) -> None:
    other = TrainConfig(**{name: OTHER[name]})
    assert other.as_dict()[name] == OTHER[name] and TrainConfig.from_dict(other.as_dict()) == other


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in LATER_FIELDS])
def test_a_missing_field_is_named(name: str) -> None:
    fields = TrainConfig().as_dict()
    del fields[name]
    with pytest.raises(ValueError, match=rf"missing \['{name}'\]"):
        TrainConfig.from_dict(fields)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown \['learning_rate'\]"):
        TrainConfig.from_dict({**TrainConfig().as_dict(), "learning_rate": 1e-3})


OUT_OF_RANGE = [
    *[("data_shape", bad) for bad in ((), (0,), (28, -1))],
    *[("hidden", bad) for bad in ((0,), (512, -1))],
    *[(name, bad) for name in ("latent_dim", "steps", "batch_size") for bad in (0, -1)],
    ("likelihood", "binomial"),
    *[("scale", bad) for bad in (0.0, -1.0, math.nan, math.inf)],
    ("target", "noisy"),
    *[("eps", bad) for bad in (-1e-9, math.nan, math.inf)],
    *[("kappa", bad) for bad in (-1e-9, 1.001, math.nan)],
    *[("bound", bad) for bad in ("crown", "magic")],
    *[("lr", bad) for bad in (0.0, -1e-3, math.nan, math.inf)],
    *[("lr_final", bad) for bad in (0.0, 1.001, math.nan)],
    *[("ramp_start", bad) for bad in (-0.1, 0.51, math.nan)],
    *[("ramp_end", bad) for bad in (1.001, math.inf)],
    *[("clip", bad) for bad in (0.0, -1.0, math.nan)],
    *[(name, bad) for name in ("beta", "weight_decay") for bad in (-1e-9, math.nan, math.inf)],
    *[("objective", bad) for bad in ("magic", "", "civet delta", "civet gamma=1", "civet delta=2", "noise steps=3")],
    *[("objective", bad) for bad in ("adversarial steps=1.5", "civet delta=0.1 delta=0.2")],
    *[("objective", bad) for bad in ("sabr share=0", "mtl-ibp share=1.1", "exp-ibp steps=0")],
    *[("objective", f"interval-regularised {bad}") for bad in ("weight=-1", "weight=inf", "tolerance=0")],
    ("threat", "l3"),
    ("init", "kaiming"),
    *[("kappa_start", bad) for bad in (-0.1, 1.1, math.nan)],
    *[("averaging", bad) for bad in (-0.1, 1.0, math.nan)],
    *[("input_clip", bad) for bad in (-0.1, 0.5, math.nan)],
]


@pytest.mark.parametrize(("name", "bad"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_an_error_that_names_its_field(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"TrainConfig\.{name} is out of range: "):
        TrainConfig(**{name: bad})


def test_the_words_of_objectives_are_listed_by_the_error_and_by_the_help() -> None:
    with pytest.raises(ValueError, match=f"; use one of {', '.join(map(repr, sorted(OBJECTIVES)))}$"):
        TrainConfig(objective="magic")
    source = inspect.getsource(TrainConfig)
    (said,) = re.findall(r"((?: +#.*\n)+) +objective: str = ", source)
    assert all(word in said for word in OBJECTIVES)


def test_each_field_with_a_range_has_been_tried() -> None:
    assert set(FIELDS) - {name for name, _ in OUT_OF_RANGE} == {"dataset", "seed"}


def test_an_objective_with_options_has_one_name() -> None:
    named = TrainConfig(objective=" smooth-encoder  steps=7 gamma=1e1")
    assert named.objective == "smooth-encoder gamma=10.0 steps=7" and TrainConfig.from_dict(named.as_dict()) == named
    assert find_objective(named.objective) == SmoothEncoder(gamma=10.0, steps=7)
    assert TrainConfig(objective="civet delta=0.050") == TrainConfig(objective="civet")
    assert len({TrainConfig(objective=name).digest for name in ("civet", "civet delta=0.1", "noise")}) == 3


@pytest.mark.parametrize(
    "fields",
    [
        *({"eps": 0.0}, {"kappa": 0.0}, {"kappa": 1.0}, {"hidden": ()}, {"lr_final": 1.0}, {"ramp_start": 0.5}),
        *({"ramp_start": 0.0, "ramp_end": 0.0}, {"ramp_end": 1.0}, {"clip": math.inf}, {"steps": 1}, {"batch_size": 1}),
        *({"beta": 0.0}, {"weight_decay": 0.0}, {"objective": "noise"}, {"threat": "l1"}),
    ],
)
def test_the_ends_of_each_range_are_allowed(fields: dict[str, Any]) -> None:
    config = TrainConfig(**fields)
    assert TrainConfig.from_dict(config.as_dict()) == config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().eps = 0.2  # type: ignore[misc]


def test_the_seed_alone_decides_the_weights() -> None:
    config = TrainConfig(data_shape=(6,), hidden=(4,), latent_dim=2)
    torch.manual_seed(1)
    first = config.build().state_dict()
    state = torch.get_rng_state()
    second = config.build().state_dict()
    assert torch.equal(torch.get_rng_state(), state), "building a model must not disturb the caller's randomness"
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = dataclasses.replace(config, seed=1).build().state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_build_follows_the_fields() -> None:
    vae = TrainConfig(data_shape=(2, 3), hidden=(5, 4), latent_dim=2, likelihood="gaussian", scale=0.3).build()
    assert isinstance(vae.likelihood, Gaussian) and vae.likelihood.log_scale.exp().item() == pytest.approx(0.3)
    assert vae.latent_dim == 2 and vae.decoder(vae.encode(torch.zeros(1, 2, 3))[0]).shape == (1, 2, 3)
    assert [tuple(p.shape) for n, p in vae.encoder.named_parameters() if "weight" in n] == [(5, 6), (4, 5), (4, 4)]
    for word, kind in {
        "bernoulli": Bernoulli,
        "continuous-bernoulli": ContinuousBernoulli,
        "poisson": Poisson,
        "discretized-logistic": DiscretizedLogistic,
    }.items():
        assert type(TrainConfig(data_shape=(6,), hidden=(4,), likelihood=word).build().likelihood) is kind
    logistic = TrainConfig(data_shape=(6,), hidden=(4,), likelihood="discretized-logistic", scale=0.3).build()
    assert logistic.likelihood.scale.item() == pytest.approx(0.3)


def test_a_mismatch_shows_the_differing_fields_and_only_those() -> None:
    stored, wanted = TrainConfig(eps=0.3, seed=4).as_dict(), TrainConfig().as_dict()
    message = str(ConfigMismatchError("some/file", stored, wanted))
    assert "some/file" in message
    assert "eps: found 0.3, wanted 0.1" in message and "seed: found 4, wanted 0" in message
    assert "kappa" not in message
