"""Tables: nothing printed promises more than was computed."""

import math

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paperlib import TrainConfig
from paperlib.paper import tables
from paperlib.paper.tables import architecture, headline, holds_from, markdown, objectives, rounded, rounded_up, span
from paperlib.runtime.numbers import rounded_down, with_error


@given(st.floats(-1e7, 1e7), st.integers(0, 4))
@example(-255.70000000000002, 1)
@example(math.nextafter(0.7, 0), 1)
@example(-1.5e40, 1)
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


@given(st.floats(-1e7, 1e7), st.integers(0, 4))
@example(-279.44000000000005, 1)
def test_an_upper_bound_is_never_rounded_down(value: float, digits: int) -> None:
    printed = rounded_up(value, digits)
    assert float(printed) >= value
    assert float(printed) - value <= 10.0**-digits * (1 + 1e-6)


@pytest.mark.parametrize(("value", "printed"), [(-279.47, "-279.4"), (-279.4, "-279.4"), (2.31, "2.4"), (0.04, "0.1")])
def test_rounding_up_goes_towards_plus_infinity(value: float, printed: str) -> None:
    assert rounded_up(value) == printed


def test_a_bound_that_overflowed_is_printed_as_it_is() -> None:
    assert (rounded_down(-math.inf), rounded_up(math.inf, 3)) == ("-inf", "inf")


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


CEILING = pd.DataFrame({"eps": [0.0, 0.1, 0.2], "ceiling": [-45.51, -279.47, -406.37], "attacked_ceiling": [0.0] * 3})
LINEAR = pd.DataFrame(
    [
        {"model": model, "eps": eps, "images": 2, "clean": clean, "ibp": ibp, "crown-ibp": crown_ibp, "crown": crown}
        | {"clean_se": 0.52, "ibp_se": 3.04, "crown-ibp_se": 2.06, "crown_se": 0.96}
        for model, eps, clean, ibp, crown_ibp, crown in [
            ("VAE", 0.1, -101.06, -680000.01, -110000.01, -90000.91),
            ("VAE", 0.01, -101.06, -58000.0, -300.04, -284.06),
            ("proVAE kappa=0", 0.1, -212.06, -352.949, -345.02, -344.011),
        ]
    ]
)


def test_the_headline_is_the_rows_at_one_radius_with_certificates_rounded_down() -> None:
    table = headline(CERTIFIED, ATTACKED, CEILING, 0.1, LINEAR)
    assert table.to_dict("records") == [
        {
            "model": "VAE",
            "clean": "-100.0 ± 0.5",
            "log-likelihood": "-80.0",
            "KL": "20.0",
            "ceiling": "-279.4",
            "attacked": "-580.0 ± 10.0",
            "certified: intervals": "-680000.1 ± 0.3",
            "linear bound": "-90001.0 ± 1.0",
        },
        {
            "model": "proVAE kappa=0",
            "clean": "-100.0 ± 0.5",
            "log-likelihood": "-80.0",
            "KL": "20.0",
            "ceiling": "-279.4",
            "attacked": "-342.0 ± 1.0",
            "certified: intervals": "-353.0 ± 0.3",
            "linear bound": "-344.1 ± 1.0",
        },
    ]


def test_another_radius_has_other_rows() -> None:
    attacked = pd.concat([ATTACKED, ATTACKED.assign(attacked=-1e5)])
    linear = pd.concat([LINEAR, LINEAR.iloc[:1].assign(eps=0.2, crown=-8e6)])
    table = headline(CERTIFIED, attacked.iloc[2:6], CEILING, 0.2, linear)
    assert table[["ceiling", "certified: intervals", "linear bound"]].to_numpy().tolist() == [
        ["-406.3", "-9000000.0 ± 0.3", "-8000000.0 ± 1.0"]
    ]


def test_without_linear_rows_the_headline_has_no_column_for_them() -> None:
    table, whole = headline(CERTIFIED, ATTACKED, CEILING, 0.1), headline(CERTIFIED, ATTACKED, CEILING, 0.1, LINEAR)
    pd.testing.assert_frame_equal(table, whole.drop(columns="linear bound"))


def test_every_method_has_a_column_and_the_attack_is_that_of_its_radius() -> None:
    attacked = pd.concat([ATTACKED, pd.DataFrame([{"model": "VAE", "eps": 0.01, "attacked": -174.04}] * 2)])
    assert tables.by_method(LINEAR, attacked).to_dict("records") == [
        {
            "model": "VAE",
            "radius": "0.1",
            "intervals": "-680000.1 ± 3.0",
            "CROWN-IBP": "-110000.1 ± 2.1",
            "CROWN": "-90001.0 ± 1.0",
            "attacked": "-580.0 ± 10.0",
            "clean": "-101.1 ± 0.5",
        },
        {
            "model": "VAE",
            "radius": "0.01",
            "intervals": "-58000.0 ± 3.0",
            "CROWN-IBP": "-300.1 ± 2.1",
            "CROWN": "-284.1 ± 1.0",
            "attacked": "-174.0 ± 0.0",
            "clean": "-101.1 ± 0.5",
        },
        {
            "model": "proVAE kappa=0",
            "radius": "0.1",
            "intervals": "-353.0 ± 3.0",
            "CROWN-IBP": "-345.1 ± 2.1",
            "CROWN": "-344.1 ± 1.0",
            "attacked": "-342.0 ± 1.0",
            "clean": "-212.1 ± 0.5",
        },
    ]


def test_the_table_of_rounding_shows_shares_and_the_largest_excess() -> None:
    rows = pd.DataFrame(
        [
            {"model": "VAE", "place": "encoder 1", "eps": 0.1, "checked": 8192}
            | {"plain_broken": 0.4567, "plain_excess": 1.234e-5, "sound_broken": 0.0, "sound_excess": 0.0},
            {"model": "VAE", "place": "ELBO", "eps": 1e-6, "checked": 1040}
            | {"plain_broken": 0.0, "plain_excess": 0.0, "sound_broken": 0.25, "sound_excess": 1.0},
        ]
    )
    assert tables.rounding(rows).to_numpy().tolist() == [
        ["VAE", "encoder 1", "0.1", "8,192", "45.7%", "1.2e-05", "0%"],
        ["VAE", "ELBO", "1e-06", "1,040", "0.0%", "0.0e+00", "25%"],
    ]


@pytest.mark.parametrize("share", [1e-3, 1e-6])
def test_a_broken_sound_bound_never_shows_as_none(share: float) -> None:
    row = {"model": "VAE", "place": "ELBO", "eps": 0.1, "checked": 10**7, "plain_broken": 0.0, "plain_excess": 0.0}
    (shown,) = tables.rounding(pd.DataFrame([{**row, "sound_broken": share}]))["broken, sound"]
    assert shown != "0%"


def test_the_table_of_expectations_is_of_means_over_the_images_for_each_number_of_draws() -> None:
    rows = pd.DataFrame(
        [
            {"model": model, "samples": samples, "confidence": 0.999, "index": i, "bound": mean - width, "mean": mean}
            | {"width": width}
            for model, samples, mean, width in [
                ("proVAE kappa=0", 1000, -350.0, 12.011),
                ("proVAE kappa=0", 4000, -350.0, 4.001),
                ("proVAE kappa=0.5", 1000, -360.0, 12.0),
            ]
            for i, mean in enumerate((mean, mean - 0.1))
        ]
    )
    assert tables.expected(rows).to_dict("records") == [
        {
            "model": model,
            "draws": draws,
            "confidence": "0.999",
            "mean of the draws": mean,
            "width": width,
            "certified expectation": bound,
        }
        for model, draws, mean, width, bound in [
            ("proVAE kappa=0", "1,000", "-350.1", "12.01", "-362.1"),
            ("proVAE kappa=0", "4,000", "-350.1", "4.00", "-354.1"),
            ("proVAE kappa=0.5", "1,000", "-360.1", "12.00", "-372.1"),
        ]
    ]


def test_the_tradeoff_has_means_over_the_seeds_with_the_lowest_and_the_highest() -> None:
    rows = pd.DataFrame(
        [
            {"bound": bound, "kappa": kappa, "train_eps": eps, "steps": 2_300, "seed": seed}
            | {"clean": -160.0 + 2 * (seed - 1)}
            | {"ibp": -370.01 + seed, "crown_ibp": -355.01 + seed, "kl": 18.0 + seed}
            for bound, kappa, eps in [("ibp", 0.0, 0.1), ("ibp", 0.75, 0.12), ("crown-ibp", 0.0, 0.1)]
            for seed in range(3)
        ]
    )
    common = {
        "clean": "-160.0 [-162.0, -158.0]",
        "certified: intervals": "-369.1 [-370.1, -368.1]",
        "CROWN-IBP": "-354.1 [-355.1, -353.1]",
        "KL": "19.0 [18.0, 20.0]",
    }
    assert tables.tradeoff(rows).to_dict("records") == [
        {"trained on": "ibp", "training radius": "0.1", "kappa": "0", "steps": "2,300"} | common,
        {"trained on": "ibp", "training radius": "0.12", "kappa": "0.75", "steps": "2,300"} | common,
        {"trained on": "crown-ibp", "training radius": "0.1", "kappa": "0", "steps": "2,300"} | common,
    ]


def test_shown_rows_have_certificates_rounded_down_ceilings_up_and_all_else_to_nearest() -> None:
    rows = pd.DataFrame([{"clean": -1.259, "exact": -2.251, "crown": -2.751, "certified": -3.001}])
    assert rounded(rows, 2).to_dict("records") == [{"clean": -1.26, "exact": -2.26, "crown": -2.76, "certified": -3.01}]
    assert rounded(rows[["clean", "certified"]], 2).to_dict("records") == [{"clean": -1.26, "certified": -3.01}]
    ceilings = pd.DataFrame({"ceiling": [-279.47], "attacked_ceiling": [-279.07]})
    assert rounded(ceilings).to_numpy().tolist() == [[-279.4, -279.0]]


def test_markdown_keeps_each_string_and_aligns_numbers_right() -> None:
    lines = markdown(pd.DataFrame({"model": ["VAE"], "certified": ["-680000.1 ± 0.3"], "KL": ["20.0"]})).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "certified", "KL"] and cells[2] == ["VAE", "-680000.1 ± 0.3", "20.0"]
    left, *right = cells[1]
    assert left.startswith(":") and not left.endswith(":") and all(c.endswith(":") for c in right)


def test_a_span_is_the_smallest_and_the_largest_or_one_number() -> None:
    assert span([3.04, 1.26, 2.0]) == "1.3 to 3.0"
    assert span(pd.Series([3.04, 3.01])) == "3.0"
    assert span([-353.04, -353.08, -350.0], rounded_down) == "-353.1 to -350.0"


def test_an_architecture_is_written_from_the_data_through_the_latent_and_back() -> None:
    assert architecture(TrainConfig()) == "784-512-20-512-784"
    assert architecture(TrainConfig(data_shape=(1, 2, 3), hidden=(5, 4), latent_dim=2)) == "6-5-4-2-4-5-6"


def test_objectives_are_those_of_the_configurations() -> None:
    configs = {"a": TrainConfig(kappa=1, eps=0), "b": TrainConfig(kappa=0, steps=4_600), "c": TrainConfig(kappa=0.75)}
    assert objectives(configs).to_numpy().tolist() == [
        ["a", r"$\mathrm{ELBO}$", "none", "6,900"],
        ["b", "$C$ once the ramp is over", "0.1", "4,600"],
        ["c", r"$0.75\,\mathrm{ELBO} + 0.25\,C$ once the ramp is over", "0.1", "6,900"],
    ]


@pytest.mark.parametrize(
    ("holds", "first"),
    [([True, True, True], 0.0), ([True, False, True], 0.2), ([False, True, True], 0.1), ([True, True, False], None)],
)
def test_a_condition_holds_from_the_first_radius_after_the_last_at_which_it_fails(
    holds: list[bool], first: float | None
) -> None:
    assert holds_from(pd.Series(holds, index=[0.0, 0.1, 0.2])) == first


def test_the_table_of_ceilings_has_a_row_for_each_radius_and_is_rounded_up() -> None:
    rows = CEILING.assign(images=10_000, attacked_images=1_000, attacked_ceiling=CEILING["ceiling"] - 1)
    table = tables.ceiling(rows)
    assert list(table.columns) == ["radius", "all 10,000 test images", "the first 1,000"]
    assert table.to_numpy().tolist() == [
        ["0", "-45.5", "-46.5"],
        ["0.1", "-279.4", "-280.4"],
        ["0.2", "-406.3", "-407.3"],
    ]
