"""Training of `ClassVAEs` on certified margins, in two parts.

    encoders   minimise  CE( KL_k - KL_y ) + w KL_y / T   certified margins of the KL alone, with a radius rising from 0
    all        minimise  CE( M_k ) - w C_y / T            certified margins M_k of the ELBOs, and a certificate C_y

    CE(M) = mean of  log( 1 + sum over rivals k of exp(-M_k / T) )

The first part is by intervals and needs no decoder, so that a step costs a fraction of one of the last part. Without it
the models come out nearly linear in x: the decoders' constants alone tell digits apart, and wide boxes of the encoders
keep them from learning more. Between both the decoders' biases are set to their maximum of likelihood, the mean of each
class, so that what the second part begins with is as certain as the encoders are. A radius that rises is from Gowal et
al. 2018 (arXiv 1810.12715).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.detection.class_vaes import ClassVAEs
from paperlib.detection.margins import certified_kl_margins, certified_margins
from paperlib.runtime.progress import Progress
from paperlib.threats.balls import LinfBall


@dataclass(frozen=True)
class MarginConfig:
    """What decides a training beside model, data and radius. Raises ValueError naming the first field out of range."""

    steps: int = 2_500  # Number of the optimizer's steps.
    batch_size: int = 128  # Examples in a step; at most as many as there are.
    lr: float = 2e-3  # Learning rate of Adam.
    temperature: float = 50.0  # T, in nats.
    likelihood_weight: float = 0.05  # w, of the own class's certified ELBO.
    rivals: int = 4  # Nearest classes whose margins a step computes; at most one less than there are.
    seed: int = 0  # Seed of the batches.

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


ENCODERS = 0.65  # share of the steps of the first part
RAMP = 0.1, 0.6  # shares of the first part's steps between which the radius rises
LAST = 0.05  # share of the learning rate that is left at a part's end
LARGEST_GRADIENT = 1.0  # norm


def train_on_margins(model: ClassVAEs, x: Tensor, y: Tensor, ball: LinfBall, config: MarginConfig) -> None:
    """Train the model in place. The same arguments on the same machine give the same bits on the CPU.

    Args:
        x: [count, features] in the ball's data range, float32.
        y: classes 0, 1, ..., [count].
        ball: to train for.

    Raises ArithmeticError if the loss stops being finite.
    """
    generator = torch.Generator().manual_seed(config.seed)
    batches = _batches(len(x), min(config.batch_size, len(x)), generator)
    encoders = [*model.shared.parameters(), model.mean_weight, model.mean_bias]

    def by_kl(rows: Tensor, done: float) -> Tensor:
        start, end = RAMP
        radius = min(1.0, max(0.0, (done - start) / (end - start)))
        smaller = LinfBall(radius * ball.eps, ball.low, ball.high)
        margins, own = certified_kl_margins(model, smaller.unchecked_region(x[rows]).box, y[rows])
        entropy = (-margins / config.temperature).logsumexp(0).mean()
        return entropy + config.likelihood_weight * own.mean() / config.temperature

    def by_margins(rows: Tensor, _: float) -> Tensor:
        rivals = min(config.rivals, model.sizes.classes - 1)
        certified = certified_margins(model, ball.unchecked_region(x[rows]).box, y[rows], rivals)
        logits = F.pad(-certified.margins / config.temperature, (0, 0, 0, 1))  # that of the own class is 0
        return logits.logsumexp(0).mean() - config.likelihood_weight * certified.own.mean() / config.temperature

    first = round(ENCODERS * config.steps)
    with Progress(f"train {model.sizes.classes} classes {ball.label}", config.steps) as progress:
        _descend(encoders, by_kl, first, config.lr, batches, progress)
        model.decode_class_means(x, y)
        _descend([*model.parameters()], by_margins, config.steps - first, config.lr, batches, progress)


def _descend(
    parameters: list[nn.Parameter],
    loss_of: Callable[[Tensor, float], Tensor],
    steps: int,
    lr: float,
    batches: Iterator[Tensor],
    progress: Progress,
) -> None:
    """Steps of Adam on these parameters; the learning rate falls linearly in the second half.

    Args:
        loss_of: the rows of a batch, and the share of the steps that is done.
    """
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for step in range(steps):
        done = step / steps
        optimizer.param_groups[0]["lr"] = lr * (1 - (1 - LAST) * max(0.0, 2 * done - 1))
        loss = loss_of(next(batches), done)
        if not torch.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss.item()}: training diverged; lower lr or eps")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        progress.step(1, note=f"loss {loss.item():.3f}")


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of one batch after another, each epoch in a new order; what is left of an epoch is less than a batch."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].split(size)
