"""The bound by the gradient of a decoder with one hidden layer."""

import numpy as np
import pytest
import torch
from decoders import attained, cube, linear, random_decoder
from torch import nn

from paperlib import Bernoulli, Interval
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates.ladder.gradient_bound import gradient_upper
from paperlib.certificates.ladder.latent_range import interval_upper
from paperlib.certificates.ladder.output_cost import NegativeLogLikelihood, SquaredDistance


def test_one_unit_by_hand() -> None:
    """(z, max(z, 0)) to (2, -2), with z = max(z, 0) - max(-z, 0). Over [-1, 1] the chords of the squares are
    1 - 4 z + 4  and  v + 4 v + 4:  f = 9 - 4 z + 5 v  with f(0) = 9. Its slope is -4 + 5 s with s in [0, 1], at most 4
    in size, so that f <= 13; attained at z = -1. The outputs alone give 9 + 9.
    """
    decoder = nn.Sequential(linear([[1.0], [-1.0]]), nn.ReLU(), linear([[1.0, -1.0], [1.0, 0.0]]))
    cost = SquaredDistance(torch.tensor([[2.0, -2.0]]).double())
    assert interval_upper(decoder, cube(1), cost).item() == pytest.approx(18)
    assert gradient_upper(decoder, cube(1), cost).item() == pytest.approx(13, rel=1e-6)


@pytest.mark.parametrize("latents", [1, 3])
def test_it_is_above_what_is_attained_and_not_above_intervals(latents: int) -> None:
    decoder, z = random_decoder(latents, 8, 5), torch.randn(3, latents).double()
    radius = torch.tensor([[0.0], [0.3], [1.0]]).double()
    box = Interval(z - radius, z + radius)
    for cost in (
        SquaredDistance(torch.rand(3, 5).double()),
        NegativeLogLikelihood(torch.rand(3, 5).double(), Bernoulli()),
    ):
        upper = gradient_upper(decoder, box, cost)
        reached = attained(decoder, box, cost)
        assert (reached <= upper + 1e-9).all() and (upper <= interval_upper(decoder, box, cost) + 1e-9).all()
        assert upper[0] == pytest.approx(reached[0].item())
        assert upper[2] < interval_upper(decoder, box, cost)[2] - 0.1
        early = gradient_upper(decoder, box, cost, steps=2)
        assert (reached <= early + 1e-9).all()


def test_where_numbers_overflow_the_bound_is_infinite() -> None:
    decoder = nn.Sequential(linear([[1e200], [-1e200]]), nn.ReLU(), linear([[1e200, 1e200]]))
    cost = SquaredDistance(torch.zeros(1, 1).double())
    with np.errstate(all="ignore"):
        assert gradient_upper(decoder, cube(1), cost).item() == torch.inf


def test_a_decoder_with_another_number_of_hidden_layers_is_refused() -> None:
    cost = SquaredDistance(torch.zeros(1, 3).double())
    with pytest.raises(UnsupportedLayerError, match=r"one ReLU, but .*: ReLU at 'decoder\.1', ReLU at 'decoder\.3'"):
        gradient_upper(random_decoder(2, 4, 4, 3), cube(2), cost)
    with pytest.raises(UnsupportedLayerError, match="what is not affine is: none"):
        gradient_upper(random_decoder(2, 3), cube(2), cost)
    with pytest.raises(UnsupportedLayerError, match=r"what is not affine is: Tanh at 'decoder\.1'"):
        gradient_upper(nn.Sequential(nn.Linear(2, 3), nn.Tanh()).double(), cube(2), cost)
