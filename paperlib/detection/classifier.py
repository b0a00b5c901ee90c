"""A classifier with a VAE for each class, whose predictions come with certificates, by scikit-learn's conventions."""

import copy
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from paperlib.certificates.method import Method
from paperlib.detection import classifier_file
from paperlib.detection.class_scores import ClassScores
from paperlib.detection.class_vaes import ClassVAEs, Sizes
from paperlib.detection.class_verdicts import certified_margins
from paperlib.detection.labels import checked_labels, class_numbers
from paperlib.detection.margin_training import MarginConfig, train_on_margins
from paperlib.detection.scaler import Radii, Scaler, feature_radii
from paperlib.detection.table import column_names, numeric_rows
from paperlib.models.likelihood import Bernoulli, Gaussian, Likelihood
from paperlib.threats.balls import LinfBall
from paperlib.threats.perturbation import PerturbationSet

DEFAULT_RADIUS = 0.1  # standard deviations of each feature
ROWS = 500  # that are scored at a time


class GenerativeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """Certified: where `certify` gives a row a positive margin, its prediction is the same at every point of the
    perturbation set around it.

    Analysis by synthesis (Schott et al. 2018, arXiv 1805.09190): the prediction is the class whose VAE has the largest
    ELBO at the posterior mean, plus the logarithm of the class's share of the training rows. The encoders share their
    first layers. `fit` trains by likelihood and then on certified margins, see `paperlib.detection.margin_training`.

    Radii and rows are in the user's units. Inside, features are standardized by their mean and spread (standard
    deviation), which is a layer of each model.

    Args:
        eps: radius to train for, in the user's units: one number, or one a feature; None: 0.1 spread of each feature.
        shared: units of the first layer, which the encoders share; or several such layers, [rows, features] -> [rows,
            units], such as convolutions. They are trained from new weights, in a copy.
        hidden: units of each decoder's hidden layer.
        latent_dim: number of latents of each class.
        scale: standard deviation of the Gaussian likelihood, in spreads of each feature.
        steps, batch_size, lr, temperature, likelihood_weight, rivals: of training, see `MarginConfig`.
        standardize: False leaves the features as they are. Those of a Bernoulli likelihood always are.
        low, high: range of the data, to which perturbations are clipped.
        likelihood: "gaussian", or "bernoulli" for values in [0, 1].
        random_state: of the weights and the batches.

    Attributes:
        classes_: the labels, sorted.
        vaes_: the model of each, in the user's units and in float64.
        log_prior_: logarithm of the classes' shares of the training rows, [classes].
    """

    n_features_in_: int

    def __init__(
        self,
        eps: Radii | None = None,
        *,
        shared: int | nn.Sequential = 512,
        hidden: int = 64,
        latent_dim: int = 8,
        scale: float = 0.3,
        steps: int = 2_500,
        batch_size: int = 128,
        lr: float = 2e-3,
        temperature: float = 10.0,
        likelihood_weight: float = 0.05,
        rivals: int = 4,
        standardize: bool = True,
        low: float = -math.inf,
        high: float = math.inf,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        random_state: Any = 0,
    ):
        self.eps = eps
        self.shared = shared
        self.hidden = hidden
        self.latent_dim = latent_dim
        self.scale = scale
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.temperature = temperature
        self.likelihood_weight = likelihood_weight
        self.rivals = rivals
        self.standardize = standardize
        self.low = low
        self.high = high
        self.likelihood = likelihood
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train on labelled rows. Returns itself.

        Args:
            X: [rows, features], a table of numbers.
            y: the class of each row, [rows], numbers or text.

        Raises ValueError, before any work, for a table that `numeric_rows` refuses, a constant feature where features
        are standardized, fewer than two classes, and parameters out of range.
        """
        rows = numeric_rows(self, X, *self._range, reset=True)
        labels = checked_labels(y, len(rows))
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got one class: {self.classes_.tolist()}")
        shares = np.bincount(numbers) / len(numbers)
        self.log_prior_ = np.log(shares)
        self._train(rows, torch.from_numpy(numbers), int(check_random_state(self.random_state).randint(2**31 - 1)))
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """ELBO of each class plus its log prior, [rows, classes], in nats; of two classes the second less the first,
        [rows]. Raises ValueError as `numeric_rows`.
        """
        check_is_fitted(self)
        scores = self._all_scores(X)
        return scores if len(self.classes_) > 2 else scores[:, 1] - scores[:, 0]

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of the largest score, [rows]."""
        check_is_fitted(self)
        return self.classes_[self._all_scores(X).argmax(1)]

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithm of the classes' probabilities were each ELBO its model's log-likelihood, [rows, classes]."""
        return torch.from_numpy(self._all_scores(X)).log_softmax(1).numpy()

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """The same probabilities themselves."""
        return np.exp(self.predict_log_proba(X))

    def certify(
        self,
        X: Any,
        perturbation: PerturbationSet | float,
        y: Any = None,
        *,
        method: str | Method = "crown-ibp",
        sound: bool = False,
        attack: int = 0,
    ) -> pd.DataFrame:
        """Certified: at no point of the perturbation set around a row is the margin below `certified`. Where that is
        positive, the row keeps its class.

        The margin is the score of the row's class less the largest score of another one, in nats.

        Args:
            perturbation: in the user's units; a number is the radius of a `ball`.
            y: classes whose margins are asked for; None: the predicted ones.
            method, sound: as in `paperlib.certificates.difference.elbo_difference`.
            attack: steps of projected gradient descent on the margin, to be followed by half as many against each of
                the three nearest rivals; 0: none, and `attacked` and `met` are missing.

        Returns:
            One row each, indexed as X: prediction, margin, attacked (the least margin met), certified (by the joint
            bound of both ELBOs), separate (what bounds of each ELBO on its own certify), met (the number of inputs that
            the attack evaluated).

        Raises ValueError as `numeric_rows`, for a class that is none of classes_, and for a negative attack.
        """
        rows = self._rows(X)
        chosen = perturbation if isinstance(perturbation, PerturbationSet) else self.ball(perturbation)
        own = None if y is None else class_numbers(checked_labels(y, len(rows)), self.classes_)
        frame = certified_margins(self._scores, rows, own, chosen, method, sound, attack)
        frame["prediction"] = self.classes_[frame["prediction"]]
        return frame.set_index(X.index) if isinstance(X, pd.DataFrame) else frame

    def ball(self, eps: Radii) -> LinfBall:
        """All rows within this radius, in the user's units and in the data range; one number, or one a feature."""
        check_is_fitted(self)
        return LinfBall(feature_radii(eps, self.n_features_in_), *self._range)

    def save(self, path: str | Path) -> None:
        """Write the classifier to one safetensors file; whole or not at all. See `load`."""
        check_is_fitted(self)
        classifier_file.save(path, self)

    @classmethod
    def load(cls, path: str | Path, shared: nn.Sequential | None = None) -> Self:
        """The classifier stored at `path`.

        Args:
            shared: for one with shared layers of the user's own: such layers, to be filled; they are not changed.

        Raises FileNotFoundError, DamagedFileError for a file that is no classifier's, and ValueError where `shared` is
        missing, or other layers than those that were trained.
        """
        return classifier_file.load(cls, path, shared)

    def set_model(self, model: ClassVAEs, scaler: Scaler | None) -> None:
        """Take these trained models, as `fit` and `load` do."""
        self.model_, self.scaler_ = model.double().eval(), scaler
        self.vaes_ = self.model_.vaes(scaler)
        self._scores = ClassScores.of(self.vaes_, torch.from_numpy(self.log_prior_))

    def _train(self, rows: Tensor, numbers: Tensor, seed: int) -> None:
        scaler = Scaler.of(rows, column_names(self)) if self.standardize and self.likelihood == "gaussian" else None
        radius = feature_radii(DEFAULT_RADIUS * rows.std(0) if self.eps is None else self.eps, rows.shape[1])
        options = {field.name: getattr(self, field.name) for field in fields(MarginConfig) if field.name != "seed"}
        config = MarginConfig(**options, seed=seed)
        x, ball = rows.float(), LinfBall(radius.float(), *self._range)
        if scaler is not None:
            x, ball = scaler.standardized(rows), LinfBall((radius / scaler.spread).float(), -math.inf, math.inf)
        model = self.untrained(seed)
        train_on_margins(model, x, numbers, ball, config)
        self.set_model(model, scaler)

    def untrained(self, seed: int) -> ClassVAEs:
        """Models of the sizes that the parameters name; the weights are determined by the seed."""
        sizes = Sizes(self.n_features_in_, len(self.classes_), self.hidden, self.latent_dim)
        likelihood: Likelihood = Bernoulli() if self.likelihood == "bernoulli" else Gaussian(self.scale)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(self.shared, nn.Sequential):
                shared = copy.deepcopy(self.shared)
                for layer in shared.modules():
                    if isinstance(layer, nn.Linear | nn.Conv2d):
                        layer.reset_parameters()
            else:
                shared = nn.Sequential(nn.Linear(self.n_features_in_, self.shared), nn.ReLU())
            return ClassVAEs(sizes, likelihood, shared)

    @torch.no_grad()
    def _all_scores(self, X: Any) -> NDArray[np.float64]:
        return torch.cat([self._scores(part) for part in self._rows(X).split(ROWS)], 1).T.numpy()

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return numeric_rows(self, X, *self._range, reset=False)

    @property
    def _range(self) -> tuple[float, float]:
        """The data range, as far as the likelihood explains it."""
        low, high = Bernoulli.support if self.likelihood == "bernoulli" else Gaussian.support
        return max(self.low, low), min(self.high, high)
