"""The largest cost over a box of latents, by intervals, linear bounds and branch and bound."""

from functools import partial

import pytest
import torch
from decoders import absolute, attained, cube, hexagon, points, random_decoder
from oracles import ROUNDING
from torch import nn

from paperlib import Bernoulli, Interval
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates.ladder.latent_range import RelaxedDecoder, exact_upper, interval_upper, linear_upper
from paperlib.certificates.ladder.output_cost import NegativeLogLikelihood, SquaredDistance

TOL = 1e-3
RADII = torch.tensor([[0.0], [0.2], [1.0]]).double()


def test_the_hexagon_by_hand() -> None:
    """Its vertices are at a distance of 2 from its centre, and its box is 2 by sqrt(3), half sides."""
    cost = SquaredDistance(torch.zeros(1, 2).double())
    assert interval_upper(hexagon(), cube(3), cost).item() == pytest.approx(4 + 3)
    assert linear_upper(hexagon(), cube(3), cost).item() == pytest.approx(4 + 3)
    assert 4 - 1e-9 <= exact_upper(hexagon(), cube(3), cost, TOL).item() <= 4 + TOL


def test_an_absolute_value_by_hand() -> None:
    """(z, |z|) to (0, 1): z^2 + (|z| - 1)^2 is at most 1. By the boxes [-1, 1] and [0, 2] of both outputs it is at most
    1 + 1. Triangles have |z| <= (z + 1) / 2 + (1 - z) / 2 = 1; the chords  1 + (1 - |z|)  are at most 2 all the same.
    """
    cost, decoder = SquaredDistance(torch.tensor([[0.0, 1.0]]).double()), absolute()
    assert RelaxedDecoder.by_intervals(decoder, cube(1)).output.upper[0, 1].item() == pytest.approx(2)
    assert RelaxedDecoder.by_linear_bounds(decoder, cube(1)).output.upper[0, 1].item() == pytest.approx(1)
    assert interval_upper(decoder, cube(1), cost).item() == pytest.approx(2)
    assert linear_upper(decoder, cube(1), cost).item() == pytest.approx(2)
    assert 1 - 1e-9 <= exact_upper(decoder, cube(1), cost, TOL).item() <= 1 + TOL


@pytest.mark.parametrize("widths", [(2, 8, 8, 6), (3, 6, 5), (1, 4)], ids=str)
def test_each_bound_is_above_the_next_one_and_all_above_what_is_attained(widths: tuple[int, ...]) -> None:
    decoder, z = random_decoder(*widths), torch.randn(3, widths[0]).double()
    box = Interval(z - RADII, z + RADII)
    for cost in (SquaredDistance, partial(NegativeLogLikelihood, likelihood=Bernoulli())):
        cost = cost(torch.rand(3, widths[-1]).double())
        interval, linear = (upper(decoder, box, cost) for upper in (interval_upper, linear_upper))
        exact = exact_upper(decoder, box, cost, TOL)
        reached = attained(decoder, box, cost)
        slack = ROUNDING * (1 + reached.abs())
        assert (reached <= exact + slack).all() and (exact <= linear + TOL).all() and (linear <= interval + slack).all()
        assert (exact - reached <= 0.02 * (1 + reached.abs())).all()
        assert (linear < interval - 0.1)[2] or len(widths) == 2


def test_linear_bounds_contain_each_layer() -> None:
    decoder, box = random_decoder(2, 8, 8, 6), Interval(-torch.ones(1, 2).double(), torch.ones(1, 2).double())
    tight, wide = RelaxedDecoder.by_linear_bounds(decoder, box), RelaxedDecoder.by_intervals(decoder, box)
    values = points(box, 300)[:, 0]
    for layer, loose in zip(tight.layers, wide.layers, strict=True):
        assert layer.box.widen(torch.tensor(ROUNDING)).contains(values).all()
        assert (layer.box.upper <= loose.box.upper).all() and (layer.box.lower >= loose.box.lower).all()
        values = layer.layer(values)
    assert tight.output.widen(torch.tensor(ROUNDING)).contains(values).all()
    assert (tight.output.radius < 0.9 * wide.output.radius).any()


def test_each_box_has_its_own_bound() -> None:
    decoder, z = random_decoder(2, 6, 4), torch.randn(4, 2).double()
    box, x = Interval(z - 0.5, z + 0.5), torch.rand(4, 4).double()
    for upper in (interval_upper, linear_upper, partial(exact_upper, tol=TOL)):
        together = upper(decoder, box, SquaredDistance(x))
        for row in range(4):
            part, own = box.map(lambda end, row=row: end[row : row + 1]), SquaredDistance(x[row : row + 1])
            assert upper(decoder, part, own).item() == pytest.approx(together[row].item(), abs=TOL)


def test_what_is_refused() -> None:
    decoder, cost = random_decoder(4, 3), SquaredDistance(torch.zeros(1, 3).double())
    with pytest.raises(ValueError, match="at most 3 latents, got 4"):
        exact_upper(decoder, cube(4), cost, TOL)
    with pytest.raises(ValueError, match=r"tol must be positive, got 0\.0"):
        exact_upper(decoder, cube(4), cost, 0.0)
    for upper in (interval_upper, linear_upper, partial(exact_upper, tol=TOL)):
        with pytest.raises(ValueError, match=r"images must be \[1, 3\].* got \[1, 1, 3\]"):
            upper(decoder, cube(4), SquaredDistance(torch.zeros(1, 1, 3).double()))
    endless = Interval(cube(4).lower, cube(4).upper * torch.inf)
    with pytest.raises(ValueError, match="box of latents must be finite"):
        interval_upper(decoder, endless, cost)
    with pytest.raises(UnsupportedLayerError, match=r"no relaxation rule for Softsign at 'decoder\.1'"):
        linear_upper(nn.Sequential(*decoder, nn.Softsign()), cube(4), cost)
