"""Training of VAE and proVAE: one plain loop over data held in memory."""

import copy
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from paperlib.certificates.api import certificate
from paperlib.data.arrays import Array, Dataset
from paperlib.data.datasets import load_dataset
from paperlib.models.elbo import elbo_terms
from paperlib.models.gaussian import collapse_warning
from paperlib.models.vae import VAE
from paperlib.runtime.device import choose_device, is_synchronous, matmul_precision
from paperlib.runtime.distributed import rank_and_world_size
from paperlib.runtime.numbers import rounded_down
from paperlib.runtime.progress import Progress
from paperlib.training.checks import check_trainable
from paperlib.training.config import TrainConfig
from paperlib.training.objective import Objective, TrainingStep, find_objective
from paperlib.training.resume import State, resumable, tensor_digest, translate_peer_errors
from paperlib.training.schedule import eps_at, kappa_at, lr_at, ramp


@dataclass(frozen=True)
class TrainResult:
    """`vae` in evaluation mode on the CPU; `history`: one row per epoch, on held-out training images, in nats."""

    vae: VAE
    history: pd.DataFrame
    seconds: float  # of all epochs, also of those before an interruption


class TrainingDivergedError(ArithmeticError):
    """The loss stopped being finite. `result` holds the model and history at the end of the last good epoch."""

    def __init__(self, what: str, step: int, result: TrainResult):
        super().__init__(
            f"{what} at step {step}: training diverged. "
            f".result holds the last good state ({len(result.history)} epochs); lower lr or eps."
        )
        self.result = result


class CollapsedPosteriorWarning(UserWarning):
    """The trained model's KL is so small that its latents say next to nothing of the input."""


class _Loss(nn.Module):
    """The loss of a model as the module that DistributedDataParallel takes."""

    def __init__(self, vae: VAE, objective: Objective):
        super().__init__()
        self.vae, self.objective = vae, objective

    def forward(self, step: TrainingStep) -> Tensor:
        return self.objective.loss(self.vae, step)


def train(
    config: TrainConfig,
    *,
    vae: VAE | None = None,
    data: Dataset | Array | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
) -> TrainResult:
    """Train a model; the same configuration on the same machine gives the same bits on the CPU.

    The last tenth of the training images, at most 1,000, is held out of training and measured after each epoch. Inside
    `process_group` each process takes its part of every batch, and the result is that of one process but for rounding.

    Args:
        vae: a model of the user's own to train further, instead of the one the configuration builds; it is not changed.
        data: a data set of the user's own, instead of `load_dataset(config.dataset)`; or its examples alone, a tensor
            or an array [count, *shape] in [0, 1]. Another range is said by `Dataset(name, x, low=..., high=...)`.
        device: "auto", or the name of a torch device.
        folder: keeps a checkpoint of the last epoch. If training is interrupted, the same call continues from it, and
            on the CPU ends with the same bits as without the interruption (but for dropout). The result of a finished
            run is returned without training.

    Raises:
        TrainingDivergedError: a non-finite loss; carries the last good state.
        ValueError: data outside its range or in one that the likelihood does not explain, in another precision than the
            model, fewer examples than one batch, or a device that is not present; dropout or batch normalisation, where
            a certificate is trained on; a checkpoint of another run (ConfigMismatchError) or no whole one
            (DamagedFileError). All before the first step.
        UnsupportedLayerError: a layer without the rules that the certificate needs; before the first step.
        RunFolderError: `folder` is in use by another process, or cannot be written.
        PeerStoppedError: another process of this run stopped.

    Warns (CollapsedPosteriorWarning) if the KL is below 0.5 nats in the end.
    """
    where = choose_device(device)
    data = load_dataset(config.dataset) if data is None else data
    data = data if isinstance(data, Dataset) else Dataset("own data", data)
    x, x_held_out = (part.to(where) for part in _split(data, config, any_shape=vae is not None))
    state = _begin(config, vae, where)
    check_trainable(state.vae, x_held_out[:1], data, config)
    objective = find_objective(config.objective)
    identity = {} if folder is None else _identity(config, data, vae, where)
    name = f"train {data.name} eps={config.eps:g} kappa={config.kappa:g}"
    with (
        translate_peer_errors(state),
        resumable(folder, state, identity) as save,
        Progress(name, config.steps) as progress,
    ):
        progress.step(state.step)
        start = perf_counter() - state.seconds
        loss: nn.Module = _Loss(state.vae, objective)
        if rank_and_world_size()[1] > 1:
            loss = DistributedDataParallel(loss)
        while state.step < config.steps:
            with matmul_precision("tf32", where):
                _epoch(state, loss, x, data, config, progress)
            with matmul_precision("ieee", where):
                row = _measure(state.result, x_held_out, data, config, state.step - 1)
            # a certificate that overflows is no sign of divergence where none is trained on
            trained_on = ("clean", "certified") if objective.bounds_layers and config.kappa < 1 else ("clean",)
            if not all(math.isfinite(row[name]) for name in trained_on):
                what = f"held-out ELBO {row['clean']:g}, certified {row['certified']:g}"
                raise _diverged(what, state.step - 1, state)
            state.rows.append(row)
            state.good.load_state_dict(state.result.state_dict())
            state.seconds = perf_counter() - start
            save()
            progress.step(
                0, note=f"clean {row['clean']:.1f}, KL {row['kl']:.1f}, certified {rounded_down(row['certified'])} nats"
            )
    if rank_and_world_size()[0] == 0 and (warning := collapse_warning(state.rows[-1]["kl"])):
        warnings.warn(warning, CollapsedPosteriorWarning, stacklevel=2)
    return TrainResult(state.result.cpu().eval(), pd.DataFrame(state.rows), state.seconds)


def _split(data: Dataset, config: TrainConfig, any_shape: bool) -> tuple[Tensor, Tensor]:
    """The examples to train on and those held out, checked against the configuration."""
    held_out = min(1_000, max(1, len(data.x) // 10))
    x, x_held_out = data.x[: len(data.x) - held_out], data.x[len(data.x) - held_out :]
    if len(x) < config.batch_size:
        raise ValueError(f"{data.name} has {len(x)} examples to train on, fewer than one batch of {config.batch_size}")
    if config.batch_size < rank_and_world_size()[1]:
        raise ValueError(f"a batch of {config.batch_size} cannot be shared by {rank_and_world_size()[1]} processes")
    if not any_shape and data.shape != config.data_shape:
        raise ValueError(f"{data.name} has examples of shape {data.shape}, the configuration says {config.data_shape}")
    data.ball(config.eps, config.threat).check(data.x)
    return x, x_held_out


def _begin(config: TrainConfig, vae: VAE | None, where: torch.device) -> State:
    vae = (copy.deepcopy(vae) if vae is not None else config.build()).to(where)
    fused = where.type in ("cuda", "cpu")
    if config.weight_decay > 0:
        optimizer: torch.optim.Adam = torch.optim.AdamW(
            vae.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=fused
        )
    else:
        optimizer = torch.optim.Adam(vae.parameters(), lr=config.lr, fused=fused)
    average = copy.deepcopy(vae) if config.averaging > 0 else None
    return State(vae, copy.deepcopy(vae), optimizer, torch.Generator(where).manual_seed(config.seed), average=average)


def _identity(config: TrainConfig, data: Dataset, vae: VAE | None, where: torch.device) -> dict[str, Any]:
    """All that determines the result of a run, in JSON types."""
    # The options that a word stands for count; runs of proVAE from before the field do not have it.
    objective = {} if config.objective == "provae" else {"objective": str(find_objective(config.objective))}
    identity = {
        "data": f"{data.name} in [{float(data.low)}, {float(data.high)}], SHA-256 {tensor_digest({'x': data.x})}",
        "own model": None if vae is None else f"SHA-256 {tensor_digest(vae.state_dict(), str(vae))}",
        "device": where.type,
    }
    return config.as_dict() | objective | identity


def _epoch(state: State, loss_of: nn.Module, x: Tensor, data: Dataset, config: TrainConfig, progress: Progress) -> None:
    """Take the steps up to the end of the epoch or of the run."""
    objective, (rank, count) = find_objective(config.objective), rank_and_world_size()
    steps = min(len(x) // config.batch_size, config.steps - state.step)
    order = torch.randperm(len(x), generator=state.generator, device=x.device)
    state.vae.train()
    losses: list[Tensor] = []
    for number, batch in enumerate(order.split(config.batch_size)[:steps], start=1):
        ball, kappa = data.ball(eps_at(state.step, config), config.threat), kappa_at(state.step, config)
        # every process makes all draws, so that they do not depend on the number of processes, and takes its part
        shape = (len(batch), state.vae.latent_dim)
        noise = torch.randn(shape, generator=state.generator, device=x.device, dtype=x.dtype)
        inputs = x[batch]
        start = objective.draw(inputs, ball, state.generator)
        part, start, noise = (whole.tensor_split(count)[rank] for whole in (inputs, start, noise))
        for group in state.optimizer.param_groups:
            group["lr"] = lr_at(state.step, config)
        step = TrainingStep(
            part, start, ball, noise, kappa, config.bound, config.target, config.beta, ramp(state.step, config)
        )

        # DistributedDataParallel averages gradients over processes; this weight makes that the gradient of the batch's
        # mean when the parts differ in size.
        loss = loss_of(step) * (len(part) * count / len(batch))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.vae.parameters(), config.clip)
        losses += [loss.detach(), norm]
        if number == steps or is_synchronous(x.device):
            _check_finite(torch.stack(losses).view(-1, 2), state)
            losses.clear()
        state.optimizer.step()
        state.update_average(config.averaging)
        state.step += 1
        progress.step()


def _check_finite(losses: Tensor, state: State) -> None:
    """`losses` holds loss and gradient norm of the steps up to this one, [steps, 2]."""
    finite = losses.isfinite().all(dim=1)
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        loss, norm = losses[first].tolist()
        raise _diverged(f"loss {loss:g}, gradient norm {norm:g}", state.step + 1 - len(losses) + first, state)


def _diverged(what: str, step: int, state: State) -> TrainingDivergedError:
    good = TrainResult(state.good.cpu().eval(), pd.DataFrame(state.rows), state.seconds)
    return TrainingDivergedError(what, step, good)


@torch.no_grad()
def _measure(vae: VAE, x: Tensor, data: Dataset, config: TrainConfig, step: int) -> dict[str, float]:
    vae.eval()
    generator = torch.Generator(x.device).manual_seed(config.seed)  # the same noise after each epoch
    noise = torch.randn(len(x), vae.latent_dim, generator=generator, device=x.device, dtype=x.dtype)
    eps = eps_at(step, config)
    ball = data.ball(eps, config.threat)
    log_likelihood, kl = elbo_terms(vae, x, noise, x)
    return {
        "step": step + 1,
        "eps": eps,
        "kappa": kappa_at(step, config),
        "lr": lr_at(step, config),
        "clean": (log_likelihood - kl).mean().item(),
        "log_likelihood": log_likelihood.mean().item(),
        "kl": kl.mean().item(),
        "certified": certificate(vae, x, ball, noise, config.bound, config.target).mean().item(),
    }
