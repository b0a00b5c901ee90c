"""A scale and a shift of each feature, as a layer: data in the units of their owner, in front of a network that was
trained on standard ones.
"""

from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import affine, interval_rule
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.rounding import Rounding, magnitude, rounding_rule


class Scaling(nn.Module):
    """x -> x * scale + shift, elementwise, with bounds by every method, `sound` ones included; not trained.

    Args:
        scale, shift: of one example, [*data_shape], both of one shape.

    Raises ValueError for numbers that are not finite, or of different shapes.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        if scale.shape != shift.shape:
            raise ValueError(f"scale and shift must have one shape, got {list(scale.shape)} and {list(shift.shape)}")
        if not (scale.isfinite().all() and shift.isfinite().all()):
            raise ValueError("scale and shift must be finite")
        self.register_buffer("scale", scale.detach().clone())  # buffers of its own, which a checkpoint can fill
        self.register_buffer("shift", shift.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    def extra_repr(self) -> str:
        return f"shape={tuple(self.scale.shape)}"


@interval_rule.register
def _(layer: Scaling, box: Interval) -> Interval:
    return affine(box, layer, lambda radius: radius * layer.scale.abs(), summands=1)


@relaxation_rule.register
def _(layer: Scaling, box: Interval) -> Affine:
    return Affine(lambda coefficients: coefficients * layer.scale, layer.shift.expand(box.lower.shape[1:]))


@rounding_rule.register
def _(layer: Scaling, box: Interval) -> Rounding:
    return Rounding(2, layer.scale.abs() * magnitude(box) + layer.shift.abs())
