"""Train, attack and certify VAEs, sweep over configurations, and detect anomalies with certificates: each command
explains itself by --help.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import tyro

from paperlib.certificates.evaluation import SandwichViolationError
from paperlib.commands.command import BadInputError, Command
from paperlib.commands.detect import Detect
from paperlib.commands.measure import Attack, Certify
from paperlib.commands.sweep import Sweep
from paperlib.commands.train import Train
from paperlib.runtime.device import tune_malloc
from paperlib.runtime.distributed import PeerStoppedError
from paperlib.runtime.parallel import TasksFailedError
from paperlib.runtime.terminal import escape_unprintable
from paperlib.training.loop import TrainingDivergedError

ERRORS = (
    OSError,
    ValueError,
    ModuleNotFoundError,
    PeerStoppedError,
    SandwichViolationError,
    TasksFailedError,
    TrainingDivergedError,
)

COMMANDS: dict[str, Callable[..., Command]] = {
    "train": Train,
    "attack": Attack,
    "certify": Certify,
    "sweep": Sweep,
    "detect": Detect,
}


def main(args: list[str] | None = None) -> NoReturn:
    """Exit status: 0, 1 after an error told in one line, 2 for flags or tables that make no sense, 130 after an
    interrupt.
    """
    tune_malloc()
    escape_unprintable()
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m paperlib", args=args, description=__doc__).run()
    except TasksFailedError as error:
        sys.exit(f"error: {error}")  # a line for each task
    except BadInputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except ERRORS as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("\ninterrupted: whole files are kept, and the same command goes on from them", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


PASSIVE_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}

if __name__ == "__main__":
    # torch's threads read these when it is loaded, and it is by now: start again, unless the user has decided already.
    if os.name == "posix" and not PASSIVE_THREADS.keys() & os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **PASSIVE_THREADS})
    main()
