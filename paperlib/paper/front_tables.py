"""Tables of notebook 12 and what it says of them; certificates are rounded down."""

import pandas as pd

from paperlib.paper.front import NOTEBOOK_2, OURS, RECIPES
from paperlib.paper.plots.front import gains
from paperlib.paper.tables import over_seeds
from paperlib.runtime.numbers import rounded_down

SMALL = 1.0  # nats: a gain of one seed that is smaller says nothing


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds with the lowest and highest seed in brackets, for our models and those of notebook 2."""
    kept = rows[rows["group"].isin([OURS, NOTEBOOK_2])]
    return pd.DataFrame(
        {
            "model": f"proVAE kappa={kappa:g}, longer" if name == OURS else name,
            "kappa": f"{kappa:g}",
            "training radius": f"{eps:g}",
            "clipped": f"{part['input_clip'].iloc[0]:g}" if part["input_clip"].iloc[0] else "no",
            "steps x batch": f"{part['steps'].iloc[0]:,} x {part['batch_size'].iloc[0]}",
            "minutes": over_seeds(part["seconds"] / 60, "{:.1f}".format),
            "clean": over_seeds(part["clean"], "{:.1f}".format),
            "certified: intervals": over_seeds(part["ibp"], rounded_down),
            "CROWN-IBP": over_seeds(part["crown_ibp"], rounded_down),
            "KL": over_seeds(part["kl"], "{:.1f}".format),
        }
        for (name, kappa, eps), part in kept.groupby(["recipe", "kappa", "train_eps"], sort=False)
    )


def recipes(rows: pd.DataFrame) -> pd.DataFrame:
    """One seed each, at equal steps; CROWN and the attack on fewer images, with their own clean ELBO."""
    return pd.DataFrame(
        {
            "recipe": row["recipe"],
            "weights": f"{row['weights']:,}",
            "seconds": f"{row['seconds']:.0f}",
            "clean": f"{row['clean']:.1f}",
            "CROWN-IBP": rounded_down(row["crown_ibp"]),
            "KL": f"{row['kl']:.1f}",
            "fewer images: clean": f"{row['subset_clean']:.1f}",
            "attacked": f"{row['subset_attacked']:.1f}",
            "CROWN": rounded_down(row["subset_crown"]),
        }
        for row in rows[rows["group"] == RECIPES].to_dict("records")
    )


def improvement(rows: pd.DataFrame, tradeoff: pd.DataFrame) -> pd.DataFrame:
    """What our models add to those of notebook 6 that were trained on the linear bound: a row for each kappa, in nats.

    Columns: clean, crown_ibp, subset_crown, subset_attacked, of means over the seeds.
    """
    columns = ["clean", "crown_ibp", "subset_crown", "subset_attacked"]
    ours, before = (part.groupby("kappa")[columns].mean() for part in (rows[rows["group"] == OURS], tradeoff))
    return ours - before.loc[ours.index]


def claim(rows: pd.DataFrame, tradeoff: pd.DataFrame) -> dict[str, bool]:
    """Of notebook 12: statements, each beside whether this run bears it out."""
    seeds = rows[rows["group"] == OURS].groupby("kappa")[["clean", "crown_ibp"]]
    spread, gain = seeds.max() - seeds.min(), improvement(rows, tradeoff)
    return {
        "At each kappa the clean ELBO and the certificate are both higher than in notebook 6.": bool(
            (gain[["clean", "crown_ibp"]] > 0).all(axis=None)
        ),
        "Either gain is larger than what seeds differ by.": bool(
            (gain[["clean", "crown_ibp"]] > spread).all(axis=None)
        ),
    }


def sorted_out(rows: pd.DataFrame) -> tuple[str, str, str]:
    """The recipes that help, those that change next to nothing, and those that do not help, each with its gain, as
    prose has lists; the best first.
    """
    gain = gains(rows).sort_values(ascending=False)
    parts = gain[gain >= SMALL], gain[gain.abs() < SMALL], gain[gain <= -SMALL]
    return tuple(  # type: ignore[return-value]
        "; ".join(f"{name} ({value:+.1f})" for name, value in part.items()) or "none" for part in parts
    )
