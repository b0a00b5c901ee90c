"""The picture of `python -m paperlib attack --picture`: clean and attacked images, and what the attack has added."""

import math
from pathlib import Path

import pandas as pd
from torch import Tensor

from paperlib.runtime.files import atomic
from paperlib.threats.balls import LinfBall

SHOWN = 8  # images, at most
FORMATS = (".png", ".pdf", ".svg")


def check_picture(path: Path, shape: tuple[int, ...]) -> None:
    """Raises ValueError for another format or for examples that are no images, ModuleNotFoundError without matplotlib.

    Args:
        path: of the picture.
        shape: of an example.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"a picture is a file in {', '.join(FORMATS)}, got {path}")
    image_shape(shape)
    try:
        import matplotlib  # noqa: F401  # here, as the library works without it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--picture needs matplotlib: pip install matplotlib") from error


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width, and 3 channels if there are any, of an example of this shape.

    Raises ValueError unless it is [height, width], [1, height, width], [3, height, width] or a flat square.
    """
    side = math.isqrt(shape[0])
    if len(shape) == 1 and side > 1 and side * side == shape[0]:
        return side, side
    if len(shape) == 2:
        return shape
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape[1:] if shape[0] == 1 else (*shape[1:], 3)
    raise ValueError(f"examples of shape {shape} are no images, so there is no picture of them")


def attack_picture(path: Path, x: Tensor, x_adv: Tensor, rows: pd.DataFrame, ball: LinfBall) -> None:
    """Draw the first images at the first noise draw, each with its ELBO in nats.

    Args:
        x: clean, [count, *data_shape].
        x_adv: attacked, in the order of `rows`, [rows, *data_shape].
        rows: of `certify`.
        ball: of the attack.
    """
    import matplotlib
    from matplotlib.figure import Figure

    first = rows[rows["draw"] == 0].head(SHOWN)
    shape = image_shape(tuple(x.shape[1:]))
    with matplotlib.rc_context(matplotlib.rcParamsDefault):  # whatever the user's own settings are
        figure = Figure(figsize=(max(5.0, 1.3 * len(first) + 0.6), 4.6), layout="constrained")
        axes = figure.subplots(3, len(first), squeeze=False)
        for column, (row, values) in zip(axes.T, first.iterrows(), strict=True):
            clean, attacked = (part.double().cpu() for part in (x[int(values["index"])], x_adv[int(str(row))]))
            images = [(part - ball.low) / (ball.high - ball.low) for part in (clean, attacked)]
            images.append((attacked - clean) / (2 * ball.eps or 1) + 0.5)
            titles = [f"{values[name]:.1f} nats".replace("-", "−") for name in ("clean", "attacked")] + [""]
            for axis, image, title in zip(column, images, titles, strict=True):
                pixels = image.movedim(0, -1) if len(shape) == 3 else image
                axis.imshow(pixels.reshape(shape).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
                axis.set_title(title, fontsize=8)
                axis.set(xticks=[], yticks=[])
        for axis, name in zip(axes[:, 0], ("clean", "attacked", "difference"), strict=True):
            axis.set_ylabel(name)
        figure.suptitle(
            f"ELBO at radius {ball.eps:g} in data units; difference: black −{ball.eps:g}, white {ball.eps:g}",
            fontsize=9,
        )
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=150)
