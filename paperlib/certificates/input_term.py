"""What inputs of a region that is no box add to linear bounds of several quantities, which share them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.threats.perturbation import ChangeRegion


@dataclass(frozen=True)
class InputTerm:
    """coefficients . x'  for the inputs x' of a region that is no box."""

    coefficients: Tensor  # [rows, batch, *data_shape]
    region: ChangeRegion

    @property
    def box(self) -> Interval:
        """[batch, rows]"""
        lower, negated = (self.region.concretize(sign * self.coefficients) for sign in (1, -1))
        return Interval(lower.T, -negated.T)

    def box_of_combinations(self, factors: Tensor) -> Interval:
        """The box of  factors @ term,  [batch, units], by the cheaper of the region's bounds: units are many.

        Args:
            factors: [batch, units, rows].
        """
        rows, x = self.coefficients.flatten(2).transpose(0, 1), self.region.x.flatten(1)
        ends = factors.new_empty(2, *factors.shape[:2])
        for example, (own_factors, own_rows) in enumerate(zip(factors, rows, strict=True)):  # at once: too much memory
            unit_rows = own_factors @ own_rows
            region = self.region[example : example + 1]
            change = region.change(unit_rows.unflatten(1, region.x.shape[1:]))
            ends[:, example] = torch.cat([*change]) + unit_rows @ x[example]
        return Interval(*ends)
