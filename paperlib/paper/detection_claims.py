"""What notebook 8 says of its rows, each statement beside the condition that it needs."""

import pandas as pd

from paperlib.paper.measurements import SHARE
from paperlib.paper.odd_images import MEANS

DETECTED, CALM = 0.94, 0.8  # shares of the beats at the radius that is said
ATTEMPTS = 100_000  # of the attacks, on each model
KL = 3.0  # nats: a detector of images with less hardly looks at them


def heartbeats(rows: pd.DataFrame, eps: float) -> dict[str, bool]:
    """Rows of `detection_rows`; said of this radius."""
    at = rows[rows["eps"] == eps].set_index("model")
    plain, robust = at.loc["VAE"], at.loc["proVAE"]
    certified = ["certified_detection", "certified_calm"]
    tried = rows.groupby("model")["met"].sum()
    return {
        f"Trained on the bound, the detector certifies at radius {eps:g} at least {DETECTED:.0%} of the abnormal beats "
        f"as alarms and at least {CALM:.0%} of the normal ones as calm.": bool(
            robust["certified_detection"] >= DETECTED and robust["certified_calm"] >= CALM
        ),
        "Of the plain VAE the same bounds certify less of either.": bool((plain[certified] < robust[certified]).all()),
        f"No attack changed a certified verdict, in at least {ATTEMPTS:,} attempts on each model.": bool(
            (rows["broken"] == 0).all() and (tried >= ATTEMPTS).all()
        ),
    }


def measurements(rows: pd.DataFrame) -> dict[str, bool]:
    """Rows of `measurement_rows`."""
    trained_for = rows[(rows["share"] == SHARE) & (rows["features"] == "measured")].set_index("model")
    certified = ["certified_detection", "certified_calm"]
    return {
        f"At the error of measurement that it was trained for, {SHARE:g} of each measured feature's spread, the "
        "detector certifies at least as many malignant tumours as alarms, and benign ones as calm, as the plain VAE.": (
            bool((trained_for.loc["proVAE", certified] >= trained_for.loc["VAE", certified]).all())
        ),
    }


def odd_images(rows: pd.DataFrame, eps: float) -> dict[str, bool]:
    """Rows of `image_rows`; said of this radius."""
    at = rows[rows["eps"] == eps].pivot_table(index="outliers", columns="model", values="guaranteed_auc")
    ours = at["detector"]
    kl = rows.loc[rows["model"] == "detector", "kl"]
    tried = rows.groupby("model")["met"].sum()
    statements = {
        f"The detector trained against made-up outliers keeps a KL of at least {KL:g} nats.": bool((kl >= KL).all()),
        f"At radius {eps:g} the detector's guaranteed AUC is nowhere below the plain VAE's.": bool(
            (ours >= at["VAE"]).all()
        ),
        f"At radius {eps:g} the detector's guaranteed AUC is on no set below that of the pixel means.": bool(
            (ours >= at[MEANS]).all()
        ),
        f"No attack silenced a certified alarm, in at least {ATTEMPTS:,} attempts on each model.": bool(
            (rows["broken"] == 0).all() and (tried >= ATTEMPTS).all()
        ),
    }
    for name in at.index.intersection(["fashion-mnist", "notmnist"]):
        said = f"On {name} the detector's guaranteed AUC is above that of the pixel means."
        statements[said] = bool(ours[name] > at.loc[name, MEANS])
    return statements


def rivals(rows: pd.DataFrame, eps: float) -> dict[str, bool]:
    """Rows of `rival_rows`; said of this l-infinity radius."""
    at = rows[(rows["threat"] == "linf") & (rows["eps"] == eps)].set_index("detector")
    certified = ["certified_detection", "certified_calm"]
    ours, others = at.loc["certified detector"], at.drop(index="certified detector")
    proven = others[certified].fillna(0)  # where nothing is, none
    as_good = (proven >= ours[certified].astype(float)).all(axis=1)
    less = (proven < ours[certified].astype(float)).all(axis=1) & (others["outliers"] == ours["outliers"])
    return {
        f"At radius {eps:g} no rival certifies both as many alarms and as many calm beats.": not bool(as_good.any()),
        "A rival that certifies fewer of either detects more of the same abnormal beats, clean: certificates are not "
        "free.": bool((less & (others["detection"] > ours["detection"])).any()),
    }
