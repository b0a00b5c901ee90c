"""What notebook 7 says about results in words, each statement beside the condition on this run's rows that it needs."""

import pandas as pd

WITHOUT_BOUNDS = ["VAE", "beta-VAE", "weight decay", "smooth encoder", "Lipschitz VAE"]
LINEAR, INTERVALS, L2 = "proVAE, linear bound", "proVAE, intervals", "proVAE, linear bound, l2"


def strength(suite: pd.DataFrame, checks: pd.DataFrame) -> dict[str, bool]:
    """Rows of `suite_rows` and of `sanity_checks`."""
    return {
        "The suite is never above PGD in the mean, nor is any certificate passed.": bool(
            (suite["suite"] <= suite["pgd"]).all() and (suite["broken"] == 0).all()
        ),
        "More steps never help less, a random search with many more evaluations does not beat gradients, and where "
        "everything is allowed the attacks go below every input that one can write down.": bool(checks["holds"].all()),
    }


def defences(rows: pd.DataFrame) -> dict[str, bool]:
    """Rows of the comparison, all data sets and seeds."""
    certified, gaps = (
        values.pivot_table(index=["norm", "eps", "dataset"], columns="recipe", values=column)
        for values, column in ((rows, "certified"), (rows.assign(gap=rows["attacked"] - rows["certified"]), "gap"))
    )
    best, l2 = (certified.xs(at, level=["norm", "eps"]) for at in (("linf", 0.1), ("l2", 1.0)))
    gap = gaps.xs("linf", level="norm")
    smoothed = rows[(rows["recipe"] == "noise-trained VAE") & (rows["norm"] == "l2") & (rows["eps"] == 1.0)]
    promised = smoothed.groupby("dataset")["theirs"].mean()
    return {
        "At radius 0.1, for which it was trained, the proVAE on the linear bound has the best certificate of all on "
        "every data set.": bool((best[LINEAR] >= best.T.max()).all()),
        "Adversarial training does well against the attack, but its certificate lies further below it than the "
        "proVAEs'.": bool((gap["adversarial training"] > gap[[LINEAR, INTERVALS]].T.max()).all()),
        "Defences without bounds have no certificate worth the name at radius 0.1.": bool(
            (best[WITHOUT_BOUNDS].T.max() < best[LINEAR] - 100).all()
        ),
        "In the $\\ell_2$ ball of radius 1 the proVAE that was trained on it is certified at least 25 nats above the "
        "plain VAE.": bool((l2[L2] - l2["VAE"] >= 25).all()),
        "There it is also above what percentile smoothing promises of the smoothed ELBO of a noise-trained VAE.": bool(
            (l2[L2] > promised).all()
        ),
        "No attack of the suite passes a certificate of any model, set or radius.": bool((rows["broken"] == 0).all()),
    }


def fashion(rows: pd.DataFrame) -> dict[str, bool]:
    """Rows of `fashion_rows`."""
    gap = rows["attacked"] - rows["certified"]
    return {
        "On Fashion-MNIST the certificates of the proVAEs with $\\kappa=0.5$ are within 12 nats of the attack.": bool(
            (gap <= 12).all()
        )
    }


def lighting(rows: pd.DataFrame, tolerance: float) -> dict[str, bool]:
    """Rows of `lighting_rows`."""
    closed = rows["attacked"] - rows["exact"] <= tolerance + 1e-6
    return {
        "The worst lighting of every image is exact: the attack reaches the exact bound within the tolerance.": bool(
            closed.all()
        )
    }
