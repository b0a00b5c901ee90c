"""The figure of notebook 6 by the data that it plots."""

import numpy as np
from handmade import CAPTION, tradeoff_rows, xy
from matplotlib.colors import to_rgb

from paperlib.paper.plots import tighter_training as tighter_plots


def test_the_tradeoff_shows_each_seed_and_joins_means_along_kappa() -> None:
    rows = tradeoff_rows()
    figure = tighter_plots.tradeoff(rows, CAPTION)
    assert [axis.get_ylabel() for axis in figure.axes] == ["certified ELBO (nats)", "attacked ELBO (nats)"]
    assert len({to_rgb(look["color"]) for look in tighter_plots.BOUND_LOOK.values()}) == 2
    marked = [line for line in figure.axes[0].get_lines() if "mean" in str(line.get_label())]
    assert all(line.get_marker() != "None" and line.get_markersize() > 3 for line in marked), "a mark on each mean"
    for axis, column in zip(figure.axes, ("subset_crown", "subset_attacked"), strict=True):
        drawn = {line.get_label(): xy(line) for line in axis.get_lines()}
        for bound, label in tighter_plots.BOUND_LABELS.items():
            part = rows[rows["bound"] == bound]
            means = part.groupby(["kappa", "train_eps"])[["subset_clean", column]].mean()
            np.testing.assert_allclose(drawn[f"{label}, mean of the seeds"], means)
            np.testing.assert_allclose(drawn[f"{label}, one seed"], part[["subset_clean", column]])
            texts = {tuple(text.xy): text.get_text() for text in axis.texts}
            for (kappa, radius), point in zip(means.index, means.to_numpy().tolist(), strict=True):
                assert texts[tuple(point)] == f"$\\kappa={kappa:g}$\n$\\epsilon={radius:g}$"
