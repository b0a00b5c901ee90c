"""Which layer loosens the bound: the boxes of interval propagation against the widths that inputs really reach."""

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import propagate
from paperlib.certificates.api import elbo_bounds
from paperlib.certificates.intervals import IntervalBounds
from paperlib.models import gaussian
from paperlib.models.elbo import elbo
from paperlib.models.vae import VAE
from paperlib.threats.attacks import descend, pgd
from paperlib.threats.balls import LinfBall

AFFINE = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def stage_boxes(vae: VAE, box: Interval, noise: Tensor) -> dict[str, Interval]:
    """The certificate's box after each affine layer and after the reparametrisation, from the input on, by name."""
    by_stage = {"input": box}
    latent = IntervalBounds.of(vae, box, noise, box).latent
    for part, start in (("encoder", box), ("decoder", latent)):
        for name, module in _stages(vae, part):
            start = propagate(module, start)
            by_stage[name] = start
        if part == "encoder":
            by_stage["latent"] = latent
    return by_stage


def stage_values(vae: VAE, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """What `stage_boxes` bounds, at the inputs x: the same names."""
    by_stage = {"input": x}
    for name, module in _stages(vae, "encoder"):
        x = module(x)
        by_stage[name] = x
    mean, log_var = x.chunk(2, dim=-1)
    by_stage["latent"] = x = gaussian.reparametrize(mean, log_var, noise)
    for name, module in _stages(vae, "decoder"):
        x = module(x)
        by_stage[name] = x
    return by_stage


def looseness(
    vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, units: int = 24, steps: int = 15, seed: int = 0
) -> pd.DataFrame:
    """For each stage, the mean width of its boxes and the mean width that an attack on single units reaches.

    The second is a lower bound of the true width, so `box / reached` bounds a stage's accumulated looseness from above.
    The last stage is the ELBO itself, in nats: what the certificate and what PGD take off its clean value.

    Args:
        units: how many units of each stage are attacked, drawn once and the same for all images.

    Returns:
        One row per stage: stage, box, reached (means over images and units, in the stage's own unit).
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    with torch.no_grad():
        boxes = {name: box.map(lambda t: t.flatten(1)) for name, box in stage_boxes(vae, ball.box(x), noise).items()}
    for name, box in boxes.items():
        count = box.lower.shape[1]
        chosen = torch.randperm(count, generator=generator)[:units]
        reached = _reached(vae, name, x, ball, noise, chosen, steps)
        rows.append(
            {
                "stage": name,
                "box": (box.upper - box.lower)[:, chosen].mean().item(),
                "reached": (reached.upper - reached.lower).mean().item(),
            }
        )
    with torch.no_grad():
        clean, attacked = elbo(vae, x, noise), elbo(vae, pgd(vae, x, ball, noise), noise)
        certified = elbo_bounds(vae, x, ball, noise).lower
    rows.append(
        {"stage": "ELBO", "box": (clean - certified).mean().item(), "reached": (clean - attacked).mean().item()}
    )
    return pd.DataFrame(rows)


def _stages(vae: VAE, part: str) -> Iterator[tuple[str, nn.Sequential]]:
    """The layers of one half, cut after each affine layer: (name, the layers since the last cut)."""
    network = getattr(vae, part)
    if not isinstance(network, nn.Sequential):
        raise TypeError(f"stages are defined for a nn.Sequential {part}, got {type(network).__name__}")
    cuts = [i + 1 for i, layer in enumerate(network) if isinstance(layer, AFFINE)]
    for number, (start, end) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True), start=1):
        yield f"{part} {number}", network[start:end]


def _reached(vae: VAE, stage: str, x: Tensor, ball: LinfBall, noise: Tensor, units: Tensor, steps: int) -> Interval:
    """The lowest and highest value of each chosen unit that sign-gradient steps meet in the ball: [batch, units]."""
    copies = 2 * len(units)  # each unit once down and once up

    def value(point: Tensor) -> Tensor:
        values = stage_values(vae, point, noise.repeat_interleave(copies, 0))[stage]
        values = values.flatten(1).unflatten(0, (len(x), copies))  # [batch, copies, features of the stage]
        index = units.repeat(2).expand(len(x), -1)
        return values.gather(2, index.unsqueeze(2)).flatten()

    sign = torch.tensor([1.0, -1.0], dtype=x.dtype).repeat_interleave(len(units)).repeat(len(x))
    start = x.repeat_interleave(copies, 0)
    _, lowest = descend(lambda point: sign * value(point), start, ball, start, steps)
    down, up = (sign * lowest).view(len(x), 2, len(units)).unbind(1)
    return Interval(down, up)
