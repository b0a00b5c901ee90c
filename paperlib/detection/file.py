"""A detector in one safetensors file with a JSON header: weights, noise, threshold, names and parameters. No pickle."""

import copy
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from paperlib.detection.scaler import Scaler
from paperlib.models.vae import VAE
from paperlib.runtime.files import DamagedFileError, read_tensors, write_tensors
from paperlib.training.config import TrainConfig

FORMAT = "certified detector 1"  # of the header
WEIGHTS = "vae."  # begins the names of the model's tensors

Detector = TypeVar("Detector", bound=Any)


def save(path: str | Path, detector: Any) -> None:
    """Write a fitted detector; whole or not at all, and the same detector gives the same bytes."""
    tensors = {WEIGHTS + name: tensor for name, tensor in detector.vae_.state_dict().items()}
    tensors |= {"noise": detector.noise_, "normal_terms": detector.normal_terms_}
    parameters = {name: value for name, value in detector.get_params(deep=False).items() if name != "vae"}
    header = {
        "format": FORMAT,
        "parameters": {name: _plain(value) for name, value in parameters.items()},
        "config": None if detector.config_ is None else detector.config_.as_dict(),
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
        detector.noise_, detector.normal_terms_ = tensors.pop("noise"), tensors.pop("normal_terms")
        weights = {name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items()}
        detector.vae_ = _model(detector.config_, weights, vae)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedFileError(f"{path} holds no whole detector ({error})") from error
    return detector


def _model(config: TrainConfig | None, weights: dict[str, Tensor], vae: VAE | None) -> VAE:
    if config is None:
        if vae is None:
            raise ValueError("it is one around a model of the user's own: pass such a model, load(path, vae=my_vae)")
        model = copy.deepcopy(vae).double()
    else:
        model = config.build().double()
        if "encoder.0.scale" in weights:
            ones = torch.ones(config.data_shape, dtype=torch.float64)
            model = Scaler(ones, ones).in_user_units(model)
    model.load_state_dict(weights)
    return model.eval()


def _plain(value: Any) -> Any:
    """The value in types of JSON; None for the state of a random generator, which has done its work."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    if isinstance(value, np.random.RandomState):
        return None
    if isinstance(value, float) and math.isinf(value):
        return str(value)  # JSON has no infinity
    return list(value) if isinstance(value, tuple) else value
