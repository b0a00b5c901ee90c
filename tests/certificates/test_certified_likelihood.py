"""The certified likelihood: what is certified of given draws, coverage of an exact likelihood, and planted bugs."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from linear_gaussian import exact_log_likelihood, linear_gaussian
from oracles import LIKELIHOODS, MORE_LIKELIHOODS, audit_case, points_of
from torch import Tensor, nn
from torch.distributions import Normal

from paperlib import (
    VAE,
    Bernoulli,
    EncoderProposal,
    FittedProposal,
    L2Ball,
    LinfBall,
    certificate,
    certify_likelihood,
    iwae_bounds,
)
from paperlib.certificates import proposals
from paperlib.certificates.certified_likelihood import log_confidence_bound
from paperlib.certificates.proposals import Proposal, fit_lower_at, fit_posterior, mean_weight_lower
from paperlib.models.gaussian import Posterior, kl
from paperlib.models.iwae import log_mean_exp
from paperlib.threats.perturbation import PerturbationSet

COLUMNS = ["index", "eps", "draws", "samples", "confidence", "bound", "mean", "width"]
DRAWS = 6


def case_of(likelihood: str, name: str = "mlp") -> tuple[VAE, Tensor, Posterior, Tensor]:
    """A model, inputs, a posterior that is not the encoder's, and draws."""
    vae, x, _ = audit_case(name, likelihood)
    mean, log_var = torch.randn(2, len(x), vae.latent_dim).double()
    return vae, x, (mean, log_var - 1), torch.randn(DRAWS, len(x), vae.latent_dim).double()


def log_weights_of(vae: VAE, at: Tensor, posterior: Posterior, noise: Tensor) -> Tensor:
    """log of p(at|z) p(z) / q(z) by torch.distributions, [K, batch]."""
    q = Normal(posterior[0], (posterior[1] / 2).exp())
    z = q.mean + q.stddev * noise
    ratio = Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z) - q.log_prob(z)
    return torch.stack([vae.likelihood.log_prob(vae.decoder(each), at) for each in z]) + ratio.sum(-1)


@torch.no_grad()
def worst_met(vae: VAE, x: Tensor, ball: PerturbationSet, posterior: Posterior, noise: Tensor) -> Tensor:
    """The least log of the mean weight at points of the set, [batch]: corners, random ones, and one searched for."""
    points = torch.stack([ball.project(point, x) for point in points_of(x - ball.size, x + ball.size, 4)])
    values = [log_mean_exp(log_weights_of(vae, at, posterior, noise)) for at in points]
    at = x
    for step in range(60):
        with torch.enable_grad():
            leaf = at.clone().requires_grad_()
            value = log_mean_exp(log_weights_of(vae, leaf, posterior, noise))
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        values.append(value.detach())
        at = ball.project(at - 0.5 * ball.size / (1 + step / 3) * slope / slope.flatten(1).norm(dim=1)[:, None], x)
    return torch.stack(values).amin(0)


@pytest.mark.parametrize("ball", [LinfBall(0.1), L2Ball(0.1)], ids=repr)
@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, *MORE_LIKELIHOODS])
def test_no_input_of_the_set_has_a_lower_mean_weight(likelihood: str, ball: PerturbationSet) -> None:
    vae, x, posterior, noise = case_of(likelihood)
    bound = mean_weight_lower(vae, x, ball, posterior, noise)
    worst = worst_met(vae, x, ball, posterior, noise)
    assert (bound <= worst + 1e-10).all()
    if likelihood == "bernoulli":  # a convex function of x': the search for weights meets its minimum
        assert (bound >= worst - 1e-3).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_at_radius_0_it_is_the_log_of_the_mean_weight(likelihood: str) -> None:
    vae, x, posterior, noise = case_of(likelihood, "smooth")
    with torch.no_grad():
        bound = mean_weight_lower(vae, x, LinfBall(0.0), posterior, noise)
        wanted = log_mean_exp(log_weights_of(vae, x, posterior, noise))
    torch.testing.assert_close(bound, wanted, rtol=1e-12, atol=1e-11)


def two_latents() -> tuple[VAE, Tensor, Posterior, Tensor]:
    """One pixel at 1/2, the decoder l = 2 z, and the two latents z = 1 and z = -1, drawn from q = p."""
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    decoder.weight.data, decoder.bias.data = torch.tensor([[2.0]]), torch.zeros(1)
    vae = VAE(encoder, decoder, Bernoulli(), 1).double()
    zero = torch.zeros(1, 1).double()
    return vae, zero + 0.5, (zero, zero), torch.tensor([1.0, -1.0]).double().view(2, 1, 1)


def test_two_draws_have_the_hand_worked_minimum() -> None:
    # Both weights are log w = +-2 x' - log(1 + e^(+-2)), equal at x' = 1/2, where they are 1 - log(1 + e^2). Their mean
    # is cosh(2 x' - 1) / (e + 1/e), which is least at x' = 1/2, while the least weights of [0.4, 0.6] are those at
    # 0.4 and at 0.6: 0.2 lower. With weights p = (1/2, 1/2) the slopes of x' cancel, and log 2 - log 2 remain.
    vae, x, posterior, noise = two_latents()
    joint = mean_weight_lower(vae, x, LinfBall(0.1), posterior, noise)
    exact = 1 - math.log1p(math.exp(2))
    assert joint.item() == pytest.approx(exact, rel=1e-12)
    region = LinfBall(0.1).region(x)
    alone = log_mean_exp(torch.stack([fit_lower_at(vae.likelihood, 4 * x * sign, region) for sign in (1, -1)]))
    assert alone.item() == pytest.approx(exact - 0.2, rel=1e-12)


@pytest.mark.parametrize("wrong", ["entropy twice", "no log K"])
def test_a_wrong_term_passes_the_worst_input(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, posterior, noise = two_latents()
    noise = noise * torch.tensor([1.0, 0.5]).double().view(2, 1, 1)  # of different weights and normalisers
    worst = worst_met(vae, x, LinfBall(0.1), posterior, noise)
    assert (mean_weight_lower(vae, x, LinfBall(0.1), posterior, noise) <= worst + 1e-12).all()
    if wrong == "no log K":
        monkeypatch.setattr(proposals.math, "log", lambda count: 0.0)
    else:
        real = torch.where
        monkeypatch.setattr(torch, "where", lambda condition, yes, no: 2 * real(condition, yes, no))
    broken = mean_weight_lower(vae, x, LinfBall(0.1), posterior, noise)
    monkeypatch.undo()
    assert (broken > worst + 1e-3).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@torch.no_grad()
def test_a_fit_raises_its_own_elbo(likelihood: str) -> None:
    vae, x, _, _ = case_of(likelihood)
    ball, noise = LinfBall(0.1), torch.randn(500, len(x), vae.latent_dim).double()

    def elbo_over_the_set(steps: int) -> Tensor:
        mean, log_var = fit_posterior(vae, x, ball, steps, torch.Generator().manual_seed(0))
        outputs = vae.decoder(mean + (log_var / 2).exp() * noise)
        fits = torch.stack([fit_lower_at(vae.likelihood, output, ball.region(x)) for output in outputs])
        return fits.mean(0) - kl(mean, log_var)

    begun, fitted = elbo_over_the_set(0), elbo_over_the_set(25)
    assert (fitted > begun - 0.05).all() and fitted.mean() > begun.mean() + 0.02


# The whole


def rows_of(**changes: object) -> pd.DataFrame:
    vae, x, _ = audit_case("mlp")
    arguments: dict = {"draws": 5, "samples": 20, "proposal": FittedProposal(2)}
    arguments |= {"generator": torch.Generator().manual_seed(1)}
    return certify_likelihood(vae, x, LinfBall(0.1), **arguments | changes)


def test_rows_have_the_promised_columns() -> None:
    rows = rows_of(confidence=0.99)
    assert [*rows.columns] == COLUMNS and rows["index"].tolist() == [0, 1, 2]
    assert (rows[["eps", "draws", "samples", "confidence"]] == [0.1, 5, 20, 0.99]).all().all()
    assert (rows["width"] > 0).all()
    np.testing.assert_allclose(rows["width"], rows["mean"] - rows["bound"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("proposal", [FittedProposal(3), EncoderProposal()], ids=repr)
def test_many_runs_cover_the_exact_likelihood_at_the_stated_level(proposal: proposals.Proposal) -> None:
    # at radius 0 nothing but the confidence bound's own slack can hide a miss
    vae, x = linear_gaussian()
    repeats, confidence = 400, 0.8
    rows = certify_likelihood(
        vae, x[:1].expand(repeats, 3), LinfBall(0.0), draws=3, samples=20, confidence=confidence, proposal=proposal
    )
    truth = exact_log_likelihood(vae, x[0]).item()
    assert (rows["bound"] > truth).mean() <= 1 - confidence + 3 * math.sqrt(confidence * (1 - confidence) / repeats)
    assert (rows["mean"] > truth).mean() > 0.2, "the draws must be able to miss"


@pytest.mark.parametrize("proposal", [FittedProposal(20), EncoderProposal()], ids=repr)
def test_the_bound_is_below_the_worst_likelihood_and_not_far(proposal: proposals.Proposal) -> None:
    vae, x = linear_gaussian()
    rows = certify_likelihood(vae, x, LinfBall(0.05), samples=15, confidence=0.99, proposal=proposal)
    worst = exact_log_likelihood(vae, points_of(*LinfBall(0.05).box(x))).amin(0).numpy()
    assert (rows["bound"] <= worst).all() and (rows["bound"] > worst - 0.6).all()


def test_with_the_encoders_proposal_the_draws_are_bounded_by_the_method() -> None:
    vae, x, _ = audit_case("mlp")
    bound = EncoderProposal("crown").bound(vae, x, LinfBall(0.1), None)
    noise = torch.randn(4, len(x), vae.latent_dim).double()
    with torch.no_grad():
        assert torch.equal(bound(noise), iwae_bounds(vae, x, LinfBall(0.1), noise, "crown").lower)


def test_more_is_certified_of_the_likelihood_than_of_the_elbo() -> None:
    vae, x, noise = audit_case("deep")
    rows = certify_likelihood(vae, x, LinfBall(0.1), samples=40, confidence=0.9, proposal=FittedProposal(10))
    with torch.no_grad():
        elbos = [certificate(vae, x, LinfBall(0.1), torch.randn_like(noise), "crown-ibp").mean() for _ in range(10)]
    assert rows["bound"].mean() > torch.stack(elbos).mean().item()


def test_a_log_confidence_bound_does_not_depend_on_the_scale() -> None:
    logs = torch.randn(30, 4).double()
    bound = log_confidence_bound(logs, 0.9)
    torch.testing.assert_close(log_confidence_bound(logs - 5000, 0.9), bound - 5000, rtol=0, atol=1e-9)
    assert (bound < log_mean_exp(logs)).all()


def test_a_draw_that_overflowed_has_no_weight() -> None:
    logs = torch.randn(30, 2).double()
    logs[4] = torch.tensor([math.nan, -math.inf])
    bound = log_confidence_bound(logs, 0.9)
    assert bound.isfinite().all()
    assert torch.equal(bound[0], log_confidence_bound(logs.nan_to_num(-math.inf, neginf=-math.inf), 0.9)[0])
    assert log_confidence_bound(torch.full((30, 1), math.nan).double(), 0.9).item() == -math.inf


@pytest.mark.parametrize("batch_size", [1, 11])
def test_any_batch_size_covers_all_examples(batch_size: int) -> None:
    rows, whole = rows_of(batch_size=batch_size), rows_of()
    assert rows["index"].tolist() == [0, 1, 2]
    assert (rows["mean"] - whole["mean"]).abs().max() < 1.0


def test_no_example_gives_no_row() -> None:
    vae, x, _ = audit_case("mlp")
    rows = certify_likelihood(vae, x[:0], LinfBall(0.1), samples=2)
    assert [*rows.columns] == COLUMNS and rows.empty


def test_rigour_costs_everything_where_no_weight_is_left() -> None:
    class Nothing(Proposal):
        def bound(self, vae: VAE, x: Tensor, ball: object, generator: object) -> Callable[[Tensor], Tensor]:
            return lambda noise: torch.full((len(x),), -math.inf).double()

    row = rows_of(proposal=Nothing()).iloc[0]
    assert (row["bound"], row["mean"], row["width"]) == (-math.inf, -math.inf, math.inf)


def test_a_generator_makes_the_rows_again_also_in_inference_mode() -> None:
    rows = rows_of()
    with torch.inference_mode():
        pd.testing.assert_frame_equal(rows_of(), rows)
    assert (rows_of(generator=torch.Generator().manual_seed(2))["mean"] != rows["mean"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": 1.0}, r"confidence must be between 0 and 1, got 1\.0"),
        ({"samples": 1}, "samples >= 2 .*samples=1"),
        ({"draws": 0}, "draws >= 1.*draws=0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"proposal": EncoderProposal("exact")}, "bounds the ELBO and no importance weights"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_with_one_clear_line(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(**changes)


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="steps must not be negative, got -1"):
        FittedProposal(-1)


def test_inputs_that_do_not_fit_are_refused() -> None:
    vae, x, _ = audit_case("mlp")
    for wrong, message in ((x + 1, r"x must be finite and in \[0"), (x[:, :2], "does not fit the model")):
        with pytest.raises(ValueError, match=message):
            certify_likelihood(vae, wrong, LinfBall(0.1), samples=2)
