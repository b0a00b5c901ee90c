"""The figure of notebook 6: what training on a tighter bound trades."""

import pandas as pd
from matplotlib.figure import Figure

from paperlib.paper.plots.style import COLORS, finish, legend_above, panels
from paperlib.paper.words import Axis

BOUND_LABELS = {"ibp": "trained on intervals", "crown-ibp": "trained on the linear bound"}
BOUND_LOOK = {
    "ibp": {"color": COLORS["VAE"], "marker": "s"},
    "crown-ibp": {"color": COLORS["certified"], "marker": "o"},
}


def tradeoff(rows: pd.DataFrame, caption: str) -> Figure:
    """Certified and attacked against clean ELBO: hollow marks are single seeds, lines join their means along kappa.

    Beside each mean stand the weight kappa of the clean ELBO and the radius epsilon that its models were trained with.
    """
    figure, axes = panels(1, 2, height=3.2, sharex=True)
    for axis, column, label in ((axes[0], "subset_crown", Axis.CERTIFIED), (axes[1], "subset_attacked", Axis.ATTACKED)):
        for bound, part in rows.groupby("bound", sort=False):
            look, name = BOUND_LOOK[str(bound)], BOUND_LABELS[str(bound)]
            hollow = {"ls": "none", "ms": 3, "mfc": "none", "mew": 0.7}
            axis.plot(part["subset_clean"], part[column], label=f"{name}, one seed", **hollow, **look)
            mean = part.groupby(["kappa", "train_eps"], as_index=False)[["subset_clean", column]].mean()
            axis.plot(mean["subset_clean"], mean[column], label=f"{name}, mean of the seeds", ms=5, **look)
            for point in mean.to_dict("records"):
                below = bound == "ibp"  # away from the other line
                axis.annotate(
                    f"$\\kappa={point['kappa']:g}$\n$\\epsilon={point['train_eps']:g}$",
                    (point["subset_clean"], point[column]),
                    xytext=(-8, -3) if below else (9, 3),
                    ha="right" if below else "left",
                    va="top" if below else "bottom",
                    textcoords="offset points",
                    fontsize=6,
                )
        axis.margins(x=0.3, y=0.15)
        axis.set_xlabel(Axis.CLEAN)
        axis.set_ylabel(label)
    legend_above(figure, axes[0], columns=2)
    return finish(figure, caption)
