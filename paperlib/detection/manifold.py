"""Analysis by synthesis (Schott, Rauber, Bethge & Brendel 2019, arXiv 1805.09190) with a proof: the class whose decoder
draws the input best, and an l2 radius in which no input has another class. There is no encoder to attack.

The classifier. Class c has a decoder G_c of few latents, which gives an image, and for every input x

    J_c(x)  =  min over all z of  ||x - G_c(z)||^2 + K(z),     K(z) = weight * ||z||^2.

The class of x is the c of least J_c(x). Up to factor and constant, -J_c is the published lower bound of log p(x | c): a
Gaussian of variance `weight` around G_c(z), and the KL of a posterior N(z, sigma_q) of fixed sigma_q to N(0, I). This
classifier minimises over *all* z; a search that stops at a local minimum is another one, for which nothing is proven.

The published radius. Let z_y be any latent of class y, g = G_y(z_y), d_y = ||x - g||, K_y = K(z_y), and let
d_c = min over z of ||x - G_c(z)||, K_c = min K = 0. For ||x' - x|| <= eps each distance changes by at most eps:

    J_y(x') <= (d_y + eps)^2 + K_y     and     J_c(x') >= (d_c - eps)^2 + K_c     for eps <= d_c,

so that y stays the class of x' for each

    eps  <  min over c != y of  (d_c^2 + K_c - d_y^2 - K_y) / (2 (d_c + d_y)),

which is below d_c as K_c <= K_y. d_c is a *global* minimum: a search ends above it, and then its radius is too large.
Here d_c is a lower end from branch and bound. (With the best z of J_c in place of the minima of both terms the formula
is wrong: a z of larger distance and smaller K loses more while x moves.)

The joint radius. Both classes see the *same* x'. The difference of squared distances is linear in it:

    ||x' - G_c(z)||^2 + K(z) - ||x' - g||^2 - K_y  =  N_c(z) + 2 (x' - x) . (g - G_c(z)),
    N_c(z)  =  ||x - G_c(z)||^2 + K(z) - d_y^2 - K_y.

It is positive for every z, hence J_c(x') > J_y(x'), for all x' with

    ||x' - x||  <  min over c != y and all z of  R_c(z),     R_c(z)  =  N_c(z) / (2 ||G_c(z) - g||).

As ||G_c(z) - g|| <= ||x - G_c(z)|| + d_y, this is never below the published radius. z_y comes from a search, which
needs no proof: any z_y gives a valid radius. The minimum over z is taken by branch and bound.

All z. Put u = ||x - G_c(z)|| + d_y. Then  R_c(z) >= (u^2 - 2 u d_y + K(z) - K_y) / (2 u) = u / 2 - d_y +
(K(z) - K_y) / (2 u),  and for K(z) >= K_y its minimum over all u > 0 is  sqrt(K(z) - K_y) - d_y.  So no z with
K(z) >= K_y + (d_y + r)^2 has an R_c below r, whatever the decoder makes of it, and the box  |z_k| <= reach  with
weight * reach^2 = K_y + (d_y + r)^2  holds all z that matter once R_c is r somewhere. For the published radius, with r
its value at a d_c from a search, outside of the same box  K(z) >= (d_y + r)^2 + K_y >= J_y(x')  within the radius,
so that d_c need only be the least distance inside of it.

All of this holds in real arithmetic; it is evaluated in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.certificates.splitting import minimum
from paperlib.detection.latent_search import nearest_latents
from paperlib.detection.rival import Rival
from paperlib.models.likelihood import Bernoulli, Gaussian
from paperlib.models.vae import VAE

LATENTS = 3  # at most: the number of subproblems grows exponentially with them


@dataclass(frozen=True)
class ManifoldClassifier:
    """The classifier of the least J_c, see above.

    Args:
        decoders: one for each class, [count, latent] -> flat images [count, pixels], float64, in evaluation mode, of
            layers with an interval and a relaxation rule.
        latent_dim: of all decoders, at most 3.
        weight: of ||z||^2 beside the squared distance, in squared data units: the variance of the noise of a pixel.

    Raises ValueError for fewer than two classes, more than three latents, or a weight that is not positive.
    """

    decoders: tuple[nn.Module, ...]
    latent_dim: int
    weight: float

    def __post_init__(self) -> None:
        if len(self.decoders) < 2:
            raise ValueError(f"a classifier needs a decoder for each of at least two classes, got {len(self.decoders)}")
        if not 1 <= self.latent_dim <= LATENTS:
            raise ValueError(f"branch and bound is for at most {LATENTS} latents, got {self.latent_dim}")
        if not 0 < self.weight < torch.inf:
            raise ValueError(f"weight must be positive and finite, got {self.weight}")

    @classmethod
    def of(cls, vaes: Sequence[VAE], weight: float) -> Self:
        """From one VAE for each class, whose decoders' mean images are compared; the encoders take no part."""
        dims = {vae.latent_dim for vae in vaes}
        if len(dims) > 1:
            raise ValueError(f"the VAEs of all classes must have as many latents, got {sorted(dims)}")
        return cls(tuple(map(mean_decoder, vaes)), max(dims, default=0), weight)

    def scores(self, x: Tensor, z: Tensor) -> Tensor:
        """||x - G_c(z_c)||^2 + K(z_c), [classes, batch]: never below J_c(x). x is flat, z [classes, batch, latent]."""
        return torch.stack([self._score(label, x, own) for label, own in enumerate(z)])

    def search(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents of each class with a low score, [classes, batch, latent]: the published search, without a proof."""
        weight = self.weight
        return torch.stack(
            [nearest_latents(decoder, x, self.latent_dim, weight, generator) for decoder in self.decoders]
        )

    @torch.no_grad()
    def certify(self, x: Tensor, tol: float = 1e-2, generator: torch.Generator | None = None) -> pd.DataFrame:
        """Certified: no x' with  ||x' - x||_2 < radius  has another class than `label`, where radius > 0; nor one with
        ||x' - x||_2 < published.  Where both are 0, nothing is promised, not even that `label` is the class of x.

        Args:
            x: flat images, [batch, pixels].
            tol: how far below the least R_c, and the least d_c, that were met the certified ends may be, in the units
                of an l2 distance.
            generator: of the search for latents.

        Returns:
            A row for each image: label, score (J of the label, from above), radius, published; searched: what the
            published formula gives with each d_c as a search meets it, which is no certificate; and gap: by how much
            the least searched d_c is above its certified lower end.

        Raises:
            ValueError: a tol that is not positive, or images of another shape.
            UnsupportedLayerError: a decoder with a layer that has no rule.
        """
        if not tol > 0:
            raise ValueError(f"tol must be positive, got {tol}")
        pixels = self.decoders[0](torch.zeros(1, self.latent_dim, dtype=torch.float64)).shape[1]
        if x.ndim != 2 or x.shape[1] != pixels:
            raise ValueError(f"images must be [batch, {pixels}], got {list(x.shape)}")
        x = x.double()
        z = self.search(x, generator)
        score, label = self.scores(x, z).min(0)
        own = torch.stack([self.decoders[c](z[c, row, None])[0] for row, c in enumerate(label.tolist())])
        rivals = [Rival(decoder, self.weight, x, own, score) for decoder in self.decoders]
        nearest = [nearest_latents(decoder, x, self.latent_dim, 0.0, generator) for decoder in self.decoders]
        # Only the least of all rivals counts: what a search meets for one of them is a ceiling for the others.
        is_rival = label != torch.arange(len(rivals)).unsqueeze(1)
        joint = _least([rival.joint(own_z) for rival, own_z in zip(rivals, z, strict=True)], is_rival)
        distance = _least([rival.distance(own_z) for rival, own_z in zip(rivals, nearest, strict=True)], is_rival)
        searched = rivals[0].published(distance)
        radius, proven = joint.clone(), distance.clone()
        for rival, rows in zip(rivals, is_rival, strict=True):
            part = rival[rows]
            box = part.box(joint[rows], self.latent_dim)
            least = minimum(part.joint, part.joint_below, box, tol, ceiling=joint[rows])
            radius[rows] = torch.minimum(radius[rows], least)
            box = part.box(searched[rows], self.latent_dim)
            least = minimum(part.distance, part.distance_below, box, tol, ceiling=distance[rows])
            proven[rows] = torch.minimum(proven[rows], least)
        columns = {"label": label, "score": score, "radius": radius.clamp(min=0)}
        columns |= {"published": rivals[0].published(proven), "searched": searched, "gap": distance - proven}
        return pd.DataFrame({name: value.numpy() for name, value in columns.items()})

    def _score(self, label: int, x: Tensor, z: Tensor) -> Tensor:
        return (x - self.decoders[label](z)).square().sum(1) + self.weight * z.square().sum(1)


def mean_decoder(vae: VAE) -> nn.Sequential:
    """Latents -> flat mean images of a VAE's decoder, in float64 and evaluation mode: the sigmoid of logits for a
    Bernoulli likelihood, the decoder's output itself for a Gaussian one. Raises ValueError for another likelihood.
    """
    decoder = vae.in_float64().decoder.requires_grad_(False)
    if isinstance(vae.likelihood, Bernoulli):
        return nn.Sequential(decoder, nn.Sigmoid(), nn.Flatten())
    if isinstance(vae.likelihood, Gaussian):
        return nn.Sequential(decoder, nn.Flatten())
    raise ValueError(f"mean images are for a Bernoulli or a Gaussian likelihood, not {type(vae.likelihood).__name__}")


def _least(values: list[Tensor], is_rival: Tensor) -> Tensor:
    """The least value of all rivals, [batch]."""
    return torch.stack(values).masked_fill(~is_rival, torch.inf).amin(0)
