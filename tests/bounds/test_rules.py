"""How a rule is found for a layer: by its type, unless what the rule bounds is not what the module runs."""

from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook

from paperlib import VAE, Bernoulli, Crown, Interval, LinfBall, elbo_bounds, propagate
from paperlib.bounds.rules import UnsupportedLayerError, overridden, registered_type, what_runs


class Parent:
    pass


class Child(Parent):
    pass


class Unrelated:
    pass


@pytest.mark.parametrize(
    ("registered", "kind", "expected"),
    [
        ([Parent], Parent, Parent),
        ([Parent], Child, Parent),
        ([Parent, Child], Child, Child),
        ([Child], Parent, None),
        ([Parent], Unrelated, None),
        ([], Parent, None),
    ],
)
def test_the_rule_is_that_of_the_nearest_registered_type(
    registered: list[type], kind: type, expected: type | None
) -> None:
    @singledispatch
    def rules(thing: object) -> None:
        raise NotImplementedError

    for each in registered:
        rules.register(each, lambda thing: None)
    assert registered_type(rules, kind) is expected


class Shown(nn.Conv2d):
    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)

    def extra_repr(self) -> str:
        return "shown"


class Forward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class ConvForward(nn.Conv2d):
    """What `forward` calls, not `forward` itself."""

    def _conv_forward(self, *args: Any) -> Tensor:
        return super()._conv_forward(*args) + 1


class Called(nn.Conv2d):
    def __call__(self, input: Tensor) -> Tensor:
        return super().__call__(input) + 1


class CallImpl(nn.Conv2d):
    def _call_impl(self, *args: Any, **options: Any) -> Any:
        return super()._call_impl(*args, **options) + 1


class Looked(nn.Conv2d):
    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return value + 1 if name == "weight" else value


class BelowForward(Forward):
    """Inherits the method that its parent overrides."""


class Reversed(nn.Sequential):
    """Runs its layers in another order, though `forward` is that of its parent."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([*self._modules.values()][::-1])


CHANGED = [Forward, ConvForward, Called, CallImpl, Looked, BelowForward]


def test_a_subclass_that_changes_set_up_and_print_keeps_the_rule_of_its_parent() -> None:
    assert overridden(Shown, nn.Conv2d, what_runs(nn.Conv2d)) == []
    box = Interval(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    layer = Shown(1, 2, 3)
    plain = nn.Conv2d(1, 2, 3)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(propagate(layer, box).lower, propagate(plain, box).lower)


@pytest.mark.parametrize("kind", CHANGED)
def test_a_subclass_that_changes_anything_a_call_runs_through_needs_its_own_rule(kind: type[nn.Module]) -> None:
    box = Interval(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    with pytest.raises(UnsupportedLayerError, match=rf"{kind.__name__} at '1', which overrides _*\w+ of Conv2d"):
        propagate(nn.Sequential(nn.Identity(), kind(1, 2, 3)), box)


def test_a_sequence_that_runs_its_layers_in_another_order_is_refused() -> None:
    network = Reversed(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(UnsupportedLayerError, match="no interval rule for Reversed"):
        propagate(network, Interval(torch.zeros(1, 3), torch.ones(1, 3)))


def vae_of(encoder: nn.Module) -> VAE:
    return VAE(encoder, nn.Linear(1, 3), Bernoulli(), 1).eval()


def changed_modules() -> dict[str, Callable[[nn.Module], object]]:
    return {
        "forward hook": lambda layer: layer.register_forward_hook(lambda *_: None),
        "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        "backward hook": lambda layer: layer.register_full_backward_hook(lambda *_: None),
        "backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
        "replaced forward": lambda layer: setattr(layer, "forward", lambda x: x),
        "replaced call": lambda layer: setattr(layer, "_call_impl", lambda x: x),
        "compiled": lambda layer: layer.compile(),
    }


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", Crown()], ids=str)
@pytest.mark.parametrize("change", changed_modules().values(), ids=changed_modules().keys())
@pytest.mark.parametrize("container", [False, True], ids=["layer", "container"])
def test_a_module_that_was_changed_from_outside_is_refused_with_its_place(
    change: Callable[[nn.Module], object], method: Any, sound: bool, container: bool
) -> None:
    layer = nn.Linear(3, 2)
    encoder = nn.Sequential(nn.Identity(), layer)
    change(encoder if container else layer)
    where = "Sequential at 'encoder'" if container else r"Linear at 'encoder\.1'"
    with pytest.raises(UnsupportedLayerError, match=where):
        elbo_bounds(vae_of(encoder), torch.rand(2, 3), LinfBall(0.1), torch.zeros(2, 1), method, sound=sound)


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_full_backward_hook])
def test_hooks_for_all_modules_are_refused(register: Callable[..., Any]) -> None:
    handle = register(lambda *_: None)
    try:
        with pytest.raises(UnsupportedLayerError, match="hooks for all modules"):
            propagate(nn.Linear(3, 2), Interval(torch.zeros(1, 3), torch.ones(1, 3)))
    finally:
        handle.remove()
    propagate(nn.Linear(3, 2), Interval(torch.zeros(1, 3), torch.ones(1, 3)))
