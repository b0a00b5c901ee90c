"""The gaps of notebook 5 by the data that they plot."""

import numpy as np
from handmade import CAPTION, EPS, METHODS, NAMES, SHOWN, attacked_rows, method_rows, xy
from matplotlib.colors import to_rgb

from paperlib.paper.plots import linear_bounds as method_plots


def test_gaps_of_each_method_are_means_at_each_radius() -> None:
    rows, attacked = method_rows(), attacked_rows()
    figure = method_plots.gaps(rows, attacked, CAPTION)
    assert sorted(axis.get_title() for axis in figure.axes) == sorted(SHOWN)
    both = rows.merge(attacked, on=["model", "eps", "index"])
    assert len(both) == len(rows)
    for axis in figure.axes:
        assert axis.get_yscale() == "log"
        name = NAMES[SHOWN.index(axis.get_title())]
        part = both[both["model"] == name].groupby("eps")
        drawn = {line.get_label(): xy(line) for line in axis.get_lines()}
        assert list(drawn) == list(METHODS.values())
        for method, label in METHODS.items():
            expected = part["attacked"].mean() - part[method].mean()
            np.testing.assert_allclose(drawn[label], list(zip(EPS[1:], expected, strict=True)))
        assert len({(to_rgb(line.get_color()), line.get_marker()) for line in axis.get_lines()}) == 3


def test_gaps_pair_each_certificate_with_the_attack_on_its_own_image() -> None:
    rows, attacked = method_rows(), attacked_rows()
    missing = attacked[~((attacked["model"] == "VAE") & (attacked["index"] == 6))]
    (axis, *_) = [a for a in method_plots.gaps(rows, missing, CAPTION).axes if a.get_title() == "VAE"]
    for line, gap in zip(axis.get_lines(), (300.0, 30.0, 3.0), strict=True):
        np.testing.assert_allclose(line.get_ydata(), gap * 1.25)  # images 0 to 5
