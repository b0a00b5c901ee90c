"""A scale and a shift of each feature: all three rules, and what is refused."""

import pytest
import torch
from oracles import assert_encloses, points_of, random_box

from paperlib import Interval, check_rules, propagate
from paperlib.bounds.scaling import Scaling


def layer(*shape: int) -> Scaling:
    """Scales of both signs and very different size, one of them 0."""
    scale = torch.randn(shape).double() * 10.0 ** torch.randint(-3, 4, shape)
    scale.view(-1)[0] = 0.0
    return Scaling(scale, 100 * torch.randn(shape).double())


@pytest.mark.parametrize("shape", [(5,), (2, 3, 3)])
def test_no_counterexample_to_its_rules(shape: tuple[int, ...]) -> None:
    scaling = layer(*shape)
    x = torch.randn(4, *shape).double()
    assert torch.equal(scaling(x), x * scaling.scale + scaling.shift)
    rules = check_rules(scaling, random_box(4, *shape))
    assert len(rules) == 3, rules


@pytest.mark.parametrize("shape", [(5,), (2, 2)])
def test_its_box_is_reached_at_both_ends_and_closes_at_radius_0(shape: tuple[int, ...]) -> None:
    scaling, box = layer(*shape), random_box(3, *shape)
    image = propagate(scaling, box)
    ends = torch.stack([scaling(end) for end in box])
    assert_encloses(image, torch.stack([scaling(point) for point in points_of(*box)]))
    torch.testing.assert_close(image.lower, ends.amin(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(image.upper, ends.amax(0), rtol=1e-12, atol=1e-12)
    point = propagate(scaling, Interval(box.center, box.center))
    assert torch.equal(point.lower, scaling(box.center)) and torch.equal(point.upper, point.lower)


def test_it_has_buffers_of_its_own() -> None:
    both = torch.ones(2)
    scaling = Scaling(both, both)
    scaling.load_state_dict({"scale": torch.tensor([2.0, 3.0]), "shift": torch.tensor([4.0, 5.0])})
    assert scaling.scale.tolist() == [2, 3] and scaling.shift.tolist() == [4, 5] and both.tolist() == [1, 1]
    assert [*scaling.parameters()] == []


@pytest.mark.parametrize("scale", [torch.ones(3), torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")])])
def test_numbers_that_are_no_scale_are_refused(scale: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"one shape|must be finite"):
        Scaling(scale, torch.zeros(2))
