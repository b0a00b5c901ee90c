"""Figures of notebook 2 by the data that they plot."""

import numpy as np
from handmade import CAPTION, DIGITS, histories, lines, xy

from paperlib.paper.plots import mnist_training as training_plots


def test_learning_curves_plot_the_histories() -> None:
    figure = training_plots.learning_curves(histories(), CAPTION)
    for name, history in histories().items():
        for axis, column in zip(figure.axes, ("clean", "kl", "eps"), strict=True):
            (line,) = lines(axis, name, linestyle="-")
            assert xy(line) == history[["step", column]].to_numpy().tolist()
        dashed = lines(figure.axes[0], name, linestyle="--")
        assert [xy(line) for line in dashed] == [history[["step", "certified"]].to_numpy().tolist()] * (name != "VAE")
    low, high = figure.axes[0].get_ylim()
    assert low <= -392 and high >= -150, "everything above -420 nats is visible"
    assert figure.axes[1].get_ylim()[0] == 0


def test_digits_are_shown_row_by_row_on_one_grey_scale() -> None:
    rows = [("original", DIGITS), ("sample", DIGITS.flip(0) / 2)]
    figure = training_plots.digit_grid(rows, CAPTION)
    (axis,) = figure.axes
    (image,) = axis.get_images()
    assert image.get_clim() == (0, 1) and image.get_cmap().name == "gray_r"
    sheet = np.asarray(image.get_array())
    for line, (_, digits) in enumerate(rows):
        for column, digit in enumerate(digits):
            tile = sheet[30 * line + 1 : 30 * line + 29, 30 * column + 1 : 30 * column + 29]
            np.testing.assert_array_equal(tile, digit.view(28, 28))
    assert [text.get_text() for text in axis.get_yticklabels()] == ["original", "sample"]
    assert axis.get_yticks().tolist() == [15, 45]
