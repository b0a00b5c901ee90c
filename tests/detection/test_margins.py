"""Margins for training are those of the general bounds, and no point is below them."""

import pytest
import torch
from torch import Tensor, nn

from paperlib import Bernoulli, Gaussian, Likelihood, LinfBall, elbo
from paperlib.certificates.difference import LinearElboBounds, difference_lower
from paperlib.detection.class_vaes import ClassVAEs, Sizes
from paperlib.detection.margins import certified_kl_margins, certified_margins

CLASSES, FEATURES = 3, 9
EACH_LIKELIHOOD = pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)])


def models(likelihood: Likelihood) -> ClassVAEs:
    """With a convolution among the shared layers."""
    torch.manual_seed(0)
    image = nn.Unflatten(1, (1, 3, 3))
    shared = nn.Sequential(image, nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 6), nn.ReLU())
    return ClassVAEs(Sizes(FEATURES, CLASSES, hidden=5, latent_dim=2), likelihood, shared).double()


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(12, FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.arange(12) % CLASSES


@EACH_LIKELIHOOD
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_margins_are_those_of_the_general_bounds(likelihood: Likelihood, eps: float) -> None:
    model, (x, y) = models(likelihood), examples()
    ball = LinfBall(eps)
    certified = certified_margins(model, ball.box(x), y, CLASSES - 1)
    noise = torch.zeros(len(x), 2, dtype=torch.float64)
    bounds = [LinearElboBounds.of(vae, x, ball, noise) for vae in model.vaes()]
    general = torch.stack([torch.stack([difference_lower(own, rival) for rival in bounds]) for own in bounds])
    expected = general[y, certified.rivals, torch.arange(len(x))]
    assert (certified.margins <= expected + 1e-9).all()  # the general ones are never looser than separate bounds
    torch.testing.assert_close(certified.margins.median(), expected.median(), rtol=0, atol=1e-8)
    assert all(
        len({*column, label}) == CLASSES for column, label in zip(certified.rivals.T.tolist(), y.tolist(), strict=True)
    )


@EACH_LIKELIHOOD
def test_no_point_is_below_a_margin(likelihood: Likelihood) -> None:
    model, (x, y) = models(likelihood), examples()
    ball, rows = LinfBall(0.2), torch.arange(len(x))
    with torch.no_grad():
        certified = certified_margins(model, ball.box(x), y, CLASSES - 1)
        kl_margins, own_kl = certified_kl_margins(model, ball.box(x), y)
        generator = torch.Generator().manual_seed(2)
        for number in range(40):
            point = ball.sample(x, generator)
            point = ball.project(x + (point - x).sign(), x) if number % 2 else point
            fit, kl = model.terms(point)
            scores = fit - kl
            assert (certified.margins <= scores[y, rows] - scores[certified.rivals, rows]).all()
            assert (kl_margins <= kl - kl[y, rows] + 1e-12).all() and (kl[y, rows] <= own_kl + 1e-12).all()


def test_terms_are_those_of_each_vae() -> None:
    model, (x, _) = models(Bernoulli()), examples()
    noise = torch.randn(len(x), 2, dtype=torch.float64)
    fit, kl = model.terms(x, noise)
    torch.testing.assert_close(fit - kl, torch.stack([elbo(vae, x, noise) for vae in model.vaes()]))


def test_constant_decoders_give_the_class_means() -> None:
    model, (x, y) = models(Bernoulli()), examples()
    model.decode_class_means(x, y)
    with torch.no_grad():
        model.output_weight.zero_()
    for number, vae in enumerate(model.vaes()):
        torch.testing.assert_close(vae.reconstruct(x[:1])[0], x[y == number].mean(0))
