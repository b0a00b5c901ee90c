"""Two heads of an encoder as one layer: all bounds are those of the one linear layer with the rows of both."""

from typing import Any

import pytest
import torch
from oracles import audit
from torch import nn

from paperlib import VAE, Bernoulli, GaussianHeads, Interval, LinfBall, elbo_bounds, propagate, robust_loss
from paperlib.bounds.rounding import rounding_rule
from paperlib.bounds.rules import UnsupportedLayerError


def both(bias: bool = True) -> tuple[VAE, VAE]:
    """The same model in float64 with two heads and with one layer."""
    torch.manual_seed(3)
    mean, log_var = nn.Linear(5, 2, bias), nn.Linear(5, 2)
    joint = nn.Linear(5, 4)
    joint.weight.data = torch.cat([mean.weight, log_var.weight]).detach()
    joint.bias.data = torch.cat([mean.bias if bias else torch.zeros(2), log_var.bias]).detach()
    body, decoder = (
        nn.Sequential(nn.Linear(3, 5), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)),
    )
    heads = nn.Sequential(*body, GaussianHeads(mean, log_var))
    return tuple(
        VAE(encoder, decoder, Bernoulli(), 2).double().eval() for encoder in (heads, nn.Sequential(*body, joint))
    )  # type: ignore[return-value]


def case() -> tuple[torch.Tensor, LinfBall, torch.Tensor]:
    return torch.rand(4, 3).double(), LinfBall(0.1), torch.randn(4, 2).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("method", "sound"),
    [
        *((method, sound) for method in ("ibp", "crown-ibp", "crown", "best") for sound in (False, True)),
        ("exact", False),
    ],
)
def test_every_method_bounds_both_heads_as_one_layer(method: str, sound: bool, bias: bool) -> None:
    heads, joint = both(bias)
    x, ball, noise = case()
    bounds, expected = (elbo_bounds(vae, x, ball, noise, method, sound=sound) for vae in (heads, joint))
    for end, expected_end in zip(bounds, expected, strict=True):
        torch.testing.assert_close(end, expected_end, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_the_heads_pass_the_audit(target: str) -> None:
    x, _, noise = case()
    audit(both()[0], x, 0.1, noise, target)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_both_heads_are_trained(method: Any) -> None:
    heads, joint = both()
    x, ball, noise = case()
    for vae in (heads, joint):
        robust_loss(vae, x, ball, noise, 0.5, method).backward()
    last: Any = heads.encoder[-1]  # type: ignore[index]
    gradient = torch.cat([last.mean.weight.grad, last.log_var.weight.grad])
    torch.testing.assert_close(gradient, joint.encoder[-1].weight.grad)  # type: ignore[index]


def test_the_rounding_of_each_head_is_its_own() -> None:
    layer, box = both()[0].encoder[-1], Interval(-torch.ones(1, 5).double(), torch.ones(1, 5).double())  # type: ignore[index]
    rounding = rounding_rule(layer, box)
    parts = [rounding_rule(head, box) for head in (layer.mean, layer.log_var)]
    assert torch.equal(rounding.size, torch.cat([part.size for part in parts], -1))
    assert rounding.count == max(part.count for part in parts)


def test_a_head_that_computes_something_else_is_refused() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    box = Interval(torch.zeros(1, 3), torch.ones(1, 3))
    with pytest.raises(UnsupportedLayerError, match="Doubled at 'log_var'"):
        propagate(GaussianHeads(nn.Linear(3, 2), Doubled(3, 2)), box)
    hooked = GaussianHeads(nn.Linear(3, 2), nn.Linear(3, 2))
    hooked.mean.register_forward_hook(lambda _layer, _inputs, output: output + 1)
    with pytest.raises(UnsupportedLayerError, match="Linear at 'mean'"):
        propagate(hooked, box)


def test_heads_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="the heads have 2 means and 3 log-variances"):
        GaussianHeads(nn.Linear(4, 2), nn.Linear(4, 3))
