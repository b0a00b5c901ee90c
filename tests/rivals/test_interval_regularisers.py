"""The regularisers of Shi et al. by hand: boxes that grow, units that are all active, and when the terms count."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from paperlib import VAE, Bernoulli, Interval, LinfBall, TrainingStep, mlp_vae
from paperlib.rivals.interval_regularisers import IntervalRegularised, balance, tightness
from paperlib.training.loss import ProVAE


def box(lower: list[float], upper: list[float]) -> Interval:
    return Interval(torch.tensor([lower]), torch.tensor([upper]))


@pytest.mark.parametrize(("radius", "expected"), [(0.5, 0.0), (2.0, 0.0), (4.0, 0.5), (1e9, 1.0)])
def test_tightness_counts_what_boxes_grow_beyond_the_tolerance(radius: float, expected: float) -> None:
    """From a mean radius of 1 and with tolerance 1/2: (1/2 - 1/4) / (1/2) = 1/2 at a radius of 4."""
    first, grown = box([-1.5, 0.0], [1.5, 1.0]), box([-radius, 1.0], [radius, 1 + 2 * radius])
    torch.testing.assert_close(tightness(first, grown, 0.5), torch.tensor(expected))


def test_balance_is_0_for_units_that_weigh_alike_and_largest_where_all_are_active() -> None:
    assert balance(box([1.0, -3.0], [3.0, -1.0]), 0.5) == 0
    assert balance(box([1.0, 2.0], [3.0, 4.0]), 0.5) == 2
    # centers 3 and -1 with the mean 1: means 3/2 and 1/2, a third of each other; variances alike
    torch.testing.assert_close(balance(box([2.0, -2.0], [4.0, 0.0 - 1e-9]), 0.5), torch.tensor((0.5 - 1 / 3) / 0.5))
    # units that the box leaves open count for neither
    assert balance(box([1.0, -3.0, -1.0], [3.0, -1.0, 1.0]), 0.5) == 0


def case(ramp: float) -> tuple[VAE, TrainingStep]:
    torch.manual_seed(0)
    vae = mlp_vae((9,), (12,), 2, Bernoulli()).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter *= 3  # so that boxes grow, and few units are active
    x, noise = torch.rand(6, 9).double(), torch.randn(6, 2).double()
    return vae, TrainingStep(x, x, LinfBall(0.1), noise, 0.3, ramp=ramp)


def terms(vae: VAE, step: TrainingStep) -> Tensor:
    """Both terms of both hidden layers, the boxes by hand."""
    enc, dec = vae.encoder, vae.decoder
    low, high = (step.x - 0.1).clamp(0, 1), (step.x + 0.1).clamp(0, 1)

    def affine(layer: nn.Module, one: Interval) -> Interval:
        assert isinstance(layer, nn.Linear)
        center, radius = layer(one.center), one.radius @ layer.weight.abs().T
        return Interval(center - radius, center + radius)

    first = Interval(low, high)
    hidden = affine(enc[0], first)
    posterior = affine(enc[2], Interval(hidden.lower.relu(), hidden.upper.relu()))
    ends = []
    mean, log_var = (Interval(*(end.chunk(2, 1)[k] for end in posterior)) for k in (0, 1))
    for end in log_var:
        ends.append(torch.exp(end / 2) * step.noise)
    latent = Interval(mean.lower + torch.minimum(*ends), mean.upper + torch.maximum(*ends))
    pairs = [(first, hidden), (latent, affine(dec[0], latent))]
    return torch.stack([tightness(*pair, 0.5) + balance(pair[1], 0.5) for pair in pairs]).mean()


def test_on_the_ramp_the_loss_has_the_terms_by_what_is_left_of_it() -> None:
    for ramp in (0.25, 0.75):
        vae, step = case(ramp)
        expected = ProVAE().loss(vae, step) + 8.0 * (1 - ramp) * terms(vae, step)
        torch.testing.assert_close(IntervalRegularised(weight=8.0).loss(vae, step), expected)
        assert terms(vae, step) > 0


def test_before_and_after_the_ramp_it_is_provae() -> None:
    for ramp in (0.0, 1.0):
        vae, step = case(ramp)
        assert torch.equal(IntervalRegularised().loss(vae, step), ProVAE().loss(vae, step))


def test_a_network_without_relu_has_no_terms() -> None:
    _, step = case(0.5)
    vae = VAE(nn.Linear(9, 4), nn.Linear(2, 9), Bernoulli(), 2).double()
    assert torch.equal(IntervalRegularised().loss(vae, step), ProVAE().loss(vae, replace(step, ramp=1.0)))
