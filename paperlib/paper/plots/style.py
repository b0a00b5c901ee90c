"""What all figures share: sizes, colours and markers of models and of kinds of numbers, labels, the caption line.

Every figure has its data set and sample size in the caption line below it, and one colour and marker for each model.
"""

import textwrap
from collections.abc import Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
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
MARKERS = {"VAE": "o", "proVAE kappa=0": "s", "proVAE kappa=0.5": "D"}
LABELS = {"proVAE kappa=0": "proVAE $\\kappa=0$", "proVAE kappa=0.5": "proVAE $\\kappa=0.5$"}
CEILING_LOOK = {"color": "0.45", "linestyle": "--", "linewidth": 1.0, "label": "ceiling of any model"}
EPS_LABEL = "radius $\\epsilon$ (pixels in [0, 1])"


def style() -> None:
    """Set the style of all figures: call once at the top of a notebook."""
    sns.set_theme(
        context="paper",
        style="ticks",
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


def model_look(name: str) -> dict[str, object]:
    """How the line of a digit model looks."""
    return {"color": COLORS[name], "marker": MARKERS[name], "label": LABELS.get(name, name)}


def finish(figure: Figure, caption: str) -> Figure:
    """The figure with its caption line below everything else."""
    characters = int(23 * figure.get_figwidth())  # that fit on a line at this font size
    figure.supxlabel("\n".join(textwrap.wrap(caption, characters)), fontsize=6, color="0.35")
    return figure


def legend_above(figure: Figure, axis: Axes, columns: int = 4) -> None:
    """One legend for all panels, from the entries of one of them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=columns)
