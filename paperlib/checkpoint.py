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


def save(path: str | Path, vae: VAE, config: TrainConfig) -> None:
    """Write weights and configuration to one safetensors file; whole or not at all."""
    write_tensors(path, vae.state_dict(), {"config": config.as_dict()})


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
        stored = TrainConfig.from_dict(dict(header["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path} holds no configuration of a training run ({error}); was it made by save()?"
        ) from error
    if config is not None and config != stored:
        raise ConfigMismatchError(path, stored.as_dict(), config.as_dict())
    vae = vae if vae is not None else stored.build()
    try:
        vae.load_state_dict(tensors)
    except RuntimeError as error:
        raise DamagedFileError(f"the weights in {path} do not fit the model: {error}") from error
    return vae.eval()


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Named tensors and a JSON header in one safetensors file; the same content gives the same bytes."""
    # Copies, as the format refuses tensors that share memory. It keeps metadata in a hash map of unstable order: a
    # single entry has only one.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic(Path(path)) as temporary:
        save_file(copies, temporary, {"header": json.dumps(header, sort_keys=True)})


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
