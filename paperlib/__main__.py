"""The command line: `python -m paperlib train`, `attack`, `certify` and `sweep`, each with --help."""

import hashlib
import itertools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass, field, fields, make_dataclass, replace
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal, NoReturn, get_origin

import torch
import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from paperlib.certificates.crown import CrownIBP
from paperlib.certificates.evaluation import NOISE_SEED, certify, evaluation_noise, summary
from paperlib.certificates.method import Method, find_method
from paperlib.data.datasets import data_origin, load_dataset, resolve
from paperlib.models.elbo import Target
from paperlib.runtime.device import choose_device, tune_malloc
from paperlib.runtime.distributed import PeerStoppedError, on_rank_zero, process_group, rank_and_world_size
from paperlib.runtime.files import read_tensors
from paperlib.runtime.numbers import rounded_down
from paperlib.runtime.parallel import TasksFailedError
from paperlib.runtime.rows import header_path, write_rows
from paperlib.training import sweep
from paperlib.training.checkpoint import load
from paperlib.training.config import TrainConfig
from paperlib.training.loop import TrainingDivergedError

ERRORS = (OSError, ValueError, ModuleNotFoundError, PeerStoppedError, TasksFailedError, TrainingDivergedError)


class Command(ABC):
    """A dataclass whose fields are flags, and whose docstrings are their help."""

    @abstractmethod
    def run(self) -> None:
        """Raises one of ERRORS for what its user can mend."""


@dataclass(frozen=True)
class Train(Command):
    """Train one model, or go on with it where an earlier call stopped.

    Its folder then holds model.safetensors, for paperlib.load and the other commands, and history.csv, a row for each
    epoch. `torchrun --nproc-per-node N -m paperlib train` with the same flags lets N processes share the work.
    """

    config: Annotated[TrainConfig, OmitArgPrefixes] = field(default_factory=TrainConfig)
    folder: Path | None = None
    """Where it is kept; runs/ and the digest of the configuration if not given."""
    device: str = "auto"
    """cpu, cuda or mps; auto is the fastest that there is."""

    def run(self) -> None:
        config = replace(self.config, dataset=resolve(self.config.dataset))
        folder = self.folder or Path("runs") / config.digest
        with process_group():
            _say(f"training {config.digest} on {config.dataset}")
            last = sweep.trained(config, folder, self.device).history.iloc[-1]
            _say(
                f"{config.digest}: clean {last['clean']:.1f}, certified {rounded_down(last['certified'])} "
                f"at eps {last['eps']:g} on held-out images; see {folder / 'model.safetensors'} and history.csv"
            )


@dataclass(frozen=True)
class Measure(Command):
    """What `attack` and `certify` share."""

    model: Annotated[Positional[Path], arg(metavar="MODEL.safetensors")]
    """A model that `python -m paperlib train` or paperlib.save has written."""
    eps: float
    """Radius of the perturbation, in data units (pixels in [0, 1])."""
    images: int | None = None
    """The first of the test set; all of them if not given."""
    draws: int = 1
    """Noise draws of each image."""
    noise_seed: int = NOISE_SEED
    """Draw d has the seed noise_seed + d, random starts of an attack have noise_seed."""
    target: Target | None = None
    """The likelihood of the perturbed image itself, or of the clean one; as in training if not given."""
    dataset: str | None = None
    """Whose test set; that of training if not given."""
    device: str = "cpu"
    """cpu or cuda; in float64, at which few other devices are fast."""
    memory: float = 1.0
    """GiB for intermediate results."""
    output: Path | None = None
    """Table of the rows, NAME.csv, with its header NAME.json beside it; beside the model if not given."""

    def measure(self, kind: str, attack: dict[str, Any] | None, method: Method, sound: bool = False) -> None:
        """Write the rows of `certify` and print their means."""
        output = self.output or self.model.with_name(f"{self.model.stem}_{kind}_{self.eps:g}.csv")
        header_path(output)  # refuses another kind of name before the work
        with process_group(timedelta(hours=6)):  # for a chunk that takes long; a process that ends is noticed at once
            vae = load(self.model)
            config = TrainConfig.from_dict(read_tensors(self.model)[1]["config"])
            test = load_dataset(self.dataset or config.dataset, "test")
            if min(self.draws, 1 if self.images is None else self.images) < 1:
                raise ValueError(f"needs an image and a draw, got images={self.images}, draws={self.draws}")
            device, target = choose_device(self.device), self.target or config.target
            x = test.x[: self.images].to(device)
            noise = evaluation_noise(len(x), vae.latent_dim, self.draws, self.noise_seed).to(device)
            _say(f"{config.digest}: {kind} at eps {self.eps:g}, {len(x):,} test images of {test.name}")
            start = perf_counter()
            seeded = attack and {**attack, "generator": torch.Generator().manual_seed(self.noise_seed)}
            how: dict[str, Any] = {"target": target, "method": method, "sound": sound, "memory": self.memory}
            rows = certify(vae.to(device), x, test.ball(self.eps), noise, attack=seeded, **how)
            settings = {
                "model": config.as_dict(),
                "weights": hashlib.sha256(self.model.read_bytes()).hexdigest(),
                "dataset": test.name,
                "eps": self.eps,
                "images": len(x),
                "draws": self.draws,
                "noise_seed": self.noise_seed,
                "target": target,
                "attack": attack,
                "method": {"name": type(method).__name__, **asdict(method)},  # type: ignore[call-overload]
                "sound": sound,
            }
            seconds = perf_counter() - start
            on_rank_zero(lambda: write_rows(output, rows, settings, data_origin(test.name), seconds))
            _say(f"{summary(rows)}\nrows in {output}")


@dataclass(frozen=True)
class Attack(Measure):
    """Attack a model by projected gradient descent: rows of clean and attacked ELBO, and the interval certificate.

    What an attack finds is no guarantee: the worst case lies between it and the certificate.
    """

    steps: int = 40
    """Gradient steps of each restart."""
    restarts: int = 1
    """The first begins at the image, further ones at random points of the ball."""

    def run(self) -> None:
        self.measure("attack", {"steps": self.steps, "restarts": self.restarts}, find_method("ibp"))


@dataclass(frozen=True)
class Certify(Measure):
    """Certify a model: rows with a lower bound of the ELBO over all perturbations of each test image.

    `torchrun --nproc-per-node N -m paperlib certify` with the same flags lets N processes share the images: the same
    rows sooner.
    """

    method: Literal["ibp", "crown-ibp", "crown", "exact", "best"] = "ibp"
    """ibp is the fastest, crown-ibp and crown are tighter, exact is for inputs of at most 3 numbers."""
    alpha_steps: int | None = None
    """Of the optimisation of the free slopes of crown-ibp and crown; none if not given."""
    sound: bool = False
    """Hold for the float32 network as it is evaluated, not in real arithmetic alone."""

    def run(self) -> None:
        method = find_method(self.method)
        if self.alpha_steps is not None:
            if not isinstance(method, CrownIBP):  # `Crown` is one, too
                raise ValueError(f"--alpha-steps is for crown-ibp and crown, not for {self.method}")
            method = replace(method, alpha_steps=self.alpha_steps)
        self.measure(self.method, None, method, self.sound)


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
    """To measure on, the first of the test set; all of them if not given."""
    jobs: int | None = None
    """Processes at a time; if not given one for each core, or a single one where there is a CUDA device."""
    cluster: bool = False
    """Run on a Ray cluster: that of RAY_ADDRESS, or of this machine. All its machines must see the folder."""
    device: str = "auto"
    """cpu, cuda or mps; auto is the fastest that there is."""

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
        print(f"{shown.to_string(index=False, float_format='{:g}'.format)}\nrows in {self.folder / 'sweep.csv'}")


COMMANDS: dict[str, Callable[..., Command]] = {"train": Train, "attack": Attack, "certify": Certify, "sweep": Sweep}


def main(args: list[str] | None = None) -> NoReturn:
    """Exit status: 0, 1 after an error told in one line, 2 for flags that make no sense, 130 after an interrupt."""
    tune_malloc()
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m paperlib", args=args, description=__doc__).run()
    except TasksFailedError as error:
        sys.exit(f"error: {error}")  # a line for each task
    except ERRORS as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("\ninterrupted: whole files are kept, and the same command goes on from them", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _say(text: str) -> None:
    if rank_and_world_size()[0] == 0:
        print(text, flush=True)


PASSIVE_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}

if __name__ == "__main__":
    # By default torch's threads spin while they wait, which makes them many times slower beside other work. They read
    # these settings when torch is loaded, and it is by now: start again, unless the user has decided already.
    if os.name == "posix" and not PASSIVE_THREADS.keys() & os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **PASSIVE_THREADS})
    main()
