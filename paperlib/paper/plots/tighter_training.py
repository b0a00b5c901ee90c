"""The figure of notebook 6: what training on a tighter bound trades."""

import pandas as pd
from matplotlib.figure import Figure

from paperlib.paper.plots.style import COLORS, finish, panels

BOUND_LABELS = {"ibp": "trained on intervals", "crown-ibp": "trained on the linear bound"}
BOUND_LOOK = {
    "ibp": {"color": COLORS["VAE"], "marker": "s"},
    "crown-ibp": {"color": COLORS["certified"], "marker": "o"},
}


def tradeoff(rows: pd.DataFrame, caption: str) -> Figure:
    """Certified and attacked against clean ELBO: small points are single seeds, lines join their means along kappa."""
    figure, axes = panels(1, 2, height=2.9, sharex=True)
    for axis, column, label in (
        (axes[0], "subset_crown", "certified ELBO (nats)"),
        (axes[1], "subset_attacked", "attacked ELBO (nats)"),
    ):
        for bound, part in rows.groupby("bound", sort=False):
            look = BOUND_LOOK[str(bound)]
            axis.scatter(
                part["subset_clean"], part[column], s=9, marker=look["marker"], alpha=0.5, lw=0.8, color=look["color"]
            )
            mean = part.groupby(["kappa", "train_eps"], as_index=False)[["subset_clean", column]].mean()
            axis.plot(mean["subset_clean"], mean[column], label=BOUND_LABELS[str(bound)], lw=1.3, ms=0, **look)
            for point in mean.to_dict("records"):
                axis.annotate(
                    f"$\\kappa={point['kappa']:g}$, {point['train_eps']:g}",
                    (point["subset_clean"], point[column]),
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
