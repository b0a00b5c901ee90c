"""Tables of notebook 9 on classes as manifolds, and what it says of them; what is certified is rounded down."""

import pandas as pd

from paperlib.paper.detection_tables import nearest, proven
from paperlib.runtime.numbers import rounded_down


def radii(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `manifold_rows`, a line for each digit and one for all: l2 radii of the digits that are right, in their
    medians; the attack's is the distance of the nearest input of another class that it met.
    """
    groups = [*((str(digit), part) for digit, part in rows.groupby("digit")), ("all", rows)]
    return pd.DataFrame(
        {
            "digit": digit,
            "images": len(part),
            "right": int(part["right"].sum()),
            "certified": _median(part, "radius"),
            "by the published formula": _median(part, "published"),
            "attacked": _median(part, "attacked"),
        }
        for digit, part in groups
    )


def defences(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `defence_rows` in per cent."""
    return pd.DataFrame(
        {
            "defence": row["defence"],
            "radius": f"{row['eps']:g}",
            "clean": nearest(row["clean"]),
            "attacked": nearest(row["attacked"]),
            "certified": row["certified"],
        }
        for row in rows.to_dict("records")
    )


def manifold_statements(rows: pd.DataFrame) -> dict[str, bool]:
    """Rows of `manifold_rows`."""
    right = rows[rows["right"]]
    positive = (right["radius"] > 0).mean() if len(right) else 0.0
    return {
        f"Of the digits that are right {proven(positive)} % have a certified l2 radius above 0.": bool(positive > 0.5),
        "The radius that both classes share is larger than that of the published formula in the median.": bool(
            right["radius"].median() > right["published"].median()
        ),
        "No attack met another class within a certified radius.": bool((rows["attacked"] >= rows["radius"]).all()),
    }


def defence_statements(rows: pd.DataFrame, eps: float) -> dict[str, bool]:
    """Rows of `defence_rows`; said of this radius."""
    at = rows[rows["eps"] == eps].set_index("defence")["attacked"]
    return {
        "The manifold defence keeps more digits right under the attacks tried here than no defence, and "
        "proves nothing.": bool(at["manifold"] > at["none"])
    }


def _median(part: pd.DataFrame, name: str) -> str:
    """Rounded down to two decimals; "none met" of an infinite one."""
    value = part.loc[part["right"], name].median()
    if pd.isna(value):
        return ""
    return "none met" if value == float("inf") else rounded_down(value, 2)
