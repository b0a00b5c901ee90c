"""The dual network: the audit, the paper's own formula, backward substitution by its slopes, and its gradient."""

import math

import pytest
import torch
from oracles import CASES, LIKELIHOODS, ROUNDING, TARGETS, assert_encloses, audit, audit_case
from torch import Tensor, nn

from paperlib import (
    VAE,
    Bernoulli,
    Gaussian,
    Interval,
    L1Ball,
    L2Ball,
    LinfBall,
    PatchSet,
    certificate,
    elbo,
    elbo_bounds,
    lighting,
    mlp_vae,
    pgd,
    robust_loss,
)
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.linear import backward_substitute, initial_alpha
from paperlib.certificates.backward import RelaxedVAE, backward_pass
from paperlib.certificates.ladder.dual_network import DualNetwork, dual_network
from paperlib.certificates.ladder.lagrangian import Lagrangian
from paperlib.certificates.method import METHODS, Method, Problem
from paperlib.threats.perturbation import PerturbationSet

EACH_TARGET = pytest.mark.parametrize("target", TARGETS)


@pytest.mark.parametrize("case", CASES)
def test_the_dual_network_passes_the_audit(case: str) -> None:
    for likelihood, target, eps in (
        ("bernoulli", "perturbed", 0.3),
        ("gaussian", "clean", 0.02),
        ("gaussian", "perturbed", 0.3),
    ):
        vae, x, noise = audit_case(case, likelihood)
        audit(vae, x, eps, noise, target, [DualNetwork()])


SETS: dict[str, PerturbationSet] = {
    "l2": L2Ball(0.5),
    "l1": L1Ball(1.0),
    "lighting": lighting(0.2, 0.3),
    "patch": PatchSet(2, 2),
    "radii": LinfBall(torch.rand(1, 4, 4) * 0.2),
}


@EACH_TARGET
@pytest.mark.parametrize("method", [DualNetwork(), Lagrangian(steps=2)], ids=["dual network", "lagrangian"])
@pytest.mark.parametrize("name", SETS)
def test_bounds_over_every_perturbation_set_hold_for_its_samples(name: str, method: Method, target: str) -> None:
    vae, x, noise = audit_case("conv")
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter *= 1.5
    bounds, looser = (elbo_bounds(vae, x, SETS[name], noise, each, target) for each in (method, "ibp"))
    assert (bounds.lower >= looser.lower).all() and (bounds.upper <= looser.upper).all()
    assert (bounds.lower > looser.lower).any()
    with torch.no_grad():
        points = [x, *(SETS[name].sample(x) for _ in range(20)), pgd(vae, x, SETS[name], noise, steps=5, target=target)]
        values = [elbo(vae, point, noise, point if target == "perturbed" else x) for point in points]
    assert_encloses(bounds, torch.stack(values))


def relax(vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor) -> RelaxedVAE:
    problem = Problem.checked(vae, x, ball, noise, "perturbed", sound=False)
    return dual_network(RelaxedVAE.of(vae, problem.bounds, noise))


def wong_kolter(layers: list[nn.Linear], boxes: list[Interval], x: Tensor, eps: float, c: Tensor) -> Tensor:
    """The least  c . (the last layer's output)  by the dual objective of the paper (its theorem 1 and algorithm 1), for
    one x:

        J(nu) = - sum_i nu_{i+1} . b_i  -  x . nu^_1  -  eps |nu^_1|_1  +  sum_i sum_{j unstable} l_ij max(nu_ij, 0)

    with  nu = -c  at the end,  nu^ = W^T nu  and  nu_ij = u / (u - l) nu^_ij  at an unstable unit.

    Args:
        boxes: of the layers' outputs, but for the last one's.
    """
    nu = -c
    value = -(nu @ layers[-1].bias)
    for layer, below, box in zip(layers[:0:-1], layers[-2::-1], boxes[::-1], strict=True):
        nu_hat = layer.weight.T @ nu
        low, high = box
        unstable = (low < 0) & (high > 0)
        nu = torch.where(low >= 0, nu_hat, torch.zeros_like(nu_hat))
        nu = torch.where(unstable, high / (high - low) * nu_hat, nu)
        value = value + (low * nu.clamp(min=0))[unstable].sum() - nu @ below.bias
    nu_hat = layers[0].weight.T @ nu
    return value - x @ nu_hat - eps * nu_hat.abs().sum()


@torch.no_grad()
def test_boxes_are_those_of_the_papers_dual_objective() -> None:
    vae = mlp_vae((5,), (8, 7), 3).double()
    x, noise, eps = torch.full((1, 5), 0.5).double(), torch.randn(1, 3).double(), 0.2
    relaxed = relax(vae, x, LinfBall(eps), noise)
    layers = [layer for layer in vae.encoder if isinstance(layer, nn.Linear)]
    relus = [layer.box.map(lambda end: end[0]) for layer in relaxed.encoder if isinstance(layer.layer, nn.ReLU)]
    posterior = Interval(
        *(torch.cat(ends, 1)[0] for ends in zip(relaxed.bounds.mean, relaxed.bounds.log_var, strict=True))
    )
    dual = 0
    for depth, box in enumerate([*relus, posterior][1:], start=2):
        # a unit of the box before, by intervals
        before = relus[depth - 2].map(torch.relu)
        layer = layers[depth - 1]
        center, radius = layer(before.center), layer.weight.abs() @ before.radius
        rows = torch.eye(layer.out_features).double()
        low = torch.stack([wong_kolter(layers[:depth], relus[: depth - 1], x[0], eps, row) for row in rows])
        high = torch.stack([-wong_kolter(layers[:depth], relus[: depth - 1], x[0], eps, -row) for row in rows])
        assert (low > center - radius).any() and (high < center + radius).any()
        torch.testing.assert_close(box.lower, torch.maximum(low, center - radius), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(box.upper, torch.minimum(high, center + radius), rtol=1e-12, atol=1e-12)
        dual += 1
    assert dual == 2


@torch.no_grad()
@pytest.mark.parametrize("case", ["deep", "conv", "smooth"])
def test_the_dual_network_is_backward_substitution_by_its_slopes_over_the_same_boxes(case: str) -> None:
    vae, x, noise = audit_case(case)
    for parameter in vae.parameters():
        parameter *= 2
    relaxed = relax(vae, x, LinfBall(0.1), noise)
    output = relaxed.bounds.output
    intervals = Problem.checked(vae, x, LinfBall(0.1), noise, "perturbed", sound=False).bounds.output
    by_intervals = intervals.intersect(interval_rule(relaxed.decoder[-1].layer, relaxed.decoder[-1].box))

    def unit(sign: float, index: int) -> Tensor:
        """The least  sign * output_index  by one pass through decoder, reparametrisation and encoder."""
        coefficients = torch.zeros_like(output.lower).flatten(1)
        coefficients[:, index] = sign
        c, d = backward_pass(
            relaxed.decoder, coefficients.view_as(output.lower), torch.zeros(len(x)).double(), initial_alpha
        )
        scale, offset = backward_substitute(c * noise, relaxed.scale)
        c, d = backward_pass(relaxed.encoder, torch.cat([c, scale], 1), d + offset.sum(1), initial_alpha)
        return d + relaxed.bounds.region.concretize(c)

    tighter = 0
    for index in range(output.lower[0].numel()):
        own, loose = (box.map(lambda end, unit=index: end.flatten(1)[:, unit]) for box in (output, by_intervals))
        dual = Interval(unit(1.0, index), -unit(-1.0, index))
        lower, upper = torch.maximum(dual.lower, loose.lower), torch.minimum(dual.upper, loose.upper)
        torch.testing.assert_close(own.lower, lower, rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(own.upper, upper, rtol=ROUNDING, atol=ROUNDING)
        tighter += ((dual.lower > loose.lower) & (dual.upper < loose.upper)).sum().item()
    assert tighter > 0


def folded(likelihood: Gaussian | Bernoulli) -> VAE:
    """mean = |u| / 2 for u = x - 1/2, by two units, log_var = 0, and the output is the latent."""
    first, second, decoder = nn.Linear(1, 2), nn.Linear(2, 2), nn.Linear(1, 1)
    first.weight.data, first.bias.data = torch.ones(2, 1), torch.tensor([-0.5, 9.5])  # u, and u + 10
    second.weight.data, second.bias.data = torch.tensor([[1.0, -0.5], [0.0, 0.0]]), torch.tensor([5.0, 0.0])
    decoder.weight.data, decoder.bias.data = torch.ones(1, 1), torch.zeros(1)
    return VAE(nn.Sequential(first, nn.ReLU(), second), decoder, likelihood, 1).double()


def test_a_hand_worked_vae_has_the_hand_worked_bounds() -> None:
    # u in [-1/4, 1/4], where relu(u) has the two lines u / 2 and u / 2 + 1/8: so the mean relu(u) - u / 2 lies in
    # [0, 1/8], exactly. Intervals say [0, 1/4] - [-1/8, 1/8] = [-1/8, 3/8]. With noise 0 it is the output as well, and
    # the distance from the clean target 1/2 is d in [-1/2, -3/8].
    # Chords: -d^2 / 2 >= 7 d / 16 + 3/32 and -mean^2 / 2 >= -mean / 16, together 3 mean / 8 - 1/8, at mean >= 0: -1/8.
    # Tangents: -d^2 / 2 <= 3 (d + 3/8) / 8 - 9/128 (at d = -3/8) and -mean^2 / 2 <= -mean / 16 + 1/512 (at 1/16),
    # together 5 mean / 16 - 59/512, at mean <= 1/8: -39/512. All less log(2 pi) / 2.
    vae = folded(Gaussian())
    x, noise = torch.tensor([[0.5]]).double(), torch.zeros(1, 1).double()
    bounds = elbo_bounds(vae, x, LinfBall(0.25), noise, DualNetwork(), "clean")
    constant = math.log(2 * math.pi) / 2
    assert [end.item() for end in bounds] == pytest.approx([-1 / 8 - constant, -39 / 512 - constant], rel=1e-13)
    # by intervals d in [-5/8, -1/8] and mean in [-1/8, 3/8]
    loose = elbo_bounds(vae, x, LinfBall(0.25), noise, "ibp", "clean")
    assert loose.lower.item() == pytest.approx(-25 / 128 - 9 / 128 - constant, rel=1e-13)


@EACH_TARGET
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("case", ["deep", "conv"])
def test_the_gradient_is_that_of_finite_differences(case: str, likelihood: str, target: str) -> None:
    vae, x, noise = audit_case(case, likelihood)
    parameters = [*vae.parameters()]

    def value() -> Tensor:
        return certificate(vae, x, LinfBall(0.1), noise, DualNetwork(), target).sum()

    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    direction = [torch.randn_like(parameter) for parameter in parameters]
    along = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None)
    step, ends = 1e-6, []
    for sign in (1, -2, 1):  # there, to the other side, and back
        with torch.no_grad():
            for parameter, part in zip(parameters, direction, strict=True):
                parameter += sign * step * part
            ends.append(value())
    assert along.item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=1e-5)


def test_it_is_trained_on_by_its_word() -> None:
    vae, x, noise = audit_case("mlp")
    ball = LinfBall(0.1)
    losses = [robust_loss(vae, x, ball, noise, 0.25, method) for method in ("dual-network", "ibp")]
    assert losses[0] < losses[1], "a tighter certificate is a smaller loss"
    assert any(gradient.any() for gradient in torch.autograd.grad(losses[0], [*vae.parameters()]))


def test_what_it_does_not_do_is_refused() -> None:
    vae, x, noise = audit_case("mlp")
    for method in (DualNetwork(), Lagrangian()):
        for bound in (elbo_bounds, certificate):
            with pytest.raises(ValueError, match="real arithmetic: with sound=True use another method"):
                bound(vae, x, LinfBall(0.1), noise, method, sound=True)
    assert METHODS["dual-network"] == DualNetwork() and DualNetwork().differentiable
