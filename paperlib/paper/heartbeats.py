"""Heartbeats of notebook 8: a certified detector beside one around a plain VAE, clean, attacked and certified.

Recipe and radii were chosen on training beats and on outliers made of them; abnormal beats are in the test set alone.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.evaluation import NOISE_SEED
from paperlib.data.datasets import data_origin, load_dataset
from paperlib.detection import CertifiedDetector
from paperlib.detection.ranking import auc, guaranteed_auc, two_sided_guaranteed_auc
from paperlib.detection.score import score
from paperlib.paper.detectors import parameters, shares
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.threats.suite import run_suite

EPS = 0.1  # standard deviations of a beat, as the archive has them: of pictures and of the verdicts in `radius_rows`
RADII = {"paper": (0.01, 0.025, 0.05, 0.075, 0.1, 0.15), "smoke": (0.05, 0.1)}
# arguments of CertifiedDetector: training at a larger radius than EPS leaves more beats calm, and detects as many. eps,
# scale and hidden were chosen on training beats and on outliers made of them; calibration is the default.
SHARED: dict[str, Any] = {"eps": 0.15, "scale": 0.5, "hidden": [128], "standardize": False}
RECIPES: dict[str, dict[str, Any]] = {"VAE": {"kappa": 1.0}, "proVAE": {"kappa": 0.5}}
STEPS = {"paper": 2_500, "smoke": 40}
BEATS = {"paper": None, "smoke": 60}  # of the normal test beats, and of the abnormal ones; None: all
ATTACK_STEPS = {"paper": 40, "smoke": 3}
METHOD = "crown"


def heartbeats_config(profile: str) -> dict[str, Any]:
    """What the rows and tensors of this module depend on."""
    return {
        "data": data_origin("ecg5000"),
        "profile": profile,
        "recipes": {name: parameters(SHARED | recipe | {"steps": STEPS[profile]}) for name, recipe in RECIPES.items()},
        "beats": BEATS[profile],
        "radii": list(RADII[profile]),
        "eps": EPS,
        "attack_steps": ATTACK_STEPS[profile],
        "method": METHOD,  # of verdicts and radii
        "beat": "silenced on the VAE, of lowest upper bound by the proVAE; each model attacked itself",
        "seed": NOISE_SEED,
    }


@dataclass(frozen=True)
class Study:
    """A fitted detector, and its rows, see `detection_rows` and `radius_rows`."""

    detector: CertifiedDetector
    detection: pd.DataFrame
    radii: pd.DataFrame


@cache
def studies(profile: str) -> dict[str, Study]:
    """One for each recipe, fitted to the training beats at 5 % false alarms."""
    works = [(name, profile) for name in RECIPES]
    return dict(zip(RECIPES, in_parallel(_study, works, jobs=training_jobs(), name="detectors"), strict=True))


def _study(work: tuple[str, str]) -> Study:
    name, profile = work
    recipe = SHARED | RECIPES[name] | {"steps": STEPS[profile]}
    detector = CertifiedDetector(**recipe).fit(load_dataset("ecg5000").x.double().numpy())
    detection = pd.DataFrame(_at_radius(detector, eps, profile) for eps in RADII[profile])
    radii = pd.concat([_radii(detector, abnormal, profile) for abnormal in (False, True)], ignore_index=True)
    for frame in (detection, radii):
        frame.insert(0, "model", name)
    return Study(detector, detection, radii)


def tested_beats(profile: str) -> tuple[Tensor, Tensor]:
    """Normal and abnormal beats of the test set, [count, 140] each, in float64."""
    test, count = load_dataset("ecg5000", "test"), BEATS[profile]
    assert test.y is not None
    return test.x[test.y == 0][:count].double(), test.x[test.y > 0][:count].double()


@dataclass(frozen=True)
class Extremes:
    """Scores of rows, and the lowest and the highest that the suite of attacks reaches around each, [rows], nats."""

    score: Tensor
    lowest: Tensor
    highest: Tensor
    met: int  # inputs that the attacks evaluated


def attacked(detector: CertifiedDetector, x: Tensor, eps: float, steps: int) -> Extremes:
    """What `run_suite` makes of the scores within the radius, in both directions."""
    ball, noise = detector.ball(eps), detector.noise_.expand(len(x), -1)
    generator = torch.Generator().manual_seed(NOISE_SEED)
    down, up = (run_suite(detector.vae_, x, ball, noise, steps, generator, maximize=up) for up in (False, True))
    with torch.no_grad():
        clean = score(detector.vae_, x, detector.noise_)
    return Extremes(clean, down.elbo, up.elbo, down.evaluated + up.evaluated)


def detection_rows(profile: str) -> pd.DataFrame:
    """A row for each detector and radius, shares of the test beats in [0, 1].

    Of abnormal beats: detection (clean), attacked_detection, certified_detection. Of normal ones, without an alarm:
    calm, attacked_calm, certified_calm. auc, guaranteed_auc (outliers at their upper bounds), two_sided_auc (normal
    beats at their lower bounds, too). normal, abnormal: numbers of beats. met: inputs that the attacks evaluated;
    broken: beats whose certified verdict one of them changed. kl: mean of the calibration rows, nats.
    """
    return pd.concat([study.detection for study in studies(profile).values()], ignore_index=True)


def _at_radius(detector: CertifiedDetector, eps: float, profile: str) -> dict[str, Any]:
    threshold, steps = detector.offset_, ATTACK_STEPS[profile]
    frames, reached = [], []
    for beats in tested_beats(profile):
        frames.append(detector.certify(beats.numpy(), eps, method=METHOD, radius=False, attack=False))
        reached.append(attacked(detector, beats, eps, steps))
    (calm, alarm), (normal, abnormal) = frames, reached
    lower, upper = (
        torch.from_numpy(frame[end].to_numpy(copy=True)) for frame, end in ((calm, "lower"), (alarm, "upper"))
    )
    broken = 0
    for frame, ends in zip(frames, reached, strict=True):
        silenced = (frame["verdict"] == "alarm").to_numpy() & (ends.highest >= threshold).numpy()
        raised = (frame["verdict"] == "calm").to_numpy() & (ends.lowest < threshold).numpy()
        broken += int((silenced | raised).sum())
    return {
        "eps": eps,
        **shares([normal.score, normal.lowest, lower], [abnormal.score, abnormal.highest, upper], threshold),
        "auc": auc(normal.score, abnormal.score),
        "guaranteed_auc": guaranteed_auc(normal.score, upper),
        "two_sided_auc": two_sided_guaranteed_auc(lower, upper),
        "normal": len(calm),
        "abnormal": len(alarm),
        "met": normal.met + abnormal.met,
        "broken": broken,
        "kl": detector.kl_,
    }


def radius_rows(profile: str) -> pd.DataFrame:
    """A row for each detector and test beat: model, abnormal, score less threshold (nats), verdict at EPS, and the
    largest radius at which the beat's own verdict is certified.
    """
    return pd.concat([study.radii for study in studies(profile).values()], ignore_index=True)


def _radii(detector: CertifiedDetector, abnormal: bool, profile: str) -> pd.DataFrame:
    frame = detector.certify(tested_beats(profile)[abnormal].numpy(), EPS, method=METHOD, attack=False)
    score = frame["score"] - detector.offset_
    columns = {"score": score, "verdict": frame["verdict"], "radius": frame["certified_radius"]}
    return pd.DataFrame({"abnormal": abnormal, **columns})


def pictures(profile: str) -> dict[str, Tensor]:
    """An abnormal test beat whose alarm by the plain VAE an attack within EPS silences (any, where none is): of these
    the one of lowest certified upper bound by the proVAE. beat [140]; by model: reconstruction [140] of the beat,
    attacked [140], where the suite raises this model's own score most, and scores less the threshold, [4]: of both, and
    the certified lower and upper bound.
    """
    fitted = {name: study.detector for name, study in studies(profile).items()}
    abnormal = tested_beats(profile)[1]
    plain, robust = fitted["VAE"], fitted["proVAE"]
    raised = _raised(plain, abnormal, profile)
    silenced = (plain.predict(abnormal.numpy()) < 0) & (plain.predict(raised.numpy()) > 0)
    upper = robust.certify(abnormal.numpy(), EPS, method=METHOD, radius=False, attack=False)["upper"].to_numpy()
    chosen = int(np.where(silenced | ~silenced.any(), upper, np.inf).argmin())
    beat = abnormal[chosen : chosen + 1]
    stored = {"beat": beat[0]}
    for name, detector in fitted.items():
        point = raised[chosen : chosen + 1] if detector is plain else _raised(detector, beat, profile)
        bounds = detector.certify(beat.numpy(), EPS, method=METHOD, radius=False, attack=False)
        both = detector.score_samples(torch.cat([beat, point]).numpy())
        values = [*both, bounds["lower"].iloc[0], bounds["upper"].iloc[0]]
        stored[f"{name} reconstruction"] = detector.vae_.reconstruct(beat)[0]
        stored[f"{name} attacked"] = point[0]
        stored[f"{name} scores"] = torch.tensor(values, dtype=torch.float64) - detector.offset_
    return stored


def _raised(detector: CertifiedDetector, x: Tensor, profile: str) -> Tensor:
    """Where the suite of attacks raises the score most, within EPS of each row."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    ball, noise = detector.ball(EPS), detector.noise_.expand(len(x), -1)
    return run_suite(detector.vae_, x, ball, noise, ATTACK_STEPS[profile], generator, maximize=True).x_adv
