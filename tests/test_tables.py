"""Tables: nothing printed promises more than was computed."""

import math

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paperlib.tables import headline, markdown, rounded_down, with_error


@given(st.floats(-1e7, 1e7), st.integers(0, 4))
@example(-255.70000000000002, 1)
@example(math.nextafter(0.7, 0), 1)
def test_a_certificate_is_never_rounded_up(value: float, digits: int) -> None:
    printed = rounded_down(value, digits)
    assert float(printed) <= value
    assert value - float(printed) <= 10.0**-digits * (1 + 1e-6)


@given(st.integers(-(10**7), 10**7), st.integers(0, 3))
def test_what_has_so_many_digits_already_is_printed_as_it_is(number: int, digits: int) -> None:
    text = f"{number / 10**digits:.{digits}f}"
    assert float(rounded_down(float(text), digits)) == float(text)


@pytest.mark.parametrize(
    ("value", "digits", "printed"),
    [
        (-353.04, 1, "-353.1"),
        (-353.0, 1, "-353.0"),
        (2.39, 1, "2.3"),
        (-0.001, 2, "-0.01"),
        (-6.8e5 - 0.5, 0, "-680001"),
    ],
)
def test_rounding_goes_towards_minus_infinity(value: float, digits: int, printed: str) -> None:
    assert rounded_down(value, digits) == printed


def test_a_value_with_its_error_is_rounded_to_nearest() -> None:
    assert with_error(-100.06, 0.149) == "-100.1 ± 0.1"
    assert with_error(1.2345, 0.678, digits=2) == "1.23 ± 0.68"


CERTIFIED = pd.DataFrame(
    [
        {"model": model, "eps": eps, "clean": -100.0, "clean_se": 0.52, "log_likelihood": -80.0, "kl": 20.0}
        | {"certified": certified, "certified_se": 0.31}
        for model, eps, certified in [("VAE", 0.1, -680000.01), ("VAE", 0.2, -9e6), ("proVAE kappa=0", 0.1, -352.949)]
    ]
)
ATTACKED = pd.DataFrame(
    [
        {"model": model, "eps": eps, "attacked": attacked}
        for model, eps, attacked in [
            ("VAE", 0.1, -570.0),
            ("VAE", 0.1, -590.0),
            ("VAE", 0.2, -1e4),
            ("proVAE kappa=0", 0.1, -341.0),
            ("proVAE kappa=0", 0.1, -343.0),
        ]
    ]
)


def test_the_headline_is_the_rows_at_one_radius_with_certificates_rounded_down() -> None:
    table = headline(CERTIFIED, ATTACKED, 0.1)
    assert table.to_dict("records") == [
        {
            "model": "VAE",
            "clean": "-100.0 ± 0.5",
            "log-likelihood": "-80.0",
            "KL": "20.0",
            "attacked": "-580.0 ± 10.0",
            "certified": "-680000.1 ± 0.3",
        },
        {
            "model": "proVAE kappa=0",
            "clean": "-100.0 ± 0.5",
            "log-likelihood": "-80.0",
            "KL": "20.0",
            "attacked": "-342.0 ± 1.0",
            "certified": "-353.0 ± 0.3",
        },
    ]


def test_another_radius_has_other_rows() -> None:
    attacked = pd.concat([ATTACKED, ATTACKED.assign(attacked=-1e5)])
    assert headline(CERTIFIED, attacked.iloc[2:6], 0.2)["certified"].tolist() == ["-9000000.0 ± 0.3"]


def test_markdown_keeps_each_string_and_aligns_numbers_right() -> None:
    lines = markdown(pd.DataFrame({"model": ["VAE"], "certified": ["-680000.1 ± 0.3"], "KL": ["20.0"]})).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "certified", "KL"] and cells[2] == ["VAE", "-680000.1 ± 0.3", "20.0"]
    left, *right = cells[1]
    assert left.startswith(":") and not left.endswith(":") and all(c.endswith(":") for c in right)
