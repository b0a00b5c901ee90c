"""Sound linear bounds: no value that the deployed network returns is outside, where hunts find plain bounds broken."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from oracles import LIKELIHOODS, TARGETS, points_of, set_to
from test_float_sound import DTYPES, deployed_points, evaluated, inputs
from torch import Tensor, nn

from paperlib import (
    IBP,
    VAE,
    Bernoulli,
    Crown,
    CrownIBP,
    Gaussian,
    Interval,
    LinfBall,
    certificate,
    certify,
    conv_vae,
    elbo,
    elbo_bounds,
    mlp_vae,
)
from paperlib.bounds import rounding
from paperlib.certificates import (
    backward,
    backward_rounding,
    float_sound,
    latent_zonotope,
    refinement,
    relaxed_layer,
    unit_bounds,
)
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.backward_rounding import PosteriorRounding
from paperlib.certificates.latent_zonotope import Zonotope
from paperlib.certificates.method import Method
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.models.likelihood import Likelihood
from paperlib.threats import balls

LINEAR_METHODS = [CrownIBP(), CrownIBP(alpha_steps=3), Crown(), Crown(alpha_steps=3)]
METHODS = [IBP(), *LINEAR_METHODS]
EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=repr)
EACH_TARGET = pytest.mark.parametrize("target", TARGETS)
EACH_LIKELIHOOD = pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])


def test_roundings_are_for_their_own_bounds_alone() -> None:
    vae, x, noise = network("ReLU", "bernoulli")
    sound = float_sound.SoundBounds.of(vae, x, LinfBall(0.1), noise, "perturbed")
    RelaxedVAE.of(sound.network, sound.bounds, noise.double(), sound)
    with pytest.raises(ValueError, match="bounds are not those of the sound ones"):
        RelaxedVAE.of(sound.network, replace(sound.bounds), noise.double(), sound)


# Every point of many networks


def mlp(activation: type[nn.Module], likelihood: Likelihood) -> VAE:
    halves = [
        nn.Sequential(*[part for ends in pairwise(widths) for part in (nn.Linear(*ends), activation())][:-1])
        for widths in ((20, 12, 8, 6), (3, 8, 12, 20))
    ]
    return VAE(*halves, likelihood, 3)


ACTIVATIONS = {kind.__name__: kind for kind in (nn.ReLU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.ELU)}
NETWORKS = [*ACTIVATIONS, "conv"]


def network(name: str, likelihood: str, dtype: torch.dtype = torch.float32) -> tuple[VAE, Tensor, Tensor]:
    if name == "conv":
        return inputs(conv_vae((1, 4, 4), (2, 3), 3, LIKELIHOODS[likelihood]()), 1, 4, 4, dtype=dtype)
    return inputs(mlp(ACTIVATIONS[name], LIKELIHOODS[likelihood]()), 20, dtype=dtype)


@torch.no_grad()
def both_bounds(
    vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, target: str, method: str | Method
) -> tuple[Interval, Interval]:
    """The sound bounds, and those of the same method for the same weights in float64."""
    sound = elbo_bounds(vae, x, ball, noise, method, target, sound=True)
    return sound, elbo_bounds(vae.in_float64(), x.double(), ball, noise.double(), method, target)


def assert_little_looser(sound: Interval, plain: Interval, share: float) -> None:
    """On both sides, by more than nothing and less than this share of the value."""
    for looser in (plain.lower - sound.lower, sound.upper - plain.upper):
        assert (looser > 0).all(), "a sound bound is tighter than the plain one"
    for plain_end, sound_end in zip(plain, sound, strict=True):
        assert ((plain_end - sound_end).abs() <= share * (1 + plain_end.abs())).all()


@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("name", NETWORKS)
def test_no_deployed_value_is_outside_by_any_method(name: str, likelihood: str, target: str) -> None:
    vae, x, noise = network(name, likelihood)
    for eps in (1e-6, 0.1):  # where rounding is as large as the ball, and where relaxations bend
        ball = LinfBall(eps)
        values = [
            evaluated(vae, point, noise, point if target == "perturbed" else x)
            for point in deployed_points(vae, x, ball, noise, target)
        ]
        looser = None
        for method in METHODS:
            sound = elbo_bounds(vae, x, ball, noise, method, target, sound=True)
            assert sound.lower.dtype == sound.upper.dtype == torch.float64
            assert sound.lower.isfinite().all() and sound.upper.isfinite().all()
            assert sound.contains(torch.cat(values)).all(), f"{method}: a deployed value is outside"
            looser = looser or sound
            assert (sound.lower >= looser.lower).all() and (sound.upper <= looser.upper).all(), "looser than intervals"


# Without steps for alpha: two searches that differ by a rounding end at different slopes, and in no order.
@EACH_LIKELIHOOD
@pytest.mark.parametrize("method", [IBP(), CrownIBP(), Crown()], ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_sound_bounds_are_a_little_looser_than_plain_ones(name: str, method: Method, likelihood: str) -> None:
    vae, x, noise = network(name, likelihood)
    bounds = both_bounds(vae, x, LinfBall(0.1), noise, "perturbed", method)
    assert_little_looser(*bounds, share=2e-4)  # at most 6.4e-5 was measured


@EACH_LIKELIHOOD
@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
def test_bounds_are_sound_for_a_network_deployed_in_float64(method: str, likelihood: str) -> None:
    vae, x, noise = network("ReLU", likelihood, torch.float64)
    ball = LinfBall(1e-9)
    sound, plain = both_bounds(vae, x, ball, noise, "perturbed", method)
    for point in deployed_points(vae, x, ball, noise, "perturbed"):
        assert sound.contains(evaluated(vae, point, noise, point)).all()
    assert_little_looser(sound, plain, share=1e-9)


@EACH_LIKELIHOOD
def test_a_sound_linear_certificate_costs_little_at_full_size(likelihood: str) -> None:
    vae, x, noise = inputs(mlp_vae(likelihood=LIKELIHOODS[likelihood]()), 784, dtype=torch.float32, batch=1)
    sound, plain = both_bounds(vae, x, LinfBall(0.1), noise, "perturbed", "crown-ibp")
    assert (sound.lower < plain.lower).all()
    assert (plain.lower - sound.lower < 0.005 * plain.lower.abs()).all()  # 0.0014 and 0.0023 were measured


@EACH_TARGET
@EACH_METHOD
def test_the_sound_certificate_is_the_lower_end(method: Method, target: str) -> None:
    vae, x, noise = network("ReLU", "bernoulli")
    bounds = elbo_bounds(vae, x, LinfBall(0.1), noise, method, target, sound=True)
    assert torch.equal(certificate(vae, x, LinfBall(0.1), noise, method, target, sound=True), bounds.lower)


# Hunts: networks whose linear bounds are attained, so that rounding alone decides


def diagonal(weight: Tensor, bias: Tensor | float) -> nn.Linear:
    layer = nn.Linear(len(weight), len(weight))
    layer.weight.data, layer.bias.data = torch.diag(weight), torch.zeros(len(weight)) + bias
    return layer


def heads(size: int, mean: Tensor, log_var: float, mean_bias: Tensor | float = 0.0) -> nn.Linear:
    """The mean is a product of the inputs with the rows of `mean`, the log-variance is the same everywhere."""
    latent = len(mean)
    layer = nn.Linear(size, 2 * latent)
    layer.weight.data = torch.cat([mean, torch.zeros_like(mean)])
    layer.bias.data = torch.cat([torch.zeros(latent) + mean_bias, torch.full((latent,), log_var)])
    return layer


Case = tuple[VAE, Tensor, Tensor, float]


def leaning(likelihood: Likelihood, eps: float) -> Case:
    """Eight pixels make one latent and are made of it, in both directions and through numbers near 1000.

    The ELBO is concave in the latent, and so are its chords, so that the lower bound is its value at one of both ends
    of the ball: intervals, for which each pixel has a worst end of its own, are looser.
    """
    spread = nn.Linear(1, 8)
    spread.weight.data = (torch.rand(8, 1) + 0.5) * torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    spread.bias.data.fill_(1000.0)
    decoder = nn.Sequential(spread, diagonal(torch.full((8,), 1.1), -1099.5))
    vae = VAE(heads(8, 0.1 + 0.2 * torch.rand(1, 8), -1.0, 0.1), decoder, likelihood, 1)
    return vae, torch.rand(100, 8), torch.randn(100, 1), eps


def balanced(encoder: nn.Module, decoder: nn.Module) -> Case:
    """Pixels that are each explained the worse the farther they are from 1/2, where both ends are equally bad.

    The chord is flat: coefficients of zero ask for no rounding, but in a box that is too narrow the chord is too high.
    """
    return VAE(encoder, decoder, Gaussian(0.1), 6), torch.full((1, 6), 0.5), torch.zeros(1, 6), 0.1


def wide_decoder() -> Case:
    return balanced(
        heads(6, torch.eye(6), -1.0, -0.5),
        nn.Sequential(diagonal(1 + torch.rand(6), 1000.0), diagonal(torch.ones(6), -999.5)),
    )


def wide_encoder() -> Case:
    slope = 1 + torch.randint(1, 64, (6,)) / 64  # 1000 + slope / 2 is a float32 number: the centre stays the centre
    first = diagonal(slope, 1000.0)
    encoder = nn.Sequential(first, heads(6, torch.eye(6), -1.0, -(1000 + slope / 2)))
    return balanced(encoder, diagonal(torch.ones(6), 0.5))


def sampled() -> Case:
    """The output is the latent, all of which is noise: nothing but the reparametrisation rounds before the fit."""
    x = 0.1 + 0.8 * torch.rand(20, 2)
    noise = (x + 0.003) * torch.tensor(0.05).exp()
    return VAE(heads(2, torch.zeros(2, 2), -0.1), nn.Identity(), Gaussian(1e-3), 2), x, noise, 1e-6


def direct() -> Case:
    """The pixels are the mean and the log-variance, and all outputs are 0: nothing but the value rounds."""
    silent = nn.Linear(8, 16)
    silent.weight.data.zero_(), silent.bias.data.zero_()
    return VAE(nn.Identity(), silent, Gaussian(), 8), torch.rand(20, 16), torch.randn(20, 8), 1e-6


HUNTS: dict[str, Callable[[], Case]] = {
    "leaning": lambda: leaning(Gaussian(0.1), 0.1),
    "leaning, logits": lambda: leaning(Bernoulli(), 0.1),
    "leaning, tiny": lambda: leaning(Gaussian(0.1), 1e-6),
    "leaning, tiny, logits": lambda: leaning(Bernoulli(), 1e-6),
    "wide decoder": wide_decoder,
    "wide encoder": wide_encoder,
    "sampled": sampled,
    "direct": direct,
}


@torch.no_grad()
def hunt(name: str, method: str | Method, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """How many evaluations leave each kind of bound: plain in the deployed precision or in float64, and sound."""
    torch.manual_seed(0)
    vae, x, noise, eps = HUNTS[name]()
    vae, x, noise, ball = vae.to(dtype), x.to(dtype), noise.to(dtype), LinfBall(eps)
    sound, plain = both_bounds(vae, x, ball, noise, "clean", method)
    deployed = elbo_bounds(vae, x, ball, noise, method, "clean").map(Tensor.double)
    points = ball.box(x) if name.startswith("leaning") else points_of(*ball.box(x), count=4).to(dtype)
    values = torch.cat([evaluated(vae, point, noise, x) for point in points])
    kinds = {"deployed": deployed, "plain": plain, "sound": sound}
    return {kind: int((~bounds.contains(values)).sum()) for kind, bounds in kinds.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
@pytest.mark.parametrize("name", HUNTS)
def test_no_hunt_leaves_the_sound_bounds(name: str, method: str, dtype: torch.dtype) -> None:
    assert hunt(name, method, dtype)["sound"] == 0


@pytest.mark.parametrize("method", LINEAR_METHODS, ids=repr)
@pytest.mark.parametrize("name", [name for name in HUNTS if name.startswith("leaning")])
def test_where_linear_bounds_are_attained_plain_ones_are_broken(name: str, method: Method) -> None:
    outside = hunt(name, method)
    assert outside["deployed"] > 40 and outside["plain"] > 100, "the hunt finds nothing"  # of 800 evaluations
    assert outside["sound"] == 0


@EACH_LIKELIHOOD
def test_the_leaning_bound_is_the_value_at_one_end_and_tighter_than_intervals(likelihood: str) -> None:
    vae, x, noise, eps = leaning(LIKELIHOODS[likelihood](), 0.1)
    vae, x, noise, ball = vae.double(), x.double(), noise.double(), LinfBall(eps)
    with torch.no_grad():
        linear, interval = (elbo_bounds(vae, x, ball, noise, method, "clean").lower for method in ("crown", "ibp"))
        least = torch.stack([elbo(vae, end, noise, x) for end in ball.box(x)]).amin(0)
    torch.testing.assert_close(linear, least, rtol=1e-9, atol=1e-9)
    assert (interval <= linear + 1e-9).all()
    assert (linear - interval > 0.01).sum() >= 10  # of 100; the others have all outputs on one side of their targets


# Planted bugs. Too small to be seen even here: ACCUMULATION_ERROR alone, and the KL's part of PosteriorRounding. Both
# are of the float64 arithmetic of the bound; the roundings of the deployed network beside them are always larger.

SUBSTITUTING = (backward, backward_rounding, latent_zonotope, refinement, relaxed_layer, unit_bounds)
real_layer, real_posterior, real_relax = (kind.of for kind in (RelaxedLayer, PosteriorRounding, RelaxedVAE))
real_image, real_zonotope = RelaxedLayer.image, refinement._backward_zonotope


def without(rounded: Any, name: str) -> Any:
    return replace(rounded, **{name: torch.zeros_like(getattr(rounded, name))})


def no_gamma(count: int, unit: float) -> float:
    return 0.0


def layer_without_error(*args: Any) -> RelaxedLayer:
    return replace(real_layer(*args), error=None)


def posterior_without_latent(*args: Any) -> PosteriorRounding:
    return without(real_posterior(*args), "latent")


def no_value_rounding(network: VAE, bounds: Any, deployed: Any, steps: Any) -> Tensor:
    return torch.zeros(len(bounds.mean.lower), dtype=torch.float64)


def relaxed_in_real_arithmetic(vae: VAE, bounds: Any, noise: Tensor, deployed: Any = None) -> RelaxedVAE:
    return real_relax(vae, bounds, noise)


def exact_image(layer: RelaxedLayer) -> Interval:
    return real_image.__get__(replace(layer, rounding=None))


def zonotope_in_real_arithmetic(*args: Any) -> Zonotope:
    return without(real_zonotope(*args), "independent_error")


# bug -> what is replaced, and the hunts that notice
NO_GAMMA = [(rounding, "gamma", no_gamma), (balls, "gamma", no_gamma)]
Patches = list[tuple[Any, str, Any]]
BUGS: dict[str, tuple[Patches, list[tuple[str, str]]]] = {
    "the rounding of a layer is ignored": (
        [(RelaxedLayer, "of", layer_without_error)],
        [("leaning, tiny", "crown-ibp"), ("leaning, tiny", "crown"), ("wide encoder", "crown")],
    ),
    "the rounding of the latent is ignored": (
        [(PosteriorRounding, "of", posterior_without_latent)],
        [("sampled", "crown-ibp"), ("sampled", "crown")],
    ),
    "the rounding of the value is ignored": (
        [(module, "value_rounding", no_value_rounding) for module in (backward, float_sound)],
        [("direct", "crown-ibp"), ("direct", "crown")],
    ),
    "all but the value is bounded in real arithmetic": (
        [(RelaxedVAE, "of", relaxed_in_real_arithmetic)],
        [("leaning, tiny", "crown-ibp"), ("wide decoder", "crown"), ("wide encoder", "crown")],
    ),
    "a refined layer's box is not widened": (
        [(RelaxedLayer, "image", property(exact_image))],
        [("wide decoder", "crown")],
    ),
    "a refined rest is not widened": (
        [(refinement, "_forward_rounding", lambda *args: torch.zeros(()))],
        [("wide decoder", "crown")],
    ),
    "refined latents are not widened": (
        [(refinement, "_backward_zonotope", zonotope_in_real_arithmetic)],
        [("wide encoder", "crown")],
    ),
    "nothing rounds": (
        NO_GAMMA + [(module, "ACCUMULATION_ERROR", 0.0) for module in SUBSTITUTING],
        [(name, "crown") for name in HUNTS],
    ),
    "nothing but the float64 of the bound rounds": (NO_GAMMA, [(name, "crown-ibp") for name in HUNTS]),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_hunt_succeeds_when(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, hunts = BUGS[bug]
    for place, name, broken in patches:
        monkeypatch.setattr(place, name, broken)
    assert [case for case in hunts if hunt(*case)["sound"] == 0] == []


# Refusals


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "best"])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precision_in_products_is_refused(method: str, precision: str) -> None:
    vae, x, noise = network("ReLU", "bernoulli")
    with set_to(torch.backends.mkldnn.matmul, precision):
        for bound in (elbo_bounds, certificate, certify):
            with pytest.raises(ValueError, match=rf"float32 products may be taken in {precision}"):
                bound(vae, x, LinfBall(0.1), noise, method=method, sound=True)
        elbo_bounds(vae, x, LinfBall(0.1), noise, method=method)  # promises less


def test_autocast_and_half_precision_are_refused() -> None:
    vae, x, noise = network("ReLU", "bernoulli")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        elbo_bounds(vae, x, LinfBall(0.1), noise, "crown", sound=True)
    half = vae.to(torch.bfloat16)
    with pytest.raises(ValueError, match="float32 and float64"):
        elbo_bounds(half, x.bfloat16(), LinfBall(0.1), noise.bfloat16(), "crown", sound=True)


@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
def test_more_units_than_the_error_of_sums_allows_for_are_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, noise = network("ReLU", "bernoulli")
    monkeypatch.setattr(backward, "MOST_SUMMANDS", 10)
    with pytest.raises(ValueError, match=r"at most 10 units, this network has \d+: use method=\"ibp\""):
        elbo_bounds(vae, x, LinfBall(0.1), noise, method, sound=True)
    elbo_bounds(vae, x, LinfBall(0.1), noise, method)


@torch.no_grad()
def test_sound_crown_rounds_within_its_own_boxes_and_not_within_those_of_intervals() -> None:
    # The log-variances of intervals reach far beyond the true ones: errors of exp over their boxes would be larger
    # than the bound by orders of magnitude.
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))
    vae = VAE(encoder, nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6)), Gaussian(), 2).eval()
    for layer in encoder[:5:2]:
        layer.weight.data *= 6
    x, noise, ball = torch.rand(3, 6), torch.randn(3, 2), LinfBall(0.02)
    plain = elbo_bounds(vae.in_float64(), x.double(), ball, noise.double(), "crown")
    sound = elbo_bounds(vae, x, ball, noise, "crown", sound=True)
    interval = elbo_bounds(vae, x, ball, noise, "ibp", sound=True)
    assert (interval.lower < 100 * plain.lower).all(), "intervals are no looser here"
    assert (sound.lower > plain.lower - 1e-2 * plain.lower.abs()).all()
    assert (sound.upper < plain.upper + 1e-2 * plain.upper.abs()).all()
