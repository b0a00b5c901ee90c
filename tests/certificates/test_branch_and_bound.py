"""Branch and bound against closed forms and a grid search that shares no code with it, and planted bugs."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import LIKELIHOODS, ROUNDING, TARGETS, assert_encloses, audit_case, grid, points_of, reference_elbo
from torch import Tensor, nn

from paperlib import (
    VAE,
    BranchAndBound,
    Gaussian,
    Interval,
    L2Ball,
    LinfBall,
    certificate,
    certify,
    elbo,
    elbo_bounds,
    lighting,
    low_frequencies,
    mlp_vae,
    pgd,
)
from paperlib.certificates import splitting
from paperlib.certificates.branch_and_bound import DIMENSIONS, exact_bounds
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.splitting import Subproblems, ToleranceError, minimum

ACTIVATIONS = {"relu": nn.ReLU, "softplus": nn.Softplus, "tanh": nn.Tanh}
SIDE = {1: 1001, 2: 61, 3: 21}  # points along a side of the oracle's grid

EACH_TARGET = pytest.mark.parametrize("target", TARGETS)


def random_vae(size: int, activation: str, likelihood: str, seed: int = 0) -> VAE:
    """Two hidden layers and weights of three times the usual size, so that the ELBO bends inside a ball."""
    torch.manual_seed(seed)
    vae = mlp_vae((size,), (8, 6), 2, LIKELIHOODS[likelihood]()).double()
    for half in (vae.encoder, vae.decoder):
        for place, layer in enumerate(half):
            if isinstance(layer, nn.ReLU):
                half[place] = ACTIVATIONS[activation]()
            else:
                layer.weight.data *= 3 if place else 2
    return vae


def random_box(size: int) -> Interval:
    """Three boxes in the unit cube: one cut at its corner, one inside, one without width along the first axis."""
    x = torch.rand(3, size).double()
    x[0] = 0.0
    box = LinfBall(0.3).box(x)
    box.lower[2, 0] = box.upper[2, 0] = x[2, 0]
    return box


def target_box(box: Interval, target: str) -> Interval:
    return box if target == "perturbed" else Interval(box.center, box.center)


def least(function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> float:
    """The least value of a function of points [count, size] on a box [size], by search: on a dense grid, then at random
    points around the ten best, ever closer."""
    axes = [grid(low, up, SIDE[len(lower)]) for low, up in zip(lower.tolist(), upper.tolist(), strict=True)]
    points = torch.cartesian_prod(*axes).view(-1, len(lower))
    best = points[function(points).topk(10, largest=False).indices]
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        reach = 2 * (upper - lower) / SIDE[len(lower)] * 0.8**step
        moves = 2 * torch.rand(50, *best.shape, generator=generator, dtype=best.dtype) - 1
        around = torch.cat([best[None], (best + reach * moves).clamp(lower, upper)])
        place = function(around.flatten(0, 1)).view(len(around), -1).argmin(0)
        best = around[place, torch.arange(len(best))]
    return function(best).min().item()


def true_range(vae: VAE, box: Interval, noise: Tensor, target: str) -> list[tuple[float, float]]:
    """Smallest and largest reference ELBO over each box, by `least`."""
    ranges = []
    for lower, upper, draw, x in zip(*box, noise, box.center, strict=True):

        def value(points: Tensor, sign: int, draw: Tensor = draw, x: Tensor = x) -> Tensor:
            goal = points if target == "perturbed" else x.expand_as(points)
            return sign * reference_elbo(vae, points, draw.expand(len(points), -1), goal)

        ranges.append(
            (least(lambda p, f=value: f(p, 1), lower, upper), -least(lambda p, f=value: f(p, -1), lower, upper))
        )
    return ranges


def assert_exact(bounds: Interval, ranges: list[tuple[float, float]], tol: float) -> None:
    """Each end is on its side of the truth, to within rounding, and at most `tol` away from it: no more is allowed."""
    for lower, upper, (low, high) in zip(*bounds, ranges, strict=True):
        slack = ROUNDING * max(1, abs(low), abs(high))
        assert lower <= low + slack and high - slack <= upper, "a value lies outside the bounds"
        assert low - lower <= tol and upper - high <= tol, "the bounds are farther than tol from the truth"


@torch.no_grad()
def audit(vae: VAE, box: Interval, target: str, tol: float) -> None:
    noise = torch.randn(len(box.lower), vae.latent_dim).double()
    bounds = exact_bounds(vae, box, noise, target_box(box, target), tol)
    assert_exact(bounds, true_range(vae, box, noise, target), tol)


@EACH_TARGET
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", SIDE)
def test_both_ends_are_within_tol_of_a_grid_search(size: int, activation: str, target: str) -> None:
    # each activation and each size meets two likelihoods at least
    likelihood = [*LIKELIHOODS][(size + [*ACTIVATIONS].index(activation)) % 3]
    audit(random_vae(size, activation, likelihood), random_box(size), target, tol=1e-2)


@EACH_TARGET
@pytest.mark.parametrize("tol", [1.0, 1e-6])
def test_a_coarse_and_a_fine_tolerance_are_both_met(tol: float, target: str) -> None:
    audit(random_vae(2, "relu", "gaussian", seed=1), random_box(2), target, tol)


def identity_vae() -> VAE:
    """mean = x, log_var = 0, noise = 0, output = z = x, one pixel and one latent: the VAE of the hand-worked bounds."""
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    encoder.weight.data, encoder.bias.data = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    decoder.weight.data, decoder.bias.data = torch.ones(1, 1), torch.zeros(1)
    return VAE(encoder, decoder, Gaussian(), latent_dim=1).double()


def test_a_hand_worked_vae_has_its_true_range() -> None:
    # The input explains itself perfectly: ELBO(x') = -x'^2 / 2 - constant, on [1/4, 3/4] and on [-1/2, 1].
    box = Interval(torch.tensor([[0.25], [-0.5]]).double(), torch.tensor([[0.75], [1.0]]).double())
    vae, noise, constant = identity_vae(), torch.zeros(2, 1).double(), math.log(2 * math.pi) / 2
    bounds = exact_bounds(vae, box, noise, box, tol=1e-4)
    assert_exact(bounds, [(-9 / 32 - constant, -1 / 32 - constant), (-1 / 2 - constant, -constant)], tol=1e-4)
    # Where it is to explain 1/2 and 1/4: -(x' - 1/2)^2 / 2 - x'^2 / 2 is largest at 1/4; the second at 1/8.
    bounds = exact_bounds(vae, box, noise, Interval(box.center, box.center), tol=1e-4)
    truth = [
        (-1 / 32 - 9 / 32 - constant, -1 / 32 - 1 / 32 - constant),
        (-9 / 32 - 1 / 2 - constant, -1 / 64 - constant),
    ]
    assert_exact(bounds, truth, tol=1e-4)


@EACH_TARGET
def test_no_point_of_the_ball_is_outside_and_interval_bounds_are(target: str) -> None:
    vae, ball, noise = random_vae(3, "relu", "bernoulli"), LinfBall(0.2), torch.randn(8, 2).double()
    x = torch.rand(8, 3).double().round(decimals=1)
    box = ball.box(x)
    bounds = exact_bounds(vae, box, noise, box if target == "perturbed" else Interval(x, x), tol=0.1)
    attacked = pgd(vae, x, ball, noise, steps=20, restarts=3, generator=torch.Generator().manual_seed(0), target=target)
    for point in (*points_of(*box, count=200), attacked):
        value = elbo(vae, point, noise, target=point if target == "perturbed" else x)
        assert (bounds.lower <= value + ROUNDING).all() and (value - ROUNDING <= bounds.upper).all()
    loose = elbo_bounds(vae, x, ball, noise, target=target)
    assert (loose.lower <= bounds.lower).all() and (bounds.upper <= loose.upper).all()


@EACH_TARGET
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_box_without_width_gives_the_elbo_bit_for_bit(likelihood: str, target: str) -> None:
    vae, x, noise = random_vae(2, "tanh", likelihood), torch.rand(5, 2).double(), torch.randn(5, 2).double()
    box = Interval(x, x.clone())
    bounds = exact_bounds(vae, box, noise, target_box(box, target), tol=1e-9)
    assert torch.equal(bounds.lower, bounds.upper)
    assert torch.equal(bounds.lower, elbo(vae, x, noise))


@EACH_TARGET
def test_nested_boxes_have_nested_bounds_to_within_tol(target: str) -> None:
    vae, x, noise = random_vae(2, "relu", "gaussian"), torch.rand(4, 2).double(), torch.randn(4, 2).double()
    point = Interval(x, x)
    nested = []
    for eps in (0.05, 0.1):
        box = LinfBall(eps).box(x)
        nested.append(exact_bounds(vae, box, noise, box if target == "perturbed" else point, tol=1e-3))
    for inner, outer in pairwise(nested):
        assert (outer.lower <= inner.lower + 1e-3).all() and (inner.upper - 1e-3 <= outer.upper).all()


def test_an_image_of_three_pixels_is_like_a_vector() -> None:
    flat, noise = random_vae(3, "relu", "bernoulli"), torch.randn(3, 2).double()
    box = LinfBall(0.1).box(torch.rand(3, 3).double())
    shape = (1, 3, 1)
    image = VAE(
        nn.Sequential(nn.Flatten(), *flat.encoder),
        nn.Sequential(*flat.decoder, nn.Unflatten(1, shape)),
        flat.likelihood,
        2,
    )
    shaped = box.map(lambda end: end.view(3, *shape))
    bounds = exact_bounds(image, shaped, noise, shaped, tol=1e-3), exact_bounds(flat, box, noise, box, tol=1e-3)
    for end, expected in zip(*bounds, strict=True):
        torch.testing.assert_close(end, expected, rtol=ROUNDING, atol=ROUNDING)


def test_examples_share_one_search_and_keep_their_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, box, noise = random_vae(1, "relu", "gaussian"), random_box(1), torch.randn(3, 2).double()
    truth = true_range(vae, box, noise, "perturbed")
    for chunk in (3, 512):
        monkeypatch.setattr(splitting, "CHUNK", chunk)
        assert_exact(exact_bounds(vae, box, noise, box, tol=1e-3), truth, tol=1e-3)


@settings(max_examples=20)
@given(
    corner=st.lists(st.floats(-1, 1), min_size=1, max_size=3),
    width=st.floats(0, 2),
    seed=st.integers(0, 100),
    tol=st.sampled_from([1e-1, 1e-3]),
)
def test_the_minimum_of_a_wave_is_the_closed_form(corner: list[float], width: float, seed: int, tol: float) -> None:
    # sum of cos(3 x): on [a, b] a term is least with -1 if an odd multiple of pi lies in [3a, 3b], else at an end
    lower = torch.tensor([corner]).double()
    box = Interval(
        lower, lower + width * torch.rand(lower.shape, generator=torch.Generator().manual_seed(seed)).double()
    )

    def bound(part: Interval, example: Tensor) -> Tensor:
        slope = 3 * torch.sin(3 * part.center).abs()
        return (torch.cos(3 * part.center) - slope * part.radius - 9 / 2 * part.radius.square()).sum(1)  # Taylor

    crest = (3 * box.upper / math.pi - 1).div(2).floor() * 2 + 1
    ends = torch.minimum(torch.cos(3 * box.lower), torch.cos(3 * box.upper))
    truth = torch.where(crest * math.pi >= 3 * box.lower, -1.0, ends).sum(1)
    value = minimum(lambda x, example: torch.cos(3 * x).sum(1), bound, box, tol)
    assert truth - tol <= value <= truth + ROUNDING


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "CHUNK", 4)
    rows = []

    def bound(part: Interval, example: Tensor) -> Tensor:
        rows.append(len(example))
        return (part.center.abs() - part.radius).sum(1)

    box = Interval(torch.full((2, 2), -1.0).double(), torch.full((2, 2), 1.5).double())
    assert minimum(lambda x, example: x.abs().sum(1), bound, box, 1e-3).abs().max() <= 1e-3
    assert max(rows) == 8 and sum(rows) > 100


def test_what_is_above_a_ceiling_is_not_searched() -> None:
    rows = []

    def bound(part: Interval, example: Tensor) -> Tensor:
        rows.append(len(example))
        return (part.center.abs() - part.radius).sum(1)

    box = Interval(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double(), torch.full((2, 2), 1.5).double())
    ceiling = torch.tensor([0.5, 0.01]).double()  # one below the minimum of 2, one above that of 0
    least = minimum(lambda x, example: x.abs().sum(1), bound, box, 1e-3, ceiling=ceiling)
    assert least[0] == 0.5 and -1e-3 <= least[1] <= ROUNDING
    searched = sum(rows)
    minimum(lambda x, example: x.abs().sum(1), bound, box, 1e-3)
    assert searched < sum(rows) - searched


# Planted bugs

real_halves, real_bounds = splitting._halves, IntervalBounds.of


def shrunk(subproblems: Subproblems) -> Subproblems:
    halves = real_halves(subproblems)
    lower = halves.box.center - 0.9 * halves.box.radius
    return Subproblems(Interval(lower, halves.box.upper), halves.example, halves.bound)


def target_at_its_center(vae: VAE, box: Interval, noise: Tensor, target: Interval) -> IntervalBounds:
    return real_bounds(vae, box, noise, Interval(target.center, target.center))


# bug -> what is replaced where
BUGS: dict[str, tuple[object, str, Callable]] = {
    "subproblems are closed the wrong way round": (
        splitting,
        "_close",
        lambda bound, best, tol: bound <= best - tol,
    ),
    "every subproblem is closed": (
        splitting,
        "_close",
        lambda bound, best, tol: torch.ones_like(bound, dtype=torch.bool),
    ),
    "the tolerance is added": (splitting, "_close", lambda bound, best, tol: bound >= best + tol),
    "the tolerance is ten times wider": (splitting, "_close", lambda bound, best, tol: bound >= best - 10 * tol),
    "the second halves are forgotten": (splitting, "_halves", lambda parts: real_halves(parts)[: len(parts)]),
    "the first halves are forgotten": (splitting, "_halves", lambda parts: real_halves(parts)[len(parts) :]),
    "halves leave a gap": (splitting, "_halves", shrunk),
    "a subproblem is never halved": (splitting, "_halves", lambda parts: parts + parts),
    "the target's box is ignored": (IntervalBounds, "of", target_at_its_center),
}


def audit_all() -> None:
    for seed in range(2):
        audit(random_vae(2, "relu", "gaussian", seed), random_box(2), "perturbed", tol=1e-2)


def test_the_audit_passes_without_a_bug() -> None:
    audit_all()


@pytest.mark.parametrize("name", BUGS)
def test_the_audit_fails_when(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, attribute, broken = BUGS[name]
    monkeypatch.setattr(place, attribute, broken)
    monkeypatch.setattr(splitting, "LIMIT", 3000)
    with pytest.raises((AssertionError, ToleranceError)):
        audit_all()


# Refusals


def test_a_search_that_passes_its_limit_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, box, noise = random_vae(2, "relu", "gaussian"), random_box(2), torch.randn(3, 2).double()
    monkeypatch.setattr(splitting, "LIMIT", 10)
    with pytest.raises(ToleranceError, match="tol=1e-06 nats on 10 subproblems: raise tol"):
        exact_bounds(vae, box, noise, box, tol=1e-6)


def test_a_tolerance_below_rounding_and_an_elbo_that_is_no_number_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, box, noise = random_vae(2, "relu", "gaussian"), random_box(2), torch.randn(3, 2).double()
    monkeypatch.setattr(splitting, "LIMIT", 500)
    with pytest.raises(ToleranceError, match="raise tol"):
        exact_bounds(vae, box, noise, box, tol=1e-30)
    vae.decoder[-1].bias.data[0] = math.nan
    with pytest.raises(ToleranceError):
        exact_bounds(vae, box, noise, box, tol=1e-3)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 28, 28)])
def test_more_than_three_inputs_are_refused(shape: tuple[int, ...]) -> None:
    vae, x = mlp_vae(shape, (4,), 2).double(), torch.rand(1, *shape).double()
    with pytest.raises(ValueError, match=rf"at most {DIMENSIONS} dimensions, got {math.prod(shape)}"):
        exact_bounds(vae, Interval(x, x), torch.zeros(1, 2).double(), Interval(x, x), tol=1e-3)


@pytest.mark.parametrize("tol", [0.0, -1e-3, math.nan, math.inf])
def test_a_tolerance_that_is_not_positive_is_refused(tol: float) -> None:
    with pytest.raises(ValueError, match=f"tol must be positive and finite, in nats, got {tol}"):
        BranchAndBound(tol)


def test_another_box_is_no_target() -> None:
    box, other = random_box(2), random_box(2)
    same = Interval(box.lower, box.upper)
    for target in (same, other):
        with pytest.raises(ValueError, match="own box or a single point"):
            exact_bounds(random_vae(2, "relu", "gaussian"), box, torch.zeros(3, 2).double(), target, tol=1e-3)


# As a method


@EACH_TARGET
@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_the_method_gives_the_exact_bounds_of_the_ball(target: str, tol: float) -> None:
    vae, x, noise = audit_case("mlp", "gaussian")
    ball, method = LinfBall(0.1), BranchAndBound(tol)
    box = ball.box(x)
    expected = exact_bounds(vae, box, noise, box if target == "perturbed" else Interval(x, x), tol)
    bounds = elbo_bounds(vae, x, ball, noise, method, target)
    assert torch.equal(bounds.lower, expected.lower) and torch.equal(bounds.upper, expected.upper)
    assert torch.equal(certificate(vae, x, ball, noise, method, target), expected.lower)
    looser = elbo_bounds(vae, x, ball, noise, "crown", target)
    assert (looser.lower <= bounds.lower + 1e-9).all() and (bounds.upper <= looser.upper + 1e-9).all()


def test_exact_is_refused_where_rounding_counts() -> None:
    vae, x, noise = audit_case("mlp")
    for bound in (elbo_bounds, certificate, certify):
        with pytest.raises(ValueError, match="branch and bound holds in real arithmetic: with sound=True use another"):
            bound(vae, x, LinfBall(0.1), noise, method="exact", sound=True)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_time_limit_that_is_not_positive_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=f"time_limit must be positive, in seconds, got {limit}"):
        BranchAndBound(time_limit=limit)


@pytest.mark.parametrize("limit", [1e-9, 1.0])
@torch.no_grad()
def test_when_time_is_up_the_bounds_so_far_are_returned_and_hold(limit: float) -> None:
    # steep needles, on which the tolerance is out of reach
    vae, x, noise = random_vae(2, "relu", "gaussian"), torch.rand(3, 2).double(), torch.randn(3, 2).double()
    vae.encoder[0].weight.data *= 300
    ball = LinfBall(0.3)
    method = BranchAndBound(tol=1e-13, time_limit=limit)
    bounds, interval = (elbo_bounds(vae, x, ball, noise, each) for each in (method, "ibp"))
    assert_encloses(bounds, torch.stack([elbo(vae, point, noise) for point in points_of(*ball.box(x), count=400)]))
    assert (bounds.lower >= interval.lower).all() and (bounds.upper <= interval.upper).all()
    if limit > 0.1:
        first = elbo_bounds(vae, x, ball, noise, BranchAndBound(tol=1e-13, time_limit=1e-9))
        assert (bounds.upper - bounds.lower < first.upper - first.lower).all(), "no time was used"


@torch.no_grad()
def test_a_time_limit_that_is_not_reached_changes_nothing() -> None:
    vae, x, noise = random_vae(2, "relu", "gaussian"), torch.rand(3, 2).double(), torch.randn(3, 2).double()
    free, limited = (elbo_bounds(vae, x, LinfBall(0.1), noise, BranchAndBound(time_limit=t)) for t in (None, 1e6))
    assert torch.equal(free.lower, limited.lower) and torch.equal(free.upper, limited.upper)


# The coordinates of a linear set


@pytest.mark.parametrize("target", ["perturbed", "clean"])
@torch.no_grad()
def test_the_worst_of_two_directions_is_that_of_a_dense_grid(target: Literal["perturbed", "clean"]) -> None:
    torch.manual_seed(0)
    vae = mlp_vae((9,), (12,), 2).double()
    for parameter in vae.parameters():
        parameter *= 2
    x, noise, ball = torch.rand(3, 9).double(), torch.randn(3, 2).double(), lighting(0.3, 0.4)
    bounds = elbo_bounds(vae, x, ball, noise, BranchAndBound(1e-3), target)
    grid = torch.cartesian_prod(torch.linspace(-0.3, 0.3, 151), torch.linspace(-0.4, 0.4, 151)).double()
    for image, draw, lower, upper in zip(x, noise, *bounds, strict=True):
        lit = (image + grid[:, :1] + grid[:, 1:] * (image - 0.5)).clamp(0, 1)  # many pixels saturate
        values = elbo(vae, lit, draw.expand(len(lit), -1), lit if target == "perturbed" else image.expand_as(lit))
        plane = values.view(151, 151)
        between = max(plane.diff(dim=0).abs().max().item(), plane.diff(dim=1).abs().max().item())
        assert lower <= values.min() <= lower + 1e-3 + 2 * between
        assert upper - 1e-3 - 2 * between <= values.max() <= upper
    lower_alone = certificate(vae, x, ball, noise, BranchAndBound(1e-3), target)
    assert torch.equal(lower_alone, bounds.lower)


@torch.no_grad()
def test_sets_without_few_coordinates_are_refused() -> None:
    vae, x, noise = mlp_vae((9,), (4,), 2).double(), torch.rand(1, 9).double(), torch.zeros(1, 2).double()
    for ball in (L2Ball(0.1), low_frequencies(4, (9,), 0.1)):
        with pytest.raises(ValueError, match="or for a LinearSet of as many directions"):
            elbo_bounds(vae, x, ball, noise, "exact")
