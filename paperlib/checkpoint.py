"""Trained models on disk: weights as safetensors with the configuration that made them. No pickle, ever."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from paperlib.config import ConfigMismatchError, TrainConfig
from paperlib.files import atomic
from paperlib.vae import VAE


class DamagedFileError(ValueError):
    """A file is truncated, altered or of another kind than its name says."""


def save(path: str | Path, vae: VAE, config: TrainConfig, data_shape: tuple[int, ...] = (784,)) -> None:
    """Write weights, configuration and data shape to one safetensors file; whole or not at all."""
    tensors = {name: t.detach().cpu() for name, t in vae.state_dict().items()}
    write_tensors(path, tensors, {"config": config.as_dict(), "data_shape": list(data_shape)})


def load(path: str | Path, config: TrainConfig | None = None, vae: VAE | None = None) -> VAE:
    """The model stored at `path`, in evaluation mode on the CPU, rebuilt from the configuration in the file.

    Args:
        config: if given, the file must have been made by exactly this configuration.
        vae: a model of the user's own architecture to fill, instead of the `mlp_vae` of the configuration.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: not a whole safetensors file made by `save` (a pickle is refused), or weights that do not fit.
        ConfigMismatchError: made by another configuration; shows the fields that differ.
    """
    tensors, header = read_tensors(path)
    try:
        stored = TrainConfig.from_dict(header["config"])
        shape = tuple(header["data_shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path} holds no configuration of a training run ({error}); was it made by save()?"
        ) from error
    if config is not None and config != stored:
        raise ConfigMismatchError(path, stored.as_dict(), config.as_dict())
    vae = vae if vae is not None else stored.build(shape)
    try:
        vae.load_state_dict(tensors)
    except RuntimeError as error:
        raise DamagedFileError(f"the weights in {path} do not fit the model: {error}") from error
    return vae.eval()


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Named tensors and a JSON header in one safetensors file; the same content gives the same bytes."""
    # The format keeps metadata in a hash map of unstable order: a single entry has only one.
    with atomic(Path(path)) as temporary:
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, temporary, {"header": json.dumps(header, sort_keys=True)}
        )


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `write_tensors`. Raises FileNotFoundError or DamagedFileError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["header"])
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged or not written by this library: {error}") from error
    return tensors, header
