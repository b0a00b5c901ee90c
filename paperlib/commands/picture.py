"""`python -m paperlib attack --picture`: `attack_picture` as a file."""

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from torch import Tensor

from paperlib.data.arrays import Dataset
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.runtime.files import atomic
from paperlib.threats.picture import SHOWN, attack_picture, picture_shape

FORMATS = (".png", ".pdf", ".svg")


def check_picture(path: Path, shape: tuple[int, ...]) -> None:
    """Raises ValueError for another format or for examples that are no images, ModuleNotFoundError without matplotlib.

    Args:
        path: of the picture.
        shape: of an example.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"a picture is a file in {', '.join(FORMATS)}, got {path}")
    picture_shape(shape)
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--picture needs matplotlib: pip install matplotlib")


def write_picture(
    path: Path, vae: VAE, test: Dataset, x_adv: Tensor, noise: Tensor, rows: pd.DataFrame, target: Target
) -> None:
    """Draw the first images at the first noise draw.

    Args:
        x_adv: attacked, in the order of `rows`, [rows, *data_shape].
        noise: [draws, count, latent_dim].
        rows: of `certify`.
    """
    import matplotlib

    first = rows[rows["draw"] == 0].head(SHOWN)
    places, indices = first.index.tolist(), first["index"].tolist()
    with matplotlib.rc_context(matplotlib.rcParamsDefault):  # whatever the user's own settings are
        x, points, draw = test.x[indices], x_adv[places], noise[0, indices]
        figure = attack_picture(vae, x, points, draw, target, test.low, test.high)
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=150)
