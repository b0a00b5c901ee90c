"""Random projections: the probability that is stated is kept, and the estimate nears what it estimates."""

import pytest
import torch
from oracles import TARGETS, audit_case, hard_points, values_at
from scipy.stats import binom
from torch import Tensor

from paperlib import METHODS, Interval, L2Ball, LinfBall, certificate, mlp_vae
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.ladder.dual_network import DualNetwork
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


def relaxed_by(projector: _Projector | None) -> tuple[RelaxedVAE, RelaxedVAE]:
    """The case over boxes of intervals, and over those of the projector, or exact ones."""
    problem = Problem.checked(*wide_case()[:2], BALL, wide_case()[2], "perturbed", sound=False)
    intervals = RelaxedVAE.of(problem.vae, problem.bounds, problem.noise)
    return intervals, DualNetwork().relax(problem) if projector is None else projector.relax(intervals)


def boxes(relaxed: RelaxedVAE) -> list[Interval]:
    return [*(layer.box for layer in relaxed.encoder[1:]), relaxed.bounds.mean, relaxed.bounds.output]


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
    intervals, exact = relaxed_by(None)
    projected = relaxed_by(_Projector(6001, 1.0, torch.Generator().manual_seed(0)))[1]
    narrower = 0
    for near, dual, loose in zip(boxes(projected), boxes(exact), boxes(intervals), strict=True):
        torch.testing.assert_close(near.radius, dual.radius, rtol=0.12, atol=1e-12)  # 1.57 / sqrt(6001) is 2 %
        torch.testing.assert_close(near.center, dual.center, rtol=0, atol=0.12 * dual.radius.max().item())
        narrower += (dual.radius < 0.7 * loose.radius).sum().item()
    assert narrower > 10, "intervals would do as well"


@torch.no_grad()
def test_all_boxes_together_hold_as_often_as_is_said() -> None:
    _, exact = relaxed_by(None)
    intervals, _ = relaxed_by(None)
    units = sum(box.lower[0].numel() for box in (*boxes(exact), exact.bounds.log_var)) + 64
    confidence, runs = 0.5, 60
    projector = _Projector(31, inflation(31, (1 - confidence) / units), torch.Generator().manual_seed(0))
    kept = torch.zeros(2)
    for _ in range(runs):
        holds = torch.ones(2, dtype=torch.bool)
        for mine, dual in zip(boxes(projector.relax(intervals)), boxes(exact), strict=True):
            # each box is to hold the exact one, but for rounding
            inside = (mine.lower <= dual.lower + 1e-9) & (mine.upper >= dual.upper - 1e-9)
            holds &= inside.flatten(1).all(1)
        kept += holds
    assert (kept >= confidence * runs).all(), kept / runs


@torch.no_grad()
@EACH_TARGET
@pytest.mark.parametrize("case", ["deep", "conv", "smooth"])
def test_a_bound_of_high_confidence_holds_and_lies_between_intervals_and_the_dual_network(
    case: str, target: str
) -> None:
    vae, x, noise = audit_case(case, "gaussian")
    values = values_at(vae, hard_points(vae, x, 0.1, noise, target), x, noise, target)
    probable = random_projection_bound(vae, x, BALL, noise, 101, 1 - 1e-9, torch.Generator().manual_seed(0), target)
    assert isinstance(probable, ProbableBound) and probable.confidence == 1 - 1e-9
    assert (probable.lower <= values + 1e-12).all()
    assert (probable.lower >= certificate(vae, x, BALL, noise, "ibp", target)).all()
    vae, x, noise = wide_case()
    bounds = [
        random_projection_bound(vae, x, BALL, noise, k, 0.999, torch.Generator().manual_seed(0), target).lower
        for k in (11, 1001)
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
    many = random_projection_estimate(vae, x, BALL, noise, 6001, torch.Generator().manual_seed(0)) - dual
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
