"""Figures of notebook 1 by the data that they plot."""

import numpy as np
import torch
from handmade import CAPTION, fields, growth, lines, truth, xy

from paperlib.paper.plots import toy_2d as toy_plots
from paperlib.paper.words import Axis


def test_landscapes_show_the_fields_with_the_data_on_one_colour_scale() -> None:
    points = {toy: torch.rand(6, 2, generator=torch.Generator().manual_seed(i)) for i, toy in enumerate(fields())}
    figure = toy_plots.landscapes(fields(), points, CAPTION)
    grid = np.array(figure.axes[:6]).reshape(2, 3)
    scales = set()
    for line, (toy, parts) in zip(grid, fields().items(), strict=True):
        (dots,) = line[0].get_lines()
        np.testing.assert_allclose(xy(dots), points[toy])
        assert line[0].get_ylabel() == f"{toy}\n{Axis.SECOND}"
        for axis, field in zip(line[1:], parts.values(), strict=True):
            assert not axis.get_lines(), "nothing covers a maximum"
            (image,) = axis.get_images()
            np.testing.assert_array_equal(np.asarray(image.get_array()), field)
            assert image.origin == "lower" and list(image.get_extent()) == [-4, 4, -4, 4]
            scales.add((image.norm.vmin, image.norm.vmax, type(image.norm)))
    assert len(scales) == 1
    assert [axis.get_title() for axis in grid[0]] == ["training\npoints", "clean", "certified"]
    assert figure.axes[-1].get_ylabel() == Axis.ELBO


def test_a_ball_shows_the_grid_the_worst_and_the_attacked_point() -> None:
    truths = {"VAE": truth(0.0), "proVAE": truth(1.0)}
    figure = toy_plots.ball(truths, CAPTION)
    panels = [axis for axis in figure.axes if axis.get_title()]
    for axis, (name, one) in zip(panels, truths.items(), strict=True):
        (image,) = axis.get_images()
        np.testing.assert_array_equal(np.asarray(image.get_array()), one["values"].view(5, 5))
        left, right, bottom, top = image.get_extent()
        assert [left, bottom] == one["points"][0].tolist() and [right, top] == one["points"][-1].tolist()
        drawn = {line.get_label(): xy(line) for line in axis.get_lines()}
        assert drawn == {"exact worst": [one["worst"].tolist()], "PGD": [one["pgd"].tolist()]}
        assert axis.get_title().startswith(f"{name}: PGD −{-one['attacked'].item():.2f}")
        assert axis.get_title().endswith("certified −10.00"), "a certificate is rounded down"
    assert [axis.get_ylabel() for axis in figure.axes].count(Axis.ELBO) == 1
    values = torch.cat([one["values"] for one in truths.values()])
    assert {axis.get_images()[0].get_clim() for axis in panels} == {(values.min().item(), values.max().item())}


def test_box_growth_plots_boxes_solid_and_exact_widths_dashed() -> None:
    rows = growth()
    (axis,) = toy_plots.box_growth(rows, CAPTION).axes
    for name, part in rows.groupby("model"):
        for column, style in (("box", "-"), ("exact", "--")):
            (line,) = lines(axis, str(name), linestyle=style, label=f"{name}, {column}")
            assert list(line.get_ydata()) == part[column].tolist()
            assert list(line.get_xdata(orig=True)) == part["stage"].tolist()
    assert axis.get_yscale() == "log"
