"""The attack inside a step of training: a few projected gradient steps, without any promise but to stay in the set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from paperlib.models.vae import VAE
from paperlib.training.objective import TrainingStep

REACH = 2.5  # of all steps together, in sizes of the set (Madry et al. 2018)


def attacked(vae: VAE, value: Callable[[Tensor], Tensor], step: TrainingStep, steps: int) -> Tensor:
    """A point of the set around each x of the step, where a function of the input is low, [batch, *data_shape].

    From `step.start` as many projected steps of `REACH / steps` times the set's size against the gradient, each as the
    set's norm has it; the last point counts (Madry et al. 2018). No gradient remains in the result. The model is in
    evaluation mode meanwhile, so that dropout and batch statistics are left alone.

    Args:
        value: [batch, *data_shape] -> [batch]; examples do not mix.
    """
    region = step.ball.unchecked_region(step.x)
    point = region.project(step.start)
    with _in_evaluation_mode(vae), torch.enable_grad():
        for _ in range(steps):
            # The point is already projected: a clamp inside the graph would have no gradient at the pixel boundary.
            point = point.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(value(point).sum(), point)
            point = region.project(point.detach() - step.ball.steepest(gradient, step.x, REACH / steps))
    return point


def check_steps(steps: int) -> None:
    """Raises ValueError unless there is a step."""
    if steps < 1:
        raise ValueError(f"the attack needs at least one step, got steps={steps}")


def check_share(share: float) -> None:
    """Raises ValueError unless it is in (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")


@contextmanager
def _in_evaluation_mode(vae: VAE) -> Iterator[None]:
    training = vae.training
    vae.eval()
    try:
        yield
    finally:
        vae.train(training)
