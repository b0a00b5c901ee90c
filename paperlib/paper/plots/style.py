"""What all figures share: sizes, colours and markers of models and of kinds of numbers, the caption line.

Every figure has its data set and sample size in the caption line below it, and one colour and marker for each model.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN, PAGE = 3.3, 6.8  # inches: one column and both columns of a paper

_BLIND = sns.color_palette("colorblind")
COLORS = {
    "VAE": _BLIND[1],
    "proVAE": _BLIND[0],
    "proVAE kappa=0": _BLIND[2],
    "proVAE kappa=0.5": _BLIND[0],
    "clean": _BLIND[7],
    "attacked": _BLIND[3],
    "certified": _BLIND[0],
}
MARKERS = {
    **{"VAE": "o", "proVAE": "D", "proVAE kappa=0": "s", "proVAE kappa=0.5": "D"},
    **{"clean": "o", "attacked": "X", "certified": "^"},
}
LABELS = {"proVAE kappa=0": "proVAE $\\kappa=0$", "proVAE kappa=0.5": "proVAE $\\kappa=0.5$"}
CEILING_LOOK = {"color": "0.45", "linestyle": "--", "linewidth": 1.0, "label": "ceiling of any model"}
HOLLOW = {"markerfacecolor": "none", "markersize": 6}  # lets a mark of another series be seen inside it
SIGNED = "PuOr"  # the map of signed values: orange is negative, violet positive
PALER = 1.5  # where the ends matter, how far the map goes on beyond them: orange then is the lighter one in grey


def style() -> None:
    """Set the style of all figures, whatever the user's own settings are: call once at the top of a notebook."""
    mpl.rcdefaults()
    sns.set_theme(
        context="paper",
        style="ticks",
        font="DejaVu Sans",  # comes with matplotlib: the same on every machine
        rc={
            "figure.dpi": 130,
            "savefig.dpi": 220,
            "figure.constrained_layout.use": True,
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "legend.fontsize": 7,
            "legend.frameon": False,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "lines.linewidth": 1.3,
            "lines.markersize": 3.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "pdf.fonttype": 42,
        },
    )


def panels(
    rows: int,
    columns: int,
    height: float,
    width: float = PAGE,
    sharex: bool = False,
    sharey: bool | Literal["row"] = False,
    height_ratios: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """A figure of the given size in inches and its axes as a flat array, row by row."""
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width, height),
        sharex=sharex,
        sharey=sharey,
        height_ratios=height_ratios,
        squeeze=False,
    )
    return figure, axes.ravel()


def model_looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How the line of each model looks: colour, marker and label.

    The models of the notebooks have a look of their own; any other name takes the next of those that are left.
    """
    left = zip(cycle(_BLIND[place] for place in (4, 9, 5, 6, 8)), cycle("^vPX*p"), strict=False)
    looks = {}
    for name in names:
        color, marker = (COLORS[name], MARKERS[name]) if name in MARKERS else next(left)
        looks[name] = {"color": color, "marker": marker, "label": LABELS.get(name, name)}
    return looks


def by_model(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """The rows of each model, in order, between its name and its look."""
    parts = {str(name): part for name, part in rows.groupby("model", sort=False)}
    return [(name, parts[name], look) for name, look in model_looks(parts).items()]


def with_minus(text: str) -> str:
    """The text of a number with a minus sign in place of the hyphen that Python prints."""
    return text.replace("-", "−")


def finish(figure: Figure, caption: str) -> Figure:
    """The figure with its caption below everything else, in lines of about the same length."""
    glued = re.sub(r" (?=[\d$])", "\N{NO-BREAK SPACE}", caption)  # no line begins with the number of "radius 0.1"
    fits = int(23 * figure.get_figwidth())  # characters that fit on a line at this font size
    lines = textwrap.wrap(glued, fits)
    for narrower in range(len(caption) // max(len(lines), 1) or 1, fits):
        if len(even := textwrap.wrap(glued, narrower)) == len(lines):
            lines = even
            break
    figure.supxlabel("\n".join(lines), fontsize=6, color="0.35")
    return figure


def legend_above(figure: Figure, axis: Axes, columns: int = 4) -> None:
    """One legend for all panels, from the entries of one of them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=columns, handlelength=2.8)
