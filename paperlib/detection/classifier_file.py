"""A generative classifier in one safetensors file with a JSON header: weights, classes and parameters. No pickle."""

from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from paperlib.detection.scaler import Scaler
from paperlib.runtime.files import DamagedFileError, read_tensors, write_tensors

FORMAT = "generative classifier 1"  # of the header

Classifier = TypeVar("Classifier", bound=Any)


class SharedLayersError(ValueError):
    """A file is to be loaded with other shared layers than those that it was trained with, or without them."""


def save(path: str | Path, classifier: Any) -> None:
    """Write a fitted classifier; whole or not at all, and the same classifier gives the same bytes."""
    tensors = classifier.model_.state_dict() | {"log_prior": torch.from_numpy(classifier.log_prior_)}
    if classifier.scaler_ is not None:
        tensors |= {"mean": classifier.scaler_.mean, "spread": classifier.scaler_.spread}
    names = getattr(classifier, "feature_names_in_", None)
    header = {
        "format": FORMAT,
        "layers": _layers(classifier.model_.shared),
        "parameters": {name: _plain(value) for name, value in classifier.get_params().items()},
        "classes": classifier.classes_.tolist(),
        "features": classifier.n_features_in_,
        "names": None if names is None else names.tolist(),
    }
    write_tensors(path, tensors, header)


def load(kind: type[Classifier], path: str | Path, shared: nn.Sequential | None) -> Classifier:
    """The inverse of `save`: a classifier of this class. Arguments and errors as `GenerativeClassifier.load`."""
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise DamagedFileError(f"{path} is no generative classifier: GenerativeClassifier.save writes one")
    try:
        parameters, layers = header["parameters"], header["layers"]
        _check_shared(path, layers, parameters["shared"], shared)
        if shared is not None:
            parameters |= {"shared": shared}
        classifier = kind(**parameters)
        classifier.classes_, classifier.n_features_in_ = np.array(header["classes"]), int(header["features"])
        if header["names"] is not None:
            classifier.feature_names_in_ = np.array(header["names"], dtype=object)
        classifier.log_prior_ = tensors.pop("log_prior").numpy()
        scaler = Scaler(tensors.pop("mean"), tensors.pop("spread")) if "spread" in tensors else None
        model = classifier.untrained(0).double()
        model.load_state_dict(tensors)
        classifier.set_model(model, scaler)
    except SharedLayersError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedFileError(f"{path} holds no whole classifier ({error})") from error
    return classifier


def _layers(shared: nn.Module) -> list[str]:
    """Each of the layers in words, in order; two lists are the same where the layers but for their weights are."""
    return [repr(layer) for layer in shared.modules() if not [*layer.children()]]


def _check_shared(path: str | Path, stored: list[str], units: int | None, given: nn.Sequential | None) -> None:
    """Raises SharedLayersError unless layers are given where the stored ones are the user's own, and are the same."""
    if given is None:
        if units is None:
            raise SharedLayersError(
                f"{path} has shared layers of the user's own, {', '.join(stored)}: pass such layers, "
                "load(path, shared=my_layers)"
            )
        return
    for number, (theirs, ours) in enumerate(zip_longest(stored, _layers(given), fillvalue="none")):
        if theirs != ours:
            raise SharedLayersError(
                f"{path} was trained with other shared layers: layer {number} is {theirs} there, and {ours} was given"
            )


def _plain(value: Any) -> Any:
    """The value in types of JSON; None for what no header holds: layers, and the state of a random generator."""
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    return None if isinstance(value, np.random.RandomState | nn.Module) else value
