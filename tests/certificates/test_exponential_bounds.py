"""Exponential families and the discretised logistic through whole networks: bounds, attacks, rounding, planted bugs."""

import math
from collections.abc import Callable

import pytest
import torch
from oracles import (
    MORE_LIKELIHOODS,
    ROUNDING,
    TARGETS,
    assert_encloses,
    audit,
    audit_case,
    grid,
    hard_points,
    points_of,
    values_at,
)
from torch import Tensor
from torch.nn import functional as F

from paperlib import (
    IBP,
    ContinuousBernoulli,
    Crown,
    CrownIBP,
    Dataset,
    DiscretizedLogistic,
    Gaussian,
    Interval,
    L2Ball,
    LinfBall,
    Poisson,
    TrainConfig,
    certify,
    certify_expected,
    elbo,
    elbo_bounds,
    mlp_vae,
    strongest,
    train,
)
from paperlib.certificates.discretized_logistic_bounds import DiscretizedLogisticBounds
from paperlib.certificates.exponential_bounds import ExponentialFamilyBounds
from paperlib.certificates.likelihood_bounds import bounds_of, likelihood_bounds
from paperlib.certificates.poisson_bounds import PoissonBounds
from paperlib.models.likelihood import ExponentialFamily

EACH = pytest.mark.parametrize("name", MORE_LIKELIHOODS)


def box_of(low: float, high: float) -> Interval:
    return Interval(*(torch.tensor([[end]], dtype=torch.float64) for end in (low, high)))


# Numbers worked by hand


def test_hand_worked_ranges() -> None:
    # Poisson, log-rate in [0, 1] and count in [1, 3], with lgamma(2) = 0 and lgamma(4) = log 6. At the corners:
    # (0, 1): -1; (1, 1): 1 - e = -1.72; (0, 3): -1 - log 6 = -2.79; (1, 3): 3 - e - log 6 = -1.51. The best count is
    # the least, 1, since digamma(v) = 0 at v = 1.46, and its best log-rate is log 1 = 0.
    range_ = bounds_of(Poisson()).bounds(box_of(0, 1), box_of(1, 3))
    assert range_.lower.item() == pytest.approx(-1 - math.log(6)) and range_.upper.item() == pytest.approx(-1)
    # Continuous Bernoulli, l in [0, log 2] and t in [0, 1/2]: A(0) = 0 and A(log 2) = log(1 / log 2). At l = log 2 and
    # t = 0 it is -A = log log 2 = -0.37; the best is 0 at l = 0 for either target, as the density is uniform there and
    # both means, 0 and 1/2, are at most A'(0).
    range_ = bounds_of(ContinuousBernoulli()).bounds(box_of(0, math.log(2)), box_of(0, 0.5))
    assert range_.lower.item() == pytest.approx(math.log(math.log(2))) and range_.upper.item() == pytest.approx(0)
    # Discretised logistic of scale w = 1/510, means in [0, 2w]. The target 0 is open below with log F(w - m): least
    # at m = 2w, log(1 / (1 + e)), largest at m = 0, log(e / (1 + e)). Half a bin further, at t = w, the bin [0, 2w] is
    # closed: least at both m = 0 and m = 2w, F(2) - F(0) = 1 / (1 + e^-2) - 1/2, largest at m = w,
    # F(1) - F(-1) = 2 / (1 + 1/e) - 1.
    likelihood = DiscretizedLogistic(1 / 510).double()
    w = likelihood.half_bin.item()
    for target, least, most in [
        (0.0, 1 / (1 + math.e), math.e / (1 + math.e)),
        (w, 1 / (1 + math.exp(-2)) - 0.5, 2 / (1 + math.exp(-1)) - 1),
    ]:
        range_ = bounds_of(likelihood).bounds(box_of(0, 2 * w), box_of(target, target))
        assert range_.lower.item() == pytest.approx(math.log(least)), target
        assert range_.upper.item() == pytest.approx(math.log(most)), target
    both = bounds_of(likelihood).bounds(box_of(0, 2 * w), box_of(0.0, w))
    assert both.lower.item() == pytest.approx(math.log(1 / (1 + math.e))), "the open bin of 0, with its mean at 2w"
    # just below t = w the bin is open still, and holds F(2w - m), at m = 0: F(2)
    assert both.upper.item() == pytest.approx(-math.log1p(math.exp(-2)))


@pytest.mark.parametrize("rates", [(-2.0, -1.0), (0.3, 1.1), (0.5, 0.5), (1.5, 2.5), (-30.0, 3.0)])
@pytest.mark.parametrize("counts", [(0.0, 1.0), (2.0, 4.0), (3.0, 3.0), (0.0, 25.0), (11.5, 16.0)])
def test_poisson_bounds_are_the_range_for_counts(rates: tuple[float, float], counts: tuple[float, float]) -> None:
    targets, outputs = grid(*counts, 401), grid(*rates, 201)
    outputs = torch.cat([outputs, targets.log().clamp(*rates)])
    values = Poisson().log_prob(*torch.cartesian_prod(outputs, targets).T[..., None])
    range_ = bounds_of(Poisson()).bounds(box_of(*rates), box_of(*counts))
    assert_encloses(range_, values[:, None])
    torch.testing.assert_close(range_.lower[0], values.min(), rtol=ROUNDING, atol=ROUNDING)
    assert range_.upper[0] - values.max() <= 2 * ((counts[1] - counts[0]) / 400) ** 2 + ROUNDING
    for sign, bound in (
        (1, bounds_of(Poisson()).linear_below(box_of(*rates), box_of(*counts))),
        (-1, bounds_of(Poisson()).linear_above(box_of(*rates), box_of(*counts))),
    ):
        for function in (bound.initial, bound.first, bound.second):
            slopes = torch.cat([function.output_slope[0], function.target_slope[0]])
            gap = values - torch.cartesian_prod(outputs, targets) @ slopes - function.offset[0]
            assert (sign * gap >= -1e-11 * (1 + values.abs().max())).all()


# Families of a user's own


class Signs(ExponentialFamily):
    """t = -1 or 1 with the log-odds 2l: log p = t * l - log(2 cosh(l))."""

    support = (-1.0, 1.0)

    def log_normalizer(self, output: Tensor) -> Tensor:
        return F.softplus(2 * output) - output

    def mean_parameter(self, output: Tensor) -> Tensor:
        return torch.tanh(output)

    def natural_parameter(self, mean: Tensor) -> Tensor:
        return torch.atanh(mean.clamp(-1, 1))


likelihood_bounds.register(Signs, ExponentialFamilyBounds)


def test_a_family_of_ones_own_is_bounded_by_three_functions() -> None:
    output, target = box_of(-1.5, 0.7), box_of(-0.4, 0.9)
    points = torch.cartesian_prod(
        torch.cat([grid(-1.5, 0.7), torch.atanh(torch.tensor([-0.4]).double())]), grid(-0.4, 0.9)
    )
    values = Signs().log_prob(*points.T[..., None])
    range_ = bounds_of(Signs()).bounds(output, target)
    for end, attained in zip(range_, (values.min(), values.max()), strict=True):
        torch.testing.assert_close(end[0], attained)
    vae = mlp_vae((3,), (6,), 2, Signs()).double()
    x, noise, ball = 2 * torch.rand(4, 3).double() - 1, torch.randn(4, 2).double(), LinfBall(0.1, -1.0, 1.0)
    values = torch.stack([elbo(vae, point, noise) for point in points_of(*ball.box(x))])
    for method in ("ibp", "crown-ibp", "crown"):
        assert_encloses(elbo_bounds(vae, x, ball, noise, method), values)
    with pytest.raises(NotImplementedError, match="ExponentialFamilyBounds has no rounding"):
        elbo_bounds(vae, x, ball, noise, sound=True)


class Normal(Signs):
    """N(t; l, 1), whose h is not 0: the rules for h = 0 would be wrong for it."""

    support = (-math.inf, math.inf)

    def log_normalizer(self, output: Tensor) -> Tensor:
        return output.square() / 2

    def mean_parameter(self, output: Tensor) -> Tensor:
        return output

    def log_base_measure(self, target: Tensor) -> Tensor:
        return -target.square() / 2 - math.log(2 * math.pi) / 2


likelihood_bounds.register(Normal, ExponentialFamilyBounds)


def test_a_family_with_a_base_measure_is_told_what_its_bounds_lack() -> None:
    output, target, bounds = box_of(-1.5, 0.7), box_of(-0.4, 0.9), bounds_of(Normal())
    assert bounds.lower(output, target).item() == pytest.approx(bounds_of(Gaussian()).lower(output, target).item())
    for method, lacks in (("upper", "best_targets"), ("linear_below", "base_below"), ("linear_above", "base_above")):
        with pytest.raises(NotImplementedError, match=f"ExponentialFamilyBounds has no {lacks}, which a family with a"):
            getattr(bounds, method)(output, target)
    with pytest.raises(NotImplementedError, match="has no target_slope"):
        bounds.target_slope(output)


def test_a_family_with_another_normaliser_needs_bounds_of_its_own() -> None:
    class Thinned(Poisson):
        def log_normalizer(self, output: Tensor) -> Tensor:
            return super().log_normalizer(output) / 2

    with pytest.raises(TypeError, match="no bounds for the likelihood Thinned; register"):
        bounds_of(Thinned())


# Through networks


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", ["mlp", "chain", "flat"])
@EACH
def test_values_and_bounds_pass_the_audit(name: str, case: str, target: str) -> None:
    vae, x, noise = audit_case(case, name)
    audit(vae, x, 0.1, noise, target, (IBP(), CrownIBP()))
    refined, boxes = (elbo_bounds(vae, x, LinfBall(0.1), noise, method, target) for method in ("crown", "ibp"))
    assert_encloses(refined, values_at(vae, hard_points(vae, x, 0.1, noise, target), x, noise, target))
    assert (refined.lower >= boxes.lower).all() and (refined.upper <= boxes.upper).all()


@EACH
def test_sets_that_are_no_boxes_and_alpha_steps(name: str) -> None:
    vae, x, noise = audit_case("mlp", name)
    ball = L2Ball(0.2)
    generator = torch.Generator().manual_seed(0)
    values = torch.stack([elbo(vae, ball.sample(x, generator), noise) for _ in range(30)])
    looser = elbo_bounds(vae, x, ball, noise)
    for method in (CrownIBP(), Crown(), Crown(alpha_steps=3)):
        bounds = elbo_bounds(vae, x, ball, noise, method)
        assert_encloses(bounds, values)
        assert (bounds.lower >= looser.lower).all() and (bounds.upper <= looser.upper).all()
    boxed = elbo_bounds(vae, x, LinfBall(0.2), noise, "crown")
    assert (bounds.lower > boxed.lower).all(), "the ball is smaller than its box"


def counts(split_rows: int) -> Dataset:
    generator = torch.Generator().manual_seed(3)
    rates = torch.rand(split_rows, 2, generator=generator) @ (8 * torch.rand(2, 9, generator=generator))
    return Dataset("counts", torch.poisson(rates, generator).clamp(max=16), low=0.0, high=16.0)


@pytest.mark.parametrize("name", [*MORE_LIKELIHOODS])
def test_a_trained_model_survives_the_suite_and_the_sound_mode(name: str) -> None:
    data, eps = counts(40), 1.0
    if name != "poisson":
        data, eps = Dataset("grey", data.x / 16), 0.05
    how = {"hidden": (8,), "latent_dim": 2, "steps": 30, "batch_size": 32, "lr": 1e-2, "bound": "crown-ibp"}
    config = TrainConfig(data.name, (9,), likelihood=name, scale=0.1, eps=eps, kappa=0.5, **how)
    vae = train(config, data=data).vae
    x, noise, ball = data.x[:6], torch.randn(6, 2), data.ball(eps)
    point = strongest(vae, x, ball, noise, steps=4)
    attacked = elbo(vae, point, noise)
    assert (attacked < elbo(vae, x, noise)).all()
    for method in ("ibp", "crown-ibp", "crown"):
        bounds = elbo_bounds(vae, x, ball, noise, method, sound=True)  # of the float32 numbers themselves
        assert (bounds.lower <= attacked).all() and (elbo(vae, x, noise) <= bounds.upper).all()
        real = elbo_bounds(vae.double(), x.double(), ball, noise.double(), method)
        vae.float()
        assert (bounds.lower <= real.lower).all() and (bounds.lower > real.lower - 1e-3 * real.lower.abs()).all()
    rows = certify(vae, x, ball, noise, method="crown", attack={"steps": 4})
    assert (rows["certified"] <= rows["attacked"]).all() and rows["certified"].gt(-1e4).all()


@pytest.mark.parametrize("name", ["continuous-bernoulli", "discretized-logistic"])
def test_the_expected_elbo_is_certified(name: str) -> None:
    vae, x, _ = audit_case("mlp", name)
    row = certify_expected(vae, x, LinfBall(0.05), samples=50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = torch.stack([elbo(vae, (x + 0.05).clamp(max=1), torch.randn_like(x[:, :2])) for _ in range(200)])
    assert (torch.tensor(row["bound"].to_list()) <= values.mean(0)).all() and row["bound"].gt(-1e6).all()
    output, target = Interval(x - 0.3, x + 0.4), Interval(x, x)
    slope, curvature = bounds_of(vae.likelihood).decrease_bound(output, target)
    for start in points_of(*output, 8):
        for far in (-20.0, -0.1, 0.2, 5.0):
            fall = vae.likelihood.terms(start, x) - vae.likelihood.terms(start + far, x)
            assert (fall <= slope * abs(far) + curvature * far**2 / 2 + ROUNDING * (1 + abs(far))).all()


def test_a_rate_beyond_all_numbers_is_no_nan() -> None:
    range_ = bounds_of(Poisson()).bounds(box_of(720, 800), box_of(0, 16))
    assert range_.lower.item() == range_.upper.item() == -math.inf


def test_no_quadratic_bounds_the_fall_of_a_poisson() -> None:
    vae, x, _ = audit_case("mlp", "poisson")
    with pytest.raises(NotImplementedError, match="PoissonBounds has no decrease_bound, which certify_expected"):
        certify_expected(vae, x, LinfBall(0.05), samples=10)


# Planted bugs: each makes the audit of some case fail

BUGS: dict[str, tuple[type, str, Callable]] = {
    "continuous-bernoulli: the normaliser is forgotten where it is close to 0": (
        ContinuousBernoulli,
        "log_normalizer",
        lambda self, output: torch.where(output.abs() < 1, output / 2, real_normalizer(self, output)),
    ),
    "continuous-bernoulli: chords take the mean of a Bernoulli": (
        ContinuousBernoulli,
        "mean_parameter",
        lambda self, output: torch.sigmoid(output),
    ),
    "poisson: the best count is the rate": (
        PoissonBounds,
        "best_targets",
        lambda self, output, target: (output.lower.exp().clamp(*target),),
    ),
    "poisson: the base measure is forgotten": (Poisson, "log_base_measure", lambda self, target: 0 * target),
    "poisson: the base measure has its tangent below": (
        PoissonBounds,
        "linear_below",
        lambda self, output, target: real_poisson_below(
            self, output, Interval(target.center - 1e-6, target.center + 1e-6)
        ),
    ),
    "discretized-logistic: no bin is open": (
        DiscretizedLogistic,
        "open_ends",
        lambda self, target: (torch.zeros_like(target, dtype=torch.bool),) * 2,
    ),
    "discretized-logistic: a box has the kind of its upper end": (
        DiscretizedLogisticBounds,
        "_kinds",
        lambda self, target: real_kinds(self, Interval(target.upper, target.upper)),
    ),
    "discretized-logistic: an open bin has the best mean of a closed one": (
        DiscretizedLogisticBounds,
        "linear_above",
        lambda self, output, target: real_linear_above(self, output, target.map(lambda end: 0.5 + 0 * end)),
    ),
}
real_normalizer, real_poisson_below = ContinuousBernoulli.log_normalizer, PoissonBounds.linear_below
real_kinds, real_linear_above = DiscretizedLogisticBounds._kinds, DiscretizedLogisticBounds.linear_above


@pytest.mark.parametrize("bug", BUGS)
def test_the_audit_fails_when(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, broken = BUGS[bug]
    monkeypatch.setattr(owner, method, broken)
    with pytest.raises((AssertionError, ArithmeticError)):  # the audit sees it, or bounds that contradict each other
        audit_all(bug.split(":")[0])


def audit_all(name: str) -> None:
    for case in ("chain", "flat", "spread", "mlp"):
        for target in TARGETS:
            vae, x, noise = audit_case(case, name)
            audit(vae, x, 0.1, noise, target, (IBP(), CrownIBP()))
