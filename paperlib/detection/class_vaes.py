"""One VAE for each class, whose encoders share their first layers: a conditional VAE with the weights of all classes in
one tensor, so that a training step is a few batched products.

Shapes: x is [batch, features]; what belongs to all classes is [classes, batch, ...].
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.bounds.scaling import Scaling
from paperlib.detection.scaler import Scaler
from paperlib.models import gaussian
from paperlib.models.likelihood import Bernoulli, Gaussian, Likelihood
from paperlib.models.vae import VAE

RAREST = 1e-3  # probability of ink where no row has any, or of paper
SMALL = 0.1  # what is left of the drawn weights beside the class means


@dataclass(frozen=True)
class Sizes:
    """Widths of the layers behind those that all classes share."""

    features: int
    classes: int
    hidden: int  # units of each decoder's hidden layer
    latent_dim: int


class ClassVAEs(nn.Module):
    """The VAEs of all classes:  encoder features - shared layers - latent,  decoder latent - hidden - features.

    The posterior's variances are constants of each class: the score is at the posterior mean and asks for no others,
    and bounds of their exponential would be the least stable part of training.

    Args:
        sizes: of the layers.
        likelihood: `Bernoulli()`, or a `Gaussian` of one scale.
        shared: the encoders' first layers, [batch, features] -> [batch, units]; each has an interval and a relaxation
            rule.
    """

    def __init__(self, sizes: Sizes, likelihood: Likelihood, shared: nn.Sequential):
        super().__init__()
        self.sizes, self.likelihood, self.shared = sizes, likelihood, shared
        classes, latent, hidden = sizes.classes, sizes.latent_dim, sizes.hidden
        units = shared(torch.zeros(1, sizes.features)).shape[1]
        # weights are [classes, in, out], so that a layer of all classes is one `baddbmm`
        self.mean_weight, self.mean_bias = _layer(classes, units, latent)
        self.log_var = nn.Parameter(torch.zeros(classes, 1, latent))
        self.hidden_weight, self.hidden_bias = _layer(classes, latent, hidden)
        self.output_weight, self.output_bias = _layer(classes, hidden, sizes.features)

    def terms(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """log p(x | z) and KL of each class, each [classes, batch], nats.

        Args:
            noise: [batch, latent_dim], the same for all classes; None: zeros.
        """
        shared = self.shared(x).expand(self.sizes.classes, -1, -1)
        mean = torch.baddbmm(self.mean_bias, shared, self.mean_weight)
        log_var = self.log_var.expand_as(mean)
        latent = mean if noise is None else gaussian.reparametrize(mean, log_var, noise)
        hidden = F.relu(torch.baddbmm(self.hidden_bias, latent, self.hidden_weight))
        output = torch.baddbmm(self.output_bias, hidden, self.output_weight)
        fit = self.likelihood.log_prob(output.flatten(0, 1), x.repeat(self.sizes.classes, 1))
        return fit.view(output.shape[:2]), gaussian.kl(mean, log_var)

    @torch.no_grad()
    def decode_class_means(self, x: Tensor, y: Tensor) -> None:
        """Set the decoders' last layer so that each puts out little else than the mean of its class's rows: the best
        of all constant decoders.

        Args:
            x: [count, features].
            y: classes 0, 1, ..., [count].
        """
        mean = torch.stack([x[y == number].mean(0) for number in range(self.sizes.classes)])[:, None]
        if isinstance(self.likelihood, Bernoulli):
            mean = torch.logit(mean.clamp(RAREST, 1 - RAREST))
        self.output_bias.copy_(mean)
        self.output_weight.mul_(SMALL)

    def vaes(self, scaler: Scaler | None = None) -> list[VAE]:
        """Each class's model in float64 and evaluation mode. The encoders' shared layers are the same objects.

        Args:
            scaler: if given, that of the units in which this was trained; the models are then in the user's units.
        """
        shared = [*copy.deepcopy(self.shared)]
        if scaler is not None:
            shared.insert(0, Scaling(1 / scaler.spread, -scaler.mean / scaler.spread))
        return [self._vae(number, shared, scaler) for number in range(self.sizes.classes)]

    def _vae(self, number: int, shared: list[nn.Module], scaler: Scaler | None) -> VAE:
        mean_weight, log_var = self.mean_weight[number], self.log_var[number, 0]
        head = _linear(
            torch.cat([mean_weight, torch.zeros_like(mean_weight)], 1), torch.cat([self.mean_bias[number, 0], log_var])
        )
        hidden = _linear(self.hidden_weight[number], self.hidden_bias[number, 0])
        decoder = nn.Sequential(hidden, nn.ReLU(), _linear(self.output_weight[number], self.output_bias[number, 0]))
        likelihood: Likelihood = Bernoulli()
        if isinstance(self.likelihood, Gaussian):
            scale = self.likelihood.log_scale.double().exp()
            likelihood = Gaussian(scale.item() if scaler is None else scale * scaler.spread)
        if scaler is not None:
            decoder.append(Scaling(scaler.spread, scaler.mean))
        return VAE(nn.Sequential(*shared, head), decoder, likelihood, self.sizes.latent_dim).double().eval()


def _layer(classes: int, inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [classes, inputs, outputs] and biases [classes, 1, outputs], drawn as `nn.Linear` draws them."""
    bound = 1 / math.sqrt(inputs)
    weight, bias = torch.empty(classes, inputs, outputs), torch.empty(classes, 1, outputs)
    return nn.Parameter(weight.uniform_(-bound, bound)), nn.Parameter(bias.uniform_(-bound, bound))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The layer with a weight [inputs, outputs], in float64."""
    layer = nn.Linear(weight.shape[0], weight.shape[1], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(bias)
    return layer
