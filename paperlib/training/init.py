"""First weights for training on boxes (Shi et al., "Fast certified robust training with short warmup", NeurIPS 2021,
arXiv 2103.16944, section 3.3).
"""

import math

from torch import nn

from paperlib.models.vae import VAE


def interval_aware_(vae: VAE) -> VAE:
    """The same model with new weights: those of each layer that is linear, convolutional or a transposed convolution
    are N(0, 2 pi / fan_in^2), with torch's global generator, so that the mean radius of a box stays as it is through
    the layer and a ReLU after it.

    A weight of deviation s has the mean size  s sqrt(2/pi),  so a box of radius r gets one of  fan_in s sqrt(2/pi) r,
    and a ReLU keeps about half of it: the two cancel at  s = sqrt(2 pi) / fan_in. Biases stay as they are.
    """
    for layer in vae.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in: float = layer.weight[0].numel()  # inputs that each output sums
        elif isinstance(layer, nn.ConvTranspose2d):  # away from the border, and on average if the stride is no divisor
            fan_in = layer.weight[:, 0].numel() / layer.groups / math.prod(layer.stride)
        else:
            continue
        nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / fan_in)
    return vae
