"""The rivals of the certified detector, for notebook 8: what each detects, what attacks make of it, what it promises.

All detectors of a table are fitted to the same normal rows, and have a threshold by the same split conformal rule on as
many others. They are attacked by the same searches, within reason: a forest has no gradient.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf, nan
from time import process_time
from typing import Any, Self

import pandas as pd
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.data.arrays import Dataset, Norm
from paperlib.data.datasets import load_dataset
from paperlib.detection import CertifiedDetector
from paperlib.detection.conformal import calibration_count, threshold
from paperlib.detection.ranking import auc, guaranteed_auc
from paperlib.detection.score import mean_kl, score, score_bounds
from paperlib.models.vae import VAE
from paperlib.paper.detectors import parameters, shares
from paperlib.rivals.autoencoder import Autoencoder
from paperlib.rivals.isolation_forest import ForestScore
from paperlib.rivals.one_class_svm import KernelScore
from paperlib.rivals.outlier_score import OutlierScore
from paperlib.rivals.smoothed_score import SmoothedScore
from paperlib.runtime.progress import Progress
from paperlib.threats.balls import LinfBall
from paperlib.threats.l2_ball import L2Ball
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.config import TrainConfig
from paperlib.training.loop import train

THREATS: tuple[tuple[Norm, float], ...] = (("linf", 0.05), ("linf", 0.1), ("l2", 0.1), ("l2", 0.5))
SIGMAS = (0.25, 0.5)  # of smoothing; larger ones promise something at larger radii, and see less
ALPHA, CALIBRATION, SEED = 0.05, 0.2, 0
CONFIDENCE = 0.999  # of each end that smoothing promises
STEPS = {"paper": 2_500, "smoke": 20}  # of training, for all that is trained by steps
ROWS = {"paper": 5_000, "smoke": 20}  # at most, of the normal test rows and of the outliers
SMOOTHED = {"paper": 200, "smoke": 5}  # of them by percentile smoothing
SAMPLES = {"paper": 1_000, "smoke": 50}
ATTACK_STEPS = {"paper": 40, "smoke": 4}
BOUNDED = 500  # rows at a time
COLUMNS = (
    *("detector", "threat", "eps", "normals", "outliers", "kl", "detection", "calm", "attacked_detection"),
    *("attacked_calm", "certified_detection", "certified_calm", "promise", "auc", "guaranteed_auc", "seconds"),
)
OURS: Mapping[str, Any] = {"eps": 0.1, "kappa": 0.5}


@dataclass(frozen=True)
class ElboScore(OutlierScore):
    """The score of a fitted `CertifiedDetector`, and its certificates by CROWN."""

    detector: CertifiedDetector

    def score(self, x: Tensor) -> Tensor:
        return score(self.detector.vae_, x, self.detector.noise_)

    def bounds(self, x: Tensor, ball: PerturbationSet) -> Interval:
        """For a set of one size for all rows."""
        vae, noise = self.detector.vae_, self.detector.noise_
        parts = [score_bounds(vae, part, ball, noise, "crown") for part in x.split(BOUNDED)]
        return Interval(*(torch.cat(ends) for ends in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Tables:
    """Rows in float64, [rows, features]: normal ones to make detectors of, and normal ones and outliers to test."""

    training: Tensor
    normal: Tensor
    outlier: Tensor

    @classmethod
    def of(cls, train: Dataset, test: Dataset, count: int, *, standardize: bool) -> Self:
        """Of the test set at most `count` rows of either kind, see `some`.

        Args:
            standardize: by mean and standard deviation of each feature of the training rows.
        """
        training, tested = train.x.double(), test.x.double()
        if standardize:
            spread, mean = torch.std_mean(training, 0)
            training, tested = (training - mean) / spread, (tested - mean) / spread
        abnormal = torch.as_tensor(test.y) > 0
        return cls(training, tested[~abnormal], tested[abnormal]).some(count)

    def some(self, count: int) -> Self:
        """The same with at most `count` rows of either kind to test, evenly spaced, as the outliers may be sorted."""
        normal, outlier = (
            rows[torch.linspace(0, len(rows) - 1, count).round().long()] if len(rows) > count else rows
            for rows in (self.normal, self.outlier)
        )
        return replace(self, normal=normal, outlier=outlier)

    @property
    def split(self) -> tuple[Tensor, Tensor]:
        """The training rows that a detector is fitted to, and those that its threshold is calibrated on: the same ones
        as in a `CertifiedDetector` of this seed.
        """
        held_out = calibration_count(len(self.training), CALIBRATION, ALPHA)
        order = torch.from_numpy(check_random_state(SEED).permutation(len(self.training)))
        return self.training[order[held_out:]], self.training[order[:held_out]]


@dataclass(frozen=True)
class Rival:
    """A detector of the comparison: its name, how it is made, and what its certificates promise."""

    name: str
    fit: Callable[[Tables], OutlierScore]
    promise: str = "certain"


def rival_rows(dataset: str, profile: str, ours: Mapping[str, Any] = OURS) -> pd.DataFrame:
    """One row for each detector and threat of `THREATS`.

    Rates in [0, 1]: `detection` is the share of outliers that raise an alarm, `calm` that of normal rows that raise
    none; `attacked_*` what is left of each by an adversary who silences alarms, or raises them; `certified_*` what no
    adversary of this radius can take away, NaN where nothing is proven. A `promise` is "certain", or "with confidence
    0.999" for each row, or "none". auc, and guaranteed_auc with outliers at their upper bounds; `normals` and
    `outliers` are counts of test rows; `kl`, in nats, is the mean of the calibration rows, NaN without a posterior;
    `seconds` is the processor time of fitting, attacks and certificates together.

    Args:
        dataset: "ecg5000", in its own units; "wdbc", in standard deviations of each feature of the normal rows.
        ours: arguments of `CertifiedDetector` for the last detector; the other networks have its widths.
    """
    train_set, test_set = load_dataset(dataset), load_dataset(dataset, "test")
    tables = Tables.of(train_set, test_set, ROWS[profile], standardize=dataset == "wdbc")
    compared, frames = rivals(profile, ours), []
    with Progress(f"rivals on {dataset}", len(compared)) as progress:
        for rival in compared:
            part = tables.some(SMOOTHED[profile]) if rival.promise.startswith("with") else tables
            frames.append(measured(rival, part, ATTACK_STEPS[profile]))
            progress.step(note=rival.name)
    return pd.concat(frames, ignore_index=True)


def rivals_config(dataset: str, profile: str, ours: Mapping[str, Any] = OURS) -> dict[str, Any]:
    """What the rows of `rival_rows` depend on."""
    return {
        "dataset": dataset,
        "threats": [list(threat) for threat in THREATS],
        "sigmas": list(SIGMAS),
        "alpha": ALPHA,
        "calibration": CALIBRATION,
        "seed": SEED,
        "confidence": CONFIDENCE,
        "steps": STEPS[profile],
        "rows": ROWS[profile],
        "smoothed": SMOOTHED[profile],
        "samples": SAMPLES[profile],
        "attack_steps": ATTACK_STEPS[profile],
        "ours": parameters({"steps": STEPS[profile], **ours}),
    }


def rivals(profile: str, ours: Mapping[str, Any]) -> list[Rival]:
    """The detectors of the comparison, the certified one last."""
    steps, samples, like = STEPS[profile], SAMPLES[profile], CertifiedDetector(**ours)

    def smoothed(sigma: float) -> Rival:
        def fit(tables: Tables) -> SmoothedScore:
            return SmoothedScore(_noise_trained(tables, sigma, like, steps), sigma, samples, CONFIDENCE, SEED)

        return Rival(f"smoothed VAE, sigma {sigma:g}", fit, f"with confidence {CONFIDENCE:g}")

    def autoencoder(tables: Tables) -> Autoencoder:
        return Autoencoder.fit(tables.split[0], like.hidden, like.latent_dim, steps=steps, seed=SEED)

    return [
        Rival("isolation forest", lambda tables: ForestScore.fit(tables.split[0], seed=SEED)),
        Rival("one-class SVM", lambda tables: KernelScore.fit(tables.split[0], nu=ALPHA)),
        Rival("autoencoder", autoencoder, "none"),
        Rival("VAE", lambda tables: _detector(tables, {"steps": steps, **ours, "kappa": 1.0})),
        *map(smoothed, SIGMAS),
        Rival("certified detector", lambda tables: _detector(tables, {"steps": steps, **ours})),
    ]


def _detector(tables: Tables, parameters: Mapping[str, Any]) -> ElboScore:
    detector = CertifiedDetector(alpha=ALPHA, calibration=CALIBRATION, standardize=False, random_state=SEED)
    return ElboScore(detector.set_params(**parameters).fit(tables.training.numpy()))


def _noise_trained(tables: Tables, sigma: float, like: CertifiedDetector, steps: int) -> VAE:
    """The VAE of this detector, trained at noisy inputs alone, as its smoothing asks for."""
    rows = tables.split[0].float()
    config = TrainConfig(
        dataset="own rows",
        data_shape=tuple(rows.shape[1:]),
        hidden=tuple(like.hidden),
        latent_dim=like.latent_dim,
        likelihood="gaussian",
        scale=like.scale,
        objective="noise",
        eps=sigma,
        kappa=0.0,
        steps=steps,
        batch_size=min(like.batch_size, len(rows) * 9 // 10),  # `train` holds out a tenth
        lr=like.lr,
        seed=SEED,
    )
    return train(config, data=Dataset("own rows", rows, low=-inf, high=inf), device="cpu").vae


def measured(rival: Rival, tables: Tables, steps: int) -> pd.DataFrame:
    """The rows of one detector, see `rival_rows`.

    Args:
        steps: of each attack.
    """
    start = process_time()
    detector = rival.fit(tables)
    with torch.no_grad():
        calibration, normal, outlier = map(detector.score, (tables.split[1], tables.normal, tables.outlier))
    limit = threshold(calibration, ALPHA)
    about = {"detector": rival.name, "normals": len(normal), "outliers": len(outlier), "promise": rival.promise}
    about |= {"kl": _kl(detector, tables.split[1]), "auc": auc(normal, outlier)}
    rows = []
    for norm, eps in THREATS:
        ball: PerturbationSet = LinfBall(eps, -inf, inf) if norm == "linf" else L2Ball(eps, -inf, inf)
        generator = torch.Generator().manual_seed(SEED)
        silenced = detector.attack(tables.outlier, ball, steps, generator, maximize=True)
        raised = detector.attack(tables.normal, ball, steps, generator, maximize=False)
        with torch.no_grad():
            of_normal, of_outlier = [normal, detector.score(raised)], [outlier, detector.score(silenced)]
        proven = {}
        below, above = (detector.bounds(x, ball) for x in (tables.normal, tables.outlier))
        if below is not None and above is not None:
            of_normal.append(below.lower)
            of_outlier.append(above.upper)
            proven["guaranteed_auc"] = guaranteed_auc(normal, above.upper)
        rows.append({**about, "threat": norm, "eps": eps, **shares(of_normal, of_outlier, limit), **proven})
    return pd.DataFrame(rows).reindex(columns=COLUMNS[:-1]).assign(seconds=process_time() - start)


def _kl(detector: OutlierScore, rows: Tensor) -> float:
    """The mean KL of rows in nats; NaN for a detector without a posterior."""
    if isinstance(detector, SmoothedScore):
        return mean_kl(detector.vae.in_float64(), rows)
    return mean_kl(detector.detector.vae_, rows) if isinstance(detector, ElboScore) else nan
