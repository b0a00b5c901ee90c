"""Methods of certification: their words and objects, their options, and new ones that a test registers."""

from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import TARGETS, audit_case
from torch import Tensor

from paperlib import (
    IBP,
    VAE,
    Auto,
    BranchAndBound,
    Crown,
    CrownIBP,
    DeepZ,
    DualNetwork,
    HybridZonotope,
    Interval,
    Lagrangian,
    LinfBall,
    certificate,
    certify,
    certify_expected,
    elbo_bounds,
    mlp_vae,
    robust_loss,
)
from paperlib.certificates.evaluation import chunk_size
from paperlib.certificates.interval_elbo import elbo_lower
from paperlib.certificates.ladder.beta_crown import BetaCrown
from paperlib.certificates.method import METHODS, MemoryUse, Method, Problem, TrainableMethod, find_method

WORDS: dict[str, Method] = {
    "ibp": IBP(),
    "crown-ibp": CrownIBP(alpha_steps=0),
    "crown": Crown(alpha_steps=0),
    "exact": BranchAndBound(tol=1e-3),
    "best": Auto(budget=100),
    "zonotope": DeepZ(),
    "hybrid-zonotope": HybridZonotope(relu="parallel"),
    "dual-network": DualNetwork(),
    "lagrangian": Lagrangian(steps=40),
    "beta-crown": BetaCrown(time_limit=1.0, tol=1e-3),
}
REAL_ARITHMETIC = (
    "exact",
    "zonotope",
    "hybrid-zonotope",
    "dual-network",
    "lagrangian",
    "beta-crown",
)  # without sound bounds
BALL = LinfBall(0.1)
EACH_TARGET = pytest.mark.parametrize("target", TARGETS)


def expected_rows(method: str | Method) -> pd.DataFrame:
    vae, x, _ = audit_case("mlp")
    return certify_expected(vae, x, BALL, samples=50, method=method, generator=torch.Generator().manual_seed(1))


# Words and objects


def test_the_words_are_these_and_stand_for_the_default_objects() -> None:
    assert METHODS.keys() == WORDS.keys()
    for word, method in WORDS.items():
        assert find_method(word) == method == type(method)()
        assert type(find_method(word)) is type(method)
        assert find_method(method) is method


@EACH_TARGET
@pytest.mark.parametrize("word", WORDS)
def test_a_word_gives_what_its_object_gives(word: str, target: str) -> None:
    vae, x, noise = audit_case("mlp")
    by_word, by_object = (elbo_bounds(vae, x, BALL, noise, method, target) for method in (word, WORDS[word]))
    assert torch.equal(by_word.lower, by_object.lower) and torch.equal(by_word.upper, by_object.upper)
    for method in (word, WORDS[word]):
        assert torch.equal(certificate(vae, x, BALL, noise, method, target), by_object.lower)
    rows = [certify(vae, x, BALL, noise, method=method, target=target) for method in (word, WORDS[word])]
    pd.testing.assert_frame_equal(*rows)
    np.testing.assert_allclose(rows[0]["certified"], by_object.lower.detach(), rtol=0, atol=1e-11)
    assert chunk_size(vae, x, noise, word, 0.01) == chunk_size(vae, x, noise, WORDS[word], 0.01)


@pytest.mark.parametrize("word", [word for word in WORDS if word not in REAL_ARITHMETIC])
def test_a_word_gives_the_sound_bounds_of_its_object(word: str) -> None:
    vae, x, noise = (part.float() for part in audit_case("mlp"))
    bounds = [elbo_bounds(vae, x, BALL, noise, method, sound=True) for method in (word, WORDS[word])]
    assert torch.equal(bounds[0].lower, bounds[1].lower) and torch.equal(bounds[0].upper, bounds[1].upper)


@pytest.mark.parametrize("word", ["ibp", "crown-ibp", "crown"])
def test_a_word_gives_the_expectations_of_its_object(word: str) -> None:
    pd.testing.assert_frame_equal(expected_rows(word), expected_rows(WORDS[word]))


@EACH_TARGET
@pytest.mark.parametrize("word", ["ibp", "crown-ibp", "zonotope", "hybrid-zonotope", "dual-network"])
def test_a_word_gives_the_loss_and_the_gradient_of_its_object(word: str, target: str) -> None:
    vae, x, noise = audit_case("mlp")
    losses = [robust_loss(vae, x, BALL, noise, 0.25, method, target) for method in (word, WORDS[word])]
    assert torch.equal(*losses)
    gradients = [torch.autograd.grad(loss, [*vae.parameters()]) for loss in losses]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert any(gradient.any() for gradient in gradients[0])


def test_methods_are_equal_by_type_and_options_and_cannot_change() -> None:
    assert Crown(3) == Crown(alpha_steps=3) != Crown()
    assert Crown() != CrownIBP(), "a subclass is another method"
    assert len({IBP(), IBP(), Crown(), Crown(), Crown(1)}) == 3
    with pytest.raises(FrozenInstanceError):
        Crown().alpha_steps = 3


@pytest.mark.parametrize(
    "make", [lambda: IBP(alpha_steps=3), lambda: Crown(tol=1e-3), lambda: BranchAndBound(budget=9), lambda: Auto(tol=1)]
)
def test_a_method_refuses_an_option_of_another(make: Callable[[], Method]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        make()


def test_an_unknown_word_is_refused_wherever_a_method_is_asked_for() -> None:
    vae, x, noise = audit_case("mlp")
    calls: list[Callable[[], object]] = [
        lambda: elbo_bounds(vae, x, BALL, noise, "magic"),
        lambda: certificate(vae, x, BALL, noise, "magic"),
        lambda: certify(vae, x, BALL, noise, method="magic"),
        lambda: chunk_size(vae, x, noise, "magic", 1.0),
        lambda: expected_rows("magic"),
        lambda: robust_loss(vae, x, BALL, noise, 0.5, "magic"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^unknown method 'magic'; use one of ") as error:
            call()
        assert all(repr(word) in str(error.value) for word in WORDS)


# Options


@torch.no_grad()
@EACH_TARGET
@pytest.mark.parametrize("kind", [CrownIBP, Crown])
def test_alpha_steps_tighten_linear_bounds(kind: type[CrownIBP], target: str) -> None:
    vae, x, noise = mlp_vae((6,), (16,), 2).double(), torch.rand(3, 6).double(), torch.randn(3, 2).double()
    for parameter in vae.parameters():
        parameter *= 2  # so that relus meet inputs of both signs, whose slopes alpha decides
    none, few, many = (elbo_bounds(vae, x, BALL, noise, kind(alpha_steps), target) for alpha_steps in (0, 1, 20))
    assert (none.lower <= few.lower).all() and (none.lower <= many.lower).all() and (none.lower < many.lower).any()
    assert (none.upper >= few.upper).all() and (none.upper >= many.upper).all() and (none.upper > many.upper).any()
    assert not torch.equal(few.lower, many.lower)
    assert torch.equal(certificate(vae, x, BALL, noise, kind(alpha_steps=20), target), many.lower)


@pytest.mark.parametrize("kind", [CrownIBP, Crown])
def test_a_negative_number_of_alpha_steps_is_refused_where_the_method_is_made(kind: type[CrownIBP]) -> None:
    with pytest.raises(ValueError, match="alpha_steps must not be negative, got -1"):
        kind(alpha_steps=-1)


@EACH_TARGET
def test_the_tolerance_of_branch_and_bound_decides_how_far_the_ends_are_from_the_truth(target: str) -> None:
    vae, x, noise = audit_case("mlp", "gaussian")
    coarse, fine = (elbo_bounds(vae, x, BALL, noise, BranchAndBound(tol), target) for tol in (0.5, 1e-5))
    for one, other in zip(coarse, fine, strict=True):
        assert ((one - other).abs() <= 0.5 + 1e-5).all() and ((one - other).abs() > 1e-5).any()
    assert (coarse.lower <= fine.lower + 1e-5).all() and (fine.upper <= coarse.upper + 1e-5).all()


@pytest.mark.parametrize("tol", [0.0, -1e-3, float("nan"), float("inf")])
def test_a_tolerance_that_claims_nothing_is_refused_where_the_method_is_made(tol: float) -> None:
    with pytest.raises(ValueError, match="tol must be positive and finite, in nats"):
        BranchAndBound(tol=tol)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (0, IBP()),
        (3, IBP()),
        (4, CrownIBP(0)),
        (7, CrownIBP(0)),
        (8, CrownIBP(1)),
        (15, CrownIBP(2)),  # three latents: refined boxes cost 4 + 4 * 3
        (16, Crown(0)),
        (19, Crown(0)),
        (20, Crown(1)),
        (29, Crown(3)),
    ],
)
def test_best_is_the_method_that_the_budget_pays(budget: int, chosen: Method, sound: bool) -> None:
    vae, x, noise = mlp_vae((6,), (5, 4), 3), torch.rand(2, 6), torch.randn(2, 3)
    auto = Auto(budget)
    assert auto.choose(vae) == chosen
    best, named = (elbo_bounds(vae, x, BALL, noise, method, "clean", sound=sound) for method in (auto, chosen))
    assert torch.equal(best.lower, named.lower) and torch.equal(best.upper, named.upper)
    assert torch.equal(certificate(vae, x, BALL, noise, auto, "clean", sound=sound), named.lower)
    assert auto.memory(vae, [6, 5, 4, 6]) == chosen.memory(vae, [6, 5, 4, 6])


# Training


@dataclass(frozen=True)
class Looser(Method):
    """Interval bounds, a margin looser on both sides: a method that says nothing of gradients."""

    margin: float = 10.0

    def bounds(
        self, vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, target: str = "perturbed", sound: bool = False
    ) -> Interval:
        return IBP().bounds(vae, x, ball, noise, target, sound).widen(torch.tensor(self.margin))

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        return MemoryUse(per_image=1, largest_batch=2)


class WithoutGradient(TrainableMethod):
    """The lower end of intervals less one nat; does not say that it is differentiable."""

    def bounds(
        self, vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, target: str = "perturbed", sound: bool = False
    ) -> Interval:
        return IBP().bounds(vae, x, ball, noise, target, sound).widen(torch.tensor(1.0))

    def lower_over(self, problem: Problem) -> Tensor:
        return elbo_lower(problem.vae, problem.bounds) - 1

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        return MemoryUse(per_image=1)


class Trainable(WithoutGradient):
    """The same, which says so."""

    @property
    def differentiable(self) -> bool:
        return True


def test_only_the_methods_with_a_whole_gradient_say_that_they_are_differentiable() -> None:
    methods = [*WORDS.values(), CrownIBP(alpha_steps=1), Crown(alpha_steps=1)]
    differentiable = [method for method in methods if method.differentiable]
    assert differentiable == [IBP(), CrownIBP(), DeepZ(), HybridZonotope(), DualNetwork()]


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("exact", r"BranchAndBound\(tol=0\.001, time_limit=None\)"),
        (BranchAndBound(0.5), r"BranchAndBound\(tol=0\.5, time_limit=None\)"),
        ("best", r"Auto\(budget=100\)"),
        ("crown", r"Crown\(alpha_steps=0\)"),
        (CrownIBP(3), r"CrownIBP\(alpha_steps=3\)"),
        (Looser(), r"Looser\(margin=10\.0\)"),
        (WithoutGradient(), r".*WithoutGradient.*"),
    ],
    ids=["exact", "branch and bound", "best", "crown", "steps for alpha", "new", "new, over given boxes"],
)
def test_a_method_without_gradient_is_refused_by_its_name(method: str | Method, name: str, kappa: float) -> None:
    vae, x, noise = audit_case("mlp")
    message = rf"^{name} is not differentiable: train on 'ibp', or 'crown-ibp' without steps for alpha$"
    with pytest.raises(ValueError, match=message):
        robust_loss(vae, x, BALL, noise, kappa, method)


# New methods


def test_a_registered_method_is_used_everywhere_by_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "looser", Looser())
    vae, x, noise = audit_case("mlp")
    interval = elbo_bounds(vae, x, BALL, noise)
    bounds = elbo_bounds(vae, x, BALL, noise, "looser")
    assert torch.equal(bounds.lower, interval.lower - 10) and torch.equal(bounds.upper, interval.upper + 10)
    assert torch.equal(certificate(vae, x, BALL, noise, "looser"), bounds.lower), "the lower end of `bounds`"
    sound = elbo_bounds(vae, x, BALL, noise, sound=True).lower - 10
    assert torch.equal(certificate(vae, x, BALL, noise, "looser", sound=True), sound)
    rows, tighter = (certify(vae, x, BALL, noise, method=method) for method in ("looser", "ibp"))
    np.testing.assert_allclose(rows["certified"], tighter["certified"] - 10, rtol=0, atol=1e-11)
    assert chunk_size(vae, x, noise, "looser", 1.0) == 2, "as its `memory` says"
    assert (expected_rows("looser")["mean"] < expected_rows("ibp")["mean"]).all()
    with pytest.raises(ValueError, match=r"use one of .*'looser'"):
        find_method("losser")
    with pytest.raises(ValueError, match=r"^Looser\(margin=10\.0\) is not differentiable"):
        robust_loss(vae, x, BALL, noise, 0.5, "looser")


def test_a_registered_method_with_a_gradient_is_trained_on_by_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "trainable", Trainable())
    vae, x, noise = audit_case("mlp")
    loss, tighter = (robust_loss(vae, x, BALL, noise, 0.25, method) for method in ("trainable", "ibp"))
    torch.testing.assert_close(loss, tighter + 0.75, rtol=1e-14, atol=0)
    gradients = [torch.autograd.grad(each, [*vae.parameters()]) for each in (loss, tighter)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    interval = certificate(vae, x, BALL, noise)
    assert torch.equal(certificate(vae, x, BALL, noise, "trainable"), interval - 1)
    with pytest.raises(ValueError, match=r"got 1\.5 at index"):
        certificate(vae, torch.full_like(x, 1.5), BALL, noise, "trainable")
