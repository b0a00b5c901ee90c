"""The initialisation for boxes: weights as its source has them, and radii that stay where torch's own let them grow."""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from paperlib import Interval, TrainConfig, conv_vae, mlp_vae, propagate
from paperlib.training.init import interval_aware_

WIDE = TrainConfig(data_shape=(400,), hidden=(500, 300), latent_dim=30)


def test_each_weight_is_normal_with_the_deviation_of_its_fan_in_and_no_bias_changes() -> None:
    torch.manual_seed(0)
    vae = mlp_vae((400,), (500,), 30)
    before = [p.clone() for name, p in vae.named_parameters() if "bias" in name]
    assert interval_aware_(vae) is vae
    for layer in vae.modules():
        if isinstance(layer, nn.Linear):
            scaled = layer.weight.detach() * layer.in_features / math.sqrt(2 * math.pi)
            count = scaled.numel()
            assert abs(scaled.mean()) < 4 / math.sqrt(count)
            assert abs(scaled.square().mean() - 1) < 4 * math.sqrt(2 / count)
    assert all(map(torch.equal, before, [p for name, p in vae.named_parameters() if "bias" in name]))


def test_boxes_keep_their_mean_radius_where_they_grow_with_the_weights_of_torch() -> None:
    """Torch's weights are uniform up to 1 / sqrt(fan_in), so that the radius grows by half of sqrt(fan_in) a layer."""
    x = torch.rand(200, 400)
    box = Interval(x, x + 1e-3)
    growth = {}
    inits: tuple[Literal["torch", "interval"], ...] = ("torch", "interval")
    for init in inits:
        vae = replace(WIDE, init=init).build()
        growth[init] = (propagate(vae.encoder[:4], box).radius.mean() / box.radius.mean()).item()
    assert 0.5 < growth["interval"] < 2 < 10 < growth["torch"]


def test_boxes_keep_their_mean_radius_through_a_convolutional_vae() -> None:
    torch.manual_seed(0)
    vae = conv_vae((1, 32, 32), (16, 32), 20)
    growth = {}
    for init in ("torch", "interval"):
        vae = interval_aware_(vae) if init == "interval" else vae
        z = torch.rand(20, 32, 4, 4)
        box = Interval(z, z + 1e-3)  # of what the transposed convolutions take
        # the last one's own: no ReLU halves it
        growth[init] = [(propagate(vae.decoder[2:end], box).radius.mean() / box.radius.mean()).item() for end in (5, 6)]
    assert 0.4 < growth["interval"][0] < 1.2 and 0.8 < growth["interval"][1] < 2.4
    assert growth["torch"][0] > 1.5 * growth["interval"][0] and growth["torch"][1] > 3 * growth["interval"][1]


def test_the_seed_alone_decides_the_weights_and_no_generator_is_moved() -> None:
    config = TrainConfig(hidden=(8,), init="interval")
    state = torch.get_rng_state()
    one, other = (config.build().state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], other[name]) for name in one)
