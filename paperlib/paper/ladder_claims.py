"""What notebook 10 says of its rows in words, each statement beside its condition; see `paperlib.paper.claims`."""

from itertools import pairwise

import pandas as pd

LADDER = ("intervals", "CROWN-IBP", "CROWN", "alpha-CROWN")  # each is tighter than the one before, and costs more


def rungs(means: pd.DataFrame) -> dict[str, bool]:
    """Of the table: one row for each model and rung."""
    gap, cost = (means.pivot_table(index="model", columns="rung", values=column) for column in ("gap", "ms"))
    return {
        "Intervals are the cheapest and the loosest for every model.": bool(
            (gap.idxmax(axis=1) == "intervals").all() and (cost.idxmin(axis=1) == "intervals").all()
        ),
        "A hybrid zonotope lies between intervals and the zonotope.": bool(
            ((gap["hybrid zonotope"] <= gap["intervals"]) & (gap["zonotope"] <= gap["hybrid zonotope"])).all()
        ),
        "Zonotope and dual network are the same bound to a tenth of a nat, by two computations.": bool(
            ((gap["zonotope"] - gap["dual network"]).abs() < 0.1).all()
        ),
        "The Lagrangian dual is nowhere looser than alpha-CROWN.": bool(
            (gap["Lagrangian dual"] <= gap["alpha-CROWN"] + 0.05).all()
        ),
        "Random projections cost more than what they estimate, and their safety margin loses more than the estimate "
        "saves: at this size of network they are the rung that loses.": bool(
            (
                (gap["random projections"] >= gap["dual network"])
                & (cost["random projections"] >= cost["dual network"])
            ).all()
        ),
    }


def branching(rows: pd.DataFrame) -> dict[str, bool]:
    """Of the search: one row for each model and time limit."""
    gap = rows.pivot_table(index="model", columns="seconds", values="gap")
    last, barrier = gap[gap.columns.max()], rows.groupby("model")["barrier"].min()
    return {
        "More time is never worse.": bool((gap.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)),
        "Cases pass the barrier of every bound that relaxes one unit at a time.": bool((last < barrier).all()),
        "At its longest time it leaves less than half of what that barrier leaves.": bool((last < barrier / 2).all()),
    }


def decoders(rows: pd.DataFrame) -> dict[str, bool]:
    """Of the small decoders: one row for each decoder, quantity, digit, radius and method."""
    wide = rows.pivot_table(index=["decoder", "quantity", "index", "radius"], columns="method", values="bound")
    distance = wide.drop(columns="exact").sub(wide["exact"], axis=0).abs()
    return {
        "The semidefinite bound is tighter than the linear one on every box, and that than intervals.": bool(
            ((distance["semidefinite"] < distance["linear"]) & (distance["linear"] < distance["intervals"])).all()
        ),
        "Products with the ends of boxes make it tighter still.": bool(
            (distance["semidefinite, products"] <= distance["semidefinite"] * (1 + 1e-6) + 1e-6).all()
        ),
    }


def training(rows: pd.DataFrame) -> dict[str, bool]:
    """Of the small models: one row for each bound that was trained on."""
    clean, crown = (dict(zip(rows["bound"], rows[column], strict=True)) for column in ("clean", "crown"))
    tighter = [bound for bound in clean if bound != "ibp"]
    return {
        "A model trained on any tighter bound than intervals has a higher clean ELBO, CROWN certifying it no worse.": (
            all(clean[bound] > clean["ibp"] and crown[bound] >= crown["ibp"] for bound in tighter)
        )
    }


def ladder(means: pd.DataFrame, searched: pd.DataFrame, small_decoders: pd.DataFrame) -> dict[str, bool]:
    """The claim at the notebook's top."""
    gap, cost = (means.pivot_table(index="model", columns="rung", values=column) for column in ("gap", "ms"))
    steps = list(pairwise(LADDER))
    climbs = all((gap[higher] <= gap[lower]).all() for lower, higher in steps)
    costs = all((cost[higher] >= cost[lower]).all() for lower, higher in steps)
    return {
        f"From {LADDER[0]} over {', '.join(LADDER[1:-1])} to {LADDER[-1]} each step is tighter and costs more, for "
        "every model.": climbs and costs,
        "Branch and bound is tighter than all of them.": branching(searched)[
            "Cases pass the barrier of every bound that relaxes one unit at a time."
        ],
        "On small decoders the semidefinite relaxation stands between the linear bound and the exact value.": decoders(
            small_decoders
        )["The semidefinite bound is tighter than the linear one on every box, and that than intervals."],
    }
