"""The experiments of notebook 3: how far attacks lower the ELBO of the digit models, and whether they are strong.

Beside them stands `entropy_ceiling`, which no model passes: what every model loses, however robust it is.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.evaluation import NOISE_SEED, certify
from paperlib.data.arrays import Dataset
from paperlib.models.elbo import elbo
from paperlib.models.vae import VAE
from paperlib.paper.mnist_training import EPS, EPS_GRID, SIZES, ModelAtRadius, models_at_radii, models_config
from paperlib.runtime.parallel import in_parallel
from paperlib.threats.attacks import fgsm, pgd
from paperlib.threats.balls import LinfBall
from paperlib.threats.suite import greyest_point


def attack_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `attacked_rows` depend on."""
    size = SIZES[profile]
    return {
        **models_config(dataset, profile),
        "eps": list(EPS_GRID),
        "images": size.attacked,
        "steps": size.attack_steps,
    }


def attacked_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """Rows of `certify` with the attack, for each model and each eps, at one noise draw; checked for the sandwich."""
    size = SIZES[profile]
    task = partial(_attacked, steps=size.attack_steps)
    frames = in_parallel(task, models_at_radii(models, test, size.attacked, EPS_GRID), name="attacks")
    return pd.concat(frames, ignore_index=True)


def _attacked(one: ModelAtRadius, steps: int) -> pd.DataFrame:
    rows = certify(one.vae, one.x, one.ball, one.noise(), attack={"steps": steps})
    return rows.drop(columns="draw").assign(model=one.name)


def strength_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `strength_rows` depend on."""
    size = SIZES[profile]
    return {
        **models_config(dataset, profile),
        "eps": EPS,
        "images": size.strength,
        "steps": list(size.strength_steps),
        "restarts": list(size.strength_restarts),
    }


def strength_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """Is the attack weak? One row per model and attack at EPS: mean and standard error over the images, in nats.

    `worse_than_fgsm` counts the images on which an attack ends above FGSM; for `pgd` it must be 0.
    """
    size = SIZES[profile]
    attacks = [("none", 0, 1), ("random", 0, 1), ("shift", 0, 1), ("fgsm", 1, 1)]
    attacks += [("pgd", steps, restarts) for steps in size.strength_steps for restarts in size.strength_restarts]
    works = [(one, attack) for one in models_at_radii(models, test, size.strength, [EPS]) for attack in attacks]
    values = {
        (one.name, *attack): value
        for (one, attack), value in zip(works, in_parallel(_strength, works, name="attacks"), strict=True)
    }
    return pd.DataFrame(
        {
            "model": model,
            "attack": attack,
            "steps": steps,
            "restarts": restarts,
            "images": len(value),
            "elbo": value.mean().item(),
            "se": (value.std() / len(value) ** 0.5).item(),
            "worse_than_fgsm": int((value > values[model, "fgsm", 1, 1]).sum()),
        }
        for (model, attack, steps, restarts), value in values.items()
    )


def _strength(work: tuple[ModelAtRadius, tuple[str, int, int]]) -> Tensor:
    """The ELBO where one attack ends, [images], in float64."""
    one, (attack, steps, restarts) = work
    vae, x, noise, ball = one.vae.in_float64(), one.x.double(), one.noise()[0].double(), one.ball
    generator = torch.Generator().manual_seed(NOISE_SEED)
    if attack == "pgd":
        point = pgd(vae, x, ball, noise, steps, restarts, generator)
    elif attack == "fgsm":
        point = fgsm(vae, x, ball, noise)
    else:
        point = {"none": x, "random": ball.sample(x, generator), "shift": ball.project(x + ball.eps, x)}[attack]
    with torch.no_grad():
        return elbo(vae, point, noise)


def entropy_ceiling(x: Tensor, ball: LinfBall) -> Tensor:
    """No model with a Bernoulli likelihood has a robust ELBO above this: [batch], in nats.

    Whatever encoder, decoder and noise: min over x' in B(x) of ELBO(x') <= min over x' in B(x) of -sum of H(x'_i),
    H the binary entropy. For a grey pixel t every logit l has t*l - softplus(l) <= -H(t), with equality at the logit of
    t itself, and the KL is not negative. H is greatest at 1/2 and falls to both sides, so the minimum is at
    `greyest_point`. Holds where the target is the perturbed x' itself, not for `target="clean"`.

    Args:
        x: [batch, *data_shape], pixels in [0, 1].

    Raises:
        ValueError: x outside the data range, or a data range that is not within [0, 1].
    """
    if not (ball.low >= 0 and ball.high <= 1):
        raise ValueError(f"the entropy of a pixel needs a data range within [0, 1], got [{ball.low}, {ball.high}]")
    grey = greyest_point(x, ball)
    return -(torch.special.entr(grey) + torch.special.entr(1 - grey)).flatten(1).sum(1)


def ceiling_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `ceiling_rows` depend on: no model."""
    size = SIZES[profile]
    return {"dataset": dataset, "eps": list(EPS_GRID), "images": size.certified, "attacked_images": size.attacked}


def ceiling_rows(test: Dataset, profile: str) -> pd.DataFrame:
    """A row for each radius: means of `entropy_ceiling` in nats, over the certified and over the attacked images.

    Columns: eps, images, ceiling, attacked_images, attacked_ceiling.
    """
    size = SIZES[profile]
    x = test.x[: size.certified].double()
    rows = []
    for eps in EPS_GRID:
        value = entropy_ceiling(x, test.ball(eps))
        attacked = value[: size.attacked]
        rows.append(
            {
                "eps": eps,
                "images": len(value),
                "ceiling": value.mean().item(),
                "attacked_images": len(attacked),
                "attacked_ceiling": attacked.mean().item(),
            }
        )
    return pd.DataFrame(rows)
