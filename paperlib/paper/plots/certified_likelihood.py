"""The figure of notebook 11 on the certified likelihood: a panel for each model, against the number of draws."""

import pandas as pd
from matplotlib.figure import Figure

from paperlib.paper.certified_likelihood_tables import mean_rows
from paperlib.paper.mnist_training import EPS
from paperlib.paper.plots.style import COLORS, HOLLOW, LABELS, MARKERS, finish, legend_above, panels
from paperlib.paper.words import Axis

SHOWN = 3.0  # times the certified likelihood: what lies farther down is not drawn


def by_draws(rows: pd.DataFrame, caption: str) -> Figure:
    """Rows of `bounds_rows` at EPS: certified likelihood and certified IWAE against K, and the ELBO beside them."""
    means = mean_rows(rows).xs(EPS, level="eps")
    models = list(dict.fromkeys(means.index.get_level_values("model")))
    figure, axes = panels(1, len(models), height=2.6)
    certified = {"color": COLORS["certified"], "marker": MARKERS["certified"]}
    looks = {
        "certified": {**certified, "label": "certified likelihood"},
        "certified_iwae": {**certified, **HOLLOW, "linestyle": "--", "label": "certified IWAE at given draws"},
        "met": {"color": COLORS["clean"], "linestyle": "-.", "label": "likelihood at the worst input met"},
        "attacked_elbo": {"color": COLORS["attacked"], "linestyle": ":", "label": "attacked ELBO"},
        # with gaps through which the attacked one is seen where both agree
        "certified_elbo": {"color": COLORS["VAE"], "linestyle": (0, (1, 4)), "label": "certified ELBO"},
    }
    for axis, model in zip(axes, models, strict=True):
        of_model = means.loc[model]
        floor = SHOWN * of_model["certified"].min()
        for name, look in looks.items():
            if (of_model[name] > floor).all():
                axis.plot(of_model.index, of_model[name], **look)
        name, _, training = model.partition(", ")
        title = "\n".join(filter(None, (LABELS.get(name, name), training)))  # beside each other, panels are narrow
        axis.set(xscale="log", xticks=of_model.index, xlabel=Axis.DRAWS, title=title)
        axis.set_xticklabels([f"{draws:g}" for draws in of_model.index])
        axis.minorticks_off()
    for axis in axes:
        axis.set_ylabel(Axis.LOG_LIKELIHOOD)
    legend_above(figure, axes[-1], columns=3)
    return finish(figure, caption)
