"""MTL-IBP and Exp-IBP: means of the attacked and the certified loss, between the two, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import VAE, Bernoulli, Gaussian, LinfBall, TrainingStep, certificate, elbo, mlp_vae
from paperlib.rivals import expressive_losses
from paperlib.rivals.expressive_losses import ExpIbp, ExpressiveLoss, MtlIbp

BALL = LinfBall(0.1)


def case(method: str = "ibp", target: Any = "perturbed") -> tuple[VAE, TrainingStep]:
    generator = torch.Generator().manual_seed(0)
    vae = mlp_vae((9,), (12,), 2, Bernoulli()).double()
    x, noise = (torch.rand(6, n, generator=generator, dtype=torch.float64) for n in (9, 2))
    return vae, TrainingStep(x, BALL.sample(x, generator), BALL, noise, 0.0, method=method, target=target)


def parts(vae: VAE, step: TrainingStep, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """Certified and attacked, [batch]."""
    certified = certificate(vae, step.x, BALL, step.noise, method=step.method, target=step.target)
    return certified, elbo(vae, x_adv, step.noise, step.x if step.target == "clean" else x_adv)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
@pytest.mark.parametrize("target", ["perturbed", "clean"])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_losses_are_their_formulas(method: str, target: Any, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, step = case(method, target)
    x_adv = BALL.sample(step.x, torch.Generator().manual_seed(1))
    monkeypatch.setattr(expressive_losses, "attacked", lambda *_: x_adv)
    certified, attacked = parts(vae, step, x_adv)
    mixed = share * certified + (1 - share) * attacked
    torch.testing.assert_close(MtlIbp(share).loss(vae, step), -mixed.mean(), rtol=1e-12, atol=0)
    geometric = (-certified) ** share * (-attacked) ** (1 - share)
    torch.testing.assert_close(ExpIbp(share).loss(vae, step), geometric.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [MtlIbp(0.3), ExpIbp(0.3)], ids=lambda loss: type(loss).__name__)
def test_the_term_lies_between_certificate_and_attack_and_has_the_gradient_of_both(loss: ExpressiveLoss) -> None:
    vae, step = case("crown-ibp")
    term = loss.robust_term(vae, step)
    certified, attacked = certificate(vae, step.x, BALL, step.noise, method="crown-ibp"), elbo(vae, step.x, step.noise)
    assert (term > certified).all() and (term < attacked + 1).all()
    gradient = torch.autograd.grad(term.sum(), [*vae.parameters()])
    alone = torch.autograd.grad(certified.sum(), [*vae.parameters()])
    assert all(not torch.allclose(one, 0.3 * other) for one, other in zip(gradient, alone, strict=True))


def test_the_geometric_mean_is_refused_where_losses_may_be_negative() -> None:
    _, step = case()
    vae = mlp_vae((9,), (12,), 2, Gaussian(0.1)).double()
    with pytest.raises(
        ValueError, match="exp-ibp takes a geometric mean of losses, which a Gaussian can make negative"
    ):
        ExpIbp().loss(vae, step)
    assert MtlIbp().loss(vae, step).isfinite()
