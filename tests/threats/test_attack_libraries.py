"""Beside attack libraries on the same objective: none of them takes more from a released model than our suite.

The libraries attack classifiers, so that they are given one whose loss is -ELBO. They are not dependencies: a test runs
where its package is importable.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from attacked import seeded
from torch import Tensor, nn

from paperlib import VAE, LinfBall, apgd, elbo, load, load_dataset, pgd, strongest
from paperlib.models.elbo import unchecked_elbo

MODELS = Path(__file__).parents[2] / "figures" / "data"
IMAGES, STEPS, BALL = 40, 40, LinfBall(0.1)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what the libraries warn of is theirs


class Classifier(nn.Module):
    """Class 0 has the ELBO as its score and always wins, so that no attack stops at a success."""

    def __init__(self, vae: VAE, noise: Tensor):
        super().__init__()
        self.vae, self.noise = vae, noise

    def forward(self, x: Tensor) -> Tensor:
        score = unchecked_elbo(self.vae, x, self.noise, x)
        return torch.stack([score, torch.full_like(score, -1e9)], 1)


class MinusScore(nn.Module):
    """The loss that attacks raise."""

    reduction = "mean"

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return -scores[:, 0] if self.reduction == "none" else -scores[:, 0].mean()


def by_art(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(Classifier(vae, noise), MinusScore(), x.shape[1:], 2, clip_values=(0.0, 1.0))
    options = {"eps": BALL.eps, "eps_step": BALL.eps / 8, "max_iter": STEPS, "batch_size": len(x), "verbose": False}
    labels = np.eye(2, dtype=np.float32)[np.zeros(len(x), int)]
    return torch.from_numpy(ProjectedGradientDescentPyTorch(classifier, **options).generate(x.numpy(), y=labels))


def by_foolbox(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")

    class LinfPGD(foolbox.attacks.LinfPGD):  # type: ignore[misc, name-defined]
        def get_loss_fn(self, model, labels):  # type: ignore[no-untyped-def]
            return lambda inputs: -model(inputs)[:, 0].sum()

    model = foolbox.PyTorchModel(Classifier(vae, noise).eval(), bounds=(0, 1))
    criterion = foolbox.criteria.Misclassification(torch.zeros(len(x), dtype=torch.long))
    return LinfPGD(steps=STEPS, random_start=False).run(model, x, criterion, epsilon=BALL.eps)


@pytest.mark.parametrize("library", [by_art, by_foolbox])
@pytest.mark.parametrize("name", ["vae", "provae_kappa_0", "provae_kappa_0.5"])
def test_no_library_takes_more_from_a_released_model(name: str, library) -> None:  # type: ignore[no-untyped-def]
    vae = load(MODELS / f"02_{name}.safetensors").eval()
    x = load_dataset("mnist5k", split="test").x[:IMAGES]
    noise = torch.randn(IMAGES, vae.latent_dim, generator=seeded(1))

    def mean(point: Tensor) -> float:
        with torch.no_grad():
            return elbo(vae, BALL.project(point, x), noise).mean().item()

    theirs, clean = mean(library(vae, x, noise)), mean(x)
    assert mean(strongest(vae, x, BALL, noise, STEPS, seeded(0))) <= theirs < clean - 50
    for ours in (pgd, apgd):  # one start each: the same minimum to within one per cent of the fall
        assert mean(ours(vae, x, BALL, noise, STEPS)) <= theirs + 0.01 * (clean - theirs)
