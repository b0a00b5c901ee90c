"""`python -m paperlib attack` and `certify`: rows of a trained model's clean, attacked and certified ELBO."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from paperlib.certificates.crown import CrownIBP
from paperlib.certificates.evaluation import NOISE_SEED, Evaluation, evaluate, evaluation_noise, summary
from paperlib.certificates.method import Method, find_method
from paperlib.commands.command import Command, Threat, own_data, perturbation_set, say
from paperlib.commands.picture import check_picture, write_picture
from paperlib.data.arrays import Dataset, file_checksum
from paperlib.data.datasets import CHECKSUMS, data_origin, load_dataset
from paperlib.data.toys import TOYS
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.runtime.device import choose_device
from paperlib.runtime.distributed import on_rank_zero, process_group
from paperlib.runtime.files import check_writable, read_tensors, write_tensors
from paperlib.runtime.rows import header_path, write_rows
from paperlib.training.checkpoint import load
from paperlib.training.config import TrainConfig


@dataclass(frozen=True)
class Measure(Command):
    """What `attack` and `certify` share."""

    model: Annotated[Positional[Path], arg(metavar="MODEL.safetensors")]
    """A model that `python -m paperlib train` or paperlib.save has written."""
    eps: float
    """Radius of the perturbation, in data units (pixels in [0, 1]); of a patch its side, in pixels."""
    threat: Threat = "linf"
    """What an adversary can do: change every pixel by up to eps (linf); change the image by a length (l2) or a sum of
    changes (l1) of up to eps; put any values in a square of eps x eps pixels (patch); change brightness and contrast by
    up to eps each (lighting)."""
    images: int | None = None
    """How many images, the first of the test set; all of them if not given."""
    draws: int = 1
    """Noise draws of each image."""
    noise_seed: int = NOISE_SEED
    """Seed of the noise: draw d has noise_seed + d, random starts of an attack have noise_seed."""
    target: Target | None = None
    """Which image's likelihood it is: that of the perturbed image itself, or of the clean one; as in training if not
    given."""
    dataset: str | None = None
    """Data set of the library whose test set is taken; that of training if not given."""
    data: Path | None = None
    """A .npy file with examples of your own, [count, *shape], instead of a test set of the library."""
    low: float = 0.0
    """Smallest value that the examples of --data can have, in their own units; perturbations are clipped to it."""
    high: float = 1.0
    """Largest value that the examples of --data can have, in their own units; perturbations are clipped to it."""
    device: str = "cpu"
    """Device to compute on in float64: cpu or cuda; few other devices are fast at that."""
    memory: float = 1.0
    """Memory for intermediate results, in GiB."""
    output: Path | None = None
    """Table of the rows, NAME.csv, with its header NAME.json beside it; beside the model if not given, with a digest of
    all settings in its name."""

    def measure(self, kind: str, attack: dict[str, Any] | None, method: Method, sound: bool = False) -> None:
        """Print the means of the rows of `certify`, then write the rows."""
        with process_group(timedelta(hours=6)):  # for a chunk that takes long; a process that ends is noticed at once
            vae = load(self.model)
            config = TrainConfig.from_dict(read_tensors(self.model)[1]["config"])
            test, origin = self._examples(config)
            if min(self.draws, 1 if self.images is None else self.images) < 1:
                raise ValueError(f"needs an image and a draw, got images={self.images}, draws={self.draws}")
            ball = perturbation_set(self.threat, self.eps, test)
            device, target = choose_device(self.device), self.target or config.target
            x = test.x[: self.images]
            settings = {
                "model": config.as_dict(),
                "weights": hashlib.sha256(self.model.read_bytes()).hexdigest(),
                "dataset": test.name,
                "eps": self.eps,
                **({} if self.threat == "linf" else {"threat": self.threat}),
                "images": len(x),
                "draws": self.draws,
                "noise_seed": self.noise_seed,
                "target": target,
                "attack": attack,
                "method": {"name": type(method).__name__, **asdict(method)},  # type: ignore[call-overload]
                "sound": sound,
            }
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
            output = self.output or self.model.with_name(f"{self.model.stem}_{kind}_{self.eps:g}_{digest}.csv")
            on_rank_zero(lambda: self.check(output, test))
            noise = evaluation_noise(len(x), vae.latent_dim, self.draws, self.noise_seed)
            say(f"{config.digest}: {kind} at {self._radius}, {len(x):,} test images of {test.name}")
            start = perf_counter()
            evaluated = evaluate(
                vae.to(device),
                x.to(device),
                ball,
                noise.to(device),
                attack=attack and {**attack, "generator": torch.Generator().manual_seed(self.noise_seed)},
                target=target,
                method=method,
                sound=sound,
                memory=self.memory,
                keep=self.keeps,
            )
            seconds = perf_counter() - start
            say(f"{summary(evaluated.rows)}\n{seconds:.1f} seconds")  # first: what follows may fail on a full disk
            on_rank_zero(lambda: write_rows(output, evaluated.rows, settings, origin, seconds))
            say(f"rows in {output}")
            on_rank_zero(lambda: self.keep(evaluated, vae.cpu(), noise, test, {"config": settings, **origin}))

    def _examples(self, config: TrainConfig) -> tuple[Dataset, dict[str, Any]]:
        """The examples to measure on, and what the headers of files say of them."""
        own = own_data(self.data, self.low, self.high, self.dataset)
        if own is not None:
            assert self.data is not None
            return own, {"dataset": own.name, "checksum": file_checksum(self.data)}
        name = self.dataset or config.dataset
        if self.dataset is None and name not in (*CHECKSUMS, *TOYS):
            raise ValueError(f"the model was trained on data of your own, {name}: give the test examples by --data")
        test = load_dataset(name, "test")
        return test, data_origin(test.name)

    @property
    def _radius(self) -> str:
        return f"eps {self.eps:g} in data units" if self.threat == "linf" else f"{self.threat} {self.eps:g}"

    @property
    def keeps(self) -> bool:
        """Whether attacked examples are kept for `keep`."""
        return False

    def check(self, output: Path, test: Dataset) -> None:
        """Raises, before any work, what would prevent the results from being written."""
        header_path(output)  # refuses another kind of name
        check_writable(output)

    def keep(self, evaluated: Evaluation, vae: VAE, noise: Tensor, test: Dataset, header: dict[str, Any]) -> None:
        """Write what there is beside the rows; here nothing.

        Args:
            test: the clean examples, of which the first have rows.
            noise: [draws, count, latent_dim].
            header: what the results depend on.
        """


@dataclass(frozen=True)
class Attack(Measure):
    """Attack a model by projected gradient descent: rows of clean and attacked ELBO, and the interval certificate.

    What an attack finds is no guarantee: the worst case lies between it and the certificate.
    """

    steps: int = 40
    """Gradient steps of each restart."""
    restarts: int = 1
    """Number of starts: the first is the image, further ones are random points of the ball."""
    save: Path | None = None
    """A .safetensors file for the attacked examples: tensors x, and x_adv, index, draw and noise in the order of the
    rows; its header has eps and all settings."""
    picture: Path | None = None
    """A .png, .pdf or .svg file that shows the first attacked images beside the clean ones; needs matplotlib."""

    def run(self) -> None:
        self.measure("attack", {"steps": self.steps, "restarts": self.restarts}, find_method("ibp"))

    @property
    def keeps(self) -> bool:
        return self.save is not None or self.picture is not None

    def check(self, output: Path, test: Dataset) -> None:
        super().check(output, test)
        files = [output, *(path for path in (self.save, self.picture) if path is not None)]
        if len({path.absolute() for path in files}) < len(files):
            raise ValueError(f"each result needs a file of its own, got {', '.join(map(str, files))}")
        for path in files:
            check_writable(path)
        if self.picture is not None:
            check_picture(self.picture, test.shape)

    def keep(self, evaluated: Evaluation, vae: VAE, noise: Tensor, test: Dataset, header: dict[str, Any]) -> None:
        rows, x_adv = evaluated.rows, evaluated.x_adv
        if x_adv is None:
            return
        if self.save is not None:
            places = {name: torch.from_numpy(rows[name].to_numpy(copy=True)) for name in ("index", "draw")}
            tensors = {"x": test.x[: noise.shape[1]], "x_adv": x_adv, "noise": noise.flatten(0, 1), **places}
            write_tensors(self.save, tensors, {"eps": self.eps, "low": test.low, "high": test.high, **header})
            say(f"attacked examples in {self.save}")
        if self.picture is not None:
            write_picture(self.picture, vae, test, x_adv, noise, rows, header["config"]["target"])
            say(f"picture in {self.picture}")


MethodWord = Literal[
    "ibp",
    "crown-ibp",
    "crown",
    "exact",
    "best",
    "zonotope",
    "hybrid-zonotope",
    "dual-network",
    "lagrangian",
    "beta-crown",
]


@dataclass(frozen=True)
class Certify(Measure):
    """Certify a model: rows with a lower bound of the ELBO over all perturbations of each test image.

    `torchrun --nproc-per-node N -m paperlib certify` with the same flags lets N processes share the images: the same
    rows sooner.
    """

    method: MethodWord = "ibp"
    """Method of the bound: ibp is the fastest, crown-ibp and crown are tighter, exact is for inputs of at most 3
    numbers, best is the tightest within a budget; the others are those of notebook 10."""
    alpha_steps: int | None = None
    """Steps of the optimisation of the free slopes of crown-ibp and crown; none if not given."""
    sound: bool = False
    """Whether the bound holds for the float32 network as it is evaluated, not in real arithmetic alone."""

    def run(self) -> None:
        method = find_method(self.method)
        if self.alpha_steps is not None:
            if not isinstance(method, CrownIBP):  # `Crown` is one, too
                raise ValueError(f"--alpha-steps is for crown-ibp and crown, not for {self.method}")
            method = replace(method, alpha_steps=self.alpha_steps)
        self.measure(self.method, None, method, self.sound)
