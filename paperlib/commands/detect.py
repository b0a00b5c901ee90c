"""`python -m paperlib detect fit` and `detect score`: an anomaly detector of a table, and certified verdicts."""

import math
import warnings
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from paperlib.commands.command import BadInputError, Command, say, user_input
from paperlib.commands.verdict_picture import write_verdict_picture
from paperlib.commands.verdict_totals import VerdictTotals
from paperlib.commands.verdict_words import radius_words, share, verdict_lines
from paperlib.data.tables import Part, Table, check_table
from paperlib.models.gaussian import collapse_warning
from paperlib.models.likelihood import Bernoulli, Gaussian
from paperlib.runtime.files import atomic, check_writable
from paperlib.runtime.progress import Progress
from paperlib.threats.perturbation import check_range
from paperlib.training.loop import CollapsedPosteriorWarning

SHOWN = 1_000  # rows held out that are certified for the report, at most

Detector = Any  # a CertifiedDetector, which is imported where it is used: scikit-learn takes a second to load


@dataclass(frozen=True)
class Fit(Command):
    """Train a detector on a table of normal rows, and write it to one file.

    Some of the rows are held out at random, and the threshold is set on them.
    """

    normal: Annotated[Positional[Path], arg(metavar="NORMAL.csv")]
    """Table of normal rows: numbers, separated by commas; the first line names the columns."""
    out: Path
    """File for the detector, which `detect score` reads."""
    eps: tuple[float, ...] = ()
    """Radius to train for, in the units of the columns: one number, or one for each column; a tenth of each column's
    standard deviation if not given."""
    alpha: float = 0.05
    """Rate of false alarms that is allowed."""
    hidden: tuple[int, ...] = (64,)
    """Widths of the encoder's hidden layers, which the decoder mirrors."""
    latent_dim: int = 8
    """Number of latent coordinates."""
    scale: float = 0.5
    """Standard deviation of the Gaussian likelihood, in standard deviations of each column, or in the columns' own unit
    with --no-standardize."""
    kappa: float = 0.5
    """Weight of the clean ELBO in training against its certified bound; 1 is a plain VAE."""
    steps: int = 2_500
    """Training steps."""
    calibration: float = 0.2
    """Share of the rows that is held out for the threshold."""
    draws: int = 0
    """Fixed noise draws that the score is the mean over; 0 is the posterior mean alone."""
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    """Density of the rows; bernoulli is for values in [0, 1]."""
    standardize: bool = True
    """Whether the model sees each column less its mean and in units of its standard deviation. Columns of one kind,
    such as the samples of a signal, may do better without."""
    low: float = -math.inf
    """Smallest value that a column can have; perturbations are clipped to it."""
    high: float = math.inf
    """Largest value that a column can have; perturbations are clipped to it."""
    seed: int = 0
    """Seed of the choice of rows held out, the weights and the batches."""

    def run(self) -> None:
        from paperlib.detection import CertifiedDetector

        with user_input():
            check_range(self.low, self.high)
            support = (Bernoulli if self.likelihood == "bernoulli" else Gaussian).support
            table = check_table(self.normal, low=max(self.low, support[0]), high=min(self.high, support[1]))
            _check_outputs([self.out], [self.normal])
        say(f"reading     {table.rows:,} rows of {len(table.columns)} columns in {self.normal}")
        rows = np.concatenate([part.rows for part in table.parts()])
        parameters = {name: value for name, value in vars(self).items() if name not in ("normal", "out", "eps", "seed")}
        detector = CertifiedDetector(_eps(self.eps) if self.eps else None, random_state=self.seed, **parameters)
        frame = pd.DataFrame(rows, columns=[*table.columns])
        with user_input(), warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapsedPosteriorWarning)  # said below, in a line of its own
            detector.fit(frame)
        detector.save(self.out)
        self._report(detector, frame)

    def _report(self, detector: Detector, frame: pd.DataFrame) -> None:
        assert detector.eps_ is not None
        held_out = detector.calibration_size_
        widths = "-".join(map(str, (len(frame.columns), *self.hidden, self.latent_dim)))
        say(f"trained     VAE {widths} for {radius_words(detector.eps_)}, on {len(frame) - held_out:,} rows")
        say(f"held out    {held_out:,} rows, for the threshold; KL {detector.kl_:.1f} nats in their mean")
        say(f"threshold   {detector.offset_:.4g} nats: a row with a lower score raises an alarm")
        say(
            f"guarantee   a new normal row raises a false alarm with a probability of at most {self.alpha:g},\n"
            "            if it is exchangeable with the rows held out"
        )
        some = frame.iloc[detector.calibration_rows_[:SHOWN]]
        verdicts = detector.certify(some, detector.ball(detector.eps_), radius=False, attack=False)
        calm = share(int((verdicts["verdict"] == "calm").sum()), len(some))
        say(
            f"certified   calm for {radius_words(detector.eps_)}: {calm} of {len(some):,} rows held out,\n"
            "            which the threshold was set on"
        )
        if warning := collapse_warning(detector.kl_):
            say(f"warning     {warning}")
        say(f"detector    {self.out}")


@dataclass(frozen=True)
class Score(Command):
    """Score the rows of a table, and certify the verdict on each: alarm, calm, or undecided within the radius.

    The verdicts stand in a table, in the order of the rows, with the line of each; a picture of them lies beside it.
    """

    new: Annotated[Positional[Path], arg(metavar="NEW.csv")]
    """Table with the columns that the detector was trained on, in any order."""
    detector: Annotated[Positional[Path], arg(metavar="DETECTOR")]
    """File that `detect fit` or CertifiedDetector.save has written."""
    out: Path
    """Table for the verdicts, NAME.csv; the picture is NAME.png."""
    eps: tuple[float, ...] = ()
    """Radius of the perturbations, in the units of the columns: one number, or one for each column in the order of the
    training table; that which the detector was trained for if not given."""
    method: Literal["ibp", "crown-ibp", "crown"] = "crown-ibp"
    """Method of the bounds: ibp is the fastest, crown the tightest."""
    sound: bool = False
    """Whether bounds hold for the scores as they are computed, with their rounding, not in real arithmetic alone."""
    radius: bool = True
    """Whether to find the largest radius at which each verdict is certified, which costs about ten times the bounds."""
    attack: bool = False
    """Whether to attack each score in both directions, too, by projected gradient descent."""

    def run(self) -> None:
        from paperlib.detection import CertifiedDetector

        with user_input():
            if self.out.suffix != ".csv":
                raise BadInputError(f"--out is NAME.csv, and the picture NAME.png beside it, got {self.out}")
            detector = CertifiedDetector.load(self.detector)
            eps = _eps(self.eps) if self.eps else detector.eps_
            if eps is None:
                raise BadInputError(f"{self.detector} was not trained for a radius: give --eps")
            ball = detector.ball(eps)
            names = getattr(detector, "feature_names_in_", None)
            columns = detector.n_features_in_ if names is None else self._columns(names)
            table = check_table(self.new, columns, ball.low, ball.high)
            picture = self.out.with_suffix(".png")
            _check_outputs([self.out, picture], [self.new, self.detector])
        certify = partial(
            detector.certify,
            perturbation=ball,
            method=self.method,
            sound=self.sound,
            radius=self.radius,
            attack=self.attack,
        )
        radii = np.broadcast_to(eps, detector.n_features_in_)
        arithmetic = "with the rounding of scores" if self.sound else "in real arithmetic"
        say(f"rows        {table.rows:,} in {self.new}")
        say(f"certified   for {radius_words(radii)} by {self.method}, {arithmetic}")
        start = perf_counter()
        totals = self._write(table, certify, names, VerdictTotals(table.rows, detector.offset_))
        seconds = perf_counter() - start
        say("\n".join(verdict_lines(totals, detector.calibration_size_, detector.alpha_, radii)))
        say(f"speed       {totals.rows / seconds:,.0f} rows a second, {seconds:.1f} seconds")
        say(f"verdicts    {self.out}")
        if find_spec("matplotlib") is None:
            say("picture     none, it needs matplotlib: pip install matplotlib")
            return
        write_verdict_picture(picture, totals, f"{radius_words(radii)}, {self.method}")
        say(f"picture     {picture}")

    def _columns(self, names: NDArray[Any]) -> list[str]:
        """The detector's own names as tables have them: without blanks around, which those of a DataFrame may have."""
        columns = [str(name).strip() for name in names]
        if len({*columns}) < len(columns):
            raise BadInputError(
                f"{self.detector} has columns whose names differ by blanks alone: fit it to other names"
            )
        return columns

    def _write(self, table: Table, certify: Any, names: NDArray[Any] | None, totals: VerdictTotals) -> VerdictTotals:
        """Write the verdicts part by part; returns their totals."""
        dropped = [] if self.attack else ["attacked_lower", "attacked_upper"]
        dropped += [] if self.radius else ["certified_radius"]
        with atomic(self.out) as temporary, Progress(f"score {table.path.name}", table.rows) as progress:
            for part in table.parts():
                rows = certify(_frame(part, names)).drop(columns=dropped)
                rows.insert(0, "line", part.lines)
                rows.to_csv(temporary, mode="a", header=totals.rows == 0, index=False, lineterminator="\n")
                totals.add(rows)
                progress.step(len(rows))
        return totals


@dataclass(frozen=True)
class Detect(Command):
    """Detect anomalies in tables, with verdicts that no perturbation within a radius can change.

    `detect fit` trains a detector on normal rows, `detect score` certifies its verdicts on others.
    """

    action: OmitSubcommandPrefixes[Annotated[Fit, subcommand("fit")] | Annotated[Score, subcommand("score")]]

    def run(self) -> None:
        self.action.run()


def _frame(part: Part, names: NDArray[Any] | None) -> Any:
    return part.rows if names is None else pd.DataFrame(part.rows, columns=names)


def _eps(eps: tuple[float, ...]) -> float | tuple[float, ...]:
    return eps[0] if len(eps) == 1 else eps


def _check_outputs(outputs: list[Path], inputs: list[Path]) -> None:
    """Raises BadInputError for an output that is an input, and as `check_writable`."""
    for path in outputs:
        if path.resolve() in [source.resolve() for source in inputs]:
            raise BadInputError(f"{path} would overwrite what is read: give another --out")
        check_writable(path)
