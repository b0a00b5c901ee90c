"""What could end a training in the middle of it is met before its first step."""

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from paperlib.certificates.api import certificate
from paperlib.certificates.intervals import target_box
from paperlib.data.arrays import Dataset
from paperlib.models.elbo import check_targets
from paperlib.models.vae import VAE
from paperlib.training.config import TrainConfig
from paperlib.training.objective import TrainingStep, find_objective


@torch.no_grad()
def check_trainable(vae: VAE, x: Tensor, data: Dataset, config: TrainConfig) -> None:
    """Raises what a step or a measurement of this run would raise.

    Args:
        x: an example of the data on the device of the model, [1, *data_shape].

    Raises:
        ValueError: data that do not fit the model or its likelihood; a layer that is random or depends on the other
            examples of its batch, where a certificate is trained on.
        UnsupportedLayerError: a layer without the rules that the certificate needs.
    """
    ball, ends = data.ball(config.eps, config.threat), torch.stack([data.x.amin(0), data.x.amax(0)])
    check_targets(vae, *target_box(config.target, ball.unchecked_region(ends).box, ends))
    noise = torch.zeros(1, vae.latent_dim, dtype=x.dtype, device=x.device)
    certificate(vae.eval(), x, ball, noise, config.bound, config.target)  # as the history has it
    if config.kappa < 1:
        objective = find_objective(config.objective)
        if objective.bounds_layers:
            _check_independence(vae, config)
        # in evaluation mode, unless layers are refused that could then do something else, draw or fail at one example
        step = TrainingStep(x, x, ball, noise, config.kappa, config.bound, config.target, config.beta)
        objective.robust_term(vae.train(objective.bounds_layers), step)


def _check_independence(vae: VAE, config: TrainConfig) -> None:
    refused = [
        f"{type(layer).__name__} at {place!r}"
        for place, layer in vae.named_modules()
        if isinstance(layer, _BatchNorm) or (isinstance(layer, _DropoutNd) and layer.p > 0)
    ]
    if refused:
        raise ValueError(
            f"{', '.join(refused)}: while it is trained, such a layer is random or depends on the other examples of a "
            f"batch, and no certificate speaks of it (kappa is {config.kappa:g}). Leave it out; or train with kappa=1, "
            "a plain VAE, which is certified afterwards, in evaluation mode"
        )
