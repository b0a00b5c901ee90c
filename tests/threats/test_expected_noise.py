"""An attack that does not know the draw: its gradients, its values, and that it lowers the ELBO of other draws."""

import pytest
import torch
from attacked import BALL, COUNT, LATENT, curved, digits, draw, seeded, value
from oracles import reference_elbo
from torch import Tensor

from paperlib import pgd
from paperlib.threats.apgd import auto_descend
from paperlib.threats.attacks import descend, value_and_gradient
from paperlib.threats.expected_noise import expected_objective


@pytest.mark.parametrize("target", ["perturbed", "clean"])
@pytest.mark.parametrize("maximize", [False, True])
def test_values_are_of_the_same_draws_and_gradients_of_fresh_ones(target: str, maximize: bool) -> None:
    vae, x, sign = curved(), digits(), -1 if maximize else 1
    point, generator = BALL.sample(x, seeded(3)), seeded(0)
    objective = expected_objective(vae, x, BALL, 5, seeded(0), target, maximize=maximize)
    kept, fresh, later = (torch.randn(5, COUNT, LATENT, generator=generator, dtype=torch.float64) for _ in range(3))

    def mean(at: Tensor, noises: Tensor) -> Tensor:
        at_each = at.repeat(5, 1)
        explained = x.repeat(5, 1) if target == "clean" else at_each
        return sign * reference_elbo(vae, at_each, noises.flatten(0, 1), explained).view(5, COUNT).mean(0)

    for noises in (fresh, later):
        reached, gradient = value_and_gradient(objective, point)
        at = point.clone().requires_grad_()
        (expected,) = torch.autograd.grad(mean(at, noises).sum(), at)
        torch.testing.assert_close(reached, mean(point, kept).detach())
        torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(objective(point), mean(point, kept).detach())


@pytest.mark.parametrize("descent", [descend, auto_descend])
def test_an_attack_on_the_mean_lowers_it_at_draws_that_it_has_not_seen(descent: object) -> None:
    vae, x = curved(scale=3.0), digits()
    objective = expected_objective(vae, x, BALL, 16, seeded(0))
    point, least = descent(objective, x, BALL, x, 20)  # type: ignore[operator]
    assert BALL.box(x).contains(point).all() and (least <= objective(x)).all()

    def unseen(at: Tensor) -> float:
        return torch.stack([value(vae, at, draw(seed=seed)) for seed in range(100, 164)]).mean().item()

    one_draw = pgd(vae, x, BALL, draw(), 20)  # the best for one draw is not the best for the others
    assert unseen(point) < unseen(one_draw) < unseen(x)


def test_bad_input_is_an_error_that_says_what_is_wrong() -> None:
    vae, x = curved(), digits()
    with pytest.raises(ValueError, match="draws=0"):
        expected_objective(vae, x, BALL, 0)
    with pytest.raises(ValueError, match="target"):
        expected_objective(vae, x, BALL, target="Clean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"in \[0"):
        expected_objective(vae, x + 0.5, BALL)
