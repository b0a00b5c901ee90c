"""A detector in one safetensors file with a JSON header: weights, noise, threshold, names and parameters. No pickle."""

import copy
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from paperlib.bounds.scaling import Scaling
from paperlib.detection.scaler import Scaler
from paperlib.models.elbo import elbo
from paperlib.models.vae import VAE
from paperlib.runtime.files import DamagedFileError, read_tensors, write_tensors
from paperlib.training.config import TrainConfig

FORMAT = "certified detector 1"  # of the header
WEIGHTS = "vae."  # begins the names of the model's tensors

Detector = TypeVar("Detector", bound=Any)


def save(path: str | Path, detector: Any) -> None:
    """Write a fitted detector; whole or not at all, and the same detector gives the same bytes."""
    tensors = {WEIGHTS + name: tensor for name, tensor in detector.vae_.state_dict().items()}
    tensors["noise"] = detector.noise_
    if detector.normal_terms_ is not None:
        tensors["normal_terms"] = detector.normal_terms_
    parameters = {name: value for name, value in detector.get_params(deep=False).items() if name != "vae"}
    header = {
        "format": FORMAT,
        "parameters": {name: _plain(value) for name, value in parameters.items()},
        "config": None if detector.config_ is None else detector.config_.as_dict(),
        "standardized": any(isinstance(layer, Scaling) for layer in detector.vae_.encoder.children()),
        "range": [_plain(detector.low_), _plain(detector.high_)],
        "alpha": detector.alpha_,
        "threshold": detector.offset_,
        "calibration_size": detector.calibration_size_,
        "eps": _plain(detector.eps_),
        "kl": detector.kl_,
        "features": detector.n_features_in_,
        "names": _plain(getattr(detector, "feature_names_in_", None)),
    }
    write_tensors(path, tensors, header)


def load(kind: type[Detector], path: str | Path, vae: VAE | None) -> Detector:
    """The inverse of `save`: a detector of this class. Arguments and errors as `CertifiedDetector.load`."""
    tensors, header = read_tensors(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DamagedFileError(f"{path} is no detector: CertifiedDetector.save writes one")
    if (header.get("config") is None) != (vae is not None):
        raise ValueError(
            f"{path} is a detector around a model of the user's own: CertifiedDetector.load(path, vae=my_vae) takes it"
            if vae is None
            else f"{path} holds the model that it was trained with: load it without `vae`"
        )
    try:
        given = header["parameters"]
        ends = {name: float(given[name]) for name in ("low", "high")}
        detector = kind(**given | ends | {"hidden": tuple(given["hidden"])}, vae=vae)
        config = header["config"]
        detector.config_ = None if config is None else TrainConfig.from_dict(config)
        detector.offset_, detector.calibration_size_ = float(header["threshold"]), int(header["calibration_size"])
        detector.eps_ = None if header["eps"] is None else np.array(header["eps"], dtype=np.float64)
        detector.kl_, detector.n_features_in_ = float(header["kl"]), int(header["features"])
        if header["names"] is not None:
            detector.feature_names_in_ = np.array(header["names"], dtype=object)
        detector.low_, detector.high_ = (float(end) for end in header["range"])
        detector.alpha_ = float(header["alpha"])
        detector.noise_, detector.normal_terms_ = tensors.pop("noise"), tensors.pop("normal_terms", None)
        weights = {name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items()}
        detector.vae_ = _model(detector.config_, bool(header["standardized"]), weights, vae)
        row = torch.zeros(1, detector.n_features_in_, dtype=torch.float64).clamp(detector.low_, detector.high_)
        elbo(detector.vae_, row, detector.noise_[:1])  # says what does not fit together
        if math.isnan(detector.offset_):
            raise ValueError(f"its threshold is {detector.offset_}")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedFileError(f"{path} holds no whole detector ({error})") from error
    return detector


def _model(config: TrainConfig | None, standardized: bool, weights: dict[str, Tensor], vae: VAE | None) -> VAE:
    if vae is not None:
        model = copy.deepcopy(vae).double()
    else:
        assert config is not None
        model = config.build().double()
        if standardized:
            ones = torch.ones(config.data_shape, dtype=torch.float64)
            model = Scaler(ones, ones).in_user_units(model)
    model.load_state_dict(weights)
    return model.eval()


def _plain(value: Any) -> Any:
    """The value in types of JSON; None for the state of a random generator, which has done its work."""
    if isinstance(value, np.random.RandomState):
        return None
    if isinstance(value, np.ndarray | np.generic | Tensor | pd.Series):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value  # JSON has no infinity
