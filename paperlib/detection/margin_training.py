"""Training of `ClassVAEs`: first each class by its likelihood, then all together on certified margins.

    minimise   mean of  log( 1 + sum over rivals k of exp(-M_k(x) / T) )  -  w C_y(x) / T

M_k is the certified margin to class k over the ball around x, C_y the certified ELBO of the own class. The radius of
the ball rises from 0, where margins are the plain ones (Gowal et al. 2018; Shi et al. 2021, arXiv 2103.17268).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib.detection.class_vaes import ClassVAEs
from paperlib.detection.margins import certified_margins
from paperlib.runtime.progress import Progress
from paperlib.threats.balls import LinfBall


@dataclass(frozen=True)
class MarginConfig:
    """What decides a training, but for model, data and radius. Raises ValueError naming the first field out of range."""

    steps: int = 2_500  # Number of the optimizer's steps.
    batch_size: int = 128  # Examples in a step; at most as many as there are.
    lr: float = 2e-3  # Learning rate of Adam, up to the end of the ramp.
    temperature: float = 10.0  # T, in nats.
    likelihood_weight: float = 0.01  # w, of the own class's certified ELBO.
    rivals: int = 4  # Nearest classes whose margins a step computes; at most one less than there are.
    seed: int = 0  # Seed of batches and noise.

    def __post_init__(self) -> None:
        rules = {
            "steps": self.steps > 0,
            "batch_size": self.batch_size > 0,
            "lr": 0 < self.lr < math.inf,
            "temperature": 0 < self.temperature < math.inf,
            "likelihood_weight": 0 <= self.likelihood_weight < math.inf,
            "rivals": self.rivals > 0,
        }
        for name, holds in rules.items():
            if not holds:
                raise ValueError(f"{name} is out of range: {getattr(self, name)!r}")


BY_LIKELIHOOD = 0.05  # share of the steps that train each class alone; then the radius begins to rise
RAMP_END = 0.6  # share of the steps after which the radius stays, and the learning rate falls
LR_FINAL = 0.01  # share of the learning rate that is left at the last step
LARGEST_GRADIENT = 10.0  # norm


def train_on_margins(model: ClassVAEs, x: Tensor, y: Tensor, ball: LinfBall, config: MarginConfig) -> None:
    """Train the model in place. The same arguments on the same machine give the same bits on the CPU.

    Args:
        x: [count, features] in the ball's data range, float32.
        y: classes 0, 1, ..., [count].
        ball: to train for.

    Raises ArithmeticError if the loss stops being finite.
    """
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    order, size = torch.empty(0, dtype=torch.long), min(config.batch_size, len(x))
    with Progress(f"train {model.sizes.classes} classes {ball.label}", config.steps) as progress:
        for step in range(config.steps):
            done = step / config.steps
            optimizer.param_groups[0]["lr"] = config.lr * _rate(done)
            if len(order) < size:  # what is left of an epoch is less than a batch
                order = torch.randperm(len(x), generator=generator)
            rows, order = order[:size], order[size:]
            if done < BY_LIKELIHOOD:
                noise = torch.randn(size, model.sizes.latent_dim, generator=generator)
                fit, kl = model.terms(x[rows], noise)
                loss = -(fit - kl)[y[rows], torch.arange(size)].mean() / config.temperature
            else:
                radius = min(1.0, (done - BY_LIKELIHOOD) / (RAMP_END - BY_LIKELIHOOD))
                loss = _loss(model, x[rows], y[rows], LinfBall(radius * ball.eps, ball.low, ball.high), config)
            if not torch.isfinite(loss):
                raise ArithmeticError(f"the loss is {loss.item()} at step {step}: training diverged; lower lr or eps")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            progress.step(1, note=f"loss {loss.item():.3f}")


def _loss(model: ClassVAEs, x: Tensor, y: Tensor, ball: LinfBall, config: MarginConfig) -> Tensor:
    rivals = min(config.rivals, model.sizes.classes - 1)
    certified = certified_margins(model, ball.unchecked_region(x).box, y, rivals)
    logits = F.pad(-certified.margins / config.temperature, (0, 0, 0, 1))  # that of the own class is 0
    return logits.logsumexp(0).mean() - config.likelihood_weight * certified.own.mean() / config.temperature


def _rate(done: float) -> float:
    return 1 - (1 - LR_FINAL) * max(0.0, (done - RAMP_END) / (1 - RAMP_END))
