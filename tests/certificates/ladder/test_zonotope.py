"""Zonotopes through the whole ELBO: the audit, hand-worked numbers, DeepZ as a backward pass of parallel lines, other
sets than boxes, and gradients."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracles import CASES, ROUNDING, TARGETS, assert_encloses, audit, audit_case, hard_points, layer_values, values_at
from torch import Tensor, nn

from paperlib import (
    IBP,
    VAE,
    Bernoulli,
    DeepZ,
    Gaussian,
    HybridZonotope,
    Interval,
    L1Ball,
    L2Ball,
    LinearSet,
    LinfBall,
    PatchSet,
    TrainConfig,
    certificate,
    conv_vae,
    elbo,
    elbo_bounds,
    mlp_vae,
    pgd,
    robust_loss,
    train,
)
from paperlib.bounds.linear import LinearFunction, LinearRelaxation, ParallelRelaxation, initial_alpha, parallel
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rules import named_layers
from paperlib.certificates import posterior_bounds
from paperlib.certificates.backward import RelaxedVAE, backward_elbo_bound, terms_above, terms_below
from paperlib.certificates.ladder import symbols, zonotope, zonotope_layers
from paperlib.certificates.ladder.symbols import Errors
from paperlib.certificates.ladder.zonotope import ElboForms
from paperlib.certificates.method import Problem
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.data.datasets import Dataset
from paperlib.threats.perturbation import PerturbationSet

RULES = ("parallel", "box", "switch", "smooth")
METHODS = [DeepZ(), *map(HybridZonotope, RULES)]
EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=str)
EACH_TARGET = pytest.mark.parametrize("target", TARGETS)


def forms_of(method: DeepZ, vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: str) -> ElboForms:
    return ElboForms.of(Problem.checked(vae, x, ball, noise, target, sound=False), method.transformers)


# The audit


@EACH_TARGET
@pytest.mark.parametrize(
    ("case", "likelihood"),
    [(case, "gaussian") for case in CASES] + [(case, "bernoulli") for case in ("mlp", "conv", "smooth")],
)
def test_zonotopes_pass_the_audit(case: str, likelihood: str, target: str) -> None:
    vae, x, noise = audit_case(case, likelihood)
    for method in METHODS[:2]:
        audit(vae, x, 0.3, noise, target, [method])


@torch.no_grad()
def audit_forms(method: DeepZ, case: str, eps: float, target: str) -> None:
    """The forms' bounds alone, without intervals, which hide what is wrong with the looser ones; and all boxes."""
    vae, x, noise = audit_case(case)
    points = hard_points(vae, x, eps, noise, target)
    forms = forms_of(method, vae, x, LinfBall(eps), noise, target)
    assert_encloses(Interval(forms.lower(), forms.upper()), values_at(vae, points, x, noise, target))
    *encoder, posterior = layer_values(vae.encoder, points)
    mean, log_var = posterior.chunk(2, -1)
    values = [*encoder, mean, log_var, *layer_values(vae.decoder, mean + log_var.exp().sqrt() * noise)]
    boxes = [*forms.bounds.encoder[:-1], forms.bounds.mean, forms.bounds.log_var, *forms.bounds.decoder]
    for box, inside in zip(boxes, values, strict=True):
        assert_encloses(Interval(torch.minimum(*box), torch.maximum(*box)), inside)


@EACH_METHOD
@EACH_TARGET
def test_the_forms_alone_hold_at_hard_points(method: DeepZ, target: str) -> None:
    for case, eps in [("mlp", 0.02), ("bend", 0.3), ("deep", 0.1)]:
        audit_forms(method, case, eps, target)


def drops_errors(patch: pytest.MonkeyPatch) -> None:
    def nonlinear(relaxation: ParallelRelaxation, form: object) -> object:
        return whole(replace(relaxation, radius=torch.zeros_like(relaxation.radius)), form)

    whole = zonotope_layers._nonlinear
    patch.setattr(zonotope_layers, "_nonlinear", nonlinear)


def forgets_absolute_values(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(symbols._AbsoluteRowSums, "apply", lambda left, right: (left @ right).sum(2).abs())


def minimum_is_a_maximum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Errors, "minimum", lambda self, c: (c.T.abs() * self.radius).sum(1))


def straight_scale(patch: pytest.MonkeyPatch) -> None:
    def lines(*arguments: object) -> ParallelRelaxation:
        return replace(parallel(*arguments), radius=torch.zeros_like(parallel(*arguments).radius))

    patch.setattr(zonotope, "parallel", lines)


@pytest.mark.parametrize(
    ("plant", "case"),
    [
        (drops_errors, "bend"),
        (forgets_absolute_values, "deep"),
        (minimum_is_a_maximum, "mlp"),
        (straight_scale, "spread"),
    ],
)
def test_the_audit_sees_a_planted_bug(plant: Callable[[pytest.MonkeyPatch], None], case: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, ArithmeticError)):
            audit_forms(DeepZ(), case, 0.3, "perturbed")


# Hand-worked numbers


def two_two_one() -> tuple[VAE, Tensor, Tensor]:
    """mean = relu(x1 + x2 - 1) + relu(x1 - x2), log_var = 0, output = (z + 0.1, z + 0.6), of scale 1, at noise 0."""
    first, last, decoder = (nn.Linear(*sizes).double() for sizes in ((2, 2), (2, 2), (1, 2)))
    with torch.no_grad():
        first.weight[:], first.bias[:] = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([-1.0, 0.0])
        last.weight[:], last.bias[:] = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.zeros(2)
        decoder.weight[:], decoder.bias[:] = torch.ones(2, 1), torch.tensor([0.1, 0.6], dtype=torch.float64)
    vae = VAE(nn.Sequential(first, nn.ReLU(), last), nn.Sequential(decoder), Gaussian(1.0), 1).double()
    return vae, torch.full((1, 2), 0.5).double(), torch.zeros(1, 1).double()


# At x = 1/2 and eps = 0.1 let x1 = 0.5 + 0.1 e1 and x2 = 0.5 + 0.1 e2. Both relus have their inputs in [-0.2, 0.2], so
# DeepZ's lines are  v / 2 + 0.05 +- 0.05,  and
#
#     mean = (x1 + x2 - 1) / 2 + (x1 - x2) / 2 + 0.1 +- 0.1 = 0.1 + 0.1 e1 + 0.05 e3 + 0.05 e4
#
# without e2, in [-0.1, 0.3], and with intervals in [0, 0.3]. The ELBO is  -log(2 pi)  and  -d1^2/2 - d2^2/2 - mean^2/2,
# each of which is above its chord  -(low + high) v / 2 + low high / 2:
#
#     -mean^2/2 >= -0.15 mean
#     target clean:  d1 = mean - 0.4 in [-0.4, -0.1] and d2 = mean + 0.1 in [0.1, 0.4], so that
#         -d1^2/2 >= 0.25 d1 + 0.02  and  -d2^2/2 >= -0.25 d2 + 0.02,  together -0.085: the mean cancels
#     target perturbed:  d1 = mean + 0.1 - x1 in [-0.5, 0] and d2 = mean + 0.6 - x2 in [0, 0.5], so that
#         -d1^2/2 >= 0.25 d1  and  -d2^2/2 >= -0.25 d2,  together  -0.125 - 0.25 x1 + 0.25 x2 = -0.125 - 0.025 (e1 - e2)
#
# DeepZ:   clean      -0.085 - 0.15 * 0.3 = -0.13
#          perturbed  -0.125 - 0.015 - (0.025 + 0.015) - 0.025 - 0.15 * 0.1 = -0.22
# Hybrid, whose +- 0.1 is another one in each of d1, d2 and the KL, and takes  (0.25 + 0.25 + 0.15) * 0.1 = 0.065:
#          clean      -0.085 - 0.015 - 0.15 * 0.1 - 0.065 = -0.18
#          perturbed  -0.125 - 0.015 - (0.025 + 0.015) - 0.025 - 0.065 = -0.27
#
# Its other rules have wider boxes, which intervals cut to mean in [0, 0.4]. Then, with a clean target,
#
#     0.2 d1 - 0.3 d2 + 0.025 - 0.2 mean = -0.085 - 0.1 mean - 0.2 mean,  at mean = 0.2 +- 0.2 in each rule, so that
#
# center and errors give  -0.085 - 0.3 * 0.2 - (0.2 + 0.3 + 0.2) * 0.2 = -0.285,  which is the interval bound, too:
# -0.4^2/2 - 0.5^2/2 - 0.4^2/2. The shared part of the mean is 0 (box), 0.2 e1 (switch: lines v and v + 0.2) and
# 0.1 e1 (smooth: lines v / 2 and v / 2 + 0.2); it takes 0.3 times that.
BY_HAND = {
    DeepZ(): (-0.13, -0.22),
    HybridZonotope(): (-0.18, -0.27),
    HybridZonotope("box"): (-0.285, None),
    HybridZonotope("switch"): (-0.345, None),
    HybridZonotope("smooth"): (-0.315, None),
}


@pytest.mark.parametrize("method", BY_HAND, ids=str)
def test_numbers_worked_out_by_hand(method: DeepZ) -> None:
    vae, x, noise = two_two_one()
    clean, perturbed = BY_HAND[method]
    constant = -math.log(2 * math.pi)
    forms = forms_of(method, vae, x, LinfBall(0.1), noise, "clean")
    assert forms.lower().item() == pytest.approx(clean + constant, abs=ROUNDING)
    bound = certificate(vae, x, LinfBall(0.1), noise, method, "clean").item()
    assert bound == pytest.approx(max(clean, -0.285) + constant, abs=ROUNDING)
    if perturbed is not None:
        bound = certificate(vae, x, LinfBall(0.1), noise, method, "perturbed").item()
        assert bound == pytest.approx(perturbed + constant, abs=ROUNDING)


# DeepZ is the forward form of a backward pass


def parallel_lines(relaxation: LinearRelaxation | Affine, layer: RelaxedLayer) -> LinearRelaxation | Affine:
    if isinstance(relaxation, Affine):
        return relaxation
    lines = parallel(relaxation, layer.box)
    ends = (LinearFunction(lines.slope, lines.middle + side * lines.radius) for side in (-1, 1))
    return LinearRelaxation(*ends, selection=lines.selection)


@EACH_TARGET
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("case", ["mlp", "deep", "conv", "smooth"])
@torch.no_grad()
def test_deepz_is_the_backward_pass_of_parallel_lines_over_its_boxes(case: str, likelihood: str, target: str) -> None:
    vae, x, noise = audit_case(case, likelihood)
    forms = forms_of(DeepZ(), vae, x, LinfBall(0.1), noise, target)
    relaxed = RelaxedVAE.of(vae, forms.bounds, noise)
    halves = (
        tuple(replace(layer, relaxation=parallel_lines(layer.relaxation, layer)) for layer in half)
        for half in (relaxed.encoder, relaxed.decoder)
    )
    encoder, decoder = halves
    scale = parallel(posterior_bounds.scale_relaxation(forms.bounds.log_var), forms.bounds.log_var)
    ends = (LinearFunction(scale.slope, scale.middle + side * scale.radius) for side in (-1, 1))
    lines = replace(relaxed, encoder=encoder, decoder=decoder, scale=LinearRelaxation(*ends))
    lower = backward_elbo_bound(lines, 1.0, terms_below(lines), initial_alpha)
    upper = -backward_elbo_bound(lines, -1.0, terms_above(lines), initial_alpha)
    torch.testing.assert_close(forms.lower(), lower, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(forms.upper(), upper, rtol=1e-12, atol=1e-12)


# Symbols


@torch.no_grad()
def test_the_hybrid_has_the_symbols_of_the_input_alone_and_deepz_one_for_each_unstable_unit() -> None:
    vae, x, noise = audit_case("deep")

    def symbols_of(method: DeepZ) -> tuple[int, ElboForms]:
        forms = forms_of(method, vae, x, LinfBall(0.3), noise, "clean")
        return sum(len(term.rows) for term in forms.output.dot(torch.ones_like(x)).terms), forms

    assert [symbols_of(method)[0] for method in METHODS[1:]] == [3] * 4
    count, forms = symbols_of(DeepZ())
    unstable = 0
    for half, boxes in ((vae.encoder, forms.bounds.encoder), (vae.decoder, forms.bounds.decoder)):
        for (_, layer), box in zip(named_layers(half), boxes[:-1], strict=True):
            crossing = (box.lower < 0) & (box.upper > 0)
            unstable += crossing.any(0).sum().item() if isinstance(layer, nn.ReLU) else 0
    assert unstable >= 3
    assert count == 3 + 2 + unstable, "inputs, scales of both latents, units"


# Other sets than boxes


def pictures() -> tuple[VAE, Tensor, Tensor]:
    torch.manual_seed(0)
    vae = mlp_vae((36,), (16,), 3, Bernoulli()).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter *= 1.5
    return vae, torch.rand(3, 36).double(), torch.randn(3, 3).double()


DIRECTIONS = torch.eye(36)[:2] - torch.eye(36)[2:4]
SETS = (L2Ball(0.5), L1Ball(1.0), PatchSet(2, 2), LinearSet(DIRECTIONS, 0.4))


@pytest.mark.parametrize("method", METHODS[:2], ids=str)
@pytest.mark.parametrize("ball", SETS, ids=lambda ball: type(ball).__name__)
@torch.no_grad()
def test_both_ends_hold_over_other_sets_and_gain_over_their_boxes(method: DeepZ, ball: PerturbationSet) -> None:
    vae, x, noise = pictures()
    bounds = elbo_bounds(vae, x, ball, noise, method)
    points = [ball.sample(x, torch.Generator().manual_seed(seed)) for seed in range(100)]
    points += [pgd(vae, x, ball, noise, steps=10), pgd(vae, x, ball, noise, steps=10, maximize=True), x]
    assert_encloses(bounds, torch.stack([elbo(vae, point, noise) for point in points]))
    intervals, crown = (elbo_bounds(vae, x, ball, noise, other) for other in ("ibp", "crown"))
    assert (bounds.lower > intervals.lower).all() and (bounds.upper < intervals.upper).all()
    if method == DeepZ():
        torch.testing.assert_close(bounds.lower, crown.lower, rtol=0.05, atol=0)


def test_other_sets_through_convolutions() -> None:
    torch.manual_seed(0)
    vae = conv_vae((1, 4, 4), (2, 3), 2).double()
    x, noise = torch.rand(2, 1, 4, 4).double(), torch.randn(2, 2).double()
    for ball in (L2Ball(0.5), PatchSet(2, 2)):
        bounds = elbo_bounds(vae, x, ball, noise, "zonotope")
        values = torch.stack([elbo(vae, ball.sample(x, torch.Generator().manual_seed(n)), noise) for n in range(50)])
        assert_encloses(bounds, values)


def test_sound_zonotopes_are_refused() -> None:
    vae, x, noise = audit_case("mlp")
    for method in METHODS:
        for call in (elbo_bounds, certificate):
            with pytest.raises(ValueError, match=r"^zonotopes hold in real arithmetic: with sound=True use another"):
                call(vae, x, LinfBall(0.1), noise, method, sound=True)


# Training


@EACH_TARGET
@pytest.mark.parametrize("method", [DeepZ(), HybridZonotope(), HybridZonotope("smooth")], ids=str)
def test_the_gradient_is_that_of_differences(method: DeepZ, target: str) -> None:
    for case, ball in [("deep", LinfBall(0.1)), ("smooth", L2Ball(0.1))]:
        vae, x, noise = audit_case(case)
        parameters = [*vae.parameters()]
        directions = [torch.randn_like(parameter) for parameter in parameters]
        value = certificate(vae, x, ball, noise, method, target).sum()
        gradients = torch.autograd.grad(value, parameters)
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
        ends = []
        for step in (-1e-6, 1e-6):
            with torch.no_grad():
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter += step * direction
                ends.append(certificate(vae, x, ball, noise, method, target).sum().item())
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter -= step * direction
        assert (ends[1] - ends[0]) / 2e-6 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("bound", ["hybrid-zonotope", "zonotope"])
def test_training_on_zonotopes_raises_their_bound(bound: str) -> None:
    config = TrainConfig(data_shape=(6,), hidden=(8,), latent_dim=2, bound=bound, kappa=0.0, steps=1, batch_size=16)
    x, noise = torch.rand(32, 6).round(), torch.randn(32, 2)
    vae = train(config, data=Dataset("bits", x, torch.zeros(32)), device="cpu").vae
    optimizer, losses = torch.optim.Adam(vae.parameters(), 0.02), []
    for _ in range(30):
        losses.append(robust_loss(vae, x, LinfBall(0.1), noise, 0.0, bound))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


# Memory


def test_more_symbols_need_more_memory() -> None:
    vae, sizes = mlp_vae((784,), (512,), 20), [784, 512, 512, 40, 20, 512, 512, 784]
    intervals, hybrid, deepz = (method.memory(vae, sizes).per_image for method in (IBP(), HybridZonotope(), DeepZ()))
    assert intervals < hybrid, "coefficients for each input"
    assert deepz >= 784 * 784 + 1316 * 20, "of the output in the decoder's errors, and of the latents in all symbols"
