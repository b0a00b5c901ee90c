"""A decoder over boxes of latents, against its values at random points of them and corners."""

import pytest
import torch
from oracles import assert_encloses, points_of, random_box
from torch import Tensor, nn

from paperlib import Interval
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.detection.latent_box import LatentBox, Quadratic

DECODERS = {
    "linear": lambda: nn.Sequential(nn.Linear(2, 6)),
    "relu": lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6)),
    "sigmoid": lambda: nn.Sequential(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Sigmoid()),
    "images": lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(1, (2, 3)), nn.Flatten()),
    "convolution": lambda: nn.Sequential(
        nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)), nn.ReLU(), nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Flatten()
    ),
}
EACH_DECODER = pytest.mark.parametrize("name", DECODERS)


def decoder(name: str) -> nn.Sequential:
    torch.manual_seed(1)
    network = DECODERS[name]().double().requires_grad_(False)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.weight *= 2  # so that units change their sign inside a box
    return network


def at_points(network: nn.Module, box: Interval) -> tuple[Tensor, Tensor]:
    """Points of the boxes [points, count, latent], and their images [points, count, pixels]."""
    z = points_of(*box, count=200)
    return z, network(z.flatten(0, 1)).unflatten(0, z.shape[:2])


@EACH_DECODER
def test_each_image_of_a_box_is_the_linear_function_but_for_the_error(name: str) -> None:
    network, box = decoder(name), random_box(5, 2)
    images = LatentBox.of(network, box)
    z, values = at_points(network, box)
    linear = images.middle + torch.einsum("lbi,pbl->pbi", images.slope, z - box.center)
    assert_encloses(Interval(-images.error, images.error), values - linear)
    assert_encloses(images.image, values)
    assert ((values - images.middle).norm(dim=2) <= images.radius() + 1e-12).all()
    assert (z.norm(dim=2) >= images.least_norm() - 1e-12).all()
    torch.testing.assert_close(images.squared_norm().constant, box.center.square().sum(1))


@EACH_DECODER
def test_squared_distances_are_the_quadratic_function_but_for_the_error(name: str) -> None:
    network, box = decoder(name), random_box(5, 2)
    images = LatentBox.of(network, box)
    z, values = at_points(network, box)
    point = torch.rand(5, values.shape[2], dtype=torch.float64)
    quadratic, error = images.squared_distance(point)
    squared, t = (values - point).square().sum(2), z - box.center
    modelled = torch.einsum("pbi,bij,pbj->pb", t, quadratic.hessian, t) + quadratic.constant
    modelled += 2 * (t * quadratic.gradient).sum(2)
    assert_encloses(Interval(modelled - error, modelled + error + images.error.square().sum(1)), squared)
    assert_encloses(Interval(images.least_distance(point).square(), torch.full_like(error, torch.inf)), squared)
    assert (quadratic.lower(images.reach) - error <= squared.amin(0) + 1e-12).all()


def test_the_error_falls_with_the_square_of_a_small_box() -> None:
    network, center = decoder("sigmoid"), torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    large, small = (
        LatentBox.of(network, Interval(center - side, center + side)).error.sum().item() for side in (1e-3, 1e-4)
    )
    assert 50 < large / small < 200


def test_the_least_value_of_a_convex_quadratic_function_is_that_of_a_dense_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(20, 2, 2, generator=generator, dtype=torch.float64)
    gradient = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    reach = torch.rand(20, 2, generator=generator, dtype=torch.float64)
    hessian = root @ root.mT + 2 * torch.eye(2)  # the worse it is conditioned, the slower the coordinate descent
    function = Quadratic(hessian, gradient, torch.ones(20, dtype=torch.float64))
    side = torch.linspace(-1, 1, 201, dtype=torch.float64)
    t = torch.cartesian_prod(side, side).unsqueeze(1) * reach
    values = torch.einsum("pbi,bij,pbj->pb", t, function.hessian, t) + 2 * (t * gradient).sum(2) + 1
    gap = values.amin(0) - function.lower(reach)
    assert (gap >= -1e-12).all() and gap.max() < 1e-2
    doubled = (function + function).times(torch.full((20,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(doubled.lower(reach), function.lower(reach))


def test_a_layer_without_a_rule_is_named() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"Softmax at 'decoder\.1'"):
        LatentBox.of(nn.Sequential(nn.Linear(2, 3), nn.Softmax(1)).double(), random_box(1, 2))
