"""Figures of notebook 4: certified, attacked and clean ELBO, and where intervals lose."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from paperlib.paper.plots.style import COLORS, COLUMN, LABELS, finish, model_look, panels

LOST = -5_000  # nats: a mean certificate below this says nothing about a digit


def sandwich(certified: pd.DataFrame, attacked: pd.DataFrame, caption: str) -> Figure:
    """Certified, attacked and clean ELBO against the radius, a panel for each model; bars are standard errors.

    Panels share a linear scale, but for models whose certificates are lost: theirs is logarithmic below -400.
    """
    names = list(certified["model"].unique())
    figure, axes = panels(1, len(names), height=2.5)
    kept = certified.groupby("model")["certified"].min() > LOST
    lowest = certified[certified["model"].map(kept)]["certified"].min()
    for axis, name in zip(axes, names, strict=True):
        known = certified[certified["model"] == name].sort_values("eps")
        found = attacked[attacked["model"] == name].groupby("eps")["attacked"]
        series = {
            "clean": (known["eps"], known["clean"], known["clean_se"], "o"),
            "attacked": (found.mean().index, found.mean(), found.sem(), "X"),
            "certified": (known["eps"], known["certified"], known["certified_se"], "^"),
        }
        for label, (eps, mean, error, marker) in series.items():
            axis.errorbar(eps, mean, error, color=COLORS[label], marker=marker, label=label)
        axis.fill_between(known["eps"], known["certified"], found.mean(), color=COLORS["certified"], alpha=0.12, lw=0)
        if kept[name]:
            axis.set_ylim(1.05 * lowest, 0)
        else:
            axis.set_yscale("symlog", linthresh=400, linscale=2)
            powers = range(4, 10, 2)
            axis.set_yticks([0, -200, -400, *(-(10.0**n) for n in powers)])
            axis.set_yticklabels(["0", "−200", "−400", *(f"$-10^{n}$" for n in powers)])
            axis.set_ylim(min(-1e7, 2 * known["certified"].min()), 0)
            axis.minorticks_off()
        axis.set_title(LABELS.get(name, name))
        axis.set_xlabel("radius $\\epsilon$ (pixels)")
    axes[0].set_ylabel("ELBO (nats)")
    axes[-1].legend(loc="lower left")
    return finish(figure, caption)


def gap_distribution(rows: pd.DataFrame, caption: str) -> Figure:
    """Cumulative share of images against the gap between attacked and certified ELBO, at one radius and noise draw."""
    figure, axes = panels(1, 1, height=2.3, width=COLUMN)
    gaps = rows.assign(gap=rows["attacked"] - rows["certified"])
    for name, part in gaps.groupby("model", sort=False):
        sns.ecdfplot(x=part["gap"], ax=axes[0], color=COLORS[str(name)], label=LABELS.get(str(name), str(name)))
    axes[0].set_xscale("log")
    axes[0].set_xlabel("attacked minus certified ELBO (nats)")
    axes[0].set_ylabel("share of images")
    axes[0].legend(loc="upper center")
    return finish(figure, caption)


def looseness(rows: pd.DataFrame, caption: str) -> Figure:
    """How many times wider than anything an attack reaches the box of each stage is, for each model."""
    figure, axes = panels(1, 1, height=2.5, width=COLUMN)
    for name, part in rows.groupby("model", sort=False):
        axes[0].plot(part["stage"], part["box"] / part["reached"], **model_look(str(name)))
    axes[0].set_yscale("log")
    axes[0].axhline(1, color="0.4", linewidth=0.8, linestyle=":")
    axes[0].set_ylabel("box width / width reached")
    axes[0].tick_params(axis="x", rotation=35)
    axes[0].legend()
    return finish(figure, caption)
