"""A search for the nearest input of another class, for the classifier of `paperlib.detection.manifold`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib.detection.manifold import ManifoldClassifier

OVERSHOOT = 0.01  # of the distance to the boundary, more with each round


@torch.no_grad()
def nearest_other_class(
    classifier: ManifoldClassifier, x: Tensor, rounds: int = 10, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """An input to which the search for latents gives another class than to x, and its l2 distance from x: the nearest
    that was met, [batch, pixels] and [batch]; x itself and infinity where none was.

    With the latents held fixed, the inputs to which a rival gives as good a score as the label are a plane. Each round
    steps to the nearest of these planes and a little beyond, and searches for the latents of all classes there
    (DeepFool: Moosavi-Dezfooli et al. 2016, with the gradient by the envelope theorem). Neither these inputs nor those
    of the certificate are confined to the range of pixels. The class of an input is that of the search, so that an
    input can be reported which the exact minimum gives the label yet.

    Args:
        x: flat images, [batch, pixels].
    """
    x = x.double()
    rows = torch.arange(len(x))
    z = classifier.search(x, generator)
    label = classifier.scores(x, z).argmin(0)
    best, least = x.clone(), torch.full_like(x[:, 0], torch.inf)
    for number in range(1, rounds + 1):
        images = torch.stack([decoder(own_z) for decoder, own_z in zip(classifier.decoders, z, strict=True)])
        lead = classifier.scores(x, z) - classifier.scores(x, z)[label, rows]
        across = images - images[label, rows]
        distance = lead / (2 * across.norm(dim=2))
        distance[label, rows] = torch.inf
        distance[lead < 0] = torch.inf  # at x itself these latents lead already: their plane lies behind it
        reach, rival = distance.min(0)
        reach = reach.where(reach.isfinite(), 0.0)  # there is no plane to step to
        step = F.normalize(across[rival, rows]) * ((1 + number * OVERSHOOT) * reach).unsqueeze(1)
        point = x + step
        z = classifier.search(point, generator)
        changed = classifier.scores(point, z).argmin(0) != label
        nearer = changed & (step.norm(dim=1) < least)
        best, least = torch.where(nearer.unsqueeze(1), point, best), torch.where(nearer, step.norm(dim=1), least)
    return best, least
