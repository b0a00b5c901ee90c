"""Patches: any values inside one rectangle of an image, at any position (a sticker)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import outward
from paperlib.threats.images import image_shape
from paperlib.threats.perturbation import ChangeRegion, PerturbationSet, check_range

STREAMED = 2**22  # numbers of an intermediate result at a time
ELSEWHERE = 0.5  # share of the steepest change outside of the best window


@dataclass(frozen=True)
class Windows:
    """The positions of a patch in images of one shape."""

    image: tuple[int, int, int]  # channels, height, width
    patch: tuple[int, int]
    stride: int

    def sums(self, values: Tensor) -> Tensor:
        """The sum over each window and all channels, [*rows, positions], of values [*rows, *data_shape] that are flat
        in the last dimension.
        """
        lead = values.shape[:-1]
        pixels = values.reshape(-1, *self.image).sum(1, keepdim=True)
        # first along columns, then along rows: height + width sums for each window
        height, width = self.patch
        sums = F.avg_pool2d(pixels, (height, 1), (self.stride, 1), divisor_override=1)
        sums = F.avg_pool2d(sums, (1, width), (1, self.stride), divisor_override=1)
        return sums.view(*lead, self.count)

    def unfold(self, values: Tensor) -> Tensor:
        """The pixels of each window, [positions, rows, pixels], of values [rows, features]."""
        columns = F.unfold(values.reshape(-1, *self.image), self.patch, stride=self.stride)
        return columns.permute(2, 0, 1)

    def mask(self, position: Tensor) -> Tensor:
        """True inside the window, [rows, features], of positions [rows]."""
        _, height, width = self.image
        columns = (width - self.patch[1]) // self.stride + 1
        top, left = (
            (place * self.stride).view(-1, 1)
            for place in (position.div(columns, rounding_mode="floor"), position.remainder(columns))
        )
        down, across = (torch.arange(side, device=position.device) for side in (height, width))
        rows = (down >= top) & (down < top + self.patch[0])
        in_columns = (across >= left) & (across < left + self.patch[1])
        inside = rows.unsqueeze(2) & in_columns.unsqueeze(1)
        return inside.unsqueeze(1).expand(-1, *self.image).flatten(1)

    @property
    def count(self) -> int:
        sides = zip(self.image[1:], self.patch, strict=True)
        return math.prod((side - extent) // self.stride + 1 for side, extent in sides)


@dataclass(frozen=True)
class PatchRegion(ChangeRegion):
    """All x' in the range that differ from x inside one window alone. `concretize` and `spread` are exact."""

    box: Interval
    x: Tensor
    low: float
    high: float
    windows: Windows

    def concretize(self, coefficients: Tensor) -> Tensor:
        start = 1 - self.x.ndim
        at_x = (coefficients * self.x).flatten(start).sum(-1)
        return at_x - self._largest_gain(coefficients, falls=True)

    def spread(self, weights: Tensor) -> Tensor:
        return self._largest_gain(weights, falls=False)

    def change(self, rows: Tensor) -> Interval:
        """Exact: a product of matrices for each position, for some units at a time."""
        flat, (down, up) = rows.flatten(1), self._reach
        falls = self.windows.unfold(torch.cat([down, up], 1).unflatten(1, (2, -1)).flatten(0, 1))
        # [positions, batch, 2 pixels]: how far each pixel of the window can fall, and rise
        falls = falls.unflatten(1, (len(down), 2)).flatten(2)
        rises = falls.roll(falls.shape[2] // 2, 2)
        factor = outward(2 * flat.shape[1] + 4, rows.dtype)
        lower, upper = [], []
        for part in flat.split(max(1, STREAMED // (self.windows.count * (len(down) + falls.shape[2])))):
            signs = torch.stack([part.clamp(min=0), -part.clamp(max=0)], 1).flatten(0, 1)
            weights = self.windows.unfold(signs).unflatten(1, (len(part), 2)).flatten(2).mT
            lower.append(-factor * (falls @ weights).amax(0))
            upper.append(factor * (rises @ weights).amax(0))
        return Interval(torch.cat(lower, 1), torch.cat(upper, 1))

    @torch.no_grad()
    def project(self, x_adv: Tensor) -> Tensor:
        """The nearest point, for x_adv in the data range: the window that holds most of the squared change keeps it,
        all other pixels are those of x.
        """
        point = x_adv.clamp(self.low, self.high)
        change = (point - self.x).flatten(1).square()
        inside = self.windows.mask(self.windows.sums(change).argmax(1)).view_as(point)
        return torch.where(inside, point, self.x)

    def __getitem__(self, rows: Tensor | slice) -> "PatchRegion":
        return PatchRegion(self.box.map(lambda end: end[rows]), self.x[rows], self.low, self.high, self.windows)

    @property
    def _reach(self) -> tuple[Tensor, Tensor]:
        """How far each pixel can fall and rise, [batch, features]."""
        x = self.x.flatten(1)
        return x - self.low, self.high - x

    def _largest_gain(self, weights: Tensor, falls: bool) -> Tensor:
        """The largest sum over a window of what the pixels gain, [*rows, batch]: weights times the way that they can
        go, which is against the weights' sign if x' `falls`, else the longer one.
        """
        down, up = self._reach
        parts = []
        for part in _streamed(weights.flatten(1 - self.x.ndim)):
            gains = part.clamp(min=0) * down - part.clamp(max=0) * up if falls else part * torch.maximum(down, up)
            parts.append(self.windows.sums(gains).amax(-1))
        return torch.cat(parts).view(weights.shape[: 1 - self.x.ndim])


def _streamed(rows: Tensor) -> Iterator[Tensor]:
    """[*rows, batch, features] as [count, batch, features], some rows at a time."""
    flat = rows.reshape(math.prod(rows.shape[:-2]), *rows.shape[-2:])
    return iter(flat.split(max(1, STREAMED // max(1, flat[:1].numel()))))


@dataclass(frozen=True)
class PatchSet(PerturbationSet):
    """All x' in [low, high] that differ from x in one rectangle of height x width pixels alone, in all channels, at any
    position whose row and column are multiples of the stride.

    Linear functions are minimised exactly: over the values in closed form, over the positions one by one.

    Args:
        shape: [height, width] or [channels, height, width] of data that are flat; flat squares need none.
        low, high: the data range, which must be finite.

    Raises ValueError for a side or stride below 1, or a range that is empty or infinite; and where it is used, for data
    that are no images, or images smaller than the patch.
    """

    height: int
    width: int
    stride: int = 1
    shape: Sequence[int] | None = None
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.stride) < 1:
            raise ValueError(
                f"a patch needs height, width and stride of at least 1, got {self.height}, {self.width}, {self.stride}"
            )
        check_range(self.low, self.high)
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"a patch needs a finite data range, got low={self.low}, high={self.high}")

    def unchecked_region(self, x: Tensor) -> PatchRegion:
        return self._region(x, self.low, self.high)

    def sound_region(self, x: Tensor) -> PatchRegion:
        self.check(x)
        low, high = (torch.tensor(end, dtype=x.dtype).item() for end in (self.low, self.high))
        return self._region(x.double(), min(self.low, low), max(self.high, high))

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A window of uniformly random position, filled with uniformly random values, for each x, of the shape of x."""
        self.check(x)
        windows = self._windows(x)
        position = torch.randint(windows.count, (len(x),), generator=generator, device=x.device)
        draw = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        values = (self.low + (self.high - self.low) * draw).clamp(self.low, self.high)
        return torch.where(windows.mask(position).view_as(x), values, x)

    def steepest(self, gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        """The sign of the gradient times the range inside the window of largest sum of |gradient|; elsewhere half of
        that, so that an attack whose patch is in another window goes on there. `project` keeps one window.
        """
        windows = self._windows(x)
        best = windows.mask(windows.sums(gradient.abs().flatten(1)).argmax(1)).view_as(x)
        return scale * (self.high - self.low) * gradient.sign() * torch.where(best, 1.0, ELSEWHERE)

    @property
    def size(self) -> float:
        """The number of pixels under the patch."""
        return float(self.height * self.width)

    @property
    def label(self) -> str:
        return f"patch {self.height}x{self.width}"

    def check(self, x: Tensor) -> None:
        super().check(x)
        self._windows(x)

    def _windows(self, x: Tensor) -> Windows:
        shape = image_shape(x.shape[1:] if self.shape is None else self.shape)
        if math.prod(shape) != x[:1].numel() and len(x):
            raise ValueError(f"images of shape {list(shape)} do not fit x of {list(x.shape)}")
        if self.height > shape[1] or self.width > shape[2]:
            raise ValueError(
                f"a patch of {self.height} x {self.width} is larger than images of {shape[1]} x {shape[2]}"
            )
        return Windows(shape, (self.height, self.width), self.stride)

    def _region(self, x: Tensor, low: float, high: float) -> PatchRegion:
        windows = self._windows(x)
        positions = torch.arange(windows.count, device=x.device)
        covered = windows.mask(positions).any(0).view(x.shape[1:])
        lower, upper = (torch.where(covered, end, x) for end in (low, high))
        return PatchRegion(Interval(lower, upper), x, low, high, windows)
