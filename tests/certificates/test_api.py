"""Certified bounds of the ELBO: the audit, exact worst cases on grids, and clear refusals."""

import copy
import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    CASES,
    LIKELIHOODS,
    ROUNDING,
    TARGETS,
    assert_encloses,
    audit,
    audit_case,
    grid,
    reference_elbo,
    values_at,
)
from torch import Tensor, nn

from paperlib import (
    VAE,
    Bernoulli,
    Crown,
    CrownIBP,
    Gaussian,
    Lagrangian,
    LinfBall,
    certificate,
    conv_vae,
    elbo,
    elbo_bounds,
    mlp_vae,
)
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates.method import Method, find_method

EACH_TARGET = pytest.mark.parametrize("target", TARGETS)
EACH_LIKELIHOOD = pytest.mark.parametrize("likelihood", LIKELIHOODS)


@pytest.mark.parametrize("eps", [0.02, 0.3])
@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("case", CASES)
def test_bounds_pass_the_audit(case: str, likelihood: str, target: str, eps: float) -> None:
    vae, x, noise = audit_case(case, likelihood)
    audit(vae, x, eps, noise, target)


@EACH_TARGET
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**16),
    hidden=st.lists(st.integers(1, 5), max_size=2),
    size=st.integers(1, 4),
    latent=st.integers(1, 3),
    eps=st.floats(0, 1),
    likelihood=st.sampled_from(sorted(LIKELIHOODS)),
)
def test_random_networks_pass_the_audit(
    target: str, seed: int, hidden: list[int], size: int, latent: int, eps: float, likelihood: str
) -> None:
    torch.manual_seed(seed)
    vae = mlp_vae((size,), tuple(hidden), latent, LIKELIHOODS[likelihood]()).double()
    audit(vae, torch.rand(2, size).double(), eps, torch.randn(2, latent).double(), target)


@EACH_TARGET
@EACH_LIKELIHOOD
def test_bounds_hold_the_exact_range_over_a_disc_of_the_plane(likelihood: str, target: str) -> None:
    vae = mlp_vae((2,), (8,), 2, LIKELIHOODS[likelihood]()).double()
    x, noise, eps = torch.tensor([[0.3, 0.95]]).double(), torch.randn(1, 2).double(), 0.2
    points = torch.cartesian_prod(grid(0.1, 0.5, 121), grid(0.75, 1.0, 121))  # [0.1, 0.5] x [0.75, 1]: cut at 1
    goal = points if target == "perturbed" else x.expand_as(points)
    values = reference_elbo(vae, points, noise.expand(len(points), 2), goal)
    bounds = elbo_bounds(vae, x, LinfBall(eps), noise, target=target)
    assert_encloses(bounds, values[:, None])
    worst, best = values.aminmax()
    assert bounds.upper - bounds.lower < 20 * (best - worst), "a bound this loose would hold by accident"


def test_a_hand_worked_vae_has_the_hand_worked_bounds() -> None:
    # mean = x, log_var = 0, noise = 0, output = z, so all of mean, z and output lie in [0.25, 0.75] for x = 0.5.
    # KL = mean^2 / 2 in [1/32, 9/32]; the fit is log N(x'; output, 1) = -d^2 / 2 - log(2 pi) / 2 with d in [0, 1/2].
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    encoder.weight.data, encoder.bias.data = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    decoder.weight.data, decoder.bias.data = torch.ones(1, 1), torch.zeros(1)
    vae = VAE(encoder, decoder, Gaussian(), latent_dim=1).double()
    x, noise, constant = torch.tensor([[0.5]]).double(), torch.zeros(1, 1).double(), math.log(2 * math.pi) / 2
    bounds = elbo_bounds(vae, x, LinfBall(0.25), noise)
    assert [end.item() for end in bounds] == pytest.approx([-1 / 8 - 9 / 32 - constant, -1 / 32 - constant], rel=1e-15)
    # With the clean target d = |0.5 - output| <= 1/4.
    clean = elbo_bounds(vae, x, LinfBall(0.25), noise, target="clean")
    assert [end.item() for end in clean] == pytest.approx([-1 / 32 - 9 / 32 - constant, -1 / 32 - constant], rel=1e-15)
    # Truly the input is explained perfectly: ELBO(x') = -x'^2 / 2 - constant, which is best at x' = 1/4.
    assert elbo(vae, x, noise).item() == pytest.approx(-1 / 8 - constant, rel=1e-15)


@EACH_TARGET
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH_LIKELIHOOD
@pytest.mark.parametrize(
    "make", [lambda p: mlp_vae((1, 8, 8), (32,), 5, p), lambda p: conv_vae((1, 8, 8), (4, 8), 5, p)]
)
def test_an_eps_of_zero_gives_the_elbo_bit_for_bit(
    make: Callable[..., VAE], likelihood: str, dtype: torch.dtype, target: str
) -> None:
    # Bound and forward pass take the same operations on the same numbers, so no rounding sets them apart.
    vae, x = make(LIKELIHOODS[likelihood]()).to(dtype), torch.rand(7, 1, 8, 8, dtype=dtype).round(decimals=1)
    noise = torch.randn(7, 5, dtype=dtype)
    bounds = elbo_bounds(vae, x, LinfBall(0.0), noise, target=target)
    assert torch.equal(bounds.lower, bounds.upper)
    assert torch.equal(bounds.lower, elbo(vae, x, noise))


@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("case", CASES)
def test_nested_balls_have_nested_bounds(case: str, likelihood: str, target: str) -> None:
    vae, x, noise = audit_case(case, likelihood)
    inner, outer = (elbo_bounds(vae, x, LinfBall(eps), noise, target=target) for eps in (0.1, 0.15))
    assert_encloses(outer, torch.stack([*inner]))


def test_a_ball_cut_to_the_data_range_is_certified_better_than_an_uncut_one() -> None:
    vae, x, noise = audit_case("mlp", "gaussian")
    cut, uncut = LinfBall(0.2), LinfBall(0.2, -1.0, 2.0)
    assert (elbo_bounds(vae, x, cut, noise).lower > elbo_bounds(vae, x, uncut, noise).lower)[[0, -1]].all()


@EACH_TARGET
def test_the_certificate_alone_is_the_lower_end(target: str) -> None:
    vae, x, noise = audit_case("mlp")
    lower = elbo_bounds(vae, x, LinfBall(0.1), noise, target=target).lower
    assert torch.equal(certificate(vae, x, LinfBall(0.1), noise, target=target), lower)


def test_examples_do_not_mix() -> None:
    vae, x, noise = audit_case("conv", batch=4)
    whole = elbo_bounds(vae, x, LinfBall(0.1), noise)
    alone = [elbo_bounds(vae, x[i : i + 1], LinfBall(0.1), noise[i : i + 1]) for i in range(4)]
    for k, end in enumerate(whole):
        torch.testing.assert_close(end, torch.cat([[*a][k] for a in alone]), rtol=ROUNDING, atol=ROUNDING)


def test_a_user_network_of_every_layer_passes_the_audit() -> None:
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten(),
        nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ELU(), nn.Dropout(), nn.Linear(8, 4)),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(2, 8), nn.Softplus(), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Identity()
    )
    vae = VAE(encoder, decoder, Bernoulli(), 2).double()
    vae.encoder(torch.randn(32, 1, 4, 4).double())  # sets the running statistics
    x, noise = torch.rand(3, 1, 4, 4).double(), torch.randn(3, 2).double()
    with pytest.raises(ValueError, match=r"BatchNorm2d at 'encoder.1': .*\.eval\(\)"):
        elbo_bounds(vae, x, LinfBall(0.1), noise)
    for target in TARGETS:
        audit(vae.eval(), x, 0.1, noise, target)


# Gradients


class Ends(nn.Module):
    """Both ends as the output of a module, for `functional_call`."""

    def __init__(self, vae: VAE, target: str):
        super().__init__()
        self.vae, self.target = vae, target

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return torch.cat([*elbo_bounds(self.vae, x, LinfBall(0.05), noise, target=self.target)])


@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("parameter", ["encoder.0.weight", "encoder.2.bias", "decoder.0.weight", "decoder.2.bias"])
def test_both_ends_have_the_gradient_of_finite_differences(parameter: str, likelihood: str, target: str) -> None:
    vae, _, noise = audit_case("mlp", likelihood, batch=2)
    x = torch.tensor([[0.0, 1.0, 0.5], [0.3, 0.7, 1.0]]).double()
    start = vae.get_parameter(parameter).detach().clone().requires_grad_()
    ends = Ends(vae, target)

    def bounds(value: Tensor) -> Tensor:
        return torch.func.functional_call(ends, {f"vae.{parameter}": value}, (x, noise))

    assert torch.autograd.gradcheck(bounds, (start,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 0.1])
@EACH_TARGET
def test_gradients_are_finite_for_black_and_white_pixels(target: str, eps: float, dtype: torch.dtype) -> None:
    vae, x, noise = (
        mlp_vae((6,), (5,), 2).to(dtype),
        torch.tensor([[0, 1, 0, 1, 0.5, 0]], dtype=dtype),
        torch.ones(1, 2),
    )
    for end in elbo_bounds(vae, x, LinfBall(eps), noise.to(dtype), target=target):
        for gradient in torch.autograd.grad(end.sum(), [*vae.parameters()], retain_graph=True):
            assert torch.isfinite(gradient).all()
            assert gradient.any()


def test_an_overflow_never_yields_a_finite_certificate() -> None:
    vae, x, noise = audit_case("mlp")
    with torch.no_grad():
        vae.encoder[-1].bias[2:] = 2000.0  # exp of it is infinite
    for draw in (noise, torch.zeros_like(noise)):
        assert not torch.isfinite(elbo_bounds(vae, x, LinfBall(0.1), draw).lower).any()


# Refusals


def swapped(**changes: object) -> dict:
    vae, x, noise = audit_case("mlp")
    return {"vae": vae, "x": x, "noise": noise} | changes


def with_value(shape: tuple[int, ...], value: float) -> Tensor:
    tensor = torch.full(shape, 0.5, dtype=torch.float64)
    tensor[1, 1] = value
    return tensor


WRONG = {
    "noise for another batch": ({"noise": torch.zeros(2, 2).double()}, r"noise must be .*\[3, 2\], got \[2, 2\]"),
    "noise that would broadcast": ({"noise": torch.zeros(2).double()}, r"noise must be .*\[3, 2\], got \[2\]"),
    "noise of another width": ({"noise": torch.zeros(3, 1).double()}, r"noise must be .*\[3, 2\], got \[3, 1\]"),
    "noise in float32": ({"noise": torch.zeros(3, 2)}, "noise is torch.float32 on cpu, the model is torch.float64"),
    "noise elsewhere": ({"noise": torch.zeros(3, 2, device="meta").double()}, "noise is .* on meta, .* on cpu"),
    "noise not finite": ({"noise": with_value((3, 2), math.nan)}, r"noise is not finite at index \[1, 1\]"),
    "x in float32": ({"x": torch.full((3, 3), 0.5)}, "x is torch.float32 on cpu, the model is torch.float64"),
    "x of integers": ({"x": torch.ones(3, 3, dtype=torch.uint8)}, "x is torch.uint8"),
    "x elsewhere": ({"x": torch.zeros(3, 3, device="meta").double()}, "x is .* on meta, .* on cpu"),
    "x not a number": ({"x": with_value((3, 3), math.nan)}, r"x .*finite .*\[1, 1\]"),
    "x infinite": ({"x": with_value((3, 3), math.inf)}, r"x .*finite .*\[1, 1\]"),
    "x of another width": ({"x": torch.full((3, 4), 0.5).double()}, r"3x4|\[3, 4\]"),
    "x that would broadcast": ({"x": torch.full((3, 1, 3), 0.5).double()}, r"\[3, 1, 3\]"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("function", [elbo, elbo_bounds, certificate], ids=lambda function: function.__name__)
def test_inputs_that_do_not_fit_are_refused_with_one_clear_line(function: Callable, name: str) -> None:
    changes, message = WRONG[name]
    ball = {} if function is elbo else {"ball": LinfBall(0.1)}
    with pytest.raises(ValueError, match=message):
        function(**swapped(**changes), **ball)


@pytest.mark.parametrize("function", [elbo, elbo_bounds, certificate], ids=lambda function: function.__name__)
def test_an_unknown_target_word_is_refused(function: Callable) -> None:
    ball = {} if function is elbo else {"ball": LinfBall(0.1)}
    with pytest.raises(ValueError, match=r'"perturbed" or "clean".*got .noisy'):
        function(**swapped(), **ball, target="noisy")


def test_pixels_outside_the_data_range_are_refused_by_the_bounds() -> None:
    with pytest.raises(ValueError, match=r"in \[0\.0, 1\.0\], got 1\.5 at index \[1, 1\]"):
        elbo_bounds(**swapped(x=with_value((3, 3), 1.5)), ball=LinfBall(0.1))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_an_unsupported_layer_of_either_half_is_refused_with_name_and_place(half: str) -> None:
    arguments = swapped()
    getattr(arguments["vae"], half).insert(1, nn.Softmax(dim=1))
    with pytest.raises(UnsupportedLayerError, match=r"Softmax at '(encoder\.|decoder\.)?1'"):
        elbo_bounds(**arguments, ball=LinfBall(0.1))


def test_the_public_signatures_are_those_that_others_rely_on() -> None:
    for function in (elbo_bounds, certificate):
        parameters = inspect.signature(function).parameters
        assert [*parameters] == ["vae", "x", "ball", "noise", "method", "target", "sound"]
        assert parameters["sound"].kind is inspect.Parameter.KEYWORD_ONLY
        assert [parameters[name].default for name in ("method", "target", "sound")] == ["ibp", "perturbed", False]


# Where the bounds could not be kept


EVERY_METHOD = ["ibp", "crown-ibp", "crown", CrownIBP(3), Crown(3), "best"]
LADDER = ["zonotope", "hybrid-zonotope", "dual-network", Lagrangian(2)]  # in real arithmetic alone
EITHER_ARITHMETIC = pytest.mark.parametrize(
    ("method", "sound"),
    [*((method, sound) for method in EVERY_METHOD for sound in (False, True)), *((method, False) for method in LADDER)],
    ids=str,
)


def steep(gain: float, dtype: torch.dtype) -> VAE:
    """Log-variance gain * x - gain * (1 - x) after ReLUs, from a box of both signs, and a decoder that saturates."""
    first, second = nn.Linear(1, 2), nn.Linear(2, 2)
    first.weight.data, first.bias.data = torch.ones(2, 1), torch.zeros(2)
    second.weight.data, second.bias.data = torch.tensor([[0.0, 0.0], [gain, -gain]]), torch.zeros(2)
    inner, outer = nn.Linear(1, 1), nn.Linear(1, 1)
    inner.weight.data, inner.bias.data = torch.full((1, 1), 0.37), torch.full((1,), -0.9)
    outer.weight.data, outer.bias.data = torch.full((1, 1), 10.0), torch.zeros(1)
    encoder, decoder = nn.Sequential(first, nn.ReLU(), second), nn.Sequential(inner, nn.Tanh(), outer)
    return VAE(encoder, decoder, Bernoulli(), 1).to(dtype).eval()


@pytest.mark.parametrize("x", [0.0, 1.0])
@pytest.mark.parametrize("method", [*EVERY_METHOD, *LADDER], ids=str)
@pytest.mark.parametrize(("dtype", "gain"), [(torch.float32, 40.0), (torch.float64, 80.0)], ids=str)
@torch.no_grad()
def test_bounds_hold_where_the_ends_of_a_box_differ_by_more_than_the_precision(
    dtype: torch.dtype, gain: float, method: str | Method, x: float
) -> None:
    vae, center, noise = steep(gain, dtype), torch.full((1, 1), x, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    bounds = elbo_bounds(vae, center, LinfBall(1.0), noise, method, "clean").map(Tensor.double)
    points = grid(0, 1).view(-1, 1, 1)
    values = values_at(steep(gain, torch.float64), points, center.double(), noise.double(), "clean")
    assert_encloses(bounds, values, 1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 1.0])
@EITHER_ARITHMETIC
@torch.no_grad()
def test_where_exp_overflows_the_bounds_are_infinite_and_not_nan(
    method: str | Method, noise: float, dtype: torch.dtype, sound: bool
) -> None:
    vae = steep(3000.0, dtype)
    vae.encoder[-1].weight.data[1, 1] = 0
    x, noises = torch.full((1, 1), 0.5, dtype=dtype), torch.full((1, 1), noise, dtype=dtype)
    bounds = elbo_bounds(vae, x, LinfBall(0.5), noises, method, sound=sound)
    assert bounds.lower == -math.inf
    assert not bounds.upper.isnan().any()
    assert certificate(vae, x, LinfBall(0.5), noises, method, sound=sound) == -math.inf


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("method", [*EVERY_METHOD, *LADDER, "exact"], ids=str)
@pytest.mark.parametrize(
    "make", [lambda: mlp_vae((2,), (5,), 2), lambda: conv_vae((1, 4, 4), (2,), 2)], ids=["mlp", "conv"]
)
def test_a_batch_of_no_examples_has_no_bounds(make: Callable[[], VAE], method: str | Method, sound: bool) -> None:
    vae = make().eval()
    if (method in LADDER and sound) or (method == "exact" and (sound or isinstance(vae.encoder[0], nn.Conv2d))):
        pytest.skip("refused for any batch")
    x = torch.rand(0, *((2,) if isinstance(vae.encoder[0], nn.Linear) else (1, 4, 4)))
    bounds = elbo_bounds(vae, x, LinfBall(0.1), torch.randn(0, 2), method, sound=sound)
    assert bounds.lower.shape == bounds.upper.shape == (0,)
    assert certificate(vae, x, LinfBall(0.1), torch.randn(0, 2), method, sound=sound).shape == (0,)


@EITHER_ARITHMETIC
def test_methods_run_in_inference_mode_and_on_what_was_made_there(method: str | Method, sound: bool) -> None:
    vae, x, noise = conv_vae((1, 4, 4), (2,), 2).eval(), torch.rand(2, 1, 4, 4), torch.randn(2, 2)
    expected = elbo_bounds(vae, x, LinfBall(0.1), noise, method, sound=sound)
    with torch.inference_mode():
        made = [copy.deepcopy(vae), x.clone(), noise.clone()]
        inside = elbo_bounds(made[0], made[1], LinfBall(0.1), made[2], method, sound=sound)
    outside = elbo_bounds(made[0], made[1], LinfBall(0.1), made[2], method, sound=sound)
    for bounds in (inside, outside):
        assert torch.equal(bounds.lower, expected.lower) and torch.equal(bounds.upper, expected.upper)


@pytest.mark.parametrize("method", [*EVERY_METHOD, *LADDER], ids=str)
def test_bounds_have_the_right_gradient_or_none(method: str | Method) -> None:
    vae, x, noise = mlp_vae((3,), (4,), 2).double(), torch.rand(2, 3).double(), torch.randn(2, 2).double()
    bounds = elbo_bounds(vae, x, LinfBall(0.1), noise, method)
    lower = certificate(vae, x, LinfBall(0.1), noise, method)
    differentiable = find_method(method).differentiable
    assert [end.requires_grad for end in (*bounds, lower)] == [differentiable] * 3
    if differentiable:
        weight, step = vae.encoder[0].weight, 1e-6
        (gradient,) = torch.autograd.grad(lower.sum(), weight)
        direction = torch.randn_like(weight)
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                weight += sign * step * direction
                ends.append(certificate(vae, x, LinfBall(0.1), noise, method).sum())
                weight -= sign * step * direction
        assert ((ends[0] - ends[1]) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("sound", [False, True])
def test_a_posterior_of_the_wrong_size_is_refused_and_not_broadcast(method: str, sound: bool) -> None:
    vae, x, noise = VAE(nn.Linear(4, 3), nn.Linear(2, 4), Bernoulli(), 2), torch.rand(2, 4), torch.randn(2, 2)
    message = r"the encoder's log_var is \[2, 1\] for x of \[2, 4\], noise is \[2, 2\]"
    with pytest.raises(ValueError, match=message):
        elbo(vae, x, noise)
    with pytest.raises(ValueError, match=message):
        elbo_bounds(vae, x, LinfBall(0.1), noise, method, sound=sound)


class OwnEncode(VAE):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = super().encode(x)
        return mean + 1, log_var


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("sound", [False, True])
def test_a_model_with_an_encode_of_its_own_is_refused(method: str, sound: bool) -> None:
    own = OwnEncode(nn.Linear(4, 4), nn.Linear(2, 4), Bernoulli(), 2)
    replaced = VAE(nn.Linear(4, 4), nn.Linear(2, 4), Bernoulli(), 2)
    replaced.encode = lambda x: (torch.zeros(len(x), 2), torch.zeros(len(x), 2))
    for vae in (own, replaced):
        with pytest.raises(UnsupportedLayerError, match=r"has an encode of its own.*a layer of the encoder"):
            elbo_bounds(vae, torch.rand(2, 4), LinfBall(0.1), torch.randn(2, 2), method, sound=sound)
