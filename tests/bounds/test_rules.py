"""How a rule is found for a layer: by its type, unless what the rule bounds has been overridden."""

from functools import singledispatch

import pytest
from torch import nn

from paperlib.bounds.rules import registered_type


class Parent:
    def value(self) -> float:
        return 1.0


class Renamed(Parent):
    """Keeps what its parent computes."""


class Overriding(Parent):
    def value(self) -> float:
        return 2.0


class BelowOverriding(Overriding):
    """Inherits the method that its parent overrides."""


class Unrelated:
    def value(self) -> float:
        return 3.0


def rules_for(*types: type) -> object:
    @singledispatch
    def rules(thing: object) -> None:
        raise NotImplementedError

    for kind in types:
        rules.register(kind, lambda thing: None)
    return rules


@pytest.mark.parametrize(
    ("registered", "kind", "expected"),
    [
        ([Parent], Parent, Parent),
        ([Parent], Renamed, Parent),
        ([Parent], Overriding, None),
        ([Parent], BelowOverriding, None),
        ([Parent], Unrelated, None),
        ([], Parent, None),
        ([Parent, Renamed], Renamed, Renamed),
        ([Parent, Overriding], Overriding, Overriding),
        ([Parent, Overriding], BelowOverriding, Overriding),
        ([Parent, Overriding], Renamed, Parent),
        ([Renamed], Parent, None),
    ],
)
def test_the_rule_is_that_of_the_nearest_registered_type_with_the_same_method(
    registered: list[type], kind: type, expected: type | None
) -> None:
    assert registered_type(rules_for(*registered), kind, "value") is expected


def test_only_the_named_method_counts() -> None:
    class Shown(nn.ReLU):
        def extra_repr(self) -> str:
            return "shown"

    rules = rules_for(nn.ReLU)
    assert registered_type(rules, Shown, "forward") is nn.ReLU
    assert registered_type(rules, Shown, "extra_repr") is None
