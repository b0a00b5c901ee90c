"""Where the results of a run are kept, and the one rule for them: made again, or loaded if made by exactly this."""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.data.datasets import data_origin, load_dataset, resolve
from paperlib.models.vae import VAE
from paperlib.runtime.files import ConfigMismatchError, DamagedFileError, atomic, read_tensors, write_tensors
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.runtime.progress import announce
from paperlib.runtime.rows import read_header, read_rows, write_rows
from paperlib.training.checkpoint import load, save
from paperlib.training.config import TrainConfig
from paperlib.training.loop import TrainResult, train

ROOT = Path(__file__).resolve().parents[2]


def home(profile: str, dataset: str) -> Path:
    """The folder that holds `figures/` and `notebooks/` of a run; the repository itself for full MNIST at full size.

    Results of the long profile lie beside those of the paper profile, which draws them again.
    """
    if profile == "long":
        profile = "paper"
    return ROOT if (profile, dataset) == ("paper", "mnist") else work(profile, dataset)


def work(profile: str, dataset: str) -> Path:
    """The folder for all that a run leaves behind but its results."""
    return ROOT / "build" / f"{profile}-{dataset}"


def _train(job: tuple[TrainConfig, Path]) -> tuple[TrainResult, float]:
    start = perf_counter()
    config, folder = job
    result = train(config, folder=folder)
    return result, perf_counter() - start


def _about(configs: Collection[TrainConfig]) -> str:
    """What is trained, and roughly how: "training 3 models on 2 processes: mnist, 4,600 to 6,900 steps each"."""
    jobs = min(training_jobs(), len(configs))
    models = f"{len(configs)} model{'s' * (len(configs) > 1)} on {jobs} process{'es' * (jobs > 1)}"
    least, most = (f"{limit(config.steps for config in configs):,}" for limit in (min, max))
    steps = least if least == most else f"{least} to {most}"
    return f"training {models}: {', '.join(sorted({config.dataset for config in configs}))}, {steps} steps each"


def library_files(root: Path = ROOT) -> list[Path]:
    """All source files of the library, in its subpackages, too: what a result may depend on."""
    return sorted((root / "paperlib").rglob("*.py"))


@cache
def _code() -> str:
    sha256 = hashlib.sha256(torch.__version__.encode())
    for path in library_files():
        sha256.update(path.read_bytes())
    return sha256.hexdigest()[:12]


@dataclass(frozen=True)
class Results:
    """Rows, tensors, models and figures of one profile and data set.

    With `recompute` they are made and written; without, they are read and must be of the same configuration. The
    environment variable PAPERLIB_STAGING names a folder that is written to instead, and is read first: a runner
    publishes it when the whole notebook has succeeded. What it holds was made by the same run before an interruption,
    and is not made again.
    """

    profile: str
    dataset: str
    recompute: bool

    @classmethod
    def open(cls, profile: str, dataset: str, recompute: bool) -> "Results":
        """Raises ValueError for an unknown profile. Loading needs no data: "auto" then means the published results."""
        if profile not in ("paper", "smoke", "long"):
            raise ValueError(f'profile must be "paper", "smoke" or "long", got {profile!r}')
        if dataset == "auto" and profile == "smoke":
            dataset = "mnist5k"
        elif dataset == "auto" and not recompute:
            dataset = "mnist"
        return cls(profile, resolve(dataset), recompute)

    @property
    def label(self) -> str:
        """The data set as captions name it; a subset says that it is one."""
        labels = {"mnist": "full MNIST", "mnist5k": "5,000 embedded digits (a subset of MNIST)"}
        return labels.get(self.dataset, self.dataset) + (", smoke profile" if self.profile == "smoke" else "")

    @property
    def target(self) -> Path:
        """The folder that results are written to."""
        return Path(os.environ.get("PAPERLIB_STAGING") or home(self.profile, self.dataset)) / "figures"

    def table(self, name: str, config: Mapping[str, Any], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The row file of this name; `make` computes its rows."""
        (table,) = self.tables([name], config, lambda: [make()])
        return table

    def tables(
        self, names: Sequence[str], config: Mapping[str, Any], make: Callable[[], Sequence[pd.DataFrame]]
    ) -> list[pd.DataFrame]:
        """The row files of these names, in order, from one computation; `make` returns as many frames."""
        config = dict(config)
        if self.recompute and not all(map(self._has_staged_rows, names)):
            announce(f"making the rows of {', '.join(names)} ({self.profile} profile)")
            start = perf_counter()
            frames = make()
            seconds = perf_counter() - start
            for name, frame in zip(names, frames, strict=True):
                self._write_rows(name, frame, config, seconds, self.dataset)
        return [read_rows(self._find(f"{name}.csv"), config) for name in names]

    def tensors(self, name: str, config: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors stored under this name: the small arrays behind a figure."""
        config = dict(config)
        if self.recompute and not self._is_staged(f"{name}.safetensors"):
            announce(f"making {name} ({self.profile} profile)")
            write_tensors(self.target / "data" / f"{name}.safetensors", make(), {"config": config})
        path = self._find(f"{name}.safetensors")
        tensors, header = read_tensors(path)
        if header.get("config") != config:
            raise ConfigMismatchError(path, header.get("config", {}), config)
        return tensors

    def trained(self, configs: Mapping[str, TrainConfig]) -> dict[str, tuple[VAE, pd.DataFrame]]:
        """The trained models and their histories by name, stored as `name.safetensors` and `name.csv`.

        They are trained side by side, each in a folder of `runs`, so that an interrupted training goes on there.
        """
        if self.recompute:
            missing = {name: config for name, config in configs.items() if not self._has_staged_rows(name)}
            # the longest first: clean input and box, the box alone, the clean input alone
            missing = dict(sorted(missing.items(), key=lambda item: (item[1].kappa in (0, 1), item[1].kappa)))
            for dataset in {config.dataset for config in missing.values()}:
                load_dataset(dataset)  # here, as each process would look for it, and tell of its failure
            works = [(config, self.runs / config.digest) for config in missing.values()]
            if missing:
                announce(_about(missing.values()))
            for (name, config), (result, seconds) in zip(
                missing.items(), in_parallel(_train, works, jobs=training_jobs(), name="models"), strict=True
            ):
                save(self.target / "data" / f"{name}.safetensors", result.vae, config)
                self._write_rows(name, result.history, config.as_dict(), seconds, config.dataset)
        return {
            name: (self.model(name, config), read_rows(self._find(f"{name}.csv"), config.as_dict()))
            for name, config in configs.items()
        }

    def model(self, name: str, config: TrainConfig) -> VAE:
        """A model that an earlier notebook trained with this configuration."""
        return load(self._find(f"{name}.safetensors"), config)

    def seconds(self, name: str) -> float:
        """How long it took to make the rows of this name, and what is stored with them: of a model, its training."""
        return float(read_header(self._find(f"{name}.csv"))["seconds"])

    def load_rows(self, name: str, config: Mapping[str, Any]) -> pd.DataFrame:
        """Rows that an earlier notebook made with this configuration."""
        return read_rows(self._find(f"{name}.csv"), dict(config))

    def figure(self, figure: Figure, name: str) -> None:
        """Write the figure as PNG and PDF, the same bytes each time; only a run that makes results writes."""
        if not (self.recompute or os.environ.get("PAPERLIB_STAGING")):
            return
        for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
            with atomic(self.target / f"{name}{suffix}") as temporary:
                figure.savefig(temporary, metadata=metadata)

    def _write_rows(self, name: str, frame: pd.DataFrame, config: dict[str, Any], seconds: float, dataset: str) -> None:
        write_rows(self.target / "data" / f"{name}.csv", frame, config, data_origin(dataset), seconds)

    @property
    def runs(self) -> Path:
        """The folder of all training runs by the same code, which is that of a run before an interruption.

        Runs of the long profile take hours and are kept whatever the code becomes: their names are configurations.
        """
        runs = work(self.profile, self.dataset) / "runs"
        return runs if self.profile == "long" else runs / _code()

    def _is_staged(self, file: str) -> bool:
        return bool(os.environ.get("PAPERLIB_STAGING")) and (self.target / "data" / file).is_file()

    def _has_staged_rows(self, name: str) -> bool:
        if not self._is_staged(f"{name}.csv"):
            return False
        try:
            read_rows(self.target / "data" / f"{name}.csv")
        except DamagedFileError:  # interrupted between the table and its header
            return False
        return True

    def _find(self, file: str) -> Path:
        places = [self.target / "data" / file, home(self.profile, self.dataset) / "figures" / "data" / file]
        for path in places:
            if path.is_file():
                return path
        number = file[:2]  # of the notebook that makes it
        raise FileNotFoundError(
            f"there is no {file} for profile {self.profile!r} and data set {self.dataset!r} in {places[-1].parent}; "
            f"make it with `make figures NB={number} DATASET={self.dataset} PROFILE={self.profile}`, "
            f"or set recompute=True in notebook {number}"
        )
