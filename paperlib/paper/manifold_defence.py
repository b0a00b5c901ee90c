"""The robust manifold defence on digits, for notebook 9: a classifier with and without it, attacked through it."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.data.arrays import Dataset
from paperlib.data.datasets import load_dataset
from paperlib.rivals.manifold_defence import ManifoldDefence, attack_classifier, attack_defence, margin
from paperlib.training.config import TrainConfig
from paperlib.training.loop import train

RADII = (0.05, 0.1, 0.2)  # l-infinity
IMAGES = {"paper": 500, "smoke": 8}  # of the test set, the first
ATTACK_STEPS = {"paper": 20, "smoke": 2}
PROJECTION_STEPS = {"paper": 20, "smoke": 2}
RATE = 0.05  # of the projection: of 0.005 to 0.05 the one that comes nearest to training images in so many steps
WIDTH = 256  # of the classifier's hidden layer
EPOCHS = {"paper": 4, "smoke": 1}
BATCH, LEARNING_RATE = 128, 1e-3  # of the classifier


def vae_config(dataset: str, profile: str) -> TrainConfig:
    """The plain VAE whose decoder's range is the manifold."""
    steps, hidden = (2_500, 128) if profile == "paper" else (20, 16)
    return TrainConfig(
        dataset=dataset, hidden=(hidden,), latent_dim=20, eps=0.0, kappa=1.0, steps=steps, batch_size=128
    )


def defence_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `defence_rows` depend on."""
    return {
        "vae": vae_config(dataset, profile).as_dict(),
        "eps": list(RADII),
        "images": IMAGES[profile],
        "attack_steps": ATTACK_STEPS[profile],
        "projection": [PROJECTION_STEPS[profile], RATE],
        "classifier": [WIDTH, EPOCHS[profile], BATCH, LEARNING_RATE],
    }


def defence_rows(dataset: str, profile: str, folder: Path) -> pd.DataFrame:
    """Two rows for each of RADII, without and with the defence: defence, eps, images, the accuracies clean and attacked
    (the strongest attack), those of each attack through the projection, and certified: none, as it has no certificate.
    """
    config = vae_config(dataset, profile)
    data, test = load_dataset(dataset), load_dataset(dataset, "test")
    vae = train(config, data=data, device="cpu", folder=folder / config.digest).vae.requires_grad_(False)
    classifier = trained_classifier(data, EPOCHS[profile])
    defence = ManifoldDefence(vae, classifier, PROJECTION_STEPS[profile], RATE)
    assert test.y is not None
    x, y = test.x[: IMAGES[profile]], test.y[: IMAGES[profile]]
    clean = _accuracy(margin(classifier(x), y)), _accuracy(margin(defence.logits(x), y))
    rows = []
    for eps in RADII:
        ball = test.ball(eps)
        _, alone = attack_classifier(classifier, x, y, ball, ATTACK_STEPS[profile])
        met = attack_defence(defence, x, y, ball, ATTACK_STEPS[profile])
        by_attack = {name: _accuracy(least) for name, least in met.items() if name != "strongest"}
        shared = {"eps": eps, "images": len(x), "certified": "none"}
        rows += [
            {"defence": "none", **shared, "clean": clean[0], "attacked": _accuracy(alone)},
            {"defence": "manifold", **shared, "clean": clean[1], "attacked": _accuracy(met["strongest"]), **by_attack},
        ]
    return pd.DataFrame(rows)


def trained_classifier(data: Dataset, epochs: int) -> nn.Sequential:
    """A small network of flat images, [batch, pixels] -> [batch, 10], trained on them by cross-entropy, in evaluation
    mode and without gradients in its weights; its weights are determined by the data and the number of epochs.
    """
    assert data.y is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(data.x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        for _ in range(epochs):
            for batch in torch.randperm(len(data.x)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(network(data.x[batch]), data.y[batch]).backward()
                optimizer.step()
    return network.eval().requires_grad_(False)


def _accuracy(margins: Tensor) -> float:
    return (margins > 0).double().mean().item()
