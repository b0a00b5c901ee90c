"""The layers of a Lipschitz VAE: what they compute, that none expands, and their rules by all three checks."""

import pytest
import torch
from oracles import ROUNDING, assert_encloses, points_of, random_box
from torch import Tensor, nn

from paperlib import Interval, check_rules, propagate
from paperlib.rivals.lipschitz_layers import GroupSort, LogVariance, TwoLinear, _Difference, _Spread

LAYERS = {
    "difference": (_Difference, 6),
    "spread": (_Spread, 3),
    "two": (lambda: TwoLinear(nn.Linear(3, 2), nn.Linear(3, 4, bias=False), shared=False), 6),
    "two of one input": (lambda: TwoLinear(nn.Linear(6, 2), nn.Linear(6, 4), shared=True), 6),
    "log variance": (LogVariance, 6),
}
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)


@EACH_LAYER
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_all_three_rules_hold(name: str, scale: float) -> None:
    make, width = LAYERS[name]
    box = random_box(5, width).map(lambda end: scale * end)
    assert check_rules(make(), box) == ("interval_rule", "relaxation_rule", "rounding_rule")


@EACH_LAYER
def test_boxes_enclose_and_close_on_points(name: str) -> None:
    make, width = LAYERS[name]
    layer, box = make().double(), random_box(5, width)
    assert_encloses(propagate(layer, box), torch.stack([layer(point) for point in points_of(*box)]))
    point = propagate(layer, Interval(box.lower, box.lower))
    assert torch.equal(point.lower, point.upper)
    torch.testing.assert_close(point.lower, layer(box.lower), rtol=ROUNDING, atol=ROUNDING)


def test_groupsort_sorts_each_pair_and_permutes_gradients() -> None:
    layer, x = GroupSort(6).double(), torch.randn(50, 6).double()
    expected = x.view(50, 3, 2).sort(-1, descending=True)[0].view(50, 6)
    torch.testing.assert_close(layer(x), expected, rtol=ROUNDING, atol=ROUNDING)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: layer(v[None])[0]))(x)
    assert torch.equal(jacobian @ jacobian.mT, torch.eye(6).double().expand(50, 6, 6))
    assert not list(layer.parameters()) and not list(layer.buffers())


def test_groupsort_refuses_an_odd_width() -> None:
    with pytest.raises(ValueError, match="must be even, got 5"):
        GroupSort(5)


def test_the_layer_of_two_networks_gives_each_its_own_input() -> None:
    mean, sigma = nn.Linear(3, 2), nn.Linear(3, 4)
    u, v = torch.randn(2, 5, 3)
    assert torch.equal(TwoLinear(mean, sigma, shared=False)(torch.cat([u, v], 1)), torch.cat([mean(u), sigma(v)], 1))
    assert torch.equal(TwoLinear(mean, sigma, shared=True)(u), torch.cat([mean(u), sigma(u)], 1))


def test_the_log_variance_is_that_of_a_sigmoid_and_finite_far_out() -> None:
    mean, v = torch.randn(2, 7, 3).double()
    values = LogVariance()(torch.cat([mean, v], 1))
    assert torch.equal(values[:, :3], mean)
    torch.testing.assert_close((values[:, 3:] / 2).exp(), torch.sigmoid(v), rtol=ROUNDING, atol=ROUNDING)
    far: Tensor = LogVariance()(torch.tensor([[0.0, 0.0, -1e4, 1e4]]))
    assert far[0, 2:].tolist() == [-2e4, 0.0]
