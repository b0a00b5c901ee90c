"""Random projections: the probability that is stated is kept, and the estimate nears what it estimates."""

from functools import partial

import pytest
import torch
from oracles import TARGETS, audit_case, hard_points, values_at
from scipy.stats import binom
from torch import Tensor

from paperlib import METHODS, Interval, L2Ball, LinfBall, certificate, mlp_vae
from paperlib.bounds.linear import parallel, unit_rows
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.ladder import random_projection
from paperlib.certificates.ladder.dual_network import (
    DualFunctions,
    DualNetwork,
    _backward_pass,
    _latents,
    dual_network,
)
from paperlib.certificates.ladder.random_projection import (
    ProbableBound,
    _Projector,
    inflation,
    random_projection_bound,
    random_projection_estimate,
)
from paperlib.certificates.method import Method, Problem
from paperlib.models.vae import VAE

BALL = LinfBall(0.1)
EACH_TARGET = pytest.mark.parametrize("target", TARGETS)


def wide_case() -> tuple[VAE, Tensor, Tensor]:
    """A VAE for which the dual network's boxes are much smaller than those of intervals."""
    torch.manual_seed(3)
    vae = mlp_vae((12,), (16, 12), 2).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter *= 1.5
    return vae, torch.full((2, 12), 0.5).double(), torch.randn(2, 2).double()


@torch.no_grad()
def dual_boxes() -> tuple[RelaxedVAE, list[Interval]]:
    """The case relaxed by the dual network, and its boxes of the encoder's and the decoder's outputs by a pass for each
    unit, which meet no interval.
    """
    vae, x, noise = wide_case()
    problem = Problem.checked(vae, x, BALL, noise, "perturbed", sound=False)
    relaxed = dual_network(RelaxedVAE.of(vae, problem.bounds, noise))
    region = relaxed.bounds.region
    of_input = partial(DualFunctions.of_input, region)
    posterior = of_input(*_backward_pass(relaxed.encoder, unit_rows(relaxed.bounds.encoder[-1].lower)))
    latents = _latents(posterior, noise, parallel(relaxed.scale, relaxed.bounds.log_var))
    output = latents.compose(*_backward_pass(relaxed.decoder, unit_rows(relaxed.bounds.output.lower)))
    return relaxed, [posterior.box(region), output.box(region)]


def projected_boxes(relaxed: RelaxedVAE, projector: _Projector) -> list[Interval]:
    """The same boxes by projections."""
    everything = Interval(torch.tensor(-torch.inf).double(), torch.tensor(torch.inf).double())
    posterior = projector._input(relaxed).through(relaxed.encoder, projector)
    lines = parallel(relaxed.scale, relaxed.bounds.log_var)
    output = projector._latents(posterior, relaxed.noise, lines).through(relaxed.decoder, projector)
    return [projector._box(products, everything) for products in (posterior, output)]


@pytest.mark.parametrize("projections", [1, 11, 101])
@pytest.mark.parametrize("chance", [0.3, 1e-3, 1e-7])
def test_the_factor_is_that_of_the_binomial_tail(projections: int, chance: float) -> None:
    factor = torch.tensor(inflation(projections, chance), dtype=torch.float64)
    below = 2 / torch.pi * torch.arctan(1 / factor)  # P(one |Cauchy| is below 1 / factor)
    tail = binom.sf((projections + 1) // 2 - 1, projections, below.item())
    assert tail == pytest.approx(chance, rel=1e-6)


@pytest.mark.parametrize(("projections", "chance"), [(1, 0.1), (5, 0.05), (15, 0.3)])
def test_medians_are_below_the_scale_as_often_as_is_said(projections: int, chance: float) -> None:
    count = 40_000
    scale = torch.rand(count, dtype=torch.float64) + 0.5
    samples = torch.empty(projections, count, dtype=torch.float64).cauchy_() * scale
    below = (inflation(projections, chance) * samples.abs().median(0).values < scale).sum().item()
    assert abs(below - count * chance) < 5 * (count * chance * (1 - chance)) ** 0.5


@torch.no_grad()
def test_the_radii_of_many_projections_are_those_of_the_dual_network() -> None:
    relaxed, exact = dual_boxes()
    projected = projected_boxes(relaxed, _Projector(6001, 1.0, torch.Generator().manual_seed(0)))
    for near, dual in zip(projected, exact, strict=True):
        torch.testing.assert_close(near.center, dual.center, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(near.radius, dual.radius, rtol=0.1, atol=0)  # they err by 1.57 / sqrt(6001), 2 %


@torch.no_grad()
def test_all_boxes_together_hold_as_often_as_is_said() -> None:
    relaxed, exact = dual_boxes()
    units = sum(box.lower[0].numel() for box in exact)
    confidence, runs = 0.5, 200
    held = {}
    for kind, factor in (("bound", inflation(11, (1 - confidence) / units)), ("estimate", 1.0)):
        projector, kept = _Projector(11, factor, torch.Generator().manual_seed(0)), torch.zeros(2)
        for _ in range(runs):
            pairs = zip(projected_boxes(relaxed, projector), exact, strict=True)
            kept += torch.stack([(mine.radius >= dual.radius).all(1) for mine, dual in pairs]).all(0)
        held[kind] = kept / runs
    assert (held["bound"] >= confidence).all() and (held["estimate"] < confidence).all(), held


def test_all_units_share_what_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, noise = wide_case()
    chances: list[float] = []
    monkeypatch.setattr(random_projection, "inflation", lambda projections, chance: chances.append(chance) or 9.0)
    random_projection_bound(vae, x, BALL, noise, 11, 0.9)
    units = 2 * (16 + 12) + 4 + 12  # of the activations, the posterior and the output, for each x by itself
    assert chances == pytest.approx([0.1 / units], rel=1e-12)


@torch.no_grad()
@EACH_TARGET
@pytest.mark.parametrize("case", ["deep", "conv", "smooth"])
def test_a_bound_of_high_confidence_holds_and_is_no_looser_than_intervals(case: str, target: str) -> None:
    vae, x, noise = audit_case(case, "gaussian")
    values = values_at(vae, hard_points(vae, x, 0.1, noise, target), x, noise, target)
    probable = random_projection_bound(vae, x, BALL, noise, 101, 1 - 1e-9, torch.Generator().manual_seed(0), target)
    assert isinstance(probable, ProbableBound) and probable.confidence == 1 - 1e-9
    assert (probable.lower <= values + 1e-12).all()
    assert (probable.lower >= certificate(vae, x, BALL, noise, "ibp", target)).all()


@torch.no_grad()
@EACH_TARGET
def test_more_projections_are_tighter(target: str) -> None:
    vae, x, noise = wide_case()
    bounds = [
        random_projection_bound(vae, x, BALL, noise, k, 0.999, torch.Generator().manual_seed(0), target).lower
        for k in (11, 501)
    ]
    dual, interval = (certificate(vae, x, BALL, noise, method, target) for method in (DualNetwork(), "ibp"))
    assert (interval <= bounds[0]).all() and (bounds[0] < bounds[1]).all() and (bounds[1] < dual).all()


@torch.no_grad()
def test_the_estimate_nears_the_dual_networks_bound_from_either_side() -> None:
    vae, x, noise = wide_case()
    dual = certificate(vae, x, BALL, noise, DualNetwork())
    estimates = torch.stack(
        [
            random_projection_estimate(vae, x, BALL, noise, 51, torch.Generator().manual_seed(seed)) - dual
            for seed in range(20)
        ]
    )
    assert (estimates > 0).any(), "an estimate that is no bound"
    many = random_projection_estimate(vae, x, BALL, noise, 2001, torch.Generator().manual_seed(0)) - dual
    assert (many.abs() < estimates.abs().mean(0)).all()


def test_draws_are_those_of_the_generator() -> None:
    vae, x, noise = wide_case()
    same = [
        random_projection_bound(vae, x, BALL, noise, 11, generator=torch.Generator().manual_seed(seed)).lower
        for seed in (1, 1, 2)
    ]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    assert not same[0].requires_grad


def test_it_is_no_method_and_refuses_what_it_does_not_do() -> None:
    assert not any("project" in word for word in METHODS) and not issubclass(ProbableBound, Method)
    vae, x, noise = audit_case("mlp")
    for projections in (0, 10, -1):
        with pytest.raises(ValueError, match=rf"odd number of at least 1, which has a median, got {projections}"):
            random_projection_bound(vae, x, BALL, noise, projections)
        with pytest.raises(ValueError, match="odd number"):
            random_projection_estimate(vae, x, BALL, noise, projections)
    for confidence in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="confidence must be above 0 and below 1"):
            random_projection_bound(vae, x, BALL, noise, 11, confidence)
    with pytest.raises(ValueError, match="for a LinfBall, whose dual norm is the l1 norm, got L2Ball"):
        random_projection_bound(vae, x, L2Ball(1.0), noise, 11)
