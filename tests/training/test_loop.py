"""Training: reproducible to the bit, faithful to its formula, and loud when it diverges."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from paperlib import (
    IBP,
    VAE,
    Bernoulli,
    Gaussian,
    Interval,
    LinfBall,
    Objective,
    TrainConfig,
    certify,
    elbo,
    elbo_bounds,
    interval_rule,
    mlp_vae,
    pgd,
    robust_loss,
    train,
)
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates.intervals import IntervalBounds
from paperlib.data.datasets import Dataset
from paperlib.models.elbo import elbo_terms
from paperlib.runtime.device import choose_device, matmul_precision
from paperlib.training import loop, objective
from paperlib.training.loop import CollapsedPosteriorWarning, TrainingDivergedError
from paperlib.training.resume import State

COLUMNS = ["step", "eps", "kappa", "lr", "clean", "log_likelihood", "kl", "certified"]
CONFIG = TrainConfig(
    dataset="stripes", data_shape=(16,), hidden=(12,), latent_dim=2, steps=20, batch_size=32, lr=5e-3, eps=0.05
)


def stripes(count: int = 200, seed: int = 0) -> Dataset:
    """Images of 4 x 4 with one bright column each, and some grey noise."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(4, (count,), generator=generator)
    bright = nn.functional.one_hot(kind, 4).float()[:, None].expand(-1, 4, -1).flatten(1)
    return Dataset("stripes", bright * 0.9 + 0.1 * torch.rand(count, 16, generator=generator), kind)


def weights(vae: VAE) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = (train(CONFIG, data=stripes(), device="cpu") for _ in range(2))
    assert torch.equal(weights(first.vae), weights(second.vae))
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)


def test_the_callers_randomness_neither_matters_nor_changes() -> None:
    first = train(CONFIG, data=stripes(), device="cpu")
    torch.manual_seed(123)
    state = torch.get_rng_state()
    second = train(CONFIG, data=stripes(), device="cpu")
    assert torch.equal(weights(first.vae), weights(second.vae))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "field",
    [
        {"seed": 1},
        {"eps": 0.1},
        {"kappa": 0.0},
        {"lr": 1e-3},
        {"target": "clean"},
        {"bound": "crown-ibp"},
        {"beta": 2.0},
    ],
)
def test_another_configuration_gives_other_weights(field: dict[str, Any]) -> None:
    base = replace(CONFIG, ramp_start=0.0, ramp_end=0.1)
    first, other = (train(config, data=stripes(), device="cpu") for config in (base, replace(base, **field)))
    assert not torch.equal(weights(first.vae), weights(other.vae))


def test_the_seed_also_shuffles_and_draws_noise() -> None:
    vae = CONFIG.build()
    runs = [train(replace(CONFIG, seed=seed), vae=vae, data=stripes(), device="cpu") for seed in (0, 1)]
    assert not torch.equal(weights(runs[0].vae), weights(runs[1].vae))


def test_the_history_has_a_row_for_each_epoch() -> None:
    result = train(CONFIG, data=stripes(), device="cpu")
    history = result.history
    assert list(history.columns) == COLUMNS
    assert history["step"].tolist() == [5, 10, 15, 20]  # 180 images, 32 a batch
    assert history["eps"].is_monotonic_increasing and history["eps"].iloc[-1] == CONFIG.eps
    assert history["kappa"].is_monotonic_decreasing and history["kappa"].iloc[-1] == CONFIG.kappa
    assert torch.tensor(history.to_numpy(dtype=float)).isfinite().all()
    torch.testing.assert_close(
        torch.tensor(history["clean"].to_numpy()),
        torch.tensor((history["log_likelihood"] - history["kl"]).to_numpy()),
        rtol=0,
        atol=1e-4,
    )
    assert (history["certified"] <= history["clean"] + 1e-4).all()
    assert not result.vae.training and next(result.vae.parameters()).device.type == "cpu"


def test_an_unfinished_last_epoch_is_measured_too() -> None:
    history = train(replace(CONFIG, steps=7), data=stripes(), device="cpu").history
    assert history["step"].tolist() == [5, 7]


def test_the_held_out_images_are_the_last_tenth_and_never_trained_on() -> None:
    data = stripes()
    x = data.x.clone()
    x[180:] = x[180:].flip(1)
    first, other = (train(CONFIG, data=d, device="cpu") for d in (data, replace(data, x=x)))
    assert torch.equal(weights(first.vae), weights(other.vae))
    assert (first.history["clean"] != other.history["clean"]).all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
@pytest.mark.parametrize("target", ["perturbed", "clean"])
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)], ids=["bernoulli", "gaussian"])
def test_the_certificate_that_is_trained_on_holds_for_every_weight_of_the_kl(
    beta: float, method: Any, target: Any, likelihood: Any
) -> None:
    """For each x' in the ball  log p - beta * KL  is no lower, and at radius 0 it is the same."""
    vae = mlp_vae((16,), (12,), 2, likelihood).double()
    x, noise, ball = stripes(8).x.double(), torch.randn(8, 2).double(), LinfBall(0.1)

    def weighted(x_adv: Tensor) -> Tensor:
        log_likelihood, kl = elbo_terms(vae, x_adv, noise, x if target == "clean" else x_adv)
        return log_likelihood - beta * kl

    certified = -torch.stack(
        [robust_loss(vae, x[i : i + 1], ball, noise[i : i + 1], 0.0, method, target, beta) for i in range(8)]
    )
    generator = torch.Generator().manual_seed(0)
    points = [ball.sample(x, generator) for _ in range(50)] + [pgd(vae, x, ball, noise, target=target)]
    points += [ball.project(x + ball.eps * torch.randn(x.shape, generator=generator).sign(), x) for _ in range(50)]
    assert all((certified <= weighted(x_adv) + 1e-12).all() for x_adv in points)
    exact = robust_loss(vae, x, LinfBall(0.0), noise, 0.0, method, target, beta)
    torch.testing.assert_close(exact, -weighted(x).mean(), rtol=1e-9, atol=1e-9)
    clean = robust_loss(vae, x, ball, noise, 1.0, method, target, beta)
    torch.testing.assert_close(clean, -weighted(x).mean(), rtol=1e-12, atol=0)


def test_a_negative_weight_of_the_kl_is_no_objective() -> None:
    with pytest.raises(ValueError, match="beta must not be negative"):
        robust_loss(CONFIG.build(), stripes(8).x, LinfBall(0.1), torch.randn(8, 2), 0.5, beta=-0.1)


def test_a_heavier_kl_gives_a_smaller_one() -> None:
    light, heavy = (train(replace(CONFIG, steps=60, beta=beta), data=stripes(), device="cpu") for beta in (0.1, 10.0))
    assert light.history["kl"].iloc[-1] > heavy.history["kl"].iloc[-1]


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
@pytest.mark.parametrize("target", ["perturbed", "clean"])
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)], ids=["bernoulli", "gaussian"])
def test_the_loss_is_its_formula(kappa: float, method: Any, target: Any, likelihood: Any) -> None:
    vae = mlp_vae((16,), (12,), 2, likelihood).double()
    x, noise, ball = stripes(8).x.double(), torch.randn(8, 2).double(), LinfBall(0.1)
    certified = elbo_bounds(vae, x, ball, noise, method, target).lower
    expected = -(kappa * elbo(vae, x, noise) + (1 - kappa) * certified).mean()
    torch.testing.assert_close(robust_loss(vae, x, ball, noise, kappa, method, target), expected, rtol=1e-12, atol=0)


def test_a_plain_vae_never_computes_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the certificate was computed")

    vae, x, noise = CONFIG.build(), stripes(8).x, torch.randn(8, 2)
    for part, name in ((LinfBall, "unchecked_region"), (IntervalBounds, "of"), (IBP, "lower_over")):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, refuse)
            robust_loss(vae, x, LinfBall(0.1), noise, 1.0)
            with pytest.raises(AssertionError, match="the certificate was computed"):
                robust_loss(vae, x, LinfBall(0.1), noise, 0.99)


def test_full_robustness_never_computes_the_clean_elbo(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the clean ELBO was computed")

    monkeypatch.setattr(objective, "unchecked_elbo", refuse)
    vae, x, noise = CONFIG.build(), stripes(8).x, torch.randn(8, 2)
    robust_loss(vae, x, LinfBall(0.1), noise, 0.0)
    with pytest.raises(AssertionError, match="the clean ELBO was computed"):
        robust_loss(vae, x, LinfBall(0.1), noise, 0.01)


@pytest.mark.parametrize(
    ("method", "message"),
    [("exact", "BranchAndBound.* is not differentiable: train on 'ibp', or 'crown-ibp'"), ("magic", "unknown")],
)
def test_a_method_without_a_gradient_is_no_objective(method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robust_loss(CONFIG.build(), stripes(8).x, LinfBall(0.1), torch.randn(8, 2), 0.5, method)


def test_training_on_the_certificate_raises_it() -> None:
    config = replace(CONFIG, steps=150, kappa=0.0)
    test, noise = stripes(50, seed=9), torch.randn(50, 2)
    models = {
        "untrained": config.build(),
        "VAE": train(replace(config, kappa=1.0, eps=0.0), data=stripes(), device="cpu").vae,
        "proVAE": train(config, data=stripes(), device="cpu").vae,
    }
    means = {name: certify(vae, test.x, LinfBall(0.05), noise).mean() for name, vae in models.items()}
    assert means["proVAE"]["certified"] > means["untrained"]["certified"] + 1
    assert means["proVAE"]["certified"] > means["VAE"]["certified"]
    assert means["VAE"]["clean"] > means["proVAE"]["clean"] > means["untrained"]["clean"]


@pytest.mark.parametrize("learned", [False, True])
def test_a_gaussian_likelihood_trains(learned: bool) -> None:
    vae = mlp_vae((16,), (12,), 2, Gaussian(0.5, learned=learned))
    result = train(replace(CONFIG, steps=60), vae=vae, data=stripes(), device="cpu")
    assert result.history["clean"].iloc[-1] > result.history["clean"].iloc[0]
    moved = not torch.equal(result.vae.likelihood.log_scale, vae.likelihood.log_scale)  # type: ignore[arg-type]
    assert moved == learned


def test_the_configuration_can_ask_for_a_gaussian_likelihood() -> None:
    config = replace(CONFIG, likelihood="gaussian", scale=0.3)
    assert isinstance(train(config, data=stripes(), device="cpu").vae.likelihood, Gaussian)


def test_the_users_own_model_is_trained_and_not_changed() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 16), nn.Unflatten(1, (4, 4)))
    vae = VAE(encoder, decoder, Bernoulli(), 2).eval()
    before = copy.deepcopy(vae.state_dict())
    images = stripes()
    result = train(replace(CONFIG, ramp_end=0.2, eps=0.0, kappa=1.0), vae=vae, data=images_as(images, 4, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())
    assert not vae.training and all(parameter.grad is None for parameter in vae.parameters())
    assert type(result.vae.encoder[1]) is nn.Linear  # type: ignore[index]
    assert not torch.equal(weights(result.vae.cpu()), weights(vae))


def images_as(data: Dataset, *shape: int) -> Dataset:
    return replace(data, x=data.x.unflatten(1, shape))


def test_training_leaves_the_data_as_they_were() -> None:
    data = stripes()
    before = data.x.clone()
    train(CONFIG, data=data, device="cpu")
    assert torch.equal(data.x, before)


class Trap(nn.Module):
    """The identity until it has been called so many times in training; infinite from then on."""

    def __init__(self, calls: int):
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= self.training
        return x if self.calls >= 0 else x * torch.inf


@interval_rule.register
def _(layer: Trap, box: Interval) -> Interval:
    return box


def test_divergence_is_an_error_that_keeps_the_last_good_epoch() -> None:
    """Infinite from step 12 on: the state after 10 steps, two whole epochs, is kept."""
    config = replace(CONFIG, eps=0.0, kappa=1.0)
    vae = config.build()
    vae.encoder.append(Trap(12))
    with pytest.raises(TrainingDivergedError, match=r"at step 12: training.diverged.*2 epochs") as caught:
        train(config, vae=vae, data=stripes(), device="cpu")
    result = caught.value.result
    assert result.history["step"].tolist() == [5, 10]
    assert not result.vae.training and weights(result.vae).isfinite().all()

    vae.encoder[-1].calls = 10**9
    # The same learning rates as long as the ramp of the longer run has not ended.
    same = train(replace(config, steps=10, ramp_end=1.0), vae=vae, data=stripes(), device="cpu")
    assert torch.equal(weights(result.vae), weights(same.vae))


@pytest.mark.parametrize("batch_size", [32, 180], ids=["many steps an epoch", "one step an epoch"])
@pytest.mark.parametrize("lr", [1e30, 1e300])
def test_after_divergence_the_kept_model_has_finite_weights_and_values(lr: float, batch_size: int) -> None:
    with pytest.raises(TrainingDivergedError) as caught:
        train(replace(CONFIG, lr=lr, batch_size=batch_size), data=stripes(), device="cpu")
    vae = caught.value.result.vae
    assert weights(vae).isfinite().all()
    assert elbo(vae, stripes().x, torch.zeros(200, 2)).isfinite().all()


def test_divergence_in_the_very_last_step_is_not_missed() -> None:
    with pytest.raises(TrainingDivergedError):
        train(replace(CONFIG, lr=1e300, steps=1), data=stripes(), device="cpu")


def test_where_losses_are_read_once_an_epoch_the_first_bad_step_is_named() -> None:
    """Loss and gradient norm of the steps 9 to 12, read at step 12."""
    state = loop._begin(CONFIG, None, torch.device("cpu"))
    state.step = 12
    losses = torch.tensor([[1.0, 2.0], [3.0, torch.inf], [torch.nan, torch.nan], [4.0, 5.0]])
    with pytest.raises(TrainingDivergedError, match="loss 3, gradient norm inf at step 10: training diverged"):
        loop._check_finite(losses, state)
    loop._check_finite(losses[::3], state)


class Reads(TorchDispatchMode):
    """Counts how often the value of a tensor is read: each time, the host waits for the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def reads_on_the_cpu(train_once: Callable[[], object]) -> int:
    with Reads() as reads:
        train_once()
    return reads.count


def waits_on_cuda(train_once: Callable[[], object]) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train_once()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def steps_of_one_epoch(count: int, bound: Any, device: str) -> Callable[[], object]:
    config = replace(CONFIG, steps=count, batch_size=18, bound=bound, kappa=0.0, ramp_start=0.0, ramp_end=0.1)
    return lambda: train(config, data=stripes(), device=device)


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("bound", ["ibp", "crown-ibp"])
def test_a_step_reads_no_value_but_whether_it_is_finite_where_that_is_free(
    monkeypatch: pytest.MonkeyPatch, bound: Any, synchronous: bool
) -> None:
    monkeypatch.setattr(loop, "is_synchronous", lambda _: synchronous)
    five, ten = (reads_on_the_cpu(steps_of_one_epoch(count, bound, "cpu")) for count in (5, 10))
    assert ten - five == (5 if synchronous else 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("bound", ["ibp", "crown-ibp"])
def test_on_cuda_no_step_is_waited_for(bound: Any) -> None:
    steps_of_one_epoch(10, bound, "cuda")()  # what a device is waited for once
    five, ten = (waits_on_cuda(steps_of_one_epoch(count, bound, "cuda")) for count in (5, 10))
    assert five == ten > 0


def interrupt(precisions: list[str]) -> None:
    assert precisions == ["ieee", "ieee"]
    raise KeyboardInterrupt


def test_products_are_taken_in_another_precision_on_cuda_alone_and_only_within() -> None:
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [part.fp32_precision for part in parts]
    with matmul_precision("tf32", torch.device("cpu")):
        assert [part.fp32_precision for part in parts] == before
    with matmul_precision("tf32", torch.device("cuda")):
        assert [part.fp32_precision for part in parts] == ["tf32", "tf32"]
        with pytest.raises(KeyboardInterrupt), matmul_precision("ieee", torch.device("cuda", 0)):
            interrupt([part.fp32_precision for part in parts])
        assert [part.fp32_precision for part in parts] == ["tf32", "tf32"]
    assert [part.fp32_precision for part in parts] == before
    assert not torch.backends.cuda.matmul.allow_tf32, "the older name of the switch can still be read"


def test_held_out_certificates_are_measured_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, str]] = []

    def note(owner: Any, name: str) -> None:
        def noted(*args: Any) -> Any:
            used.append((name, torch.backends.cuda.matmul.fp32_precision))
            return real(*args)

        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, noted)

    note(Objective, "loss")
    note(loop, "_measure")
    monkeypatch.setattr(
        loop, "matmul_precision", lambda precision, _: matmul_precision(precision, torch.device("cuda"))
    )
    train(replace(CONFIG, steps=6), data=stripes(), device="cpu")
    step, measured = ("loss", "tf32"), ("_measure", "ieee")
    assert used == [step] * 5 + [measured, step, measured]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -0.01, 1.01])
@pytest.mark.parametrize("index", [3, 199], ids=["trained on", "held out"])
def test_data_outside_its_range_is_an_error_that_names_the_place(bad: float, index: int) -> None:
    data = stripes()
    data.x[index, 7] = bad
    with pytest.raises(ValueError, match=rf"finite and in \[0.*\[{index}, 7\]"):
        train(CONFIG, data=data, device="cpu")


def test_the_range_is_that_of_the_data_set() -> None:
    data = replace(stripes(), x=stripes().x * 8 - 4, low=-4.0, high=4.0)
    train(replace(CONFIG, likelihood="gaussian"), data=data, device="cpu")


@pytest.mark.parametrize("kind", [Tensor, np.ndarray])
def test_a_tensor_or_an_array_is_a_data_set_of_pixels(kind: type) -> None:
    x = stripes().x
    given = x if kind is Tensor else x.double().numpy()
    expected = train(CONFIG, data=stripes(), device="cpu")
    assert torch.equal(weights(train(CONFIG, data=given, device="cpu").vae), weights(expected.vae))
    with pytest.raises(ValueError, match=r"own data: x must be .*give their range as low and high"):
        train(CONFIG, data=2 * given, device="cpu")


def test_data_in_another_precision_than_the_model_are_refused_before_the_first_step() -> None:
    data = Dataset("own", stripes().x.double())
    with pytest.raises(ValueError, match=r"x is torch.float64 on cpu, the model is torch.float32 on cpu"):
        train(CONFIG, data=data, device="cpu")
    assert train(CONFIG, vae=CONFIG.build().double(), data=data, device="cpu").history["step"].iloc[-1] == 20


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(loop, "_epoch", step)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_data_outside_the_range_of_the_likelihood_are_refused_before_the_first_step(target: str) -> None:
    data = replace(stripes(), x=stripes().x * 2 - 1, low=-1.0, high=1.0)
    config = replace(CONFIG, target=target)
    with pytest.raises(ValueError, match=r"Bernoulli explains targets in \[0, 1\], but these are in \[-(1|0\.9)"):
        train(config, data=data, device="cpu")
    with pytest.raises(AssertionError, match="a step was taken"):
        train(replace(config, likelihood="gaussian"), data=data, device="cpu")


@pytest.mark.usefixtures("no_step")
def test_a_range_beyond_that_of_the_likelihood_matters_where_a_perturbation_reaches_it() -> None:
    wide = replace(stripes(), low=-1.0, high=2.0)
    with pytest.raises(ValueError, match=r"Bernoulli explains targets in \[0, 1\], but these are in \[-0\.0"):
        train(CONFIG, data=wide, device="cpu")
    for config in (replace(CONFIG, target="clean"), replace(CONFIG, eps=0.0)):
        with pytest.raises(AssertionError, match="a step was taken"):
            train(config, data=wide, device="cpu")


class Swish(nn.Module):
    """A layer without any rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize("bound", ["ibp", "crown-ibp"])
@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (
            [nn.BatchNorm1d(8)],
            ValueError,
            r"^BatchNorm1d at 'encoder.1': while .*\(kappa is 0.5\).*kappa=1",
        ),
        ([nn.Dropout(0.1)], ValueError, r"^Dropout at 'encoder.1': while it is trained"),
        ([nn.BatchNorm1d(8), nn.Dropout()], ValueError, r"^BatchNorm1d at 'encoder.1', Dropout at 'encoder.2': while"),
        ([Swish()], UnsupportedLayerError, "no interval rule for Swish at 'encoder.1'"),
    ],
    ids=["batch normalisation", "dropout", "both", "no rule"],
)
def test_layers_that_no_certificate_can_be_trained_through_are_refused_before_the_first_step(
    layers: list[nn.Module], error: type[Exception], message: str, bound: Any
) -> None:
    encoder = nn.Sequential(nn.Linear(16, 8), *layers, nn.Linear(8, 4))
    vae = VAE(encoder, nn.Linear(2, 16), Bernoulli(), 2)
    with pytest.raises(error, match=message):
        train(replace(CONFIG, bound=bound), vae=vae, data=stripes(), device="cpu")


def test_batch_normalisation_and_dropout_are_trained_where_no_certificate_is() -> None:
    encoder = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))
    vae = VAE(encoder, nn.Linear(2, 16), Bernoulli(), 2)
    history = train(replace(CONFIG, kappa=1.0), vae=vae, data=stripes(), device="cpu").history
    assert (history["certified"] <= history["clean"]).all()


@pytest.mark.parametrize(("beta", "collapses"), [(100.0, True), (1e-3, False)])
def test_a_collapsed_posterior_is_warned_of(beta: float, collapses: bool) -> None:
    config = replace(CONFIG, steps=200, kappa=1.0, beta=beta)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kl = train(config, data=stripes(), device="cpu").history["kl"].iloc[-1]
    assert (kl < 0.5) == collapses
    said = [str(warning.message) for warning in caught if warning.category is CollapsedPosteriorWarning]
    assert len(said) == collapses and all(f"a KL of {kl:.2g} nats is below 0.5" in line for line in said)


def test_fewer_examples_than_a_batch_are_an_error() -> None:
    with pytest.raises(ValueError, match="stripes has 27 examples to train on, fewer than one batch of 32"):
        train(CONFIG, data=stripes(30), device="cpu")


def test_examples_of_another_shape_than_the_configurations_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(16,\)"):
        train(CONFIG, data=images_as(stripes(), 4, 4), device="cpu")


@pytest.mark.parametrize("name", ["abacus", "xpu", ""])
def test_an_unknown_device_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="device"):
        train(CONFIG, data=stripes(), device=name)


def test_a_device_that_is_not_here_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"'cuda:0' is not present here; there is .*'cpu'"):
        train(CONFIG, data=stripes(), device="cuda:0")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_fastest_device_present_is_chosen(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device().type == expected
    assert choose_device("cpu").type == "cpu"


def test_the_moving_average_of_the_weights_is_the_result_and_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, steps=4, averaging=0.75)
    trail, real = [weights(config.build())], State.update_average
    held_out = stripes().x[-20:]

    def update(state: State, decay: float) -> None:
        real(state, decay)
        trail.append(weights(state.vae))

    monkeypatch.setattr(State, "update_average", update)
    result = train(config, data=stripes(), device="cpu")
    expected = trail[0]
    for after in trail[1:]:
        expected = 0.75 * expected + 0.25 * after
    assert len(trail) == 5
    torch.testing.assert_close(weights(result.vae), expected)
    measured = loop._measure(result.vae, held_out, stripes(), config, 3)
    assert result.history.iloc[-1]["clean"] == pytest.approx(measured["clean"])
