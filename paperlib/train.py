"""Training of VAE and proVAE: one plain loop over data held in memory."""

import copy
import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.config import TrainConfig
from paperlib.data import Dataset, load_dataset
from paperlib.elbo import Method, Target, box_certificate, certificate, elbo_terms
from paperlib.interval import Interval, LinfBall
from paperlib.progress import Progress
from paperlib.schedule import eps_at, kappa_at, lr_at
from paperlib.vae import VAE


@dataclass(frozen=True)
class TrainResult:
    """`vae` in evaluation mode on the CPU; `history`: one row per epoch, on held-out training images, in nats."""

    vae: VAE
    history: pd.DataFrame


class TrainingDivergedError(ArithmeticError):
    """The loss stopped being finite. `result` holds the model and history at the end of the last good epoch."""

    def __init__(self, what: str, step: int, result: TrainResult):
        super().__init__(
            f"{what} at step {step}: training diverged. "
            f".result holds the last good state ({len(result.history)} epochs); lower lr or eps."
        )
        self.result = result


def choose_device(name: str = "auto") -> torch.device:
    """CUDA, else MPS, else the CPU; or the named device. Raises ValueError if that one is not present."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"{name!r} names no device; there is {[k for k, there in present.items() if there]}"
        ) from error
    if not present.get(device.type, False):
        raise ValueError(
            f"device {name!r} is not present here; there is {[k for k, there in present.items() if there]}"
        )
    return device


def robust_loss(
    vae: VAE,
    x: Tensor,
    ball: LinfBall,
    noise: Tensor,
    kappa: float,
    target: Target = "perturbed",
    method: Method = "ibp",
) -> Tensor:
    """minus the batch mean of  kappa * ELBO + (1 - kappa) * certificate  (paper, section 4): a scalar, in nats.

    For inner loops: x must lie in the data range and is not checked, so that a device is never waited for.
    """
    # minimise over the weights  -kappa ELBO(x) - (1 - kappa) C(x)  with  C(x) <= min over x' in the ball of ELBO(x')
    objective = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    if kappa > 0:
        log_likelihood, kl = elbo_terms(vae, x, noise, x)
        objective = objective + kappa * (log_likelihood - kl)
    if kappa < 1:
        box = ball.unchecked_box(x)
        targets = box if target == "perturbed" else Interval(x, x)
        objective = objective + (1 - kappa) * box_certificate(vae, box, noise, targets, method)
    return -objective.mean()


def train(
    config: TrainConfig, *, vae: VAE | None = None, data: Dataset | None = None, device: str = "auto"
) -> TrainResult:
    """Train a model; the same configuration on the same machine gives the same bits on the CPU.

    The last tenth of the training images, at most 1,000, is held out of training and measured after each epoch.

    Args:
        vae: a model of the user's own to train further, instead of the one the configuration builds; it is not changed.
        data: a data set of the user's own, instead of `load_dataset(config.dataset)`.
        device: "auto", or the name of a torch device.

    Raises:
        TrainingDivergedError: a non-finite loss; carries the last good state.
        ValueError: data outside its range, fewer examples than one batch, or a device that is not present.
    """
    where = choose_device(device)
    data = load_dataset(config.dataset) if data is None else data
    held_out = min(1_000, max(1, len(data.x) // 10))
    x, x_held_out = (part.to(where) for part in (data.x[: len(data.x) - held_out], data.x[len(data.x) - held_out :]))
    if len(x) < config.batch_size:
        raise ValueError(f"{data.name} has {len(x)} examples to train on, fewer than one batch of {config.batch_size}")
    if vae is None and data.shape != config.data_shape:
        raise ValueError(f"{data.name} has examples of shape {data.shape}, the configuration says {config.data_shape}")
    data.ball(config.eps).check(data.x)

    vae = (copy.deepcopy(vae) if vae is not None else config.build()).to(where).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.lr, fused=where.type in ("cuda", "cpu"))
    generator = torch.Generator(where).manual_seed(config.seed)
    per_epoch = len(x) // config.batch_size
    rows: list[dict[str, float]] = []
    good = copy.deepcopy(vae)

    with Progress(f"train {data.name} eps={config.eps:g} kappa={config.kappa:g}", config.steps) as progress:
        for step in range(config.steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(x), generator=generator, device=where)
            start = step % per_epoch * config.batch_size
            batch = x[order[start : start + config.batch_size]]
            noise = torch.randn(len(batch), vae.latent_dim, generator=generator, device=where)

            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, config)
            ball, kappa = data.ball(eps_at(step, config)), kappa_at(step, config)
            loss = robust_loss(vae, batch, ball, noise, kappa, config.target, config.bound)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(vae.parameters(), config.clip)
            if not torch.isfinite(loss + norm):
                what = f"loss {loss.item():g}, gradient norm {norm.item():g}"
                raise TrainingDivergedError(what, step, TrainResult(good.cpu().eval(), pd.DataFrame(rows)))
            optimizer.step()

            if (step + 1) % per_epoch == 0 or step + 1 == config.steps:
                vae.eval()
                row = _measure(vae, x_held_out, data, config, step)
                if not math.isfinite(row["clean"] + row["certified"]):
                    what = f"held-out ELBO {row['clean']:g}, certified {row['certified']:g}"
                    raise TrainingDivergedError(what, step, TrainResult(good.cpu().eval(), pd.DataFrame(rows)))
                rows.append(row)
                vae.train()
                good.load_state_dict(vae.state_dict())
            note = f"clean {rows[-1]['clean']:.1f}, certified {rows[-1]['certified']:.1f}" if rows else ""
            progress.step(note=note)
    return TrainResult(vae.cpu().eval(), pd.DataFrame(rows))


@torch.no_grad()
def _measure(vae: VAE, x: Tensor, data: Dataset, config: TrainConfig, step: int) -> dict[str, float]:
    generator = torch.Generator(x.device).manual_seed(config.seed)  # the same noise after each epoch
    noise = torch.randn(len(x), vae.latent_dim, generator=generator, device=x.device)
    eps = eps_at(step, config)
    log_likelihood, kl = elbo_terms(vae, x, noise, x)
    return {
        "step": step + 1,
        "eps": eps,
        "kappa": kappa_at(step, config),
        "lr": lr_at(step, config),
        "clean": (log_likelihood - kl).mean().item(),
        "log_likelihood": log_likelihood.mean().item(),
        "kl": kl.mean().item(),
        "certified": certificate(vae, x, data.ball(eps), noise, config.target, config.bound).mean().item(),
    }
