"""Lighting and low frequencies: what they change, by hand and against numpy's cosines."""

import numpy as np
import pytest
import torch
from torch import Tensor

from paperlib import lighting, low_frequencies


def test_lighting_moves_brightness_and_contrast_around_mid_grey() -> None:
    x = torch.tensor([[0.0, 0.5, 0.75, 1.0]])
    region = lighting(0.2, 0.4).unchecked_region(x)
    zero = torch.tensor([0])
    torch.testing.assert_close(region.points(torch.tensor([[0.1, 0.0]]), zero), torch.tensor([[0.1, 0.6, 0.85, 1.0]]))
    torch.testing.assert_close(region.points(torch.tensor([[0.0, -0.4]]), zero), torch.tensor([[0.2, 0.5, 0.65, 0.8]]))
    torch.testing.assert_close(region.points(torch.tensor([[0.0, 0.4]]), zero), torch.tensor([[0.0, 0.5, 0.85, 1.0]]))


@pytest.mark.parametrize("shape", [(25,), (5, 5), (1, 5, 5), (3, 5, 5)])
def test_low_frequencies_are_orthogonal_patterns_of_largest_value_one(shape: tuple[int, ...]) -> None:
    chosen = low_frequencies(6, shape, 0.1)
    assert isinstance(chosen.directions, Tensor) and chosen.directions.shape == (6, *shape)
    flat = chosen.directions.flatten(1)
    torch.testing.assert_close(flat.abs().amax(1), torch.ones(6).double())
    gram = flat @ flat.T
    torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-12)
    assert torch.equal(flat[0], torch.ones_like(flat[0]))
    scipy_basis = np.cos(np.pi * (np.arange(5) + 0.5) / 5)  # the next two: half a wave across, half a wave down
    image = chosen.directions.reshape(6, -1, 5, 5)[:, 0].numpy()
    np.testing.assert_allclose(image[1], np.tile(scipy_basis / scipy_basis.max(), (5, 1)), atol=1e-12)
    np.testing.assert_allclose(image[2], image[1].T, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "shape", "message"),
    [
        (0, (5, 5), "1 to 25 frequencies, not 0"),
        (26, (25,), "1 to 25 frequencies, not 26"),
        (2, (24,), "are no images"),
    ],
)
def test_what_is_no_image_or_no_count_is_refused(count: int, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        low_frequencies(count, shape, 0.1)
