"""The figure of the benchmark by the data that it plots."""

import pytest
from handmade import CAPTION, cost_rows, cost_targets, xy

from paperlib.paper.plots import cost as cost_plots


def test_costs_are_bars_in_plain_steps_with_their_products_inside_and_dots_in_milliseconds() -> None:
    steps, images = cost_plots.cost(cost_rows(), cost_targets(), CAPTION).axes
    names = list(cost_plots.STEP_LABELS)
    assert [text.get_text() for text in steps.get_yticklabels()] == list(cost_plots.STEP_LABELS.values())
    assert [text.get_text() for text in images.get_yticklabels()] == list(cost_plots.IMAGE_LABELS.values())
    height = dict(zip(names, steps.get_yticks(), strict=True))
    drawn = {
        (bar.get_label(), round(patch.get_y() + patch.get_height() / 2, 6)): patch.get_width()
        for bar in steps.containers
        for patch in bar.patches
    }
    relative = {name: 1.0 + k for k, name in enumerate(names[:5])} | {"conv VAE": 1.0, "conv proVAE kappa=0": 7 / 6}
    expected = {("all of the step", height[name]): value for name, value in relative.items()}
    expected |= {("its bare matrix products", height[name]): relative[name] / 2 for name in names[:5]}
    assert drawn == pytest.approx(expected)
    marks = [xy(line) for line in steps.get_lines() if line.get_label() == "target"]
    robust, conv = height["proVAE kappa=0"], height["conv proVAE kappa=0"]
    assert marks == [[[pytest.approx(x), y]] for x, y in ((2.3, robust), (1.6, robust), (3.0, conv))]

    assert images.get_xscale() == "log"
    dots = [xy(line) for line in images.get_lines() if line.get_marker() in ("o", "X", "^")]
    assert dots == [[[pytest.approx(0.1 * 3**k), k]] for k in range(5)]
    marks = [xy(line) for line in images.get_lines() if line.get_label() == "target"]
    assert marks == [[[pytest.approx(2.5 * 0.9), 3]], [[pytest.approx(10.0), 4]]]
    assert [text.get_text() for text in images.texts] == ["0.10", "0.30", "0.90", "2.7", "8.1"]
    for axis in (steps, images):
        low, high = axis.get_xlim()
        assert all(low <= x <= high for line in axis.get_lines() for x in line.get_xdata())
