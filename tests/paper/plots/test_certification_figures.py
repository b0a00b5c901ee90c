"""Figures of notebook 4 by the data that they plot."""

import numpy as np
import pandas as pd
import pytest
from handmade import (
    CAPTION,
    EPS,
    NAMES,
    SHOWN,
    attacked_rows,
    ceiling_rows,
    certified_rows,
    lines,
    loose_rows,
    points,
    xy,
)

from paperlib.paper.plots import certification as certification_plots


def with_a_lost_certificate(lowest: float) -> pd.DataFrame:
    """Rows in which the VAE's certificate at the largest radius is this one."""
    certified = certified_rows()
    certified.loc[0, "certified"] = lowest
    return certified


@pytest.mark.parametrize("lowest", [-2_000.0, -1e5, -3e7])
def test_the_sandwich_plots_certified_attacked_clean_and_the_ceiling_for_each_model(lowest: float) -> None:
    certified, attacked, ceiling = with_a_lost_certificate(lowest), attacked_rows(), ceiling_rows()
    figure = certification_plots.sandwich(certified, attacked, ceiling, CAPTION)
    rows = np.array(figure.axes).reshape(-1, 3)
    assert len(rows) == (2 if lowest < certification_plots.LOST else 1)
    assert [axis.get_title() for axis in rows[0]] == SHOWN
    for column, name in zip(rows.T, NAMES, strict=True):
        bound = certified[certified["model"] == name].sort_values("eps")
        reached = attacked[attacked["model"] == name].groupby("eps")["attacked"]
        for label in ("clean", "certified"):
            assert points(column[0], label) == bound[["eps", label]].to_numpy().tolist()
        np.testing.assert_allclose(points(column[0], "attacked"), list(zip(EPS, reached.mean(), strict=True)))
        for label in ("clean", "attacked", "certified"):
            assert lines(column[0], label)
        (line,) = [line for line in column[0].get_lines() if line.get_label() == "ceiling of any model"]
        assert xy(line) == ceiling[["eps", "ceiling"]].to_numpy().tolist()
        for axis in column:
            assert points(axis, "certified") == points(column[0], "certified")
            assert not axis.containers, "bars that are smaller than a mark"
            (band,) = axis.collections[-1:]
            assert band.get_label() == "the worst case lies here"
            (outline,) = band.get_paths()
            assert outline.contains_point((0.1, float(bound["certified"].iloc[2] + 1)))
            assert outline.contains_point((0.1, reached.mean()[0.1] - 1))
            assert not outline.contains_point((0.1, reached.mean()[0.1] + 1))


@pytest.mark.parametrize("lowest", [-1e3, -4_999.0, -5_000.0, -1e5, -3e7])
def test_no_point_falls_out_of_the_sandwichs_picture_and_all_models_have_one_axis(lowest: float) -> None:
    certified, attacked = with_a_lost_certificate(lowest), attacked_rows()
    figure = certification_plots.sandwich(certified, attacked, ceiling_rows(), CAPTION)
    rows = np.array(figure.axes).reshape(-1, 3)
    for row in rows:
        assert len({(axis.get_ylim(), axis.get_yscale()) for axis in row}) == 1
    (floor, top), *strip = [row[0].get_ylim() for row in rows]
    assert top >= certified["clean"].max() and rows[0, 0].get_yscale() == "linear"
    assert floor <= attacked.groupby(["model", "eps"])["attacked"].mean().min()
    assert floor <= min(certified["clean"].min(), ceiling_rows()["ceiling"].min())
    for value in certified["certified"]:
        assert any(low < value <= high for low, high in [(floor, top), *strip])
    assert all(high == floor for _, high in strip), "nothing lies between the axis and its strip"
    for axis in rows.ravel():
        low, high = axis.get_xlim()
        assert low <= 0 and high >= max(EPS)


def test_a_sandwich_of_lost_certificates_alone_still_shows_attacks_on_the_linear_axis() -> None:
    certified = certified_rows().assign(certified=-1e6)
    figure = certification_plots.sandwich(certified, attacked_rows(), ceiling_rows(), CAPTION)
    upper, lower = (axis.get_ylim() for axis in figure.axes[::3])
    lowest = attacked_rows().groupby(["model", "eps"])["attacked"].mean().min()
    assert upper == pytest.approx((1.05 * lowest, 0)) and lower == (-3e6, upper[0])


def test_a_break_of_the_axis_is_marked_on_both_sides_and_the_strip_has_numbers() -> None:
    figure = certification_plots.sandwich(with_a_lost_certificate(-3e7), attacked_rows(), ceiling_rows(), CAPTION)
    figure.canvas.draw()
    for upper, lower in np.array(figure.axes).reshape(2, 3).T:
        for axis, end in ((upper, 0), (lower, 1)):
            marks = [line for line in axis.get_lines() if line.get_transform() == axis.transAxes]
            assert [xy(line) for line in marks] == [[[0, end]]] and not marks[0].get_clip_on()
        assert not upper.spines["bottom"].get_visible() and not any(text.get_text() for text in upper.get_xticklabels())
        assert upper.get_position().y0 > lower.get_position().y1
        assert lower.get_yscale() == "symlog" and lower.get_ylim()[1] == upper.get_ylim()[0]
    labels = [text.get_text() for text in figure.axes[3].get_yticklabels()]
    assert labels == ["$-10^{4}$", "$-10^{6}$"]


def test_gaps_are_shown_as_shares_of_images() -> None:
    rows = attacked_rows()
    rows = rows[rows["eps"] == 0.1]
    figure = certification_plots.gap_distribution(rows, CAPTION)
    for name, part in rows.groupby("model"):
        (line,) = lines(figure.axes[0], str(name))
        drawn = np.asarray(line.get_xydata())
        drawn = drawn[np.isfinite(drawn[:, 0]) & (drawn[:, 0] > 0)]
        np.testing.assert_allclose(drawn[:, 0], np.sort(part["attacked"] - part["certified"]))
        np.testing.assert_allclose(drawn[:, 1], np.arange(1, 8) / 7)


def test_looseness_plots_the_ratio_of_widths() -> None:
    rows = loose_rows()
    (axis,) = certification_plots.looseness(rows, CAPTION).axes
    beside = []
    for name, shown in zip(NAMES, SHOWN, strict=True):
        part = rows[rows["model"] == name]
        (line,) = lines(axis, name, label=shown)
        np.testing.assert_allclose(line.get_ydata(), part["box"] / part["reached"])
        beside.append(np.asarray(line.get_xdata()) - np.arange(len(part)))
    assert len(set(np.round(beside, 6).ravel())) == len(NAMES), "side by side, or equal values hide each other"
    assert np.abs(beside).max() < 0.5
    assert [text.get_text() for text in axis.get_xticklabels()] == loose_rows()["stage"].unique().tolist()
    assert axis.get_yscale() == "log"
    assert {y for _, y in points(axis, "an exact box")} == {1}
