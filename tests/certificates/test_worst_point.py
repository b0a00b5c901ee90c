"""The point where the linear bound is least: it attains the bound's minimum, in boxes and in other sets."""

import pytest
import torch
from attacked import Disc
from oracles import LIKELIHOODS, TARGETS

from paperlib import Crown, CrownIBP, LinfBall, apgd, certificate, elbo, mlp_vae, strongest
from paperlib.certificates.backward import backward_elbo, terms_below
from paperlib.certificates.method import Problem
from paperlib.certificates.worst_point import linear_bound_point
from paperlib.threats.suite import run_suite


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("method", [CrownIBP(), Crown()])
def test_the_linear_bound_at_the_point_is_its_minimum_over_the_box(
    method: CrownIBP, likelihood: str, target: str
) -> None:
    vae = mlp_vae((6,), (8,), 2, LIKELIHOODS[likelihood]()).double()
    x, noise, ball = torch.rand(5, 6).double(), torch.randn(5, 2).double(), LinfBall(0.1)
    point = linear_bound_point(vae, x, ball, noise, method, target)
    low, high = ball.box(x)
    assert ((point == low) | (point == high)).all(), "it is a corner"
    with torch.no_grad():
        relaxed = method.relax(Problem.checked(vae, x, ball, noise, target, sound=False))
        slope, constant = backward_elbo(relaxed, 1.0, terms_below(relaxed))
        least = (slope * point).sum(1) + constant
        torch.testing.assert_close(least, constant + ball.concretize(slope, x))
        value = elbo(vae, point, noise, x if target == "clean" else point)
    assert (certificate(vae, x, ball, noise, method, target) <= value).all()
    assert (least <= value + 1e-9).all()


def test_the_point_of_an_affine_model_in_a_disc_is_the_formulas() -> None:
    vae = mlp_vae((4,), (), 2, LIKELIHOODS["gaussian"]()).double()
    x, noise, disc = torch.randn(5, 4).double(), torch.randn(5, 2).double(), Disc(0.3)
    point = linear_bound_point(vae, x, disc, noise)
    with torch.no_grad():
        relaxed = CrownIBP().relax(Problem.checked(vae, x, disc, noise, "perturbed", sound=False))
        slope, _ = backward_elbo(relaxed, 1.0, terms_below(relaxed))
    torch.testing.assert_close(point, x - 0.3 * slope / slope.norm(dim=1, keepdim=True))


def test_the_point_is_a_start_for_the_suite() -> None:
    torch.manual_seed(3)
    vae = mlp_vae((9,), (8,), 2).double()
    x, noise, ball = torch.rand(20, 9).double(), torch.randn(20, 2).double(), LinfBall(0.1)
    start = linear_bound_point(vae, x, ball, noise)
    assert not start.requires_grad
    with torch.no_grad():
        reached = elbo(vae, apgd(vae, x, ball, noise, starts=[start]), noise)
        assert (reached <= elbo(vae, start, noise)).all()
    assert "apgd from start 1" in run_suite(vae, x, ball, noise, starts=[start]).elbos
    with torch.inference_mode():
        assert torch.equal(linear_bound_point(vae, x, ball, noise), start)
        assert strongest(vae, x, ball, noise, 2, starts=[start]).shape == x.shape


def test_an_input_outside_the_range_is_refused() -> None:
    vae = mlp_vae((4,), (8,), 2).double()
    with pytest.raises(ValueError, match=r"in \[0"):
        linear_bound_point(vae, torch.full((1, 4), 1.5).double(), LinfBall(0.1), torch.zeros(1, 2).double())
