"""How a bound finds its way through a network: the layers in order, and for each the rule registered for its type.

A rule speaks of what a type of layer computes. So a layer that would compute something else when it is called, by a
hook, a replaced method or a subclass's own, is refused.
"""

import inspect
from collections.abc import Iterator
from functools import cache, singledispatch
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

# What decides the value of a call of any module, and what no call runs through.
CALL = ("__call__", "_wrapped_call_impl", "_call_impl", "_slow_forward", "__getattr__", "__getattribute__")
SEQUENTIAL = frozenset(CALL) | {"forward", "__iter__"}
SETUP = ("__init__", "reset_parameters", "extra_repr", "__setstate__")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

OF_LAYERS = (
    ". Or let the module be a nn.Sequential of its layers, which is the only composition that rules see; "
    "the last layer of an encoder with two heads is then paperlib.GaussianHeads(mean, log_var)"
)


class UnsupportedLayerError(TypeError):
    """A layer, or a likelihood, has no rule of the kind that is needed, so nothing is promised about its network."""


def named_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a possibly nested `nn.Sequential` in order, each with its place for messages; other containers are
    unrolled.

    Raises UnsupportedLayerError where hooks, a replaced method or compilation make a module compute something that no
    rule can see.
    """
    kind: type = type(module)
    place = f"{kind.__name__} at {name!r}" if name else kind.__name__
    if any(getattr(torch_module, f"_global{hooks}") for hooks in HOOKS):
        raise UnsupportedLayerError(f"hooks for all modules are in force, which no rule can see: {place}; remove them")
    if any(getattr(module, hooks) for hooks in HOOKS):
        raise UnsupportedLayerError(f"{place} has hooks, which no rule can see: remove them")
    if module._compiled_call_impl is not None:
        raise UnsupportedLayerError(
            f"{place} is compiled, and what then runs no rule can see: bound it before compile()"
        )
    replaced = sorted(what_runs(kind).intersection(vars(module)))
    if replaced:
        raise UnsupportedLayerError(f"{place} has a replaced {replaced[0]}, which no rule can see: remove it")
    if isinstance(module, nn.Sequential) and not overridden(kind, nn.Sequential, SEQUENTIAL):
        for child_name, child in module._modules.items():  # named_children() leaves out a layer that is used twice
            assert child is not None
            yield from named_layers(child, f"{name}.{child_name}" if name else child_name)
    elif (base := registered_type(unrolling_rule, kind)) and not overridden(kind, base, what_runs(base)):
        for step in unrolling_rule.dispatch(base)(module, name):
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
    base = registered_type(rules, type(layer))
    changed = [] if base is None else overridden(type(layer), base, what_runs(base))
    if base is None or changed:
        why = f", which overrides {changed[0]} of {base.__name__}" if base else ""
        raise UnsupportedLayerError(
            f"no {rules.__name__.replace('_', ' ')} for {place}{why}; register one with "
            f"@{rules.__name__}.register({type(layer).__name__}) on a function {rules.__doc__.splitlines()[0]}"
            f"{OF_LAYERS if any(True for _ in layer.children()) else ''}"
        )
    if getattr(layer, "inplace", False):
        box = box.map(torch.clone)  # the caller's box stays as it is
    try:
        return rules.dispatch(base)(layer, box)
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(f"{place}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def registered_type(rules: Any, kind: type) -> type | None:
    """The nearest base class, or the class itself, with a rule in `rules`."""
    return next((base for base in kind.__mro__ if base in rules.registry and base is not object), None)


def overridden(kind: Any, base: Any, names: frozenset[str]) -> list[str]:
    """Those of the names, sorted, that mean another thing on the class `kind` than on its base class: where any is what
    a rule for the base class relies on, `kind` needs a rule of its own.
    """
    if kind is base:
        return []
    return sorted(
        n for n in names if inspect.getattr_static(kind, n, None) is not inspect.getattr_static(base, n, None)
    )


@cache
def what_runs(kind: Any) -> frozenset[str]:
    """The names of all methods that may decide what a module of this class computes."""
    classes = [each for each in kind.__mro__ if each not in nn.Module.__mro__]
    own = {name for each in classes for name, value in vars(each).items() if inspect.isroutine(value)}
    return frozenset(own.difference(SETUP).union(CALL))
