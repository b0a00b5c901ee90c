"""Trained models on disk: weights as safetensors with the configuration that made them. No pickle, ever."""

import copy
from pathlib import Path

from paperlib.models.vae import VAE
from paperlib.runtime.files import ConfigMismatchError, DamagedFileError, read_tensors, write_tensors
from paperlib.training.config import TrainConfig


def save(path: str | Path, vae: VAE, config: TrainConfig) -> None:
    """Write weights and configuration to one safetensors file; whole or not at all."""
    write_tensors(path, vae.state_dict(), {"config": config.as_dict()})


def load(path: str | Path, config: TrainConfig | None = None, vae: VAE | None = None) -> VAE:
    """The model stored at `path`, in evaluation mode on the CPU, rebuilt from the configuration in the file.

    Args:
        config: if given, the file must have been made by exactly this configuration.
        vae: a model of the user's own architecture to fill, instead of the `mlp_vae` of the configuration. It stays as
            it was where an error is raised.

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
    model = vae if vae is not None else stored.build()
    before = copy.deepcopy(model.state_dict())
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        model.load_state_dict(before)  # torch has filled in what did fit
        advice = (
            "if it was saved with an architecture of your own, pass such a model: load(path, vae=my_vae)"
            if vae is None
            else "build it as it was when it was saved"
        )
        kind = "the mlp_vae of its configuration" if vae is None else "the model given as vae"
        raise DamagedFileError(f"the weights in {path} do not fit {kind}; {advice}. {error}") from error
    return model.eval()
