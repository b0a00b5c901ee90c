"""Figures of notebook 9: accuracies against the radius, and what each class makes of a digit."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.paper.plots.mnist_training import digit_grid
from paperlib.paper.plots.style import COLORS, COLUMN, HOLLOW, MARKERS, finish, legend_above, panels
from paperlib.paper.words import Axis


def accuracies(rows: pd.DataFrame, caption: str) -> Figure:
    """Clean, attacked and certified accuracy against the radius; certified by joint and by separate bounds."""
    figure, (axis,) = panels(1, 1, height=2.6, width=COLUMN)
    certified = {"color": COLORS["certified"], "marker": MARKERS["certified"]}
    looks = {
        "clean": {"color": COLORS["clean"], "marker": MARKERS["clean"]},
        "attacked": {"color": COLORS["attacked"], "marker": MARKERS["attacked"]},
        "certified": {**certified, **HOLLOW, "label": "certified, joint"},
        "separate": {**certified, **HOLLOW, "marker": "v", "linestyle": "--", "label": "certified, separate"},
    }
    for name, look in looks.items():
        unchanged = [rows["clean"].iloc[0]]  # at radius 0 all four are one
        axis.plot([0.0, *rows["eps"]], [100 * share for share in (*unchanged, *rows[name])], **{"label": name, **look})
    axis.set(xticks=[0.0, *rows["eps"]], xlabel=Axis.RADIUS, ylabel=Axis.ACCURACY, ylim=(0, 102))
    legend_above(figure, axis, columns=2)
    return finish(figure, caption)


def syntheses(stored: Mapping[str, Tensor], caption: str) -> Figure:
    """Digits, and below each what every class's VAE makes of it, with the classes' names on the left."""
    rows = [("digit", stored["digits"]), *((f"as {k}", images) for k, images in enumerate(stored["rebuilt"]))]
    return digit_grid(rows, caption)
