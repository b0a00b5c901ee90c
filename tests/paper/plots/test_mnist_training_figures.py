"""Figures of notebook 2 by the data that they plot."""

import numpy as np
import pytest
import torch
from handmade import CAPTION, DIGITS, NAMES, histories, legend_texts, lines, xy
from matplotlib.colors import to_rgb

from paperlib.paper.plots import mnist_training as training_plots
from paperlib.paper.words import Axis


def test_learning_curves_plot_the_histories() -> None:
    figure = training_plots.learning_curves(histories(), CAPTION)
    for name, history in histories().items():
        for axis, column in zip(figure.axes, ("clean", "kl", "eps"), strict=True):
            (line,) = lines(axis, name, linestyle="-")
            assert xy(line) == history[["step", column]].to_numpy().tolist()
        dashed = lines(figure.axes[0], name, linestyle="--")
        assert [xy(line) for line in dashed] == [history[["step", "certified"]].to_numpy().tolist()] * (name != "VAE")
    low, high = figure.axes[0].get_ylim()
    assert low < -391 and high > -150
    assert figure.axes[1].get_ylim()[0] == 0
    assert figure.axes[0].get_yscale() == "linear" and figure.axes[0].get_ylabel() == Axis.ELBO


@pytest.mark.parametrize("lowest", [-3e3, -1e6])
def test_a_lost_certificate_stays_on_the_axis_which_says_where_it_is_logarithmic(lowest: float) -> None:
    lost = histories()
    lost[NAMES[1]].loc[1, "certified"] = lowest
    axis = training_plots.learning_curves(lost, CAPTION).axes[0]
    assert axis.get_ylim()[0] < lowest and axis.get_yscale() == "symlog"
    assert axis.get_ylabel() == f"{Axis.ELBO}\nlog scale below −604"


def test_own_models_are_drawn_by_their_own_names() -> None:
    own = dict(zip(("mine", "yours"), histories().values(), strict=False))
    figure = training_plots.learning_curves(own, CAPTION)
    assert legend_texts(figure) == ["mine", "yours"]
    drawn = [line for line in figure.axes[1].get_lines() if line.get_label() in own]
    assert len({(to_rgb(line.get_color()), line.get_marker()) for line in drawn}) == 2


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


@pytest.mark.parametrize(("shape", "flat"), [((8, 8), True), ((8, 8), False), ((1, 8, 8), False), ((6, 9), False)])
def test_own_images_are_drawn_in_their_own_shape(shape: tuple[int, ...], flat: bool) -> None:
    images = torch.rand(3, *shape)
    figure = training_plots.digit_grid([("mine", images.flatten(1) if flat else images)], CAPTION)
    high, wide = shape[-2:]
    drawn = np.asarray(figure.axes[0].get_images()[0].get_array())
    assert drawn.shape == (high + 2, 3 * (wide + 2))
    np.testing.assert_array_equal(drawn[1 : high + 1, wide + 3 : 2 * wide + 3], images[1].reshape(high, wide))


def test_images_of_three_channels_are_drawn_in_colour() -> None:
    images = torch.rand(2, 3, 5, 4)
    figure = training_plots.digit_grid([("mine", images), ("again", images)], CAPTION)
    drawn = np.asarray(figure.axes[0].get_images()[0].get_array())
    assert drawn.shape == (2 * 7, 2 * 6, 3)
    np.testing.assert_array_equal(drawn[1:6, 1:5], images[0].permute(1, 2, 0))
    assert (drawn[0] == 1).all(), "the frame is white"


@pytest.mark.parametrize("shape", [(3, 30), (3, 2, 8, 8), (3, 4, 8, 8), (3,), (0, 8, 8), (3, 0)])
def test_what_is_no_picture_is_refused_with_the_shapes_that_are(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[count, height, width\].*got \[" + ", ".join(map(str, shape))):
        training_plots.digit_grid([("mine", torch.zeros(shape))], CAPTION)


@pytest.mark.parametrize("rows", [[], [("8", torch.zeros(3, 8, 8)), ("9", torch.zeros(3, 9, 9))]])
def test_rows_of_one_shape_are_needed(rows: list[tuple[str, torch.Tensor]]) -> None:
    with pytest.raises(ValueError, match="rows of images of one shape are needed, got"):
        training_plots.digit_grid(rows, CAPTION)
