"""How a bound finds its way through a network: the layers in order, and for each the rule registered for its type."""

from collections.abc import Iterator
from functools import singledispatch
from typing import Any

import torch
from torch import nn


class UnsupportedLayerError(TypeError):
    """A layer, or a likelihood, has no rule of the kind that is needed, so nothing is promised about its network."""


def named_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a possibly nested `nn.Sequential` in order, each with its place for messages; other containers are
    unrolled.

    Raises UnsupportedLayerError where hooks make a module compute something that no rule can see.
    """
    place = f"{type(module).__name__} at {name!r}" if name else type(module).__name__
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise UnsupportedLayerError(
            f"{place} has forward hooks or a replaced forward, which no rule can see: remove them"
        )
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for child_name, child in module._modules.items():  # named_children() leaves out a layer that is used twice
            assert child is not None
            yield from named_layers(child, f"{name}.{child_name}" if name else child_name)
    elif (unrolled_type := registered_type(unrolling_rule, type(module), "forward")) is not None:
        for step in unrolling_rule.dispatch(unrolled_type)(module, name):
            yield place, step
    else:
        yield place, module


@singledispatch
def unrolling_rule(module: nn.Module, name: str) -> Iterator[nn.Module]:
    """(module, name) -> Iterator[nn.Module]

    The rule for one type of container at its place in a network: layers with rules of their own that, one after the
    other, compute what it computes.
    """
    raise UnsupportedLayerError(f"no unrolling rule for {type(module).__name__}")


def apply_rule(rules: Any, place: str, layer: nn.Module, box: Any) -> Any:
    """What the rule registered in `rules` for this type of layer says of it over an `Interval` of inputs.

    Args:
        rules: `interval_rule`, `relaxation_rule` or `rounding_rule`.
        place: the layer's place in its network, for messages.

    Raises:
        UnsupportedLayerError: there is no rule, and how to register one; or the rule refuses any layer of this type.
        ValueError: the rule refuses the layer as it is; with its place.
    """
    rule_type = registered_type(rules, type(layer), "forward")
    if rule_type is None:
        raise UnsupportedLayerError(
            f"no {rules.__name__.replace('_', ' ')} for {place}; register one with "
            f"@{rules.__name__}.register({type(layer).__name__}) on a function {rules.__doc__.splitlines()[0]}"
        )
    if getattr(layer, "inplace", False):
        box = box.map(torch.clone)  # the caller's box stays as it is
    try:
        return rules.dispatch(rule_type)(layer, box)
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(f"{place}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def registered_type(rules: Any, kind: type, method: str) -> type | None:
    """The nearest base class with a rule in `rules`; None if a subclass overrides the `method` that the rule bounds.

    Such a subclass computes something else than its parent and needs a rule of its own.
    """
    for base in kind.__mro__:
        if base in rules.registry and base is not object:
            return base if getattr(kind, method) is getattr(base, method) else None
    return None
