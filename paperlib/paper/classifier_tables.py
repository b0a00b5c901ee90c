"""Tables of notebook 9 and what it says of them; certified shares are rounded down."""

import pandas as pd

from paperlib.paper.detection_claims import ATTEMPTS
from paperlib.paper.detection_tables import nearest, proven
from paperlib.runtime.numbers import rounded_down

FLOOR_CLEAN, FLOOR_CERTIFIED = 0.96, 0.85  # shares of the digits
# Certified classifiers that tell digits apart without a model of them, as published: radius, and per cent certified.
PUBLISHED = (
    ("CROWN-IBP (Zhang et al. 2020, arXiv 1906.06316)", 0.3, 92.98),
    ("intervals, well tuned (Mao et al. 2024, arXiv 2406.04848)", 0.3, 93.7),
)


def accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `classifier_rows`: accuracies in per cent at each radius, certified by the joint bound of two ELBOs and
    by separate ones, and how many inputs attacks evaluated; and the published accuracies.
    """
    ours = [
        {
            "classifier": "a VAE for each class",
            "radius": f"{row['eps']:g}",
            "clean": nearest(row["clean"]),
            "attacked": nearest(row["attacked"]),
            "certified": proven(row["certified"]),
            "by separate bounds": proven(row["separate"]),
            "attacked inputs": f"{row['met']:,}",
            "of certified digits": f"{row['met_certified']:,}",
        }
        for row in rows.to_dict("records")
    ]
    published = [
        {"classifier": name, "radius": f"{eps:g}", "certified": rounded_down(share)} for name, eps, share in PUBLISHED
    ]
    return pd.DataFrame(ours + published).fillna("")


def rejection(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `classifier_rows`: right and accepted digits in per cent, and those proven to stay so."""
    return pd.DataFrame(
        {
            "radius": f"{row['eps']:g}",
            "right": nearest(row["clean"]),
            "right and accepted": nearest(row["accepted"]),
            "both, certified": proven(row["certified_accepted"]),
        }
        for row in rows.to_dict("records")
    )


def wrong_predictions(errors: pd.DataFrame) -> str:
    """What the thresholds do to the wrong predictions, in words."""
    (error,) = errors.to_dict("records")
    return f"Of {error['wrong']:,} wrong predictions {error['wrong_accepted']:,} are accepted."


def statements(rows: pd.DataFrame, errors: pd.DataFrame, eps: float) -> dict[str, bool]:
    """Rows of `classifier_rows`; said of this radius."""
    at, (error,) = rows.set_index("eps").loc[eps], errors.to_dict("records")
    return {
        f"At radius {eps:g} at least {FLOOR_CERTIFIED:.0%} of the digits are certified, of a classifier that is right "
        f"on at least {FLOOR_CLEAN:.0%} of the unchanged ones.": bool(
            at["certified"] >= FLOOR_CERTIFIED and at["clean"] >= FLOOR_CLEAN
        ),
        "Bounds of each ELBO on its own certify less at every radius at which any digit is certified.": bool(
            at["certified"] > 0 and ((rows["separate"] < rows["certified"]) | (rows["certified"] == 0)).all()
        ),
        f"No attack broke a certified digit, in at least {ATTEMPTS:,} inputs evaluated at each radius, and as many "
        f"around certified digits at radius {eps:g}.": bool(
            (rows["broken"] == 0).all() and (rows["met"] >= ATTEMPTS).all() and at["met_certified"] >= ATTEMPTS
        ),
        "A larger share of the wrong predictions is rejected than of the right ones.": bool(
            error["wrong_accepted"] / max(error["wrong"], 1) < at["accepted"] / at["clean"]
        ),
    }
