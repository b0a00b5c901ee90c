"""LayerNorm and GroupNorm: refused by every rule, with the reason, the place and what to use instead."""

import pytest
import torch
from oracles import random_box
from torch import nn

from paperlib import VAE, Bernoulli, LinfBall, elbo_bounds, interval_rule, relaxation_rule, rounding_rule
from paperlib.bounds.rules import UnsupportedLayerError, apply_rule

LAYERS = {"LayerNorm": nn.LayerNorm(4), "GroupNorm": nn.GroupNorm(2, 4)}


@pytest.mark.parametrize("rules", [interval_rule, relaxation_rule, rounding_rule])
@pytest.mark.parametrize("name", LAYERS)
def test_each_rule_refuses_it_with_the_reason(name: str, rules: object) -> None:
    with pytest.raises(UnsupportedLayerError, match=rf"{name} at 'a': it divides by the spread .* Use BatchNorm"):
        apply_rule(rules, f"{name} at 'a'", LAYERS[name].double(), random_box(2, 4))


@pytest.mark.parametrize("method", ["ibp", "crown", "best"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_network_of_it_is_refused_with_its_place(name: str, method: str) -> None:
    vae = VAE(nn.Sequential(nn.Linear(3, 4), LAYERS[name]), nn.Linear(2, 3), Bernoulli(), 2).double()
    with pytest.raises(UnsupportedLayerError, match=rf"{name} at 'encoder\.1': it divides"):
        elbo_bounds(vae, torch.rand(1, 3).double(), LinfBall(0.1), torch.randn(1, 2).double(), method)


def test_the_reason_holds_around_every_constant_vector_almost_all_is_reached() -> None:
    constant = torch.full((1, 64), 0.5).double()
    point = constant.clone()
    point[0, 0] += 1e-6
    assert nn.LayerNorm(64, eps=1e-30).double()(point).max() > 0.99 * 64**0.5
