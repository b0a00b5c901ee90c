"""Certified bounds of the ELBO: the audit, exact worst cases on grids, and clear refusals."""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import CASES, LIKELIHOODS, ROUNDING, TARGETS, assert_encloses, audit, audit_case, grid, reference_elbo
from torch import Tensor, nn

from paperlib import VAE, Bernoulli, Gaussian, LinfBall, certificate, conv_vae, elbo, elbo_bounds, mlp_vae
from paperlib.bounds.rules import UnsupportedLayerError

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
