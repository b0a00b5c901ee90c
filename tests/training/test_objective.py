"""Objectives: each is trained by its word, resumed to the bit and shared by processes, and what it cannot do is said
before the first step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from children import ranks
from test_distributed import assert_close, numbers, shared
from test_loop import CONFIG, stripes, weights
from test_resume import SMALL, alone, assert_same_bits, at_epoch, press_ctrl_c, run
from torch import Tensor, nn

from paperlib import (
    OBJECTIVES,
    VAE,
    Bernoulli,
    LinfBall,
    Objective,
    TrainConfig,
    TrainingStep,
    elbo,
    robust_loss,
    train,
)
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.data import arrays
from paperlib.rivals.civet import Civet
from paperlib.runtime.files import ConfigMismatchError
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training import loop
from paperlib.training.loop import TrainingDivergedError
from paperlib.training.objective import find_objective

BETWEEN = ["sabr", "mtl-ibp", "exp-ibp"]  # an attack and a certificate
WORDS = ["provae", "adversarial", "smooth-encoder", "noise", "civet", *BETWEEN, "interval-regularised", "detector"]
RIVALS = WORDS[1:-2]  # the others are proVAE but for a term of their own
STEEP = replace(SMALL, ramp_start=0.0, ramp_end=0.1)  # the robust term from the first steps on


@pytest.fixture(autouse=True)
def default_words() -> Iterator[None]:
    assert set(OBJECTIVES) >= set(WORDS)
    before = dict(OBJECTIVES)
    yield
    assert before == OBJECTIVES, "a test has left an objective of its own"


def step_of(kappa: float, ball: LinfBall | None = None, count: int = 8, **settings: Any) -> TrainingStep:
    x, generator = stripes(count).x, torch.Generator().manual_seed(1)
    ball = ball or LinfBall(0.1)
    start = ball.sample(x, generator)
    return TrainingStep(x, start, ball, torch.randn(count, 2, generator=generator), kappa, **settings)


# ---- an objective and its word


@dataclass(frozen=True)
class Constant(Objective):
    """The robust term is a number, by the weight that moves it."""

    value: float = 3.0

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        return self.value + 0 * step.noise.sum(1)


def test_a_loss_is_its_formula_and_only_what_it_weighs_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, step = CONFIG.build(), step_of(0.25)
    expected = -(0.25 * elbo(vae, step.x, step.noise) + 0.75 * 3.0).mean()
    torch.testing.assert_close(Constant().loss(vae, step), expected)
    assert Constant().loss(vae, replace(step, kappa=0.0)).item() == -3.0
    monkeypatch.setattr(Constant, "robust_term", None)
    torch.testing.assert_close(Constant().loss(vae, replace(step, kappa=1.0)), -elbo(vae, step.x, step.noise).mean())


def test_the_default_objective_is_the_robust_loss() -> None:
    vae = CONFIG.build()
    for method in ("ibp", "crown-ibp"):
        step = step_of(0.3, method=method, target="clean", beta=0.5)
        loss = robust_loss(vae, step.x, step.ball, step.noise, 0.3, method, "clean", 0.5)
        assert torch.equal(find_objective(TrainConfig().objective).loss(vae, step), loss)


def test_an_unknown_word_is_an_error_that_lists_the_words() -> None:
    with pytest.raises(ValueError, match=r"unknown objective 'magic'; use one of 'adversarial', 'civet'"):
        find_objective("magic")


def test_a_registered_objective_is_trained_by_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"TrainConfig\.objective is out of range: 'constant'"):
        replace(STEEP, objective="constant")
    with monkeypatch.context() as patch:
        patch.setitem(OBJECTIVES, "constant", Constant())
        config = replace(STEEP, objective="constant")
        # its gradient is that of kappa times the ELBO, whose size Adam hardly feels
        assert run(None, config).history["clean"].iloc[-1] > run(None, config).history["clean"].iloc[0]
        assert TrainConfig.from_dict(config.as_dict()) == config


def test_each_word_gives_other_weights() -> None:
    models = [weights(run(None, replace(STEEP, objective=word)).vae) for word in WORDS]
    assert all(not torch.equal(one, other) for k, one in enumerate(models) for other in models[:k])


@pytest.mark.parametrize("word", WORDS)
def test_without_a_radius_or_with_kappa_1_each_trains_the_elbo(word: str) -> None:
    vae, clean = CONFIG.build(), step_of(1.0)
    expected = -elbo(vae, clean.x, clean.noise).mean()
    torch.testing.assert_close(OBJECTIVES[word].loss(vae, clean), expected)
    if word not in ("smooth-encoder", "civet", "detector"):  # their robust terms are no ELBO of x at one draw
        none = step_of(0.25, LinfBall(0.0))
        start = OBJECTIVES[word].draw(none.x, none.ball, torch.Generator())
        torch.testing.assert_close(OBJECTIVES[word].loss(vae, replace(none, start=start)), expected)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_a_gradient_reaches_all_weights(word: str, target: Any) -> None:
    vae = CONFIG.build()
    kappa = 0.01 if word == "smooth-encoder" else 0.0
    OBJECTIVES[word].loss(vae, step_of(kappa, count=32, target=target)).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(dim=-1).float().mean() > 0.5, name


@pytest.mark.parametrize("word", WORDS)
def test_beta_weighs_the_kl_in_the_robust_term_too(word: str) -> None:
    vae, kappa = CONFIG.build(), 0.5 if word == "smooth-encoder" else 0.0
    losses = [OBJECTIVES[word].loss(vae, step_of(kappa, beta=beta)) for beta in (0.0, 1.0)]
    assert losses[0] < losses[1]


# ---- interrupted, and shared


@dataclass(frozen=True)
class Recording(Objective):
    """Keeps what it draws."""

    draws: list[Tensor]

    def draw(self, x: Tensor, ball: PerturbationSet, generator: torch.Generator) -> Tensor:
        self.draws.append(torch.rand(x.shape, generator=generator))
        return self.draws[-1]

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        assert not self.draws or torch.equal(step.start, self.draws[-1])  # none are made for the check before training
        return 0 * step.noise.sum(1)


def test_draws_are_those_of_the_seed_and_fresh_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int) -> list[Tensor]:
        draws: list[Tensor] = []
        monkeypatch.setitem(OBJECTIVES, "recording", Recording(draws))
        run(None, replace(STEEP, objective="recording", seed=seed))
        monkeypatch.delitem(OBJECTIVES, "recording")
        return draws

    first, second, other = drawn(0), drawn(0), drawn(1)
    assert len(first) == SMALL.steps and all(map(torch.equal, first, second))
    assert not any(torch.equal(one, two) for k, one in enumerate(first) for two in [*first[:k], *other])


@pytest.mark.parametrize("word", RIVALS)
def test_an_interrupted_training_ends_with_the_same_bits(word: str, tmp_path: Path) -> None:
    config = replace(STEEP, objective=word, weight_decay=0.01, averaging=0.9)
    with at_epoch(3, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        run(tmp_path, config)
    assert_same_bits(run(tmp_path, config), alone(config))


def test_a_run_does_not_go_on_with_other_options_of_its_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(STEEP, objective="civet")
    run(tmp_path, config)
    with monkeypatch.context() as patch:
        patch.setitem(OBJECTIVES, "civet", Civet(delta=0.5))
        with pytest.raises(ConfigMismatchError, match=r"found 'Civet\(delta=0.05\)', wanted 'Civet\(delta=0.5\)'"):
            run(tmp_path, config)
    run(tmp_path, config)


@pytest.mark.parametrize("word", [word for word in RIVALS if word not in ("sabr", "exp-ibp")])  # they draw as mtl-ibp
def test_processes_that_share_uneven_parts_of_each_batch_train_as_one(word: str) -> None:
    config = replace(SMALL, steps=20, batch_size=33, objective=word)
    children = ranks(2, shared, None, config)
    expected = numbers(run(None, config))
    for status, result in (child.ended() for child in children):
        assert status == 0
        assert_close(result, expected)


# ---- what is refused, and what is not


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(loop, "_epoch", step)


def random_layers() -> VAE:
    encoder = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))
    return VAE(encoder, nn.Linear(2, 16), Bernoulli(), 2)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize("word", ["provae", "civet"])
def test_random_layers_are_refused_where_a_bound_is_trained_on(word: str) -> None:
    with pytest.raises(ValueError, match=r"^BatchNorm1d at 'encoder.1', Dropout at 'encoder.3': while"):
        train(replace(CONFIG, objective=word), vae=random_layers(), data=stripes(), device="cpu")


@pytest.mark.parametrize("word", ["adversarial", "smooth-encoder", "noise"])
def test_random_layers_are_trained_where_no_bound_is(word: str) -> None:
    history = train(replace(CONFIG, objective=word), vae=random_layers(), data=stripes(), device="cpu").history
    assert history["clean"].iloc[-1] > history["clean"].iloc[0]


@pytest.mark.usefixtures("no_step")
def test_an_objective_that_cannot_be_trained_is_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="smooth-encoder needs a kappa above 0"):
        run(None, replace(SMALL, objective="smooth-encoder", kappa=0.0))
    swish = VAE(nn.Sequential(nn.Linear(16, 4), Swish()), nn.Linear(2, 16), Bernoulli(), 2)
    for word in WORDS:  # the history has a certificate, whatever is trained on
        with pytest.raises(UnsupportedLayerError, match="no interval rule for Swish"):
            train(replace(CONFIG, objective=word), vae=swish, data=stripes(), device="cpu")


class Swish(nn.Module):
    """A layer without any rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def overflowing() -> VAE:
    """A model whose variance is 1 everywhere, as the difference of two equal numbers, which intervals do not see."""
    first, second = nn.Linear(16, 16), nn.Linear(16, 4)
    with torch.no_grad():
        first.weight[1], first.bias[1] = first.weight[0], first.bias[0]
        second.weight[2:] = 0.0
        second.weight[2:, 0], second.weight[2:, 1], second.bias[2:] = 1e5, -1e5, 0.0
    return VAE(nn.Sequential(first, second), nn.Linear(2, 16), Bernoulli(), 2)


STILL = replace(CONFIG, lr=1e-12, steps=6, ramp_start=0.0, ramp_end=0.0)


@pytest.mark.parametrize(
    "fields", [{"kappa": 1.0}, *({"objective": word} for word in ("adversarial", "smooth-encoder", "noise"))], ids=str
)
def test_a_certificate_that_overflows_stops_no_training_but_that_on_it(fields: dict[str, Any], tmp_path: Path) -> None:
    history = train(replace(STILL, **fields), vae=overflowing(), data=stripes(), device="cpu", folder=tmp_path).history
    assert (history["certified"] == -torch.inf).all() and history["clean"].abs().max() < 1e3
    again = train(replace(STILL, **fields), vae=overflowing(), data=stripes(), device="cpu")
    assert again.history["certified"].equals(history["certified"])


@pytest.mark.parametrize("word", ["provae", "civet"])
def test_a_certificate_that_overflows_stops_the_training_on_it(word: str) -> None:
    with pytest.raises(TrainingDivergedError, match=r"certified -inf|loss inf"):
        train(replace(STILL, objective=word), vae=overflowing(), data=stripes(), device="cpu")


# ---- the norm of the ball, and weight decay


@pytest.mark.usefixtures("no_step")
def test_a_norm_without_a_ball_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BALLS", {"linf": LinfBall})
    with pytest.raises(ValueError, match="there is no ball in the norm 'l1'; use one of 'linf'"):
        run(None, replace(SMALL, threat="l1"))


def test_the_ball_of_the_norm_is_trained_on_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arrays.BALLS, "l2", lambda eps, low, high: LinfBall(2 * eps, low, high))
    doubled = run(None, replace(SMALL, threat="l2"))
    other = run(None, replace(SMALL, eps=2 * SMALL.eps))
    assert torch.equal(weights(doubled.vae), weights(other.vae))
    assert doubled.history["certified"].equals(other.history["certified"])
    assert doubled.history["eps"].equals(other.history["eps"] / 2)


def test_weight_decay_shrinks_each_weight_beside_the_step_of_adam() -> None:
    """Decoupled (AdamW): of one step  w - lr * step,  and  w (1 - lr * decay) - lr * step  with it."""
    config = replace(CONFIG, steps=1, ramp_start=0.0, ramp_end=1.0)
    before, plain = weights(config.build()), weights(train(config, data=stripes(), device="cpu").vae)
    decayed = weights(train(replace(config, weight_decay=0.5), data=stripes(), device="cpu").vae)
    torch.testing.assert_close(decayed, plain - config.lr * 0.5 * before, rtol=1e-5, atol=1e-7)
    assert (before != 0).all() and not torch.equal(decayed, plain)
