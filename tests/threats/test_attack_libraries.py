"""Beside the Adversarial Robustness Toolbox on the same objective: it takes no more from a model than our suite.

The library attacks classifiers, so that it is given one whose loss is -ELBO.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from attacked import seeded
from torch import Tensor, nn

from paperlib import VAE, LinfBall, apgd, elbo, load, load_dataset, pgd, strongest
from paperlib.models.elbo import unchecked_elbo

MODELS = Path(__file__).parents[2] / "figures" / "data"
IMAGES, STEPS, BALL = 40, 40, LinfBall(0.1)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what the library warns of is its own


class Classifier(nn.Module):
    """Class 0 has the ELBO as its score and always wins, so that no attack stops at a success."""

    def __init__(self, vae: VAE, noise: Tensor):
        super().__init__()
        self.vae, self.noise = vae, noise

    def forward(self, x: Tensor) -> Tensor:
        score = unchecked_elbo(self.vae, x, self.noise, x)
        return torch.stack([score, torch.full_like(score, -1e9)], 1)


class MinusScore(nn.Module):
    """The loss that an attack raises."""

    reduction = "mean"

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return -scores[:, 0] if self.reduction == "none" else -scores[:, 0].mean()


def by_art(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    classifier = PyTorchClassifier(Classifier(vae, noise), MinusScore(), x.shape[1:], 2, clip_values=(0.0, 1.0))
    options = {"eps": BALL.eps, "eps_step": BALL.eps / 8, "max_iter": STEPS, "batch_size": len(x), "verbose": False}
    labels = np.eye(2, dtype=np.float32)[np.zeros(len(x), int)]
    return torch.from_numpy(ProjectedGradientDescentPyTorch(classifier, **options).generate(x.numpy(), y=labels))


@pytest.mark.parametrize("name", ["vae", "provae_kappa_0", "provae_kappa_0.5"])
def test_the_library_takes_no_more_from_a_released_model(name: str) -> None:
    vae = load(MODELS / f"02_{name}.safetensors").eval()
    x = load_dataset("mnist5k", split="test").x[:IMAGES]
    noise = torch.randn(IMAGES, vae.latent_dim, generator=seeded(1))

    def mean(point: Tensor) -> float:
        with torch.no_grad():
            return elbo(vae, BALL.project(point, x), noise).mean().item()

    theirs, clean = mean(by_art(vae, x, noise)), mean(x)
    assert mean(strongest(vae, x, BALL, noise, STEPS, seeded(0))) <= theirs < clean - 50
    for ours in (pgd, apgd):  # one start each: the same minimum to within one per cent of the fall
        assert mean(ours(vae, x, BALL, noise, STEPS)) <= theirs + 0.01 * (clean - theirs)
