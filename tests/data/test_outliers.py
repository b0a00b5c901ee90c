"""Outliers made of images, worked by hand."""

import pytest
import torch

from paperlib.data.outliers import inverted, rotated, shuffled, uniform


def test_inversion_is_black_for_white() -> None:
    assert inverted(torch.tensor([[0.0, 0.25, 1.0]])).tolist() == [[1.0, 0.75, 0.0]]


def test_rotation_is_a_quarter_turn() -> None:
    #  1 2      2 4
    #  3 4  ->  1 3
    assert rotated(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[2.0, 4.0, 1.0, 3.0]]
    x = torch.rand(3, 784)
    four = rotated(rotated(rotated(rotated(x))))
    assert torch.equal(four, x) and not torch.equal(rotated(rotated(x)), x)


def test_images_that_are_no_squares_cannot_be_rotated() -> None:
    with pytest.raises(ValueError, match="needs flat square images, got 140 pixels"):
        rotated(torch.zeros(2, 140))


def test_shuffling_is_one_order_for_all_images() -> None:
    x = torch.stack([torch.arange(50.0), torch.arange(50.0) + 100])
    y = shuffled(x, torch.Generator().manual_seed(0))
    assert torch.equal(y[1], y[0] + 100) and torch.equal(y.sort(1).values, x) and not torch.equal(y, x)
    assert torch.equal(y, shuffled(x, torch.Generator().manual_seed(0)))
    assert not torch.equal(y, shuffled(x, torch.Generator().manual_seed(1)))


def test_uniform_noise_has_the_shape_and_precision_and_fills_the_range() -> None:
    like = torch.zeros(40, 25, dtype=torch.float64)
    noise = uniform(like, torch.Generator().manual_seed(0))
    assert noise.shape == like.shape and noise.dtype == torch.float64
    assert 0 <= noise.min() < 0.01 and 0.99 < noise.max() <= 1 and 0.45 < noise.mean() < 0.55
