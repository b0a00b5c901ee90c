"""Rows to figures, for the methods of certification and for training on them; as `plots`, never runs a model."""

import pandas as pd
from matplotlib.figure import Figure

from paperlib.plots import COLORS, LABELS, finish, panels

BOUNDS = {"ibp": "trained on intervals", "crown-ibp": "trained on the linear bound"}
LOOK = {"ibp": {"color": COLORS["VAE"], "marker": "s"}, "crown-ibp": {"color": COLORS["certified"], "marker": "o"}}

METHODS = {"ibp": "intervals", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}
METHOD_LOOK = {"ibp": (COLORS["VAE"], "s"), "crown-ibp": (COLORS["attacked"], "X"), "crown": (COLORS["certified"], "o")}


def gaps(rows: pd.DataFrame, attacked: pd.DataFrame, caption: str) -> Figure:
    """Attacked minus certified ELBO against the radius, a line for each method and a panel for each model.

    The truth lies between both, so a gap bounds how loose the certificate and how weak the attack are together.
    """
    both = rows.merge(attacked[["model", "eps", "index", "attacked"]], on=["model", "eps", "index"])
    names = list(both["model"].unique())
    figure, axes = panels(1, len(names), height=2.5, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        by_eps = both[both["model"] == name].set_index("eps")
        for method, label in METHODS.items():
            mean = (by_eps["attacked"] - by_eps[method]).groupby(level="eps").mean()
            color, marker = METHOD_LOOK[method]
            axis.plot(mean.index, mean, color=color, marker=marker, label=label)
        axis.set_yscale("log")
        axis.set_title(LABELS.get(name, name))
        axis.set_xlabel("radius $\\epsilon$ (pixels)")
    axes[0].set_ylabel("attacked − certified (nats)")
    axes[-1].legend()
    return finish(figure, caption)


def front(rows: pd.DataFrame, caption: str) -> Figure:
    """Certified and attacked against clean ELBO: small points are single seeds, lines join their means along kappa."""
    figure, axes = panels(1, 2, height=2.9, sharex=True)
    for axis, column, label in (
        (axes[0], "few_crown", "certified ELBO (nats)"),
        (axes[1], "few_attacked", "attacked ELBO (nats)"),
    ):
        for bound, part in rows.groupby("bound", sort=False):
            look = LOOK[str(bound)]
            axis.scatter(
                part["few_clean"], part[column], s=9, marker=look["marker"], alpha=0.5, lw=0.8, color=look["color"]
            )
            mean = part.groupby(["kappa", "train_eps"], as_index=False)[["few_clean", column]].mean()
            axis.plot(mean["few_clean"], mean[column], label=BOUNDS[str(bound)], lw=1.3, ms=0, **look)
            for point in mean.to_dict("records"):
                axis.annotate(
                    f"$\\kappa={point['kappa']:g}$, {point['train_eps']:g}",
                    (point["few_clean"], point[column]),
                    xytext=(-5, -9) if bound == "ibp" else (5, 4),  # away from the other line
                    ha="right" if bound == "ibp" else "left",
                    textcoords="offset points",
                    fontsize=6,
                )
        axis.margins(x=0.4, y=0.1)
        axis.set_xlabel("clean ELBO (nats)")
        axis.set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return finish(figure, caption)
