"""Tables of notebook 11 on the certified likelihood, and what it says of them; what is certified is rounded down."""

import pandas as pd

from paperlib.paper.likelihood_rows import DRAWS, ON_LINEAR
from paperlib.paper.mnist_training import EPS
from paperlib.runtime.numbers import rounded_down, rounded_up

PROMISED = 2.0  # nats between certified likelihood and certified ELBO


def mean_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The means over images of the rows of `bounds_rows`, by model, eps and draws in their order."""
    return rows.drop(columns="index").groupby(["model", "eps", "draws"], sort=False).mean()


def bounds(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `bounds_rows`, a line for each model, radius and K."""
    return pd.DataFrame(
        {
            "model": row["model"],
            "radius": f"{row['eps']:g}",
            "ELBO": f"{row['elbo']:.1f}",
            "certified ELBO": rounded_down(row["certified_elbo"]),
            "K": f"{row['draws']:g}",
            "IWAE": f"{row['iwae']:.1f}",
            "certified IWAE": rounded_down(row["certified_iwae"]),
            "certified log p": rounded_down(row["certified"]),
            "price of chance": rounded_up(row["width"], 2),
            "log p met": f"{row['met']:.1f}",
        }
        for row in mean_rows(rows).reset_index().to_dict("records")
    )


def ways(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `ways_rows`: a line for each way, a column for each model."""
    return pd.DataFrame(
        {"latents": way, **{row["model"]: rounded_down(row["bound"]) for row in lines.to_dict("records")}}
        for way, lines in rows.groupby("way", sort=False)
    )


def likelihood_statements(rows: pd.DataFrame, ways_of: pd.DataFrame) -> dict[str, bool]:
    """Rows of `bounds_rows` and of `ways_rows`."""
    means = mean_rows(rows)
    at = means.xs((EPS, max(DRAWS)), level=("eps", "draws"))
    robust, plain = at.drop(index="VAE"), at.loc["VAE"].to_dict()
    by_draws = rows[rows["eps"] == EPS].pivot_table(index="model", columns="draws", values="certified")
    by_way = ways_of.pivot_table(index="way", columns="model", values="bound")
    expected = by_way.loc["expected ELBO"]
    fitted = by_way.loc["one for the set, fitted"]
    return {
        f"At radius {EPS:g} the certified likelihood of each proVAE is more than {PROMISED:g} nats above its certified "
        "ELBO, at a noise draw and in expectation.": bool(
            (robust["certified"] > robust["certified_elbo"] + PROMISED).all() and (fitted > expected + PROMISED).all()
        ),
        "It is above the ELBO to which the attack brings the model, too: the adversary of the ELBO fools the encoder, "
        "and the likelihood has none.": bool((at["certified"] > at["attacked_elbo"]).all()),
        "The likelihood of the plain VAE is certified above its own attacked ELBO, where certificates of its ELBO say "
        "nothing.": bool(
            plain["certified"] > plain["attacked_elbo"] and plain["certified_elbo"] < 10 * plain["certified"]
        ),
        "More draws certify more there.": bool((by_draws[max(DRAWS)] > by_draws[min(DRAWS)]).all()),
        "One fitted proposal for the set certifies more than the encoder's, which moves with the input.": bool(
            (fitted > by_way.loc["the encoder's, which moves with x'"]).all()
        ),
        "The model trained on the linear bound has the highest certified likelihood.": bool(
            at["certified"].idxmax() == ON_LINEAR
        ),
    }
