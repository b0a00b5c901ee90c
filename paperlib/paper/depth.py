"""Certificates of deep networks, for notebook 10: plain VAEs of digits at half the side by depth, and costs by size."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.certificates.api import certificate
from paperlib.certificates.crown import Crown, CrownIBP
from paperlib.certificates.evaluation import NOISE_SEED, evaluation_noise
from paperlib.certificates.ibp import IBP
from paperlib.certificates.method import Method
from paperlib.data.arrays import Dataset
from paperlib.models.elbo import elbo
from paperlib.models.likelihood import Bernoulli
from paperlib.models.vae import VAE, mlp_vae
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.threats.attacks import pgd
from paperlib.threats.balls import LinfBall

SIDE, LATENT = 14, 8
# networks and the radii at which they are certified; widths of the encoder's hidden layers, which the decoder mirrors
GRID = (("2x64", 0.1), ("3x64", 0.1), ("4x64", 0.05), ("4x64", 0.1), ("3x64 tanh", 0.1), ("conv 8-16", 0.1))
COST_EPS = 0.05
WIDEST_ALPHA = 256  # a step for alpha of wider networks takes minutes for an image


@dataclass(frozen=True)
class Sizes:
    """How much of everything in one profile."""

    steps: int  # of training
    images: int  # certified, the first of the test set
    attack_steps: int
    alpha_steps: int
    depths: tuple[int, ...]  # of the cost curve, at width 64
    widths: tuple[int, ...]  # of the cost curve, at depth 2
    cost_images: int
    cost_steps: int  # of training


SIZES = {
    "paper": Sizes(400, 5, 40, 20, (1, 2, 3, 4, 5, 6), (64, 256, 1024, 2048), 1, 100),
    "smoke": Sizes(10, 1, 2, 1, (1, 2), (8,), 1, 2),
}


def depth_config(profile: str) -> dict[str, Any]:
    """What the rows of `depth_rows` depend on."""
    return {
        "grid": [list(cell) for cell in GRID],
        "latent_dim": LATENT,
        "side": SIDE,
        "cost_eps": COST_EPS,
        "widest_alpha": WIDEST_ALPHA,
        "noise_seed": NOISE_SEED,
        **{name: list(size) if isinstance(size, tuple) else size for name, size in asdict(SIZES[profile]).items()},
    }


def depth_rows(train: Dataset, test: Dataset, profile: str) -> pd.DataFrame:
    """Train each network on digits whose sides are halved, attack it and certify it by each method.

    Columns: part ("grid" or "cost"), network, eps; clean and attacked, the means over the images in nats;
    method, certified (mean, nats) and ms (wall time of the certificate for an image, all images at once, on one core
    while other networks use the others). Without rows of "crown, alpha" for networks wider than `WIDEST_ALPHA`.
    """
    size = SIZES[profile]
    cost = [("cost", f"{depth}x64", COST_EPS) for depth in size.depths]
    cost += [("cost", f"2x{width}", COST_EPS) for width in size.widths]
    cells = [*(("grid", *cell) for cell in GRID), *dict.fromkeys(cost)]
    task = partial(_rows_of, train=_small(train), test=_small(test), size=size)
    frames = in_parallel(task, cells, jobs=training_jobs(), name="networks")
    return pd.concat(frames, ignore_index=True)


def build(network: str) -> VAE:
    """The untrained VAE that a name stands for: "3x64 tanh" has three hidden layers of 64 tanh units in each half."""
    if network == "conv 8-16":
        return _conv()
    shape, *tanh = network.split()
    depth, width = map(int, shape.split("x"))
    vae = mlp_vae((SIDE * SIDE,), (width,) * depth, LATENT)
    if tanh:
        vae.encoder, vae.decoder = (
            nn.Sequential(*(nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in half.children()))
            for half in (vae.encoder, vae.decoder)
        )
    return vae


def _conv() -> VAE:
    """Sides 14, 7 and 4: `conv_vae` needs sides that can be halved twice."""
    encoder = nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 8, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 2 * LATENT),
    )
    decoder = nn.Sequential(
        nn.Linear(LATENT, 16 * 4 * 4),
        nn.ReLU(),
        nn.Unflatten(1, (16, 4, 4)),
        nn.ConvTranspose2d(16, 8, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, kernel_size=4, stride=2, padding=1),
        nn.Flatten(),
    )
    return VAE(encoder, decoder, Bernoulli(), LATENT)


def methods(alpha_steps: int) -> dict[str, Method]:
    """What is compared, by the name that rows use."""
    return {"ibp": IBP(), "crown-ibp": CrownIBP(), "crown": Crown(), "crown, alpha": Crown(alpha_steps)}


def _small(data: Dataset) -> Tensor:
    """The images averaged over squares of 2 x 2 pixels, [count, 196]."""
    return F.avg_pool2d(data.x.view(-1, 1, 2 * SIDE, 2 * SIDE), 2).flatten(1)


def _trained(network: str, images: Tensor, steps: int) -> VAE:
    """A plain VAE, in float64: the same for the same images and steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = build(network)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (128,), generator=generator)]
        loss = -elbo(vae, batch, torch.randn(len(batch), LATENT, generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae.in_float64()


def _rows_of(cell: tuple[str, str, float], train: Tensor, test: Tensor, size: Sizes) -> pd.DataFrame:
    part, network, eps = cell
    images, steps = (size.images, size.steps) if part == "grid" else (size.cost_images, size.cost_steps)
    vae, x, ball = _trained(network, train, steps), test[:images].double(), LinfBall(eps)
    noise = evaluation_noise(images, LATENT)[0].double()
    attacked = elbo(vae, pgd(vae, x, ball, noise, steps=size.attack_steps), noise).mean().item()
    about = {"part": part, "network": network, "eps": eps, "clean": elbo(vae, x, noise).mean().item()}
    compared = methods(size.alpha_steps)
    *hidden, _ = (layer.out_features for layer in vae.encoder.children() if isinstance(layer, nn.Linear))
    if max(hidden, default=0) > WIDEST_ALPHA:
        del compared["crown, alpha"]
    timed = _timed(vae, x, ball, noise, compared)
    return pd.DataFrame([{**about, "attacked": attacked, **row} for row in timed])


def _timed(
    vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, compared: Mapping[str, Method]
) -> Iterator[dict[str, Any]]:
    small = build("2x8").in_float64()  # one of the widest takes a while
    for name, method in compared.items():
        certificate(small, x[:1], ball, noise[:1], method)  # a first call prepares memory and loads modules
        start = perf_counter()
        value = certificate(vae, x, ball, noise, method)
        yield {"method": name, "certified": value.mean().item(), "ms": 1e3 * (perf_counter() - start) / len(x)}
