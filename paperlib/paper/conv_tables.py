"""The table of notebook 12 of convolutional networks, and what it says of them; certificates are rounded down."""

import pandas as pd

from paperlib.paper.conv_front import CONV, MLP
from paperlib.runtime.numbers import rounded_down

MOST_TIMES = 5.0  # what CROWN takes of a convolutional network at most, as a multiple of a fully connected one


def networks(rows: pd.DataFrame) -> pd.DataFrame:
    """One seed each; CROWN and the attack on fewer images, with their own clean ELBO, and what an image takes."""
    return pd.DataFrame(
        {
            "data": row["dataset"],
            "network": row["network"],
            "weights": f"{row['weights']:,}",
            "steps": f"{row['steps']:,}",
            "minutes": f"{row['seconds'] / 60:.1f}",
            "clean": f"{row['clean']:.1f}",
            "CROWN-IBP": rounded_down(row["crown_ibp"]),
            "KL": f"{row['kl']:.1f}",
            "fewer images: clean": f"{row['subset_clean']:.1f}",
            "attacked": f"{row['attacked']:.1f}",
            "CROWN": rounded_down(row["crown"]),
            "ms: CROWN-IBP": f"{row['crown_ibp_ms']:.1f}",
            "ms: CROWN": f"{row['crown_ms']:.0f}",
        }
        for row in rows.to_dict("records")
    )


def comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each data set: the convolutional network beside the fully connected one.

    Columns: clean and crown_ibp, differences in nats; at_equal_clean, that of crown_ibp if the clean ELBO were the same
    and each nat of it had cost as much certificate as at the optimum of the objective, kappa / (1 - kappa);
    crown_times, what CROWN takes as a multiple.
    """
    conv, mlp = (rows[rows["network"] == network].set_index("dataset") for network in (CONV, MLP))
    compared = conv[["clean", "crown_ibp"]] - mlp[["clean", "crown_ibp"]]
    kappa = conv["kappa"]
    compared["at_equal_clean"] = compared["crown_ibp"] + kappa / (1 - kappa) * compared["clean"]
    compared["crown_times"] = conv["crown_ms"] / mlp["crown_ms"]
    return compared


def claim(rows: pd.DataFrame) -> dict[str, bool]:
    """Statements, each beside whether this run bears it out."""
    compared = comparison(rows)
    statements = {
        f"On {name} the fully connected network is certified higher at the same clean ELBO.": bool(lead < 0)
        for name, lead in compared["at_equal_clean"].items()
    }
    statements[f"CROWN takes at most {MOST_TIMES:g} times as long for the convolutional one."] = bool(
        (compared["crown_times"] <= MOST_TIMES).all()
    )
    return statements
