"""Tables of notebook 9 on classes as manifolds, and what it says of them; what is certified is rounded down."""

import math

import pandas as pd

from paperlib.paper.detection_tables import nearest
from paperlib.runtime.numbers import rounded_down


def radii(rows: pd.DataFrame, tol: float) -> pd.DataFrame:
    """Rows of `manifold_rows`, a line for each digit and one for all: l2 radii of the digits that are right, in their
    medians; the attack's is the distance of the nearest input of another class that it met.

    Args:
        tol: of branch and bound. Where a search's distance is above the certified end by more, it missed the minimum.
    """
    groups = [*((str(digit), part) for digit, part in rows.groupby("digit")), ("all", rows)]
    return pd.DataFrame(
        {
            "digit": digit,
            "images": len(part),
            "right": int(part["right"].sum()),
            **_line(part[part["right"]], tol),
        }
        for digit, part in groups
    ).fillna("")


def defences(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `defence_rows` in per cent."""
    return pd.DataFrame(
        {
            "defence": row["defence"],
            "radius": f"{row['eps']:g}",
            "images": f"{row['images']:,}",
            "clean": nearest(row["clean"]),
            "attacked": nearest(row["attacked"]),
            "certified": row["certified"],
        }
        for row in rows.to_dict("records")
    )


def manifold_statements(rows: pd.DataFrame) -> dict[str, bool]:
    """Rows of `manifold_rows`."""
    right = rows[rows["right"]]
    return {
        "More than half of the digits that are right have a certified l2 radius above 0.": bool(
            (right["radius"] > 0).mean() > 0.5
        ),
        "No attack met another class within a certified radius, though attacks met one for more than half of the "
        "digits.": bool((rows["attacked"] >= rows["radius"]).all() and (rows["attacked"] < math.inf).mean() > 0.5),
    }


def defence_statements(rows: pd.DataFrame, eps: float) -> dict[str, bool]:
    """Rows of `defence_rows`; said of this radius."""
    at = rows[rows["eps"] == eps].set_index("defence")["attacked"]
    return {
        "The manifold defence keeps more digits right under the attacks tried here than no defence, and "
        "proves nothing.": bool(at["manifold"] > at["none"])
    }


def _line(right: pd.DataFrame, tol: float) -> dict[str, str]:
    if right.empty:
        return {}
    joint, published, searched, attacked = right[["radius", "published", "searched", "attacked"]].median()
    return {
        "joint radius": rounded_down(joint, 2),
        "published formula": rounded_down(published, 2),
        "ratio": f"{joint / published:.2f}" if published > 0 else "",
        "searched": f"{searched:.2f}",
        "missed": str((right["gap"] > tol).sum()),
        "attacked": "not met by half" if math.isinf(attacked) else f"{attacked:.2f}",
    }
