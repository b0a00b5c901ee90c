"""The rows of deep networks: tiny networks, trained for a moment, in this process."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_test_set
from torch import nn

from paperlib.paper import depth


def in_this_process(task: Any, items: Any, **_: Any) -> list[Any]:
    return [task(item) for item in items]


def test_each_network_has_a_row_for_each_method_below_its_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(depth.SIZES["smoke"], steps=2, depths=(1,), widths=(6,))
    monkeypatch.setattr(depth, "SIZES", {"smoke": size})
    monkeypatch.setattr(depth, "GRID", (("2x4", 0.05), ("1x4 tanh", 0.1)))
    monkeypatch.setattr(depth, "WIDEST_ALPHA", 4)
    monkeypatch.setattr(depth, "in_parallel", in_this_process)
    rows = depth.depth_rows(tiny_test_set(), tiny_test_set(), "smoke")
    every = list(depth.methods(1))
    named = {key: list(group["method"]) for key, group in rows.groupby(["part", "network", "eps"])}
    assert (
        named
        == {
            ("grid", "2x4", 0.05): every,
            ("grid", "1x4 tanh", 0.1): every,
            ("cost", "1x64", depth.COST_EPS): every[:-1],  # wider than the widest with steps for alpha
            ("cost", "2x6", depth.COST_EPS): every[:-1],
        }
    )
    assert (rows["certified"] <= rows["attacked"]).all() and (rows["attacked"] <= rows["clean"]).all()
    assert (rows["ms"] > 0).all()
    tightest = rows.groupby(["network", "part"])["certified"].apply(list)
    assert all(values == sorted(values) for values in tightest)


@pytest.mark.parametrize("network", sorted({network for network, _ in depth.GRID}))
def test_a_name_stands_for_its_network(network: str) -> None:
    vae = depth.build(network)
    nonlinear = [layer for layer in (*vae.encoder, *vae.decoder) if isinstance(layer, nn.ReLU | nn.Tanh)]
    assert len(nonlinear) == 2 * (2 if network == "conv 8-16" else int(network[0]))
    assert {type(layer) for layer in nonlinear} == {nn.Tanh if network.endswith("tanh") else nn.ReLU}
    assert vae(torch.rand(2, depth.SIDE**2)).shape == (2, depth.SIDE**2)
