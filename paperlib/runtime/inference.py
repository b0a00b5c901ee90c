"""Calls that take gradients inside, made possible from within `torch.inference_mode`."""

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def outside_inference_mode(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """The function, which leaves `torch.inference_mode` while it runs, and then records no gradients of its own.

    Tensors and models made in that mode take no part in gradients, ever after: it is given copies of them.
    """

    @wraps(function)
    def wrapper(*args: Arguments.args, **options: Arguments.kwargs) -> Value:
        if not torch.is_inference_mode_enabled():
            return function(*map(_usable, args), **{name: _usable(value) for name, value in options.items()})
        with torch.inference_mode(False), torch.no_grad():
            return function(*map(_usable, args), **{name: _usable(value) for name, value in options.items()})

    return wrapper


def _usable(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.is_inference():
        return argument.clone()
    if isinstance(argument, nn.Module) and any(tensor.is_inference() for tensor in argument.parameters()):
        return copy.deepcopy(argument)
    return argument
