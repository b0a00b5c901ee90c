"""The rules of `GaussianHeads`: those of its two linear layers, side by side."""

from typing import Any

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.rounding import Rounding, rounding_rule
from paperlib.bounds.rules import apply_rule, named_layers
from paperlib.models.vae import GaussianHeads


def _of_both(rules: Any, heads: GaussianHeads, box: Interval) -> tuple[Any, Any]:
    (mean,), (log_var,) = (named_layers(getattr(heads, name), name) for name in ("mean", "log_var"))
    return apply_rule(rules, *mean, box), apply_rule(rules, *log_var, box)


@interval_rule.register
def _(layer: GaussianHeads, box: Interval) -> Interval:
    mean, log_var = _of_both(interval_rule, layer, box)
    return Interval(*(torch.cat(ends, -1) for ends in zip(mean, log_var, strict=True)))


@relaxation_rule.register
def _(layer: GaussianHeads, box: Interval) -> Affine:
    mean, log_var = _of_both(relaxation_rule, layer, box)

    def transpose(coefficients: Tensor) -> Tensor:
        of_mean, of_log_var = coefficients.chunk(2, -1)
        return mean.transpose(of_mean) + log_var.transpose(of_log_var)

    return Affine(transpose, torch.cat([mean.offset, log_var.offset]))


@rounding_rule.register
def _(layer: GaussianHeads, box: Interval) -> Rounding:
    mean, log_var = _of_both(rounding_rule, layer, box)  # of linear layers, which have neither a peak nor a jump
    return Rounding(max(mean.count, log_var.count), torch.cat([mean.size, log_var.size], -1))
