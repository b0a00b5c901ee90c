"""The certificate of the expected ELBO: closed forms against quadrature, coverage by simulation, and planted bugs."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import CASES, LIKELIHOODS, ROUNDING, TARGETS, audit_case, grid, points_of, reference_elbo
from torch import Tensor, nn

from paperlib import IBP, VAE, Bernoulli, CrownIBP, Gaussian, Interval, LinfBall, certificate, certify_expected, mlp_vae
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates import expected
from paperlib.certificates.confidence import bets, lower_confidence_bound
from paperlib.certificates.expected import (
    Outside,
    decoder_gain,
    expected_decrease,
    noise_box_floor,
    noise_inside,
    outside,
)
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.method import Method

EACH_TARGET = pytest.mark.parametrize("target", TARGETS)
EACH_LIKELIHOOD = pytest.mark.parametrize("likelihood", LIKELIHOODS)
GROWING = [name for name in CASES if name != "smooth"]  # its Softplus is refused
COLUMNS = ["index", "eps", "samples", "confidence", "bound", "mean", "width", "tail", "noise_box"]


# Moments outside a box of noise


def test_the_moments_of_one_coordinate_are_the_hand_worked_ones() -> None:
    # P(|xi| > 1) = 0.31731, E[|xi|; |xi| > 1] = 2 phi(1) = 0.48394, E[xi^2; |xi| > 1] = 2 phi(1) + 0.31731
    moments = outside(1.0, 1)
    assert moments[:3] == pytest.approx([0.3173105079, 0.4839414490, 0.8012519569], rel=1e-9)


@pytest.mark.parametrize("c", [0.5, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("latent_dim", [2, 3, 20])
def test_the_moments_are_all_less_inside_by_quadrature(c: float, latent_dim: int) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    at, weight = (nodes + 1) * c / 2, weights * c  # [0, c], counted for both signs
    zero, one, two = ((at**power * weight * np.exp(-at * at / 2)).sum() / math.sqrt(2 * math.pi) for power in range(3))
    rest = zero ** (latent_dim - 1)
    mean = math.sqrt(2 / math.pi)
    moments = [1 - zero * rest, mean - one * rest, 1 - two * rest, mean**2 - one**2 * zero ** (latent_dim - 2)]
    assert [*outside(c, latent_dim)] == pytest.approx(moments, rel=1e-12, abs=1e-13)


def test_far_out_the_moments_keep_their_digits() -> None:
    # P(any of 20 beyond 7) = 20 P(one) to 1e-11, and P(one) = 2.559625087771669e-12, which 1 - (1 - P)^20 cannot hold
    assert outside(7.0, 20).chance == pytest.approx(20 * 2.559625087771669e-12, rel=1e-10)


# How far the decoder and the ELBO can move


@pytest.mark.parametrize("case", GROWING)
def test_no_output_moves_farther_than_its_gain_allows(case: str) -> None:
    vae, _, _ = audit_case(case)
    here, there = 5 * torch.randn(2, 500, vae.latent_dim, dtype=torch.float64)
    with torch.no_grad():
        moved = (vae.decoder(here) - vae.decoder(there)).abs().flatten(1)
        most = (here - there).abs() @ decoder_gain(vae).flatten(1)
    assert (moved <= most * (1 + ROUNDING)).all()
    assert (moved > most / 50).any() or case == "flat"


def test_other_activations_and_batch_normalisation_keep_to_the_gain() -> None:
    decoder = nn.Sequential(
        nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.LeakyReLU(), nn.Dropout(),
        nn.Linear(6, 6), nn.ELU(), nn.Linear(6, 6), nn.Sigmoid(), nn.Unflatten(1, (2, 3)),
    )  # fmt: skip
    vae = VAE(nn.Linear(1, 4), decoder, Gaussian(), 2).double()
    decoder(10 * torch.randn(64, 2).double())  # sets the running statistics
    vae.eval()
    with torch.no_grad():
        gain = decoder_gain(vae)
        for size in (1e-3, 1.0, 30.0):
            here = torch.randn(500, 2).double()
            step = size * torch.randn(500, 2).double()
            moved = (decoder(here) - decoder(here + step)).abs().flatten(1)
            assert (moved <= step.abs() @ gain.flatten(1) * (1 + 1e-9)).all()
    assert gain.shape == (2, 2, 3)


def test_the_gain_of_a_chain_of_affine_layers_is_the_product_of_their_sizes() -> None:
    decoder = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(-0.5), nn.Linear(2, 1))
    decoder[0].weight.data, decoder[2].weight.data = torch.tensor([[1.0, -2], [3, 4]]), torch.tensor([[-5.0, 6]])
    vae = VAE(nn.Linear(1, 4), decoder, Bernoulli(), 2)
    gain, worked = decoder_gain(vae), torch.tensor([[5.0 + 18], [10 + 24]])
    assert (gain >= worked).all()
    torch.testing.assert_close(gain, worked, rtol=1e-5, atol=0)


def zero_noise_bounds(vae: VAE, x: Tensor, eps: float, target: str) -> IntervalBounds:
    box = LinfBall(eps).box(x)
    goal = box if target == "perturbed" else Interval(x, x)
    return IntervalBounds.of(vae, box, torch.zeros(len(x), vae.latent_dim).double(), goal)


@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("case", GROWING)
@torch.no_grad()
def test_the_elbo_decreases_no_more_than_promised(case: str, likelihood: str, target: str) -> None:
    vae, x, noise = audit_case(case, likelihood)
    bounds = zero_noise_bounds(vae, x, 0.1, target)
    decrease = expected_decrease(vae, bounds)
    for size in (0.1, 1.0, 4.0, 30.0):
        most = decrease(Outside(1.0, size, size**2, size**2))  # the decrease itself where every |noise_k| is `size`
        for point in points_of(*bounds.input):
            goal = point if target == "perturbed" else x
            noise = size * torch.randn_like(noise).sign()
            fall = reference_elbo(vae, point, torch.zeros_like(noise), goal) - reference_elbo(vae, point, noise, goal)
            assert (fall <= most + ROUNDING * (1 + most)).all()


@EACH_LIKELIHOOD
@torch.no_grad()
def test_the_expected_decrease_is_the_average_over_draws(likelihood: str) -> None:
    vae, x, _ = audit_case("mlp", likelihood)
    bounds, c = zero_noise_bounds(vae, x, 0.1, "perturbed"), 1.5
    noise = torch.randn(100_000, 1, 2).double()
    outputs = noise.abs() * (bounds.log_var.upper / 2).exp() @ decoder_gain(vae)
    slope, curvature = bounds_of(vae.likelihood).decrease_bound(bounds.output, bounds.target)
    falls = (slope * outputs + curvature * outputs.square() / 2).sum(2) * (noise.abs() > c).any(2)
    error = falls.std(0) / math.sqrt(len(falls))
    assert ((falls.mean(0) - expected_decrease(vae, bounds)(outside(c, 2))).abs() < 4 * error).all()


@pytest.mark.parametrize("method", [IBP(), CrownIBP()], ids=repr)
@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("case", GROWING)
@torch.no_grad()
def test_the_floor_is_below_every_input_and_every_noise_inside(
    case: str, likelihood: str, target: str, method: Method
) -> None:
    vae, x, noise = audit_case(case, likelihood)
    bounds, c = zero_noise_bounds(vae, x, 0.1, target), 2.0
    floor = noise_box_floor(vae, bounds, c, method)
    for point in points_of(*bounds.input):
        for draw in points_of(torch.full_like(noise, -c), torch.full_like(noise, c), 4):
            value = reference_elbo(vae, point, draw, point if target == "perturbed" else x)
            assert (floor <= value + ROUNDING * (1 + value.abs())).all()


@torch.no_grad()
def test_the_linear_floor_is_no_worse_and_mostly_better() -> None:
    vae, x, _ = audit_case("deep")
    bounds = zero_noise_bounds(vae, x, 0.1, "perturbed")
    linear, interval = (noise_box_floor(vae, bounds, 3.0, method) for method in (CrownIBP(), IBP()))
    assert (linear >= interval).all() and (linear > interval).any()


def test_noise_inside_is_the_normal_cut_at_the_box() -> None:
    box = torch.tensor([0.5, 1.0, 4.0]).double()
    noise = noise_inside(box, 50_000, 2)
    assert (noise.abs() <= box[:, None]).all()
    for part, c in zip(noise.unbind(1), box.tolist(), strict=True):
        for power in (2, 4):
            at = torch.linspace(-c, c, 20_001).double()
            density = (-at.square() / 2).exp()
            moment = (at**power * density).sum() / density.sum()
            sample = part.flatten() ** power
            assert (sample.mean() - moment).abs() < 4 * sample.std() / math.sqrt(len(sample)) + 1e-4
        assert part.mean().abs() < 4 * part.std() / math.sqrt(part.numel())


# The confidence bound

REPEATS, LEVEL = 2000, 0.9
MISSES = 1 - LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / REPEATS)  # with three standard errors of the simulation
# name -> draws at or above a floor of 0, and their mean
HARD: dict[str, tuple[Callable[[int], Tensor], float]] = {
    "a rare disaster": (lambda n: (torch.rand(n, REPEATS) > 1 / n).double() * 100, 100 * (1 - 1 / 200)),
    "two values": (lambda n: (torch.rand(n, REPEATS) < 0.3).double(), 0.3),
    "mostly at the floor": (lambda n: (torch.rand(n, REPEATS) < 0.01).double(), 0.01),
    "a normal far above": (lambda n: (100 + torch.randn(n, REPEATS).double()).clamp(min=0), 100.0),
    "uniform": (lambda n: torch.rand(n, REPEATS).double(), 0.5),
    "a long tail above": (lambda n: torch.rand(n, REPEATS).double() ** -0.4, 1 / 0.6),
    "a long tail below": (lambda n: (30 - torch.rand(n, REPEATS).double() ** -0.4).clamp(min=0), 30 - 1 / 0.6),
    "constant": (lambda n: torch.full((n, REPEATS), 7.0).double(), 7.0),
}


def misses(bound: Callable[[Tensor, Tensor, float], Tensor], name: str, samples: int = 200) -> float:
    draw, mean = HARD[name]
    certified = bound(draw(samples), torch.zeros(REPEATS).double(), LEVEL)
    return (certified > mean * (1 + ROUNDING)).double().mean().item()


def normal_approximation(draws: Tensor, floor: Tensor, confidence: float) -> Tensor:
    quantile = torch.special.ndtri(torch.tensor(confidence, dtype=torch.float64))
    return draws.mean(0) - quantile * draws.std(0) / math.sqrt(len(draws))


@pytest.mark.parametrize("samples", [2, 20, 200])
@pytest.mark.parametrize("name", HARD)
def test_the_bound_covers_the_mean_at_the_stated_level(name: str, samples: int) -> None:
    assert misses(lower_confidence_bound, name, samples) <= MISSES


@pytest.mark.parametrize("name", ["a rare disaster", "a long tail below"])
def test_the_simulation_finds_a_normal_approximation_out(name: str) -> None:
    assert misses(normal_approximation, name) > MISSES


def test_no_bet_depends_on_its_own_draw_or_a_later_one() -> None:
    draws, changed = torch.rand(2, 9, 4).double()
    for same in range(9):
        other = torch.cat([draws[:same], changed[same:]])
        assert torch.equal(bets(draws, 7.0)[: same + 1], bets(other, 7.0)[: same + 1])
        assert same == 8 or not torch.equal(bets(draws, 7.0), bets(other, 7.0))


def test_constant_draws_have_the_hand_worked_bound() -> None:
    # every bet is full: (1 + 0.95 (8 / m - 1))^10 = 1 / 0.1
    bound = lower_confidence_bound(torch.full((10, 1), 3.0).double(), torch.tensor([-5.0]).double(), 0.9)
    assert bound.item() == pytest.approx(-5 + 8 / (1 + (10**0.1 - 1) / 0.95), rel=1e-12)


@pytest.mark.parametrize("name", ["a rare disaster", "a normal far above", "uniform"])
def test_rigour_is_cheaper_than_by_an_empirical_bernstein_bound(name: str) -> None:
    draws, floor, delta = HARD[name][0](1000)[:, :300], torch.zeros(300).double(), 0.001
    width = draws.mean(0) - lower_confidence_bound(draws, floor, 1 - delta)
    # Maurer & Pontil 2009, theorem 4, which also has to know the largest draw
    log = math.log(2 / delta)
    bernstein = draws.std(0) * math.sqrt(2 * log / 1000) + 7 * draws.max() * log / (3 * 999)
    assert width.mean() < bernstein.mean() * 0.75


# The whole against the truth: one pixel, one latent, so that both input and noise have a dense grid

X = torch.tensor([[0.4]]).double()


def test_no_example_gives_no_row() -> None:
    vae, x, _ = audit_case("mlp")
    rows = certify_expected(vae, x[:0], LinfBall(0.1), samples=2)
    assert [*rows.columns] == COLUMNS and rows.empty


def tiny(likelihood: str) -> VAE:
    torch.manual_seed(3)
    vae = mlp_vae((1,), (8,), 1, LIKELIHOODS[likelihood]()).double()
    for parameter in vae.decoder.parameters():
        parameter.data *= 2  # the noise shall matter
    return vae


@torch.no_grad()
def truth(vae: VAE, eps: float, target: str) -> float:
    noise = grid(-9, 9, 4001)
    density = (-noise.square() / 2).exp()
    values = []
    for point in grid(0.4 - eps, 0.4 + eps, 21):
        inputs = point.expand(len(noise), 1)
        goal = inputs if target == "perturbed" else X.expand(len(noise), 1)
        values.append((reference_elbo(vae, inputs, noise[:, None], goal) * density).sum() / density.sum())
    return min(values).item()


@EACH_LIKELIHOOD
def test_many_runs_cover_the_truth_at_the_stated_level(likelihood: str) -> None:
    # at eps 0 a certificate is the ELBO itself, so that no slack but the confidence bound's own hides a miss
    vae, repeats = tiny(likelihood), 1000
    rows = certify_expected(vae, X.expand(repeats, 1), LinfBall(0.0), confidence=0.9, samples=100, batch_size=10_000)
    value = truth(vae, 0.0, "perturbed")
    assert (rows["bound"] > value).mean() <= 0.1 + 3 * math.sqrt(0.09 / repeats)
    assert (rows["mean"] > value).mean() > 0.3, "the draws must be able to miss"


@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_the_bound_is_below_the_worst_expectation_and_not_far(method: str, likelihood: str, target: str) -> None:
    vae, eps = tiny(likelihood), 0.02
    value = truth(vae, eps, target)
    row = certify_expected(vae, X, LinfBall(eps), samples=4000, method=method, target=target).iloc[0]
    assert row["bound"] <= value
    assert row["bound"] > value - 1.0 - 0.1 * abs(value), "a bound this loose would hold by accident"


def small_box_error(likelihood: str) -> float:
    """Bound less truth where most noise is outside the box, for z = noise and output = 3z + 0.4.

    With "gaussian" the fit is best at zero noise, so that the decrease is exact: error and width are nearly the same.
    """
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    for layer, weight, bias in ((encoder, 0.0, 0.0), (decoder, 3.0, 0.4)):
        layer.weight.data.fill_(weight), layer.bias.data.fill_(bias)
    vae = VAE(encoder, decoder, LIKELIHOODS[likelihood](), 1).double()
    row = certify_expected(vae, X, LinfBall(0.0), confidence=0.9, samples=2000).iloc[0]
    return row["bound"] - truth(vae, 0.0, "perturbed")


@EACH_LIKELIHOOD
def test_a_small_box_pays_for_what_is_outside(likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected, "NOISE_BOXES", [0.5])
    assert -2.0 < small_box_error(likelihood) <= 0


@pytest.mark.parametrize(("part", "likelihood"), [("first", "bernoulli"), ("second", "gaussian")])
def test_a_forgotten_moment_is_found_out(part: str, likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected, "NOISE_BOXES", [0.5])
    monkeypatch.setattr(expected, "outside", lambda c, latent_dim: outside(c, latent_dim)._replace(**{part: 0.0}))
    assert small_box_error(likelihood) > 0


# Rows


def rows_of(**changes: object) -> pd.DataFrame:
    vae, x, _ = audit_case("mlp")
    arguments: dict = {"samples": 50, "batch_size": 5000, "generator": torch.Generator().manual_seed(1)}
    return certify_expected(vae, x, LinfBall(0.1), **arguments | changes)


def test_rows_have_the_promised_columns_and_sums() -> None:
    rows = rows_of(confidence=0.99)
    assert [*rows.columns] == COLUMNS
    assert rows["index"].tolist() == [0, 1, 2]
    assert (rows["eps"] == 0.1).all() and (rows["samples"] == 50).all() and (rows["confidence"] == 0.99).all()
    np.testing.assert_allclose(rows["width"], rows["mean"] - rows["bound"], rtol=0, atol=1e-12)
    assert (rows["width"] > 0).all() and rows["noise_box"].isin(expected.NOISE_BOXES).all()


@EACH_TARGET
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_the_mean_is_that_of_certificates_at_the_draws(method: str, target: str) -> None:
    vae, x, noise = audit_case("mlp")
    rows = rows_of(method=method, target=target, samples=300)
    with torch.no_grad():
        values = torch.stack([
            certificate(vae, x, LinfBall(0.1), torch.randn_like(noise), method, target) for _ in range(100)
        ])  # fmt: skip
    spread = values.std(0) * math.sqrt(1 / 100 + 1 / 300)
    assert (np.abs(rows["mean"] - values.mean(0).numpy()) < 4 * spread.numpy() + 0.01).all()


def test_the_price_of_rigour_falls_with_the_samples_and_rises_with_the_confidence() -> None:
    widths = [rows_of(samples=samples)["width"] for samples in (50, 500, 5000)]
    assert (widths[0] > 2 * widths[1]).all() and (widths[1] > 2 * widths[2]).all()
    assert (rows_of(confidence=0.9999)["width"] > rows_of(confidence=0.9)["width"]).all()


def test_a_generator_makes_the_rows_again_and_another_makes_others() -> None:
    pd.testing.assert_frame_equal(rows_of(), rows_of())
    assert (rows_of()["mean"] != rows_of(generator=torch.Generator().manual_seed(2))["mean"]).all()


@pytest.mark.parametrize("batch_size", [2, 7])
def test_any_batch_size_covers_all_examples_and_samples(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []
    bounds: list[Tensor] = []

    def spy(draws: Tensor, floor: Tensor, confidence: float) -> Tensor:
        shapes.append(draws.shape)
        bounds.append(lower_confidence_bound(draws, floor, confidence))
        return bounds[-1]

    monkeypatch.setattr(expected, "lower_confidence_bound", spy)
    rows = rows_of(batch_size=batch_size)
    assert rows["index"].tolist() == [0, 1, 2]
    assert all(shape[0] == 50 for shape in shapes) and sum(shape[1] for shape in shapes) == 3
    inside = 1 - rows["noise_box"].map(lambda c: outside(c, 2).chance)
    np.testing.assert_allclose(rows["bound"], inside * torch.cat(bounds).numpy() + rows["tail"], rtol=1e-14)
    whole = rows_of()
    pd.testing.assert_series_equal(rows["tail"], whole["tail"])
    assert (rows["mean"] - whole["mean"]).abs().max() < 2 * whole["width"].max()


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": 0.0}, r"confidence must be between 0 and 1, got 0\.0"),
        ({"confidence": 1.0}, "confidence must be"),
        ({"confidence": math.nan}, "confidence must be"),
        ({"samples": 1}, "samples >= 2 .*samples=1"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"target": "noisy"}, '"perturbed" or "clean"'),
        ({"method": "magic"}, "unknown method 'magic'"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_with_one_clear_line(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(**changes)


@pytest.mark.parametrize(
    "x", [torch.full((2, 3), 1.5), torch.full((2, 3), math.nan), torch.full((2, 4), 0.5)], ids=["range", "nan", "width"]
)
def test_inputs_that_do_not_fit_are_refused(x: Tensor) -> None:
    vae, _, _ = audit_case("mlp")
    with pytest.raises(ValueError, match=r"^x "):
        certify_expected(vae, x, LinfBall(0.1), samples=10)


class Tripled(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


@pytest.mark.parametrize("layer", [nn.Softplus(), nn.LeakyReLU(1.5), nn.ELU(2.0), Tripled()], ids=repr)
def test_a_decoder_layer_whose_growth_has_no_bound_is_refused_with_its_place(layer: nn.Module) -> None:
    vae, _, _ = audit_case("mlp")
    assert isinstance(vae.decoder, nn.Sequential)
    vae.decoder[1] = layer
    with pytest.raises(UnsupportedLayerError, match=rf"{type(layer).__name__} at 'decoder\.1'"):
        decoder_gain(vae)


def test_expectations_are_the_same_in_inference_mode() -> None:
    vae, x = mlp_vae((4,), (6,), 2), torch.rand(2, 4)

    def rows() -> pd.DataFrame:
        return certify_expected(vae, x, LinfBall(0.1), samples=20, generator=torch.Generator().manual_seed(0))

    expected = rows()
    with torch.inference_mode():
        pd.testing.assert_frame_equal(rows(), expected)
