"""The figure of notebook 12 by the data that it plots."""

import numpy as np
from handmade import CAPTION, front_rows, tradeoff_rows, xy

from paperlib.paper.front import BASE, NOTEBOOK_2, OURS, RECIPES
from paperlib.paper.plots import front as front_plots


def test_the_front_shows_seeds_and_their_means_below_the_ceiling() -> None:
    rows, tradeoff = (
        front_rows(),
        tradeoff_rows().rename(columns={"subset_clean": "clean", "subset_crown": "crown_ibp"}),
    )
    left = front_plots.front(rows, tradeoff, -279.5, CAPTION).axes[0]
    assert (left.get_xlabel(), left.get_ylabel()) == ("clean ELBO (nats)", "certified ELBO (nats)")
    drawn = {str(line.get_label()): xy(line) for line in left.get_lines()}
    hollow = [xy(line) for line in left.get_lines() if line.get_linestyle() == "None"]
    robust = rows[rows["kappa"] < 1]
    parts = (robust[robust["group"] == NOTEBOOK_2], tradeoff, robust[robust["group"] == OURS])
    for (name, _), seeds, part in zip(front_plots.LOOKS.items(), hollow, parts, strict=True):
        np.testing.assert_allclose(seeds, part[["clean", "crown_ibp"]])
        np.testing.assert_allclose(drawn[name], part.groupby("kappa")[["clean", "crown_ibp"]].mean())
    assert {y for _, y in drawn["ceiling of any model"]} == {-279.5}
    assert min(y for line in left.get_lines() for _, y in xy(line)) > -1_000, "the plain VAE would hide all others"


def test_gains_are_of_the_mean_of_both_ends_and_sorted() -> None:
    rows = front_rows()
    gain = front_plots.gains(rows)
    recipes = rows[rows["group"] == RECIPES].set_index("recipe")
    assert BASE not in gain.index and len(gain) == len(recipes) - 1 and gain.is_monotonic_increasing
    name = gain.index[-1]
    both = recipes.loc[name, ["clean", "crown_ibp"]].sum() - recipes.loc[BASE, ["clean", "crown_ibp"]].sum()
    assert gain.iloc[-1] == both / 2
    right = front_plots.front(rows, tradeoff_rows().assign(clean=-1.0, crown_ibp=-2.0), -0.5, CAPTION).axes[1]
    assert [bar.get_width() for bar in right.patches] == gain.tolist()
    assert [label.get_text() for label in right.get_yticklabels()] == gain.index.tolist()
