"""beta-CROWN against a hand-worked network, points, the exact range of two inputs, and planted bugs."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice, pairwise

import pytest
import torch
from oracles import ROUNDING, TARGETS, assert_encloses, audit_case, hard_points, values_at
from torch import Tensor, nn

from paperlib import (
    VAE,
    Bernoulli,
    BranchAndBound,
    Crown,
    Gaussian,
    Interval,
    L2Ball,
    Likelihood,
    LikelihoodBounds,
    LinfBall,
    certificate,
    elbo,
    elbo_bounds,
    lighting,
    likelihood_bounds,
    mlp_vae,
)
from paperlib.bounds.linear import JointLinearFunction
from paperlib.certificates.backward import RelaxedVAE, backward_elbo, terms_below
from paperlib.certificates.ladder import beta_crown
from paperlib.certificates.ladder.beta_crown import BetaCrown
from paperlib.certificates.ladder.parts import relax_parts
from paperlib.certificates.ladder.search import Search
from paperlib.certificates.ladder.subproblems import Subproblems, Units
from paperlib.certificates.method import Problem
from paperlib.models.likelihood import sum_per_example
from paperlib.threats.perturbation import PerturbationSet

EACH_TARGET = pytest.mark.parametrize("target", TARGETS)
SHORT = BetaCrown(time_limit=1e-3)  # the whole and one round of splits, or a few


def root_of(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: str = "perturbed") -> RelaxedVAE:
    return Crown().relax(Problem.checked(vae, x, ball, noise, target, sound=False))


def rounds(
    root: RelaxedVAE, number: int, sign: float = 1.0, tol: float = 1e-3, reached: Tensor | None = None
) -> list[Tensor]:
    """The bounds of  sign * ELBO  after each of the first rounds, the whole included."""
    zero = torch.zeros_like(root.noise[:, 0])
    search = Search(root, sign, zero, zero + torch.inf if reached is None else reached)
    return list(islice(search.bounds(tol), number))


# A hand-worked network


class Output(Likelihood):
    """log p = the sum of the decoder's outputs: no density, but bounds without a relaxation of their own."""

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return sum_per_example(output)

    def mean(self, output: Tensor) -> Tensor:
        return output


class OutputBounds(LikelihoodBounds):
    def lower(self, output: Interval, target: Interval) -> Tensor:
        return sum_per_example(output.lower)

    def upper(self, output: Interval, target: Interval) -> Tensor:
        return sum_per_example(output.upper)

    def linear_below(self, output: Interval, target: Interval) -> JointLinearFunction:
        one = torch.ones_like(output.lower)
        return JointLinearFunction(one, 0 * one, 0 * one)

    linear_above = linear_below


likelihood_bounds.register(Output, OutputBounds)


def two_relus() -> RelaxedVAE:
    """ELBO = relu(z) - relu(z - 1/2) - z^2 / 2  with  z = x  in [-1, 1]: least, -1/2, at z = -1."""
    encoder, first, last = nn.Linear(1, 2), nn.Linear(1, 2), nn.Linear(2, 1)
    for layer, weight, bias in (
        (encoder, [[1.0], [0.0]], [0.0, 0.0]),
        (first, [[1.0], [1.0]], [0.0, -0.5]),
        (last, [[1.0, -1.0]], [0.0]),
    ):
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    vae = VAE(encoder, nn.Sequential(first, nn.ReLU(), last), Output(), 1).double()
    x = torch.zeros(1, 1).double()
    return root_of(vae, x, LinfBall(1.0, low=-2.0, high=2.0), torch.zeros_like(x))


def part_of(units: Units, *constraints: tuple[int, float, float]) -> Subproblems:
    """One part with these constraints (unit, side, point)."""
    unit, side, point = (torch.tensor([column]) for column in zip(*constraints, strict=True))
    whole, one = Subproblems.whole(1, units.box.lower), torch.ones_like(side).double()
    return replace(whole, unit=unit, side=side.double(), point=point.double(), beta=0 * one, step=one)


@torch.no_grad()
def bound_of(root: RelaxedVAE, *constraints: tuple[int, float, float], beta: tuple[float, ...]) -> float:
    """The bound of a part with these multipliers, without any optimisation."""
    units = Units.of(root)
    parts = part_of(units, *constraints)
    over = relax_parts(root, units, parts)
    constrained, constant = units.constrain(over.relaxed, parts, torch.tensor([beta]).double())
    coefficients, offset = backward_elbo(constrained, 1.0, terms_below(over.relaxed))
    return (constant + offset + root.bounds.region.concretize(coefficients)).item()


FIRST, SECOND = 2, 3  # units of the decoder's activations; 0 and 1 are mean and log-variance


def test_splits_of_two_relus_by_hand() -> None:
    # The KL's chord over mean in [-1, 1] is the constant 1/2. Above relu(v), v = z - 1/2 in [-3/2, 1/2], is the chord
    # (v + 3/2) / 4 = z / 4 + 1/4.
    root = two_relus()
    # Where z >= 0 the first unit is z itself: 3/4 z - 1/4 - 1/2, at z = -1 without the constraint. With beta (0 - z)
    # and beta = 3/4 the slope is 0.
    assert bound_of(root, (FIRST, 1, 0.0), beta=(0.0,)) == pytest.approx(-3 / 2)
    assert bound_of(root, (FIRST, 1, 0.0), beta=(0.75,)) == pytest.approx(-3 / 4)
    # Where z <= 0 it is 0: -z / 4 - 3/4, at z = 1 without the constraint; beta = 1/4.
    assert bound_of(root, (FIRST, -1, 0.0), beta=(0.0,)) == pytest.approx(-1)
    assert bound_of(root, (FIRST, -1, 0.0), beta=(0.25,)) == pytest.approx(-3 / 4)
    # With 0 <= z <= 1/2 the second is 0: z - 1/2, and beta = 1 gives -1/2. With z >= 1/2 it is z - 1/2: 1/2 - 1/2.
    assert bound_of(root, (FIRST, 1, 0.0), (SECOND, -1, 0.0), beta=(1.0, 0.0)) == pytest.approx(-1 / 2)
    assert bound_of(root, (FIRST, 1, 0.0), (SECOND, 1, 0.0), beta=(0.0, 0.0)) == pytest.approx(0)
    # A split of z itself at 0, the mean, makes the KL's chord -z / 2 for z >= 0, and the first unit's sign is fixed:
    # z - z / 4 - 1/4 - z / 2 = z / 4 - 1/4, and at beta = 1/4 it is -1/4. In the box [0, 1] of z the second unit is in
    # [-1/2, 1/2], and its chord (v + 1/2) / 2 = z / 2: z - z / 2 - z / 2 = 0, whatever z is.
    assert bound_of(root, (0, 1, 0.0), beta=(0.0,)) == pytest.approx(0)


def test_the_search_ends_on_the_hand_worked_minimum_and_maximum() -> None:
    root = two_relus()
    assert rounds(root, 4)[-1].item() == pytest.approx(-1 / 2, abs=1e-3)
    # for z in [0, 1/2] it is z - z^2 / 2, and largest, 3/8, at 1/2
    assert -rounds(root, 4, sign=-1.0)[-1].item() == pytest.approx(3 / 8, abs=1e-3)


def test_a_part_without_inputs_is_closed() -> None:
    root = two_relus()
    units = Units.of(root)
    # z <= 0 and z - 1/2 >= 0
    over = relax_parts(root, units, part_of(units, (0, -1, 0.0), (SECOND, 1, 0.0)))
    assert over.empty.all()
    assert not relax_parts(root, units, part_of(units, (0, 1, 0.0), (SECOND, 1, 0.0))).empty.any()


# Enclosure


@EACH_TARGET
@pytest.mark.parametrize(
    ("case", "likelihood"), [("mlp", "gaussian"), ("deep", "bernoulli"), ("smooth", "learned"), ("conv", "bernoulli")]
)
def test_no_point_is_outside_the_bounds_and_crown_is_not_tighter(case: str, likelihood: str, target: str) -> None:
    vae, x, noise = audit_case(case, likelihood, batch=2)
    ball = LinfBall(0.2)
    looser = elbo_bounds(vae, x, ball, noise, Crown(), target)
    bounds = elbo_bounds(vae, x, ball, noise, SHORT, target)
    assert (bounds.lower >= looser.lower).all() and (bounds.upper <= looser.upper).all()
    with torch.no_grad():
        assert_encloses(bounds, values_at(vae, hard_points(vae, x, 0.2, noise, target), x, noise, target))


def bent_vae(likelihood: Likelihood, size: int = 2) -> VAE:
    """Weights of three times the usual size, so that the ELBO bends inside a ball."""
    torch.manual_seed(3)
    vae = mlp_vae((size,), (6,), 2, likelihood).double()
    for half in (vae.encoder, vae.decoder):
        for layer in half:
            if isinstance(layer, nn.Linear):
                layer.weight.data *= 3
    return vae


@EACH_TARGET
@pytest.mark.parametrize("likelihood", [Bernoulli, Gaussian])
def test_with_time_both_ends_are_those_of_exact(likelihood: Callable[[], Likelihood], target: str) -> None:
    vae = bent_vae(likelihood())
    x, noise, ball = torch.rand(2, 2).double(), torch.randn(2, 2).double(), LinfBall(0.1)
    exact = elbo_bounds(vae, x, ball, noise, BranchAndBound(tol=1e-4), target)
    root = root_of(vae, x, ball, noise, target)
    lower = rounds(root, 40, tol=0.05, reached=exact.lower + 1e-4)[-1]
    upper = -rounds(root, 40, sign=-1.0, tol=0.05, reached=1e-4 - exact.upper)[-1]
    torch.testing.assert_close(lower, exact.lower, rtol=0, atol=0.0502)
    torch.testing.assert_close(upper, exact.upper, rtol=0, atol=0.0502)
    assert (lower <= exact.lower + 1e-4).all() and (upper >= exact.upper - 1e-4).all()


@pytest.mark.parametrize("ball", [L2Ball(0.3), lighting(0.2)], ids=["l2", "lighting"])
@EACH_TARGET
def test_other_sets_are_enclosed(ball: PerturbationSet, target: str) -> None:
    vae, x, noise = bent_vae(Bernoulli(), 3), torch.rand(2, 3).double(), torch.randn(2, 2).double()
    bounds = elbo_bounds(vae, x, ball, noise, SHORT, target)
    points = [ball.sample(x, torch.Generator().manual_seed(seed)) for seed in range(200)]
    values = [elbo(vae, point, noise, point if target == "perturbed" else x) for point in points]
    assert_encloses(bounds, torch.stack(values))


def unit_values(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """What the units that may be split are at each x of one example, in their flat order, [points, units]."""
    hidden = vae.encoder[0](x)
    posterior = vae.encoder[2](hidden.relu())
    mean, log_var = posterior.chunk(2, 1)
    return torch.cat([hidden, posterior, vae.decoder[0](mean + log_var.exp().sqrt() * noise)], 1)


def excess(seed: int) -> float:
    """By how much a bound of a part, at random constraints and multipliers, is above a point of this part."""
    vae, generator = bent_vae(Bernoulli(), 3), torch.Generator().manual_seed(seed)
    x, noise = (torch.rand(1, size, generator=generator, dtype=torch.float64) for size in (3, 2))
    ball = LinfBall(0.2)
    inputs = torch.stack([ball.sample(x, generator) for _ in range(200)]).squeeze(1)
    values = unit_values(vae, inputs, noise)
    units = torch.randint(values.shape[1], (3,), generator=generator)
    sides = 2.0 * torch.randint(2, (3,), generator=generator) - 1
    points = values[0, units]  # one input at least is in the part
    inside = (sides * (values[:, units] - points) >= 0).all(1)
    constraints = zip(units.tolist(), sides.tolist(), points.tolist(), strict=True)
    beta = (3 * torch.rand(3, generator=generator)).tolist()
    bound = bound_of(root_of(vae, x, ball, noise), *constraints, beta=tuple(beta))
    return bound - elbo(vae, inputs[inside], noise.expand(int(inside.sum()), -1)).min().item()


def test_any_multipliers_bound_every_point_of_their_part() -> None:
    with torch.no_grad():
        assert max(excess(seed) for seed in range(20)) <= ROUNDING


def test_a_wrong_sign_of_the_constraints_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Units.constrain

    def wrong(units: Units, relaxed: RelaxedVAE, parts: Subproblems, beta: Tensor) -> tuple[RelaxedVAE, Tensor]:
        return right(units, relaxed, replace(parts, side=-parts.side), beta)

    monkeypatch.setattr(Units, "constrain", wrong)
    with torch.no_grad():
        assert max(excess(seed) for seed in range(20)) > 0.01


# The search


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_each_round_is_as_tight_as_the_one_before(sign: float) -> None:
    vae, x, noise = bent_vae(Bernoulli(), 4), torch.rand(3, 4).double(), torch.randn(3, 2).double()
    after = rounds(root_of(vae, x, LinfBall(0.2), noise), 12, sign)
    assert len(after) == 12
    assert all((later >= earlier).all() for earlier, later in pairwise(after))
    assert (after[-1] > after[0] + 0.1).all()


def test_no_round_begins_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, noise = bent_vae(Bernoulli(), 4), torch.rand(2, 4).double(), torch.randn(2, 2).double()
    ball = LinfBall(0.2)
    expected = rounds(root_of(vae, x, ball, noise), 6)
    # two images have twice the limit: a clock that ticks once a look is beyond 4 at its sixth one, the first is 0
    monkeypatch.setattr(beta_crown, "perf_counter", count().__next__)
    torch.testing.assert_close(
        certificate(vae, x, ball, noise, BetaCrown(time_limit=2.0)), expected[4], rtol=1e-10, atol=0
    )


def test_a_large_batch_is_searched_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, noise = bent_vae(Bernoulli(), 3), torch.rand(3, 3).double(), torch.randn(3, 2).double()
    ball = LinfBall(0.05)
    monkeypatch.setattr(beta_crown, "perf_counter", lambda: 0.0)  # time never passes
    together = certificate(vae, x, ball, noise, BetaCrown(time_limit=1.0, tol=0.1))
    monkeypatch.setattr(beta_crown, "IMAGES", 2)
    alone = certificate(vae, x, ball, noise, BetaCrown(time_limit=1.0, tol=0.1))
    torch.testing.assert_close(together, alone, rtol=0, atol=0.1)


# Options


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["time_limit", "tol"])
def test_options_must_be_positive_and_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        BetaCrown(**{name: value})


def test_noise_of_another_batch_is_refused_and_no_image_has_no_bounds() -> None:
    vae, x, noise = audit_case("mlp", batch=18)
    with pytest.raises(ValueError, match="noise must be"):
        certificate(vae, x[:16], LinfBall(0.1), noise, SHORT)
    assert certificate(vae, x[:0], LinfBall(0.1), noise[:0], SHORT).shape == (0,)


def test_sound_bounds_are_refused() -> None:
    vae, x, noise = audit_case("mlp")
    with pytest.raises(ValueError, match="use another method"):
        elbo_bounds(vae, x, LinfBall(0.1), noise, SHORT, sound=True)
