"""The curriculum: pure functions of the step that start at the plain ELBO and end at the configuration's own values."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperlib import TrainConfig
from paperlib.training.schedule import eps_at, kappa_at, lr_at, ramp

CURVES = (ramp, eps_at, kappa_at, lr_at)


# Fields, not configurations: the suite's type checks draw random numbers, which a strategy may not.
FIELDS = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 60),
        "ramp": st.tuples(*[st.floats(0, 1)] * 2),
        "eps": st.floats(0, 1),
        "kappa": st.floats(0, 1),
        "lr": st.floats(1e-6, 1),
        "lr_final": st.floats(1e-4, 1),
    }
)


def configured(fields: dict[str, Any]) -> TrainConfig:
    start, end = sorted(fields["ramp"])
    others = {name: value for name, value in fields.items() if name != "ramp"}
    return TrainConfig(**others, ramp_start=start, ramp_end=end)


@given(FIELDS)
def test_each_curve_is_monotone(fields: dict[str, Any]) -> None:
    config = configured(fields)
    steps = range(config.steps + 1)
    for curve, direction in zip(CURVES, (1, 1, -1, -1), strict=True):
        values = [direction * curve(step, config) for step in steps]
        assert values == sorted(values)


@given(FIELDS)
def test_each_curve_keeps_to_its_range(fields: dict[str, Any]) -> None:
    config = configured(fields)
    for step in range(config.steps + 1):
        assert 0 <= ramp(step, config) <= 1
        assert 0 <= eps_at(step, config) <= config.eps
        assert config.kappa - 1e-15 <= kappa_at(step, config) <= 1
        assert config.lr * config.lr_final * (1 - 1e-12) <= lr_at(step, config) <= config.lr


@given(FIELDS)
def test_the_end_has_the_values_of_the_configuration(fields: dict[str, Any]) -> None:
    config = configured(fields)
    assert eps_at(config.steps, config) == config.eps
    assert kappa_at(config.steps, config) == pytest.approx(config.kappa, abs=1e-15)


@given(FIELDS, st.integers(0, 60))
def test_a_value_depends_on_the_step_alone(fields: dict[str, Any], step: int) -> None:
    config = configured(fields)
    before = [curve(step, config) for curve in CURVES]
    for other in range(config.steps):
        for curve in CURVES:
            curve(other, config)
    assert [curve(step, replace(config)) for curve in CURVES] == before


@given(FIELDS)
def test_a_plain_vae_has_kappa_exactly_one_all_along(fields: dict[str, Any]) -> None:
    config = configured({**fields, "kappa": 1.0})
    assert all(kappa_at(step, config) == 1.0 for step in range(config.steps + 1))


@pytest.mark.parametrize(
    ("step", "fraction"), [(0, 0.0), (10, 0.0), (20, 0.25), (30, 0.5), (49, 0.975), (50, 1.0), (99, 1.0)]
)
def test_the_ramp_is_linear_between_its_ends(step: int, fraction: float) -> None:
    config = TrainConfig(steps=100, ramp_start=0.1, ramp_end=0.5, eps=0.2, kappa=0.25)
    assert ramp(step, config) == pytest.approx(fraction, abs=1e-12)
    assert eps_at(step, config) == pytest.approx(0.2 * fraction, abs=1e-12)
    assert kappa_at(step, config) == pytest.approx(1 - 0.75 * fraction, abs=1e-12)


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (50, 1.0), (75, 0.51), (100, 0.02)])
def test_the_learning_rate_falls_only_after_the_ramp(step: int, factor: float) -> None:
    config = TrainConfig(steps=100, ramp_start=0.1, ramp_end=0.5, lr=1e-3, lr_final=0.02)
    assert lr_at(step, config) == pytest.approx(1e-3 * factor, rel=1e-9)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.5, 1.0])
def test_a_ramp_of_no_length_is_a_jump(at: float) -> None:
    config = TrainConfig(steps=10, ramp_start=at, ramp_end=at)
    assert [ramp(step, config) for step in range(11)] == [float(step >= 10 * at) for step in range(11)]


def test_kappa_rises_where_it_starts_below_its_end() -> None:
    config = TrainConfig(steps=10, ramp_start=0.2, ramp_end=0.7, kappa=0.5, kappa_start=0.25)
    assert [kappa_at(step, config) for step in (0, 2, 7, 10)] == [0.25, 0.25, 0.5, 0.5]
    assert kappa_at(4, config) == pytest.approx(0.35)  # two fifths of the way
