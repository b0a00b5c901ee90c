"""An outlier detector whose verdicts come with certificates, by scikit-learn's conventions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from paperlib.certificates.evaluation import ALLOWANCE
from paperlib.certificates.method import Method
from paperlib.detection import file
from paperlib.detection.conformal import calibration_count, threshold
from paperlib.detection.explain import falls_of, mean_terms
from paperlib.detection.scaler import Radii, Scaler, feature_radii, trained_on, training_config
from paperlib.detection.score import fixed_noise, mean_kl, scores
from paperlib.detection.table import column_names, data_range, numeric_rows
from paperlib.detection.verdicts import Certification
from paperlib.models.elbo import elbo
from paperlib.models.likelihood import Bernoulli, Gaussian
from paperlib.models.vae import VAE
from paperlib.threats.balls import LinfBall
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.config import TrainConfig

DEFAULT_RADIUS = 0.1  # standard deviations of each feature


class CertifiedDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """Certified: a row whose verdict `certify` gives as "alarm" or "calm" has that verdict at every point of the
    perturbation set around it, in real arithmetic; with `sound=True` for the scores as they are computed.

    A row raises an alarm if its score, the ELBO of a VAE at fixed noise, is below a threshold. `fit` trains the VAE on
    normal rows by the library's own loop, on a certified lower bound of the ELBO. The threshold is calibrated on rows
    that were held out, at random: a new normal row then raises a false alarm with a probability of at most alpha, see
    `paperlib.detection.conformal.threshold`.

    Radii and rows are in the user's units. A layer of the model standardizes features by their mean and spread.

    Args:
        eps: radius to train for, in the user's units: one number, or one a feature; None: 0.1 spread of each feature.
        alpha: rate of false alarms that is allowed.
        hidden, latent_dim: widths of the encoder's hidden layers, which the decoder mirrors; number of latents.
        scale: standard deviation of the Gaussian likelihood, in spreads of each feature if it is standardized.
        kappa: weight of the clean ELBO against its certified bound in training; 1 is a plain VAE.
        steps, batch_size, lr: of training; at most as many rows are in a batch as there are.
        calibration: share of the rows that is held out for the threshold.
        outlier_weight: of made-up outliers in training, whose certified upper bounds are pushed down, see
            `paperlib.rivals.outliers`; 0 trains on the rows alone.
        draws: number of fixed noise draws that the score is the mean over; 0: the posterior mean alone.
        standardize: False leaves the features as they are, as a Bernoulli likelihood does in any case.
        low, high: range of the data, to which perturbations are clipped.
        likelihood: "gaussian", or "bernoulli" for values in [0, 1].
        vae: a trained model of the user's own, of rows [batch, features] in their units. `fit` then only calibrates,
            on all rows that it is given: none of them may be one that the model was trained on.
        random_state: of the split, the weights and the batches.

    Attributes:
        vae_: the model, in the user's units and in float64.
        noise_: of the score, [draws, latent_dim]; one row of zeros for draws=0.
        offset_: the threshold, in nats.
        eps_: the radius of each feature that it was trained for, in the user's units; None if it was not trained here.
        alpha_, low_, high_, config_: rate of false alarms, data range and training, as they were at `fit`.
        calibration_size_, calibration_rows_: number of rows behind the threshold; which of `fit` (not kept in files).
        normal_terms_: mean over these rows of the log-likelihood of each feature and of -KL, [features + 1], in nats.
        kl_: mean KL of these rows in nats; near 0 the latents say nothing of the rows.
    """

    eps_: NDArray[np.float64] | None
    config_: TrainConfig | None
    n_features_in_: int

    def __init__(
        self,
        eps: Radii | None = None,
        *,
        alpha: float = 0.05,
        hidden: Sequence[int] = (64,),
        latent_dim: int = 8,
        scale: float = 0.5,
        kappa: float = 0.5,
        steps: int = 2_500,
        batch_size: int = 128,
        lr: float = 2e-3,
        calibration: float = 0.2,
        draws: int = 0,
        outlier_weight: float = 0.0,
        standardize: bool = True,
        low: float = -math.inf,
        high: float = math.inf,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        vae: VAE | None = None,
        random_state: Any = 0,
    ):
        self.eps = eps
        self.alpha = alpha
        self.hidden = hidden
        self.latent_dim = latent_dim
        self.scale = scale
        self.kappa = kappa
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.calibration = calibration
        self.draws = draws
        self.outlier_weight = outlier_weight
        self.standardize = standardize
        self.low = low
        self.high = high
        self.likelihood = likelihood
        self.vae = vae
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on some of the normal rows, and calibrate the threshold on the others. Returns itself.

        Args:
            X: [rows, features], a table of numbers.
            y: ignored.

        Raises ValueError, before any work, for a table that `numeric_rows` refuses, a constant feature that would be
        standardized, fewer rows than the threshold needs, and parameters out of range.
        """
        likelihood = Bernoulli if self.likelihood == "bernoulli" else Gaussian
        self.low_, self.high_ = data_range(self.low, self.high, likelihood if self.vae is None else self.vae.likelihood)
        self.alpha_ = self.alpha
        rows = numeric_rows(self, X, self.low_, self.high_, reset=True)
        random = check_random_state(self.random_state)
        order = torch.from_numpy(random.permutation(len(rows)))
        seed = int(random.randint(2**31 - 1))
        held_out = len(rows) if self.vae is not None else calibration_count(len(rows), self.calibration, self.alpha)
        calibration, training = rows[order[:held_out]], rows[order[held_out:]]
        if self.vae is not None:
            self.noise_ = fixed_noise(self.draws, self.vae.latent_dim, seed)
            self.vae_, self.config_, self.eps_ = self.vae.in_float64(), None, None
        else:
            self.config_ = training_config(self.get_params(deep=False), training, seed)
            self.noise_ = fixed_noise(self.draws, self.config_.latent_dim, seed)
            standardized = self.standardize and self.likelihood == "gaussian"
            scaler = Scaler.of(training, column_names(self)) if standardized else None
            radius = feature_radii(DEFAULT_RADIUS * training.std(0) if self.eps is None else self.eps, rows.shape[1])
            self.vae_ = trained_on(training, radius, self.config_, scaler, self.low_, self.high_)
            self.eps_ = radius.numpy()
        elbo(self.vae_, calibration[:1], self.noise_[:1])  # says what does not fit in a model of the user's own
        # lower by what float64 rounds a score, which depends on the rows beside it: a row that ties must not fall below
        lowest = threshold(scores(self.vae_, calibration, self.noise_), self.alpha)
        self.offset_ = lowest - ALLOWANCE * (1 + abs(lowest))
        self.calibration_rows_, self.calibration_size_ = order[:held_out].numpy(), len(calibration)
        self.normal_terms_ = mean_terms(self.vae_, calibration, self.noise_)
        self.kl_ = mean_kl(self.vae_, calibration)
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """The score of each row, [rows], in nats: higher is more normal. Raises ValueError as `numeric_rows`."""
        rows = self._rows(X)
        return scores(self.vae_, rows, self.noise_).numpy()

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """The score less the threshold, [rows], in nats: negative raises an alarm."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """-1 for a row that raises an alarm, its score being below the threshold, +1 for the others."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def certify(
        self,
        X: Any,
        perturbation: PerturbationSet | float,
        *,
        method: str | Method = "crown-ibp",
        sound: bool = False,
        radius: bool = True,
        attack: bool = True,
    ) -> pd.DataFrame:
        """Certified: at no point of the perturbation set around a row is its score outside of [lower, upper].

        So the verdict "alarm" (upper < threshold) cannot be silenced within the set, and "calm" (lower >= threshold)
        cannot be turned into an alarm; "undecided" is neither. Bounds hold in real arithmetic, and verdicts leave room
        for float64 rounding; with `sound` both are proven for the scores as they are computed.

        Args:
            perturbation: in the user's units; a number is the radius of a `ball`.
            method, sound: as in `paperlib.elbo_bounds`.
            radius: False leaves `certified_radius` empty (NaN), which costs about ten times as much as the bounds.
            attack: False leaves `attacked_lower` and `attacked_upper` empty.

        Returns:
            One row each, indexed as X: score, lower, upper in nats; verdict; certified_radius, the largest size of the
            set, scaled by 2^-12 to 2^10, at which the row's own verdict is certified (to 0.4 %, rounded down; 0 below);
            attacked_lower, attacked_upper, the least and largest score that projected gradient descent reaches.

        Raises:
            ValueError: as `numeric_rows`, and for a perturbation that does not fit the rows.
            NotImplementedError: a set that cannot be scaled, such as a patch: use radius=False.
            SandwichViolationError: the score or an attack is outside of [lower, upper] by more than rounding.
        """
        rows = self._rows(X)
        chosen = perturbation if isinstance(perturbation, PerturbationSet) else self.ball(perturbation)
        frame = Certification(self.vae_, self.noise_, self.offset_, method, sound, radius, attack).rows(rows, chosen)
        return frame.set_index(X.index) if isinstance(X, pd.DataFrame) else frame

    def explain(self, row: Any) -> pd.Series:
        """By how much each feature lowers the score of a row, in nats: its term of the log-likelihood, exact, less the
        mean of that term over the calibration rows, with the sign turned; and the same of -KL, under "KL".

        Together they are the mean score of the calibration rows less the score of this one.

        Args:
            row: a table of one row.

        Raises ValueError as `numeric_rows`, for another number of rows, and for a row whose score overflows; and
        NotImplementedError for a likelihood of the user's own without `terms`.
        """
        rows = self._rows(row)
        if len(rows) != 1:
            raise ValueError(f"one row is explained at a time, got {len(rows)}: pass X[:1], or X.iloc[[0]]")
        falls = falls_of(self.vae_, rows, self.noise_, self.normal_terms_)
        return pd.Series(falls.numpy(), index=[*column_names(self), "KL"], name="fall")

    def ball(self, eps: Radii) -> LinfBall:
        """All rows within this radius, in the user's units and in the data range: one number, or one a feature, where 0
        freezes it. Raises ValueError as `feature_radii`.
        """
        check_is_fitted(self)
        return LinfBall(feature_radii(eps, self.n_features_in_), self.low_, self.high_)

    def save(self, path: str | Path) -> None:
        """Write the detector to one safetensors file; whole or not at all."""
        check_is_fitted(self)
        file.save(path, self)

    @classmethod
    def load(cls, path: str | Path, vae: VAE | None = None) -> Self:
        """The detector stored at `path`; where it is around a model of the user's own, `vae` is one of the same layers.

        Raises FileNotFoundError, DamagedFileError for no detector's file, ValueError for a `vae` missing or unneeded.
        """
        return file.load(cls, path, vae)

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return numeric_rows(self, X, self.low_, self.high_, reset=False)
