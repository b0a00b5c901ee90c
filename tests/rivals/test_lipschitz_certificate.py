"""The certified ELBO of a Lipschitz VAE: exact without a radius, by hand, and never passed by an attack."""

import math

import pytest
import torch
from torch import Tensor, nn

from paperlib import VAE, Bernoulli, Gaussian, LinfBall, elbo, elbo_bounds, mlp_vae, pgd
from paperlib.models.likelihood import Likelihood
from paperlib.rivals.lipschitz import lipschitz_vae, materialize
from paperlib.rivals.lipschitz_certificate import lipschitz_certificate

LIKELIHOODS = {"bernoulli": Bernoulli, "gaussian": lambda: Gaussian(0.5)}
EACH_CASE = pytest.mark.parametrize(
    ("likelihood", "target"), [(name, target) for name in LIKELIHOODS for target in ("perturbed", "clean")]
)


def model(
    likelihood: str, hidden: tuple[int, ...] = (8, 6), a: float = 2.0, b: float = 1.5, c: float = 2.0
) -> tuple[VAE, Tensor, Tensor]:
    """In float64, with weights as if it had been trained, and with inputs and noise."""
    vae = lipschitz_vae((10,), hidden, 2, LIKELIHOODS[likelihood](), a=a, b=b, c=c).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return materialize(vae).requires_grad_(False), torch.rand(40, 10).double(), torch.randn(40, 2).double()


def lowest(vae: VAE, x: Tensor, radius: float, noise: Tensor, target: str) -> Tensor:
    """The lowest ELBO that gradient descent meets in the l2 ball; for a Gaussian likelihood x' may be anything."""

    def value(point: Tensor) -> Tensor:
        if isinstance(vae.likelihood, Bernoulli):
            point = point.clamp(0, 1)  # nearer to x than the point is
        return elbo(vae, point, noise, point if target == "perturbed" else x)

    least, step = value(x), torch.zeros_like(x)
    for turn in range(60):
        at = (x + step).requires_grad_()
        (gradient,) = torch.autograd.grad(value(at).sum(), at)
        size = radius * (1.0 if turn == 0 else 0.3)
        step = step - size * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-30)
        step = step * (radius / step.norm(dim=1, keepdim=True)).clamp(max=1)
        least = torch.minimum(least, value(x + step))
    return least


@EACH_CASE
@pytest.mark.parametrize("hidden", [(), (8, 6)])
@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
def test_no_attack_passes_it(likelihood: str, target: str, hidden: tuple[int, ...], radius: float) -> None:
    vae, x, noise = model(likelihood, hidden)
    certified = lipschitz_certificate(vae, x, radius, noise, target)
    attacked = lowest(vae, x, radius, noise, target)
    assert (certified <= attacked).all() and (attacked < elbo(vae, x, noise)).all()


@EACH_CASE
def test_no_attack_in_the_l_infinity_ball_inside_passes_it(likelihood: str, target: str) -> None:
    vae, x, noise = model(likelihood)
    x_adv = pgd(vae, x, LinfBall(0.1), noise, target=target)
    certified = lipschitz_certificate(vae, x, 0.1 * math.sqrt(10), noise, target)
    assert (certified <= elbo(vae, x_adv, noise, x_adv if target == "perturbed" else x)).all()


@EACH_CASE
def test_without_a_radius_it_is_the_elbo_and_it_falls_with_the_radius(likelihood: str, target: str) -> None:
    vae, x, noise = model(likelihood)
    values = [lipschitz_certificate(vae, x, radius, noise, target) for radius in (0.0, 0.1, 0.2, 0.9)]
    torch.testing.assert_close(values[0], elbo(vae, x, noise), rtol=1e-12, atol=1e-12)
    assert (torch.stack(values).diff(dim=0) < 0).all()
    each = torch.tensor([0.0, 0.1, 0.2, 0.9], dtype=x.dtype).repeat(10)
    mixed = lipschitz_certificate(vae, x, each, noise, target)
    assert torch.equal(mixed, torch.stack(values)[torch.arange(4).repeat(10), torch.arange(40)])


def test_by_hand() -> None:
    """One pixel, one latent:  mean = 2x, sigma = 1/2 (v = 0), logit = 3z, at x = 1/2 and noise 1."""
    vae = lipschitz_vae((1,), (), 1, Bernoulli(), a=3.0, b=2.0, c=4.0).double()
    vae = materialize(vae)
    weights = {"encoder.0.mean": (2.0, 0.0), "encoder.0.sigma": (4.0, -2.0), "decoder.0": (3.0, 0.0)}
    for name, (weight, bias) in weights.items():
        layer = vae.get_submodule(name)
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    x, noise, radius = torch.full((1, 1), 0.5).double(), torch.ones(1, 1).double(), 0.1
    # z = 1 + 1/2, the logit 4.5; it moves by 3 (2 + 4/4) 0.1 = 0.9
    p = 1 / (1 + math.exp(-4.5))
    log_likelihood = 0.5 * 4.5 - math.log1p(math.exp(4.5))
    fall = 0.1 * 4.5 + (p - 0.5 + 0.1) * 0.9 + 0.81 / 8
    # KL of mean 1 and sigma 1/2; the mean moves by 0.2 and v by 0.4, to sigma = 1 / (1 + exp(0.4))
    kl = (1 + 0.25 - 1 + math.log(4)) / 2
    sigma = 1 / (1 + math.exp(0.4))
    rise = 0.2 * 1 + 0.02 + 0.4 * (1 - sigma) ** 2 * (1 + sigma)
    expected = log_likelihood - fall - kl - rise
    assert lipschitz_certificate(vae, x, radius, noise).item() == pytest.approx(expected, rel=1e-12)


@EACH_CASE
def test_little_is_lost_to_first_order_in_linear_networks(likelihood: str, target: str) -> None:
    """At a small radius a factor of a few is all that the sum of separate worst cases costs."""
    vae, x, noise = model(likelihood, ())
    clean = elbo(vae, x, noise)
    fall = clean - lipschitz_certificate(vae, x, 1e-4, noise, target)
    attacked = clean - lowest(vae, x, 1e-4, noise, target)
    assert (fall < 20 * attacked).all() and (fall / attacked).median() < 6


def test_it_is_far_above_intervals_in_deep_networks() -> None:
    vae, x, noise = model("bernoulli", (8, 8, 8, 8))
    certified = lipschitz_certificate(vae, x, 0.05 * math.sqrt(10), noise)
    assert (certified > elbo_bounds(vae, x, LinfBall(0.05), noise).lower).all()


def test_what_it_does_not_take_is_an_error() -> None:
    vae, x, noise = model("bernoulli")
    with pytest.raises(ValueError, match="radius must not be negative"):
        lipschitz_certificate(vae, x, -0.1, noise)
    with pytest.raises(ValueError, match="not a model of lipschitz_vae"):
        lipschitz_certificate(mlp_vae((10,), (8,), 2).double(), x, 0.1, noise)
    with pytest.raises(ValueError, match="explains targets in"):
        lipschitz_certificate(vae, 2 * x, 0.1, noise)

    class Laplace(Likelihood):
        def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
            return -(output - target).abs().sum(1)

        def mean(self, output: Tensor) -> Tensor:
            return output

    vae.likelihood = Laplace()
    with pytest.raises(ValueError, match="no Lipschitz certificate for Laplace"):
        lipschitz_certificate(vae, x, 0.1, noise)
