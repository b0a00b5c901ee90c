"""The manifold defence: its projection against gradient descent by hand, its gradients, and attacks through it."""

import pytest
import torch
from torch import Tensor, nn

from paperlib import Gaussian, LinfBall, mlp_vae
from paperlib.rivals.manifold_defence import SURROGATES, ManifoldDefence, attack_classifier, attack_defence, margin

STEPS, RATE = 3, 0.05


def defence(steps: int = STEPS) -> ManifoldDefence:
    torch.manual_seed(0)
    vae = mlp_vae((6,), (8,), 2, Gaussian(0.5)).double().eval().requires_grad_(False)
    classifier = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().requires_grad_(False)
    return ManifoldDefence(vae, classifier, steps, RATE)


def inputs(count: int = 8) -> Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_projection_is_gradient_descent_from_the_encoders_mean() -> None:
    own, x = defence(), inputs()
    first, _, last = own.vae.decoder
    z = own.vae.encode(x)[0]
    for _ in range(STEPS):
        hidden = first(z)
        rest = last(hidden.relu()) - x
        z = z - RATE * 2 * ((rest @ last.weight) * (hidden > 0)) @ first.weight
    torch.testing.assert_close(own.project(x), own.vae.decoder(z))
    torch.testing.assert_close(own.logits(x), own.classifier(own.vae.decoder(z)))
    nearer = (own.project(x) - x).square().sum(1), (defence(0).project(x) - x).square().sum(1)
    assert (nearer[0] < nearer[1]).all()
    torch.testing.assert_close(defence(0).project(x), own.vae(x))


def test_each_surrogate_has_the_value_of_the_projection_and_a_gradient_of_its_own() -> None:
    own, x = defence(), inputs()
    gradients = {}
    for name, surrogate in SURROGATES.items():
        point = x.clone().requires_grad_()
        image = surrogate(own, point)
        torch.testing.assert_close(image, own.project(x))
        (gradients[name],) = torch.autograd.grad(image.sum(), point)
    torch.testing.assert_close(gradients["straight-through"], torch.ones_like(x))
    # that of the unrolled steps is the projection's own
    step = 1e-6 * torch.eye(6, dtype=torch.float64)
    for row in range(3):
        change = (own.project(x[row] + step) - own.project(x[row] - step)).sum(1) / 2e-6
        torch.testing.assert_close(gradients["unrolled"][row], change, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(gradients["unrolled"], gradients["reconstruction"])


def test_attacks_lower_the_margin_inside_the_set() -> None:
    own, x, ball = defence(), inputs(), LinfBall(0.2)
    y = own.logits(x).argmax(1)
    clean = margin(own.logits(x), y)
    met = attack_defence(own, x, y, ball, steps=5)
    strongest = met.pop("strongest")
    assert set(met) == set(SURROGATES)
    assert all((least <= clean).all() and (strongest <= least).all() for least in met.values())
    assert (strongest < clean - 1e-3).all()
    points = torch.cat([ball.sample(x, torch.Generator().manual_seed(2)) for _ in range(50)])
    sampled = margin(own.logits(points), y.repeat(50)).view(50, -1).amin(0)
    assert (strongest < sampled).double().mean() > 0.7
    point, least = attack_classifier(own.classifier, x, y, ball, steps=5)
    assert ball.box(x).contains(point).all() and (least <= margin(own.classifier(x), y)).all()
    torch.testing.assert_close(least, margin(own.classifier(point), y))


def test_a_margin_is_positive_for_the_largest_logit_alone() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 5.0, 5.0], [0.0, 1.0, 4.0]])
    assert margin(logits, torch.tensor([0, 1, 0])).tolist() == [1.0, 0.0, -4.0]


@pytest.mark.parametrize(("steps", "rate"), [(-1, 0.1), (2, 0.0)])
def test_wrong_arguments_are_named(steps: int, rate: float) -> None:
    own = defence()
    with pytest.raises(ValueError, match=f"steps >= 0 and a rate > 0, got {steps} and {rate}"):
        ManifoldDefence(own.vae, own.classifier, steps, rate)
