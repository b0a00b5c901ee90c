"""Figures of notebook 5: linear bounds of the whole ELBO beside intervals."""

import pandas as pd
from matplotlib.figure import Figure

from paperlib.paper.plots.style import COLORS, LABELS, finish, panels

METHOD_LABELS = {"ibp": "intervals", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}
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
        for method, label in METHOD_LABELS.items():
            mean = (by_eps["attacked"] - by_eps[method]).groupby(level="eps").mean()
            color, marker = METHOD_LOOK[method]
            axis.plot(mean.index, mean, color=color, marker=marker, label=label)
        axis.set_yscale("log")
        axis.set_title(LABELS.get(name, name))
        axis.set_xlabel("radius $\\epsilon$ (pixels)")
    axes[0].set_ylabel("attacked − certified (nats)")
    axes[-1].legend()
    return finish(figure, caption)
