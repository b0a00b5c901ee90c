"""Checks that an attack is not weak by mistake (Athalye et al. 2018, arXiv 1802.00420, section 3; Carlini et al. 2019,
arXiv 1902.06705), as tables to read and to draw.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import pandas as pd
import torch
from torch import Tensor

from paperlib.models.elbo import Target, elbo
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.apgd import apgd
from paperlib.threats.attacks import pgd
from paperlib.threats.balls import LinfBall
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.random_search import random_search

ATTACKS: Mapping[str, Callable[..., Tensor]] = MappingProxyType({"pgd": pgd, "apgd": apgd})
STEPS = (1, 2, 5, 10, 20, 40, 80)
ALLOWANCE = 1e-3  # of what an attack takes from the clean ELBO: searches of many steps end in neighbouring minima


@outside_inference_mode
@torch.no_grad()
def sanity_checks(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    steps: Sequence[int] = STEPS,
    queries: int = 1000,
    generator: torch.Generator | None = None,
    target: Target = "perturbed",
    *,
    attacks: Mapping[str, Callable[..., Tensor]] = ATTACKS,
) -> pd.DataFrame:
    """Whether gradients lead attacks to low ELBOs: one row for each check, attack and number of steps.

    - "steps": more steps do not reach a higher mean than fewer.
    - "unbounded": where every input of the data range is allowed, the attack is below all inputs that one can write
      down: the image's negative, uniform colours, uniform noise and the other images, the lowest of them for each.
    - "gradient-free": a random search with many more evaluations does not reach a lower mean than the attack.

    Args:
        steps: of the attacks, ascending; the last number is that of the other two checks.
        queries: evaluations of the random search for each example.
        generator: draws random points.
        attacks: functions with the arguments of `pgd`, by name.

    Returns:
        check, attack, steps; elbo: the mean that the attack reaches; bar: the mean that it must not exceed; holds:
        whether it does not, by more than a thousandth of the fall from the clean mean to the bar. In nats.

    Raises:
        ValueError: no step, or steps that do not ascend; and as `pgd`.
    """
    if not steps or list(steps) != sorted(set(steps)):
        raise ValueError(f"steps must be ascending numbers, got {list(steps)}")

    def mean(point: Tensor) -> float:
        return _mean(vae, x, point, noise, target)

    whole = LinfBall(ball.high - ball.low, ball.low, ball.high)
    floor = _floor(vae, x, whole, noise, generator, target)
    searched = mean(random_search(vae, x, ball, noise, queries, generator, target))
    clean, rows = mean(x), []

    def row(check: str, attack: str, count: int, value: float, bar: float) -> None:
        holds = value <= bar + ALLOWANCE * abs(clean - bar)
        rows.append({"check": check, "attack": attack, "steps": count, "elbo": value, "bar": bar, "holds": holds})

    for name, attack in attacks.items():
        bar = clean
        for count in steps:
            value = mean(attack(vae, x, ball, noise, steps=count, target=target))
            row("steps", name, count, value, bar)
            bar = min(bar, value)
        row("gradient-free", name, count, value, searched)
        row("unbounded", name, count, mean(attack(vae, x, whole, noise, steps=count, target=target)), min(floor, bar))
    return pd.DataFrame(rows)


@outside_inference_mode
@torch.no_grad()
def loss_along_attack(
    vae: VAE,
    x: Tensor,
    x_adv: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    points: int = 21,
    generator: torch.Generator | None = None,
    target: Target = "perturbed",
) -> pd.DataFrame:
    """The mean ELBO on the straight way from x to the attacked x_adv, and beside it to a random extreme of the set.

    An attack that only climbs out of a plateau, or ELBOs that jump, show here. Points between two of a set that is not
    convex (a patch) may leave it; they stay in the data range.

    Args:
        points: on the way, evenly spaced, both ends among them.
        generator: draws the random extreme.

    Returns:
        share: of the way, from 0 to 1; attack, random: the mean ELBO there, in nats.

    Raises ValueError for fewer than two points, and as `elbo`.
    """
    if points < 2:
        raise ValueError(f"a way needs at least two points, its ends, got points={points}")
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    ends = {"attack": x_adv, "random": ball.project(x + ball.steepest(direction, x), x)}
    rows = []
    for share in torch.linspace(0, 1, points, dtype=torch.float64).tolist():
        between = {name: torch.lerp(x, end, share).clamp(ball.low, ball.high) for name, end in ends.items()}
        rows.append({"share": share, **{name: _mean(vae, x, point, noise, target) for name, point in between.items()}})
    return pd.DataFrame(rows)


def _mean(vae: VAE, x: Tensor, point: Tensor, noise: Tensor, target: Target) -> float:
    return elbo(vae, point, noise, x if target == "clean" else point).mean().item()


def _floor(
    vae: VAE, x: Tensor, whole: LinfBall, noise: Tensor, generator: torch.Generator | None, target: Target
) -> float:
    """The mean over the images of the lowest ELBO among inputs that anyone can write down."""
    colours = [torch.full_like(x, level) for level in (whole.low, (whole.low + whole.high) / 2, whole.high)]
    inputs = [whole.low + whole.high - x, *colours, whole.sample(x, generator), x.roll(1, 0)]
    values = [elbo(vae, point, noise, x if target == "clean" else point) for point in inputs]
    return torch.stack(values).amin(0).mean().item()
