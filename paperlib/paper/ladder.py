"""The ladder of notebook 10: every bound on the same VAEs and images, its distance from the attack and its cost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.api import certificate
from paperlib.certificates.crown import Crown, CrownIBP
from paperlib.certificates.evaluation import NOISE_SEED, certify, evaluation_noise
from paperlib.certificates.ibp import IBP
from paperlib.certificates.ladder.beta_crown import BetaCrown
from paperlib.certificates.ladder.dual_network import DualNetwork
from paperlib.certificates.ladder.lagrangian import Lagrangian
from paperlib.certificates.ladder.random_projection import random_projection_bound
from paperlib.certificates.ladder.zonotope import DeepZ, HybridZonotope
from paperlib.certificates.method import Method
from paperlib.data.arrays import Dataset
from paperlib.models.elbo import elbo
from paperlib.models.vae import VAE
from paperlib.paper.mnist_training import EPS, digit_models, file_name
from paperlib.paper.tighter_training import released_models
from paperlib.runtime.parallel import in_parallel
from paperlib.threats.balls import LinfBall
from paperlib.threats.suite import strongest
from paperlib.training.config import TrainConfig

PLAIN_EPS = 0.01  # for the plain VAE, about which cheap bounds say nothing at EPS
PROJECTIONS = 1_001  # random vectors for each layer
SEARCH = 1.0  # seconds of branch and bound for each image
RUNGS: dict[str, Method] = {  # from the cheapest on; the random projections stand beside them, as they do not certify
    "intervals": IBP(),
    "hybrid zonotope": HybridZonotope(),
    "zonotope": DeepZ(),
    "dual network": DualNetwork(),
    "CROWN-IBP": CrownIBP(),
    "CROWN": Crown(),
    "alpha-CROWN": Crown(alpha_steps=20),
    "Lagrangian dual": Lagrangian(steps=40),
    "beta-CROWN": BetaCrown(time_limit=SEARCH),
}
RANDOM = "random projections"
IMAGES = {"paper": 20, "smoke": 2}  # the first of the test set
SMALL = {"paper": (64, 8), "smoke": (16, 4)}  # hidden units and latents of the small models
STEPS = {"paper": 600, "smoke": 20}  # of the small models' training
BATCH = 32
AGAIN = 4.0  # seconds: what took less is measured again, as a first call prepares memory and loads modules
Trainable = Literal["ibp", "hybrid-zonotope", "dual-network", "crown-ibp"]
TRAINED_ON: tuple[Trainable, ...] = ("ibp", "hybrid-zonotope", "dual-network", "crown-ibp")
SMALL_BOUND = "crown-ibp"  # of the small model whose rungs are compared
TRAINED_IMAGES = {"paper": 500, "smoke": 5}  # the first of the test set
ATTACK = "attack"


def small_models(dataset: str, profile: str) -> dict[str, TrainConfig]:
    """One small VAE for each bound that can be trained on, at equal steps, by the bound's word."""
    hidden, latent_dim = SMALL[profile]
    base = TrainConfig(
        dataset=dataset,
        hidden=(hidden,),
        latent_dim=latent_dim,
        kappa=0.5,
        eps=EPS,
        batch_size=BATCH,
        steps=STEPS[profile],
    )
    return {bound: replace(base, bound=bound) for bound in TRAINED_ON}


def compared_models(dataset: str, profile: str) -> dict[str, tuple[str, TrainConfig, float]]:
    """The larger models of the comparison by the name that rows use: file, configuration and radius."""
    digits = digit_models(dataset, profile)
    released = released_models(dataset, profile)
    linear = "06_provae_kappa_0.5"
    return {
        "VAE": (file_name("VAE"), digits["VAE"], PLAIN_EPS),
        "proVAE, trained on intervals": (file_name("proVAE kappa=0.5"), digits["proVAE kappa=0.5"], EPS),
        "proVAE, trained on CROWN-IBP": (linear, released[linear], EPS),
    }


@dataclass(frozen=True)
class Measured:
    """One model at its radius on the first test images: the work of one process for each rung."""

    name: str
    rung: str
    vae: VAE = field(repr=False)
    x: Tensor = field(repr=False)
    ball: LinfBall


def ladder_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `ladder_rows` depend on."""
    return {
        "models": {name: config.as_dict() for name, (_, config, _) in compared_models(dataset, profile).items()},
        "small": small_models(dataset, profile)[SMALL_BOUND].as_dict(),
        "radii": {name: eps for name, (_, _, eps) in compared_models(dataset, profile).items()},
        "rungs": {name: str(method) for name, method in RUNGS.items()},
        "projections": PROJECTIONS,
        "noise_seed": NOISE_SEED,
        "images": IMAGES[profile],
    }


def ladder_rows(models: Mapping[str, tuple[VAE, float]], test: Dataset, profile: str) -> pd.DataFrame:
    """One row for each model, rung and image: the clean ELBO, that of the strongest attack, the bound, milliseconds an
    image on one thread in float64, and the confidence with which the bound holds (1: certified).

    Args:
        models: and the radius of each, by name.
    """
    items = [
        Measured(name, rung, vae, test.x[: IMAGES[profile]], test.ball(eps))
        for rung in [ATTACK, *RUNGS, RANDOM]
        for name, (vae, eps) in models.items()
    ]
    frames = dict(
        zip(((one.name, one.rung) for one in items), in_parallel(_measured, items, name="rungs"), strict=True)
    )
    reached = {name: frames.pop((name, ATTACK)) for name in models}
    return pd.concat([frame.merge(reached[name]) for (name, _), frame in frames.items()], ignore_index=True)


def _measured(one: Measured) -> pd.DataFrame:
    vae, x = one.vae.in_float64(), one.x.double()
    noise = evaluation_noise(len(x), vae.latent_dim)[0].double()
    index = {"model": one.name, "index": range(len(x))}
    if one.rung == ATTACK:
        x_adv = strongest(vae, x, one.ball, noise)
        with torch.no_grad():
            clean, attacked = elbo(vae, x, noise), elbo(vae, x_adv, noise)
        return pd.DataFrame({**index, "eps": one.ball.size, "clean": clean.numpy(), "attacked": attacked.numpy()})
    confidence = 1.0
    if one.rung == RANDOM:
        generator = torch.Generator().manual_seed(NOISE_SEED)
        probable, seconds = _timed(
            lambda: random_projection_bound(vae, x, one.ball, noise, PROJECTIONS, generator=generator)
        )
        bound, confidence = probable.lower, probable.confidence
    else:
        bound, seconds = _timed(lambda: certificate(vae, x, one.ball, noise, RUNGS[one.rung]))
    columns = {
        "rung": one.rung,
        "bound": bound.detach().numpy(),
        "ms": 1e3 * seconds / len(x),
        "confidence": confidence,
    }
    return pd.DataFrame({**index, **columns})


def _timed(bound: Callable[[], Any]) -> tuple[Any, float]:
    """What the call returns and its seconds; of a short one, which others disturb, those of the fastest of three."""
    seconds = []
    for _ in range(3):
        start = perf_counter()
        value = bound()
        seconds.append(perf_counter() - start)
        if seconds[-1] > AGAIN:
            break
    return value, min(seconds)


def ladder_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the images, a row for each model and rung: clean, attacked, bound, gap = attacked - bound, ms."""
    numbers = ["eps", "clean", "attacked", "bound", "ms", "confidence"]
    means = rows.groupby(["model", "rung"], sort=False)[numbers].mean().reset_index()
    return means.assign(gap=means["attacked"] - means["bound"])


def training_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `training_rows` depend on."""
    models = {bound: config.as_dict() for bound, config in small_models(dataset, profile).items()}
    return {"models": models, "noise_seed": NOISE_SEED, "eps": EPS, "images": TRAINED_IMAGES[profile]}


def training_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """One row for each bound that a small model was trained on: means over the first test images of the clean ELBO and
    its KL, of the certificate by that bound (`own`) and by `Crown`, in nats.
    """
    rows = []
    for bound, vae in models.items():
        x = test.x[: TRAINED_IMAGES[profile]]
        noise = evaluation_noise(len(x), vae.latent_dim)[0]
        own, crown = (certify(vae, x, test.ball(EPS), noise, method=method) for method in (bound, Crown()))
        means = {"clean": own["clean"].mean(), "kl": own["kl"].mean(), "own": own["certified"].mean()}
        rows.append({"bound": bound, "images": len(x), **means, "crown": crown["certified"].mean()})
    return pd.DataFrame(rows)
