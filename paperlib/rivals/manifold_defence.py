"""Robust manifold defence (Ilyas, Jalal, Asteri, Daskalakis & Dimakis 2017, arXiv 1712.09196; likewise Defense-GAN:
Samangouei et al. 2018, arXiv 1805.06605): an input is projected on the range of a decoder before it is classified.

It promises nothing: the projection is a few gradient steps, no radius comes with it, and an attack can go through it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.models.likelihood import sum_per_example
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.attacks import descend, keep_lower
from paperlib.threats.perturbation import PerturbationSet

Surrogate = Callable[
    ["ManifoldDefence", Tensor], Tensor
]  # the projection, but with a gradient of the attacker's choice


@dataclass(frozen=True)
class ManifoldDefence:
    """A classifier that sees the decoder's image nearest to x, as gradient descent meets it from the encoder's mean.

    Args:
        vae: its decoder's mean images are the manifold; in evaluation mode.
        classifier: images [batch, *data_shape] -> logits [batch, classes], in evaluation mode.
        steps: of gradient descent on  ||x - mean image(z)||^2;  0 leaves the encoder's own reconstruction.
        rate: each step is this times the gradient.

    Raises ValueError for a negative number of steps or a rate that is not positive.
    """

    vae: VAE
    classifier: nn.Module
    steps: int = 20
    rate: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 < self.rate < torch.inf:
            raise ValueError(f"the projection needs steps >= 0 and a rate > 0, got {self.steps} and {self.rate}")

    def logits(self, x: Tensor) -> Tensor:
        """Of the projected inputs, [batch, classes]; without a gradient."""
        with torch.no_grad():
            return self.classifier(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """Images of the decoder near x, [batch, *data_shape]; without a gradient."""
        return self._image(self._descend(x.detach(), unrolled=False)).detach()

    def unrolled(self, x: Tensor) -> Tensor:
        """The projection with its own gradient in x, through all of its steps."""
        return self._image(self._descend(x, unrolled=True))

    def straight_through(self, x: Tensor) -> Tensor:
        """The projection with the gradient of the identity (BPDA: Athalye et al. 2018, arXiv 1802.00420)."""
        return x + (self.project(x) - x).detach()

    def through_reconstruction(self, x: Tensor) -> Tensor:
        """The projection with the gradient of the encoder's reconstruction, which is near it."""
        reconstruction = self.vae(x)
        return reconstruction + (self.project(x) - reconstruction).detach()

    def _image(self, z: Tensor) -> Tensor:
        return self.vae.likelihood.mean(self.vae.decoder(z))

    def _descend(self, x: Tensor, unrolled: bool) -> Tensor:
        with torch.enable_grad():
            z, _ = self.vae.encode(x)
            for _ in range(self.steps):
                z = z if unrolled and z.requires_grad else z.detach().requires_grad_()
                distance = sum_per_example((x - self._image(z)).square())
                (gradient,) = torch.autograd.grad(distance.sum(), z, create_graph=unrolled)
                z = z - self.rate * gradient
        return z


SURROGATES: dict[str, Surrogate] = {
    "unrolled": ManifoldDefence.unrolled,
    "straight-through": ManifoldDefence.straight_through,
    "reconstruction": ManifoldDefence.through_reconstruction,
}


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The logit of the class y above the largest other one, [batch]: not positive where the class is another."""
    own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return own - others.amax(1)


@outside_inference_mode
def attack_defence(
    defence: ManifoldDefence, x: Tensor, y: Tensor, ball: PerturbationSet, steps: int = 20
) -> dict[str, Tensor]:
    """The least margin of the defended classifier that projected gradient descent meets inside the set, [batch], by
    each gradient of SURROGATES; never above that of x. "strongest" is the least of them all and of one more search,
    through the unrolled projection from the best point.

    Whatever gradient leads there, the margin is that of the true projection. No search proves that there is no smaller
    one: an accuracy under attack is an upper bound. Each gradient begins at x, and where the same search ends on the
    classifier without a defence.

    Args:
        x: [batch, *data_shape] in the data range.
        y: classes, [batch].
        steps: gradient steps of each search.
    """

    def search(projection: Surrogate, start: Tensor) -> tuple[Tensor, Tensor]:
        def objective(point: Tensor) -> Tensor:
            return margin(defence.classifier(projection(defence, point)), y)

        return descend(objective, x, ball, start, steps)

    undefended, _ = attack_classifier(defence.classifier, x, y, ball, steps)
    met = {}
    best, strongest = x, margin(defence.logits(x), y)
    for name, surrogate in SURROGATES.items():
        ends = [search(surrogate, start) for start in (x, undefended)]
        met[name] = torch.stack([least for _, least in ends]).amin(0)
        for end in ends:
            best, strongest = keep_lower(best, strongest, *end)
    _, strongest = keep_lower(best, strongest, *search(ManifoldDefence.unrolled, best))
    return met | {"strongest": strongest}


@outside_inference_mode
def attack_classifier(
    classifier: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet, steps: int = 20
) -> tuple[Tensor, Tensor]:
    """The point of least margin of a classifier without a defence that projected gradient descent meets from x, and its
    margin: [batch, *data_shape] and [batch].
    """
    return descend(lambda point: margin(classifier(point), y), x, ball, x, steps)
