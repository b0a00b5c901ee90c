"""`python -m paperlib train`: one model, its checkpoint and its history in a folder."""

import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from paperlib.commands.command import Command, own_data, say
from paperlib.data.arrays import file_checksum
from paperlib.data.datasets import resolve
from paperlib.models.gaussian import collapse_warning
from paperlib.runtime.distributed import process_group
from paperlib.runtime.numbers import rounded_down
from paperlib.training.config import TrainConfig
from paperlib.training.loop import CollapsedPosteriorWarning
from paperlib.training.sweep import trained


@dataclass(frozen=True)
class Flags(TrainConfig):
    """Everything that decides the result, beside the data.

    proVAE maximises kappa * ELBO + (1 - kappa) * certificate (paper, section 4); kappa = 1 is the plain VAE. The radius
    eps rises linearly from 0 between ramp-start and ramp-end, and kappa falls from 1 at the same time. After the ramp
    the learning rate falls linearly to lr-final of its value. Another objective has a robust term of its own in the
    place of the certificate; kappa, eps and the ramp are its too.
    """

    def __post_init__(self) -> None:
        """Checks nothing: an error raised while flags are read would be told in the words of their parser."""

    def checked(self) -> TrainConfig:
        """The configuration. Raises ValueError naming the first field out of range."""
        return TrainConfig(**asdict(self))


@dataclass(frozen=True)
class Train(Command):
    """Train one model, or go on with it where an earlier call stopped.

    Its folder then holds model.safetensors, for paperlib.load and the other commands, and history.csv, a row for each
    epoch. `torchrun --nproc-per-node N -m paperlib train` with the same flags lets N processes share the work.
    """

    config: Annotated[Flags, OmitArgPrefixes] = field(default_factory=Flags)
    data: Path | None = None
    """A .npy file with examples of your own, [count, *shape], instead of a data set of the library. Their shape becomes
    the model's."""
    low: float = 0.0
    """Smallest value that the examples of --data can have, in their own units."""
    high: float = 1.0
    """Largest value that the examples of --data can have, in their own units."""
    folder: Path | None = None
    """Where the run is kept; runs/ and the digest of the configuration if not given."""
    device: str = "auto"
    """Device to train on: cpu, cuda or mps; auto is the fastest that there is."""

    def run(self) -> None:
        config, default = self.config.checked(), TrainConfig()
        named = None if config.dataset == default.dataset else config.dataset
        data, origin = own_data(self.data, self.low, self.high, named), None
        if data is None:
            config = replace(config, dataset=resolve(config.dataset))
        else:
            assert self.data is not None
            origin = {"dataset": data.name, "checksum": file_checksum(self.data)}
            shape = data.shape if config.data_shape == default.data_shape else config.data_shape
            config = replace(config, dataset=data.name, data_shape=shape)
        folder = self.folder or Path("runs") / config.digest
        with process_group():
            say(f"training {config.digest} on {config.dataset}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CollapsedPosteriorWarning)  # said below, in a line of its own
                last = trained(config, folder, self.device, data, origin).history.iloc[-1]
            say(
                f"{config.digest}: clean {last['clean']:.1f} nats, KL {last['kl']:.1f} nats, certified "
                f"{rounded_down(last['certified'])} nats at eps {last['eps']:g} in data units, means over held-out "
                f"examples; see {folder / 'model.safetensors'} and history.csv"
            )
            if warning := collapse_warning(last["kl"]):
                say(f"warning: {warning}")
