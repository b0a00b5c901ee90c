"""What notebook 8 says of its rows, each statement beside the condition that it needs."""

import pandas as pd

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
    calm = rows.pivot_table(index=["share", "features"], columns="model", values="certified_calm")
    by_features = rows.pivot_table(index=["model", "share"], columns="features", values="certified_calm")
    return {
        "With an error of measurement for each feature, the detector that was trained for it keeps at least as many of "
        "the benign tumours certified calm as the plain VAE, at every size of the error.": bool(
            (calm["proVAE"] >= calm["VAE"]).all()
        ),
        "Where features are frozen, at least as many are certified.": bool(
            (by_features["measured"] >= by_features["all"]).all()
        ),
    }


def odd_images(rows: pd.DataFrame, eps: float) -> dict[str, bool]:
    """Rows of `image_rows`; said of this radius."""
    at = rows[rows["eps"] == eps].pivot_table(index="outliers", columns="model", values="guaranteed_auc")
    ours = at["detector"]
    kl = rows.loc[rows["model"] == "detector", "kl"]
    statements = {
        f"The detector trained against made-up outliers keeps a KL of at least {KL:g} nats.": bool((kl >= KL).all()),
        f"At radius {eps:g} the guaranteed AUC of that detector is nowhere below the plain VAE's.": bool(
            (ours >= at["VAE"]).all()
        ),
        "No attack silenced a certified alarm.": bool((rows["broken"] == 0).all()),
    }
    for name in at.index.intersection(["fashion-mnist", "notmnist"]):
        said = f"On {name} the guaranteed AUC of that detector is above that of the pixel means."
        statements[said] = bool(ours[name] > at.loc[name, MEANS])
    return statements


def rivals(rows: pd.DataFrame, eps: float) -> dict[str, bool]:
    """Rows of `rival_rows`; said of this l-infinity radius."""
    at = rows[(rows["threat"] == "linf") & (rows["eps"] == eps)].set_index("detector")
    certified = ["certified_detection", "certified_calm"]
    ours, others = at.loc["certified detector"], at.drop(index="certified detector")
    as_good = (others[certified] >= ours[certified].astype(float)).all(axis=1)
    return {
        f"At radius {eps:g} no rival certifies both as many alarms and as many calm beats.": not bool(as_good.any()),
        "A rival that certifies less detects at least as many clean abnormal beats: certificates are not free.": bool(
            (others["detection"] >= ours["detection"]).any()
        ),
    }
