"""Smooth encoders: the coupling's cost against optimal transport solved in two other ways, and the attack on it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from paperlib import VAE, Bernoulli, Gaussian, LinfBall, TrainingStep, mlp_vae
from paperlib.models.elbo import elbo_terms
from paperlib.models.gaussian import kl
from paperlib.rivals.inner_attack import attacked
from paperlib.rivals.smooth_encoder import SmoothEncoder, coupling_cost

Posterior = tuple[Tensor, Tensor]
SCALE = st.floats(0.05, 3.0)
MEAN = st.floats(-3.0, 3.0)


def posterior(*coordinates: tuple[float, float]) -> Posterior:
    """Of pairs of mean and standard deviation, for a batch of one."""
    mean, scale = torch.tensor(coordinates, dtype=torch.float64).unbind(1)
    return mean[None], 2 * scale.log()[None]


@settings(deadline=None)
@given(MEAN, SCALE, MEAN, SCALE, st.floats(0.01, 100.0))
def test_the_cost_is_the_least_over_correlations(m: float, s: float, n: float, t: float, gamma: float) -> None:
    def cost(rho: float) -> float:
        return gamma / 2 * ((m - n) ** 2 + s * s + t * t - 2 * rho * s * t) - math.log1p(-rho * rho) / 2

    best = optimize.minimize_scalar(cost, bounds=(0, 1 - 1e-12), method="bounded", options={"xatol": 1e-12})
    value = coupling_cost(posterior((m, s)), posterior((n, t)), gamma).item()
    assert value == pytest.approx(best.fun, rel=1e-6, abs=1e-9)
    assert value <= best.fun + 1e-9 * (1 + abs(best.fun)), "no correlation costs less"


@pytest.mark.parametrize("gamma", [0.5, 2.0, 8.0])
def test_no_other_coupling_costs_less(gamma: float) -> None:
    """Sinkhorn's iteration solves the transport of both densities on a grid, over all couplings and not only normal
    ones, up to the grid.
    """
    z = torch.linspace(-7, 7, 701, dtype=torch.float64)
    one, other = ((-((z - m) ** 2) / (2 * s * s)).softmax(0) for m, s in ((-0.3, 0.6), (0.8, 1.1)))
    squares = gamma / 2 * (z[:, None] - z) ** 2
    left, right = torch.zeros_like(z), torch.zeros_like(z)
    for _ in range(300):
        left = -torch.logsumexp(right + other.log() - squares, 1)
        right = -torch.logsumexp((left + one.log())[:, None] - squares, 0)
    # the least of  E cost + KL(coupling, product of the marginals)  is  E left + E right  at the solution
    value = (one @ left + other @ right).item()
    closed = coupling_cost(posterior((-0.3, 0.6)), posterior((0.8, 1.1)), gamma).item()
    assert closed == pytest.approx(value, abs=1e-5)


def test_a_large_gamma_gives_the_squared_wasserstein_distance() -> None:
    one, other = posterior((0.0, 0.5), (1.0, 2.0)), posterior((0.3, 0.4), (-1.0, 1.0))
    exact = 0.3**2 + 0.1**2 + 2.0**2 + 1.0**2
    quantiles = integrate.quad(lambda p: (transport(p, 1.0, 2.0) - transport(p, -1.0, 1.0)) ** 2, 0, 1)[0]
    assert quantiles == pytest.approx(2.0**2 + 1.0**2, rel=1e-3), "of the second coordinate, by its quantiles"
    errors = [abs(2 * coupling_cost(one, other, gamma).item() / gamma - exact) for gamma in (1e2, 1e4, 1e6)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-4


def transport(p: float, mean: float, scale: float) -> float:
    return mean + scale * math.sqrt(2) * torch.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64)).item()


def test_both_terms_are_the_bound_of_a_pair_of_latents() -> None:
    """-KL' - W  is  E[log N(z') - gamma |z - z'|^2 / 2] + H(z' | z)  at the best normal coupling: here by its joint
    covariance, in one dimension, with the correlation 2u / (1 + r).
    """
    m, s, n, t, gamma = 0.4, 0.7, -0.2, 1.3, 2.5
    u = gamma * s * t
    rho = 2 * u / (1 + math.sqrt(1 + 4 * u * u))
    joint = MultivariateNormal(torch.tensor([m, n]), torch.tensor([[s * s, rho * s * t], [rho * s * t, t * t]]))
    entropy = joint.entropy().item() - Normal(m, s).entropy().item()
    log_prior = -(n * n + t * t) / 2 - math.log(2 * math.pi) / 2
    bound = log_prior - gamma / 2 * ((m - n) ** 2 + s * s + t * t - 2 * rho * s * t) + entropy
    one, other = posterior((m, s)), posterior((n, t))
    assert (-kl(*other) - coupling_cost(one, other, gamma)).item() == pytest.approx(bound, rel=1e-5)


def test_the_cost_is_symmetric_not_negative_and_grows_with_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (tuple(torch.randn(2, 50, 4, generator=generator, dtype=torch.float64).unbind(0)) for _ in range(2))
    assert torch.equal(coupling_cost(one, other, 2.0), coupling_cost(other, one, 2.0))
    (mean, log_var), (far, _) = one, other
    along = [coupling_cost(one, (mean + t * (far - mean), log_var), 2.0) for t in (0.0, 0.5, 1.0)]
    assert (along[0] >= 0).all() and (along[0] < along[1]).all() and (along[1] < along[2]).all()


def test_the_loss_is_that_of_clean_inputs_and_of_the_coupling() -> None:
    vae, ball = mlp_vae((9,), (12,), 2, Bernoulli()).double(), LinfBall(0.1)
    x, noise = torch.rand(6, 9).double(), torch.randn(6, 2).double()
    step = TrainingStep(x, ball.sample(x, torch.Generator().manual_seed(0)), ball, noise, 0.3, beta=0.5)
    objective, q = SmoothEncoder(gamma=3.0, steps=4), vae.encode(x)
    point, fixed = step.start, tuple(part.detach() for part in q)
    for _ in range(4):
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(coupling_cost(fixed, vae.encode(point), 3.0).sum(), point)
        point = (point + 2.5 / 4 * 0.1 * gradient.sign()).clamp(*ball.box(x)).detach()
    (mean, log_var), prior = vae.encode(point), Normal(torch.zeros(2).double(), 1.0)
    divergence = kl_divergence(Normal(mean, torch.exp(log_var / 2)), prior).sum(1)
    robust = -0.5 * divergence - coupling_cost(q, (mean, log_var), 3.0)
    log_likelihood, clean_kl = elbo_terms(vae, x, noise, x)
    expected = -(0.3 * (log_likelihood - 0.5 * clean_kl) + 0.7 * robust).mean()
    loss = objective.loss(vae, step)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(each, [*vae.parameters()]) for each in (loss, expected)]
    for one, other in zip(*gradients, strict=True):  # through both posteriors
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_linear_encoder_is_attacked_at_its_farthest_code() -> None:
    """Of a code w . x with a fixed variance: at x + eps sign(w) or x - eps sign(w), equally far."""
    encoder = nn.Linear(4, 2)
    w = torch.tensor([0.5, -1.0, 2.0, 0.25])
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.bias.zero_()
        encoder.weight[0] = w
    vae, ball, x = VAE(encoder, nn.Linear(1, 4), Gaussian(), 1), LinfBall(0.1), torch.full((16, 4), 0.5)
    step = TrainingStep(x, ball.sample(x, torch.Generator().manual_seed(0)), ball, torch.zeros(16, 1), 0.5)
    q = vae.encode(x)
    x_adv = attacked(vae, lambda point: -coupling_cost(q, vae.encode(point), 1.0), step, 5)
    moved = (x_adv - x) @ w
    torch.testing.assert_close(moved.abs(), torch.full((16,), 0.1 * w.abs().sum().item()))
    assert 0 < (moved > 0).sum() < 16, "both ways, as the random start has it"


def test_options_out_of_range_are_refused() -> None:
    for gamma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="gamma must be positive and finite"):
            SmoothEncoder(gamma)
    with pytest.raises(ValueError, match="at least one step"):
        SmoothEncoder(steps=0)
