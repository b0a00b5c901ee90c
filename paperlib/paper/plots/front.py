"""The figure of notebook 12: the front of clean and certified ELBO, and what each recipe brings at equal steps."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paperlib.paper.front import BASE, NOTEBOOK_2, OURS, RECIPES
from paperlib.paper.plots.style import CEILING_LOOK, COLORS, finish, legend_above, panels, with_minus
from paperlib.paper.words import Axis

LOOKS = {
    "notebook 2": {"color": COLORS["VAE"], "marker": "s"},
    "notebook 6": {"color": COLORS["proVAE kappa=0"], "marker": "D"},
    "trained longer": {"color": COLORS["certified"], "marker": "o"},
}


def front(rows: pd.DataFrame, tradeoff: pd.DataFrame, ceiling: float, caption: str) -> Figure:
    """Left, certified (CROWN-IBP) against clean ELBO: hollow marks are seeds, lines join their means along kappa. The
    plain VAE is not shown. Right, what each recipe adds to the mean of both ends beyond that of notebook 6.

    Args:
        rows, tradeoff: of `front_rows`, and of `tradeoff_rows` for models that were trained on the linear bound.
        ceiling: of the certified mean of any model whatever, in nats.
    """
    figure, axes = panels(1, 2, height=3.2)
    robust = rows[rows["kappa"] < 1]
    parts = (robust[robust["group"] == NOTEBOOK_2], tradeoff, robust[robust["group"] == OURS])
    for (name, look), part in zip(LOOKS.items(), parts, strict=True):
        axes[0].plot(part["clean"], part["crown_ibp"], ls="none", ms=3, mfc="none", mew=0.7, **look)
        mean = part.groupby("kappa", as_index=False)[["clean", "crown_ibp"]].mean()
        axes[0].plot(mean["clean"], mean["crown_ibp"], ms=5, label=name, **look)
        for point in mean.to_dict("records"):
            axes[0].annotate(
                f"$\\kappa={point['kappa']:g}$",
                (point["clean"], point["crown_ibp"]),
                textcoords="offset points",
                fontsize=6,
                **_beside(name, point["kappa"]),
            )
    axes[0].axhline(ceiling, **CEILING_LOOK)
    axes[0].margins(x=0.15)
    axes[0].set_xlabel(Axis.CLEAN)
    axes[0].set_ylabel(Axis.CERTIFIED)
    _recipes(axes[1], gains(rows))
    legend_above(figure, axes[0])
    return finish(figure, caption)


def _beside(name: str, kappa: float) -> dict[str, Any]:
    """Where a point has its label: no line and no other label passes there."""
    if name == "notebook 2":
        return {"xytext": (0, -6), "ha": "center", "va": "top"}
    if name == "notebook 6" and kappa > 0:
        return {"xytext": (6, -2), "ha": "left", "va": "top"}
    return {"xytext": (5, 4), "ha": "left", "va": "baseline"}


def gains(rows: pd.DataFrame) -> pd.Series:
    """What each recipe adds to the mean of clean and certified ELBO beyond notebook 6's, by its name, in nats."""
    recipes = rows[rows["group"] == RECIPES].set_index("recipe")
    value = (recipes["clean"] + recipes["crown_ibp"]) / 2
    return (value - value[BASE]).drop(BASE).sort_values()


def _recipes(axis: Axes, gain: pd.Series) -> None:
    places = range(len(gain))
    axis.barh(places, gain, color=[COLORS["certified"] if value > 0 else COLORS["attacked"] for value in gain])
    axis.axvline(0, color="0.45", lw=0.8)
    axis.set_yticks(places, gain.index)
    for place, value in zip(places, gain, strict=True):
        side = "left" if value > 0 else "right"
        axis.annotate(
            with_minus(f"{value:+.1f}"),
            (value, place),
            xytext=(3 if value > 0 else -3, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=6,
        )
    axis.margins(x=0.25)
    axis.set_xlabel(Axis.GAIN)
