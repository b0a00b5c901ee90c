"""`python -m paperlib sweep`: all combinations of the given values, each in a folder of its own."""

import itertools
from dataclasses import Field, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_origin

from tyro.conf import OmitArgPrefixes, arg

from paperlib.commands.command import Command
from paperlib.runtime.numbers import rounded_down
from paperlib.training import sweep
from paperlib.training.config import TrainConfig

SHAPES = {each.name for each in fields(TrainConfig) if get_origin(each.type) is tuple}


def _axis(of: Field[Any]) -> tuple[str, Any, Any]:
    """The flag that takes several values of a field, or one shape, which has several numbers already."""
    if of.name in SHAPES:
        return of.name, of.type, of.default
    return of.name, tuple[of.type, ...], (of.default,)  # type: ignore[name-defined]


Grid = make_dataclass("Grid", map(_axis, fields(TrainConfig)), frozen=True)
Grid.__doc__ = "As for `python -m paperlib train`, whose help explains them; all but shapes take several values."


@dataclass(frozen=True)
class Sweep(Command):
    """Train and measure all combinations of the given values, each in a folder of its own and on a core of its own.

    The same command skips what is finished and goes on with the rest.
    """

    grid: Annotated[object, OmitArgPrefixes, arg(constructor=Grid)] = field(default_factory=Grid)
    folder: Path = Path("runs/sweep")
    """Holds a folder for each configuration, named by its digest, and the rows of all in sweep.csv."""
    images: int | None = None
    """How many images to measure on, the first of the test set; all of them if not given."""
    jobs: int | None = None
    """Processes at a time; if not given one for each core, or a single one where there is a CUDA device."""
    cluster: bool = False
    """Run on a Ray cluster: that of RAY_ADDRESS, or of this machine. All its machines must see the folder."""
    device: str = "auto"
    """Device of each process: cpu, cuda or mps; auto is the fastest that there is."""

    def run(self) -> None:
        axes = [[values] if name in SHAPES else values for name, values in vars(self.grid).items()]
        configs = [TrainConfig(*values) for values in itertools.product(*axes)]
        print(f"{len(configs)} configurations in {self.folder}", flush=True)
        rows = sweep.sweep(
            configs, self.folder, images=self.images, jobs=self.jobs, cluster=self.cluster, device=self.device
        )
        shown = rows[["digest", *sweep.varying(configs)]].assign(
            **{name: rows[name].map("{:.1f}".format) for name in ("clean", "kl")},
            **{name: rows[name].map(rounded_down) for name in ("ibp", "crown_ibp")},
        )
        print(f"{shown.to_string(index=False, float_format='{:g}'.format)}")
        print("clean, kl, ibp and crown_ibp: means over test images, in nats; eps: in data units")
        print(f"rows in {self.folder / 'sweep.csv'}")
