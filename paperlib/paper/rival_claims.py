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


def defences(rows: pd.DataFrame, smoothed: pd.DataFrame) -> dict[str, bool]:
    """Rows of the comparison, all data sets and seeds; and of `smoothing_rows`, on the first data set."""
    certified, gaps = (
        values.pivot_table(index=["norm", "eps", "dataset"], columns="recipe", values=column)
        for values, column in ((rows, "certified"), (rows.assign(gap=rows["attacked"] - rows["certified"]), "gap"))
    )
    best, l2 = (certified.xs(at, level=["norm", "eps"]) for at in (("linf", 0.1), ("l2", 1.0)))
    gap = gaps.xs("linf", level="norm")
    promised = smoothed.loc[smoothed["eps"] == 1.0, "lower"].max()
    attacked = rows[rows["norm"] == "linf"].groupby(["eps", "dataset", "recipe"])["attacked"].mean()
    errors = rows.groupby(["dataset", "recipe"])["error_certified"].mean()
    datasets = list(rows["dataset"].unique())
    return {
        "At radius 0.1, for which it was trained, the proVAE on the linear bound has the best certificate of all on "
        "every data set.": bool((best[LINEAR] >= best.T.max()).all()),
        "Against the attack adversarial training does better than the proVAEs, but its certificate lies further below "
        "what the attack reaches than theirs.": bool(
            (gap["adversarial training"] > gap[[LINEAR, INTERVALS]].T.max()).all()
            and all(attacked[0.1, name, "adversarial training"] > attacked[0.1, name, LINEAR] for name in datasets)
        ),
        "In CIVET's own metric, the certified error of the reconstruction, CIVET is far ahead of all others.": all(
            errors[name]["CIVET"] < errors[name].drop("CIVET").filter(regex="^(?!.*convolutional)").min() / 2
            for name in datasets
        ),
        "Defences without bounds have no certificate worth the name at radius 0.1.": bool(
            (best[WITHOUT_BOUNDS].T.max() < best[LINEAR] - 100).all()
        ),
        "In the $\\ell_2$ ball of radius 1 the proVAE that was trained on it is certified at least 25 nats above the "
        "plain VAE.": bool((l2[L2] - l2["VAE"] >= 25).all()),
        "There it is also above what percentile smoothing promises of the smoothed ELBO of any noise-trained VAE that "
        "was tried.": bool(l2[L2][datasets[0]] > promised),
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
