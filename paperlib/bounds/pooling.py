"""MaxPool2d, AdaptiveAvgPool2d and Upsample: their boxes, their linear relaxations and their rounding."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import relu_chord
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.linear import LinearFunction, LinearRelaxation, Selection
from paperlib.bounds.relaxation import relaxation_rule
from paperlib.bounds.rounding import Rounding, magnitude, rounding_rule

# Max-pooling


@interval_rule.register
def _(layer: nn.MaxPool2d, box: Interval) -> Interval:
    if layer.return_indices:
        raise ValueError("with return_indices=True it returns a pair, and indices have no bound: leave them out")
    return box.map(layer)  # non-decreasing in every input


@relaxation_rule.register
def _(layer: nn.MaxPool2d, box: Interval) -> LinearRelaxation:
    """The maximum of a window is at least any one of its inputs w, and at most max(w, M), M the largest upper end of
    the others. Taken is the w with the largest lower end; max(w, M) is convex in w and lies below its chord.
    """
    image = interval_rule(layer, box)
    positions = _window_positions(layer, box.lower, image.lower.shape[-2:])
    low, high = (_window_values(end, positions) for end in box)
    picked = low.detach().argmax(2, keepdim=True)
    others = high.scatter(2, picked, -math.inf).amax(2)
    lower, upper = (end.gather(2, picked).squeeze(2) for end in (low, high))
    largest = others <= lower  # then the layer is w itself
    others = torch.where(largest, lower, others)
    slope, offset = relu_chord(Interval(lower - others, upper - others))
    above = LinearFunction(torch.where(largest, 1, slope), torch.where(largest, 0, offset + (others - slope * others)))

    channels, pixels = box.lower.shape[1], box.lower[0, 0].numel()
    index = positions.expand(1, channels, -1, -1).expand_as(low).gather(2, picked).squeeze(2)
    first = torch.arange(channels, device=index.device).view(1, -1, 1) * pixels  # of each channel, in flat order
    selection = Selection((index + first).flatten(1), box.lower.shape[1:], image.lower.shape[1:])
    below = LinearFunction(torch.ones_like(slope), torch.zeros_like(slope))
    lines = (LinearFunction(*(t.view_as(image.lower) for t in (line.slope, line.offset))) for line in (below, above))
    return LinearRelaxation(*lines, selection=selection)


def _window_positions(layer: nn.MaxPool2d, images: Tensor, out_shape: torch.Size) -> Tensor:
    """For each place in each window the pixel there, in flat order, or -1 outside: [1, 1, places, windows].

    The layer's window slides over an image of the pixels' own numbers.
    """
    height, width = images.shape[-2:]
    kernel, stride, padding, dilation = map(_pair, (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
    numbers = torch.arange(1, height * width + 1, dtype=torch.float64, device=images.device).view(1, 1, height, width)
    ends = [
        max(0, (count - 1) * step + gap * (size - 1) + 1 - side - pad)
        for count, step, gap, size, side, pad in zip(
            out_shape, stride, dilation, kernel, (height, width), padding, strict=True
        )
    ]  # rounding up adds windows that end beyond the padding
    padded = F.pad(numbers, (padding[1], ends[1], padding[0], ends[0]))
    windows = F.unfold(padded, kernel, dilation, stride=stride)
    return windows.long().sub_(1).unsqueeze(1)


def _window_values(images: Tensor, positions: Tensor) -> Tensor:
    """The values at those positions, [batch, channels, places, windows]; minus infinity outside of the image."""
    flat = torch.cat([images.flatten(2), images.new_full((*images.shape[:2], 1), -math.inf)], 2)
    places, windows = positions.shape[-2:]
    taken = positions.flatten().expand(*flat.shape[:2], -1) % flat.shape[-1]
    return flat.gather(2, taken).unflatten(2, (places, windows))


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


@rounding_rule.register
def _(layer: nn.MaxPool2d, box: Interval) -> Rounding:
    return Rounding(0, magnitude(interval_rule(layer, box)))


# Averages over windows whose number is given


@interval_rule.register
def _(layer: nn.AdaptiveAvgPool2d, box: Interval) -> Interval:
    return box.map(layer)  # non-decreasing in every input


@rounding_rule.register
def _(layer: nn.AdaptiveAvgPool2d, box: Interval) -> Rounding:
    sides = box.lower.shape[-2:]
    counts = interval_rule(layer, box).lower.shape[-2:]
    # window k of n reaches from floor(k side / n) to ceil((k + 1) side / n); the sum is divided once or twice
    summands = math.prod(
        max(math.ceil((k + 1) * side / n) - k * side // n for k in range(n))
        for side, n in zip(sides, counts, strict=True)
    )
    largest = magnitude(box)
    return Rounding(summands + 2, interval_rule(layer, Interval(-largest, largest)).upper)


# Upsampling by copies


@interval_rule.register
def _(layer: nn.Upsample, box: Interval) -> Interval:
    if layer.mode not in ("nearest", "nearest-exact"):
        raise ValueError(f'mode={layer.mode!r} has no rule; only copies do, mode="nearest" and "nearest-exact"')
    return box.map(layer)


@rounding_rule.register
def _(layer: nn.Upsample, box: Interval) -> Rounding:
    return Rounding(0, magnitude(interval_rule(layer, box)))


for _layer in (nn.AdaptiveAvgPool2d, nn.Upsample):
    relaxation_rule.register(_layer, relaxation_rule.dispatch(nn.AvgPool2d))  # of any affine layer
