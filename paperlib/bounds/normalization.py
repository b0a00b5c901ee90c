"""LayerNorm and GroupNorm, which have no bound that would be of use: refused, with the reason."""

from typing import NoReturn

from torch import nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.relaxation import relaxation_rule
from paperlib.bounds.rounding import rounding_rule
from paperlib.bounds.rules import UnsupportedLayerError


def _refuse(layer: nn.Module, box: Interval) -> NoReturn:
    # The best general bound is sqrt(n) for n numbers normalised together, whatever the box: from a box that holds a
    # constant vector, however small, almost all of it is reached.
    raise UnsupportedLayerError(
        "it divides by the spread of its own input. Over a box that may be near 0, and then the output is bounded only "
        "by the square root of how many numbers are normalised together, whatever eps is. Use BatchNorm, or subtract "
        "the mean without dividing (Shi et al. 2020, arXiv 2002.06622)"
    )


for _rule in (interval_rule, relaxation_rule, rounding_rule):
    for _layer in (nn.LayerNorm, nn.GroupNorm):
        _rule.register(_layer, _refuse)
