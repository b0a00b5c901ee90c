"""The rows of a certified classifier: prediction, margin, attacked margin, and its certified lower bounds."""

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.difference import LinearElboBounds, difference_lower
from paperlib.certificates.evaluation import ALLOWANCE, SandwichViolationError
from paperlib.certificates.method import Method
from paperlib.detection.class_scores import ClassScores
from paperlib.runtime.progress import Progress
from paperlib.threats.attacks import check_search, descend
from paperlib.threats.perturbation import PerturbationSet

ROWS = 500  # at a time
TARGETS = 3  # nearest rivals that each get an attack of their own


@torch.no_grad()
def certified_margins(
    scores: ClassScores,
    x: Tensor,
    y: Tensor | None,
    perturbation: PerturbationSet,
    method: str | Method,
    sound: bool,
    attack: int,
) -> pd.DataFrame:
    """See `GenerativeClassifier.certify`. Rows pass through in chunks, so that memory does not grow with their number.

    Args:
        x: [rows, features], float64.
        y: numbers of the classes that margins are of, [rows]; None: of the predicted ones.
    """
    perturbation.check(x)
    if attack != 0:
        check_search(attack)
    frames = []
    with Progress(f"certify {perturbation.label}", len(x)) as progress:
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            part, threat = x[rows], perturbation.rows(rows, x)
            clean = scores(part)
            prediction = clean.argmax(0)
            own = prediction if y is None else y[rows]
            joint, separate = _certified(scores, part, own, threat, method, sound)
            margin = _margin(clean, own)
            columns = {"prediction": prediction, "margin": margin, "certified": joint, "separate": separate}
            if attack:
                columns["attacked"], columns["met"] = _attacked(scores, part, own, threat, attack)
            _check(columns)
            frames.append(pd.DataFrame({name: column.numpy() for name, column in columns.items()}))
            progress.step(len(part))
    return pd.concat(frames, ignore_index=True)


def _margin(scores: Tensor, own: Tensor) -> Tensor:
    """The score of the own class less the largest other, [batch]."""
    rivals = scores.scatter(0, own[None], -torch.inf).amax(0)
    return scores.gather(0, own[None])[0] - rivals


def _certified(
    scores: ClassScores,
    x: Tensor,
    own: Tensor,
    perturbation: PerturbationSet,
    method: str | Method,
    sound: bool,
) -> tuple[Tensor, Tensor]:
    """The least certified margin over all rivals, [batch], by joint and by separate bounds."""
    vaes, prior = scores.vaes, scores.prior
    joint, separate = (torch.full(own.shape, torch.inf, dtype=x.dtype) for _ in range(2))
    noise = x.new_zeros(len(x), vaes[0].latent_dim)
    for number in own.unique().tolist():
        rows = (own == number).nonzero()[:, 0]
        threat = perturbation.rows(rows, x)
        bounds = [LinearElboBounds.of(vae, x[rows], threat, noise[rows], method, sound=sound) for vae in vaes]
        for rival in range(len(vaes)):
            if rival == number:
                continue
            ahead = prior[number] - prior[rival]
            apart = bounds[number].interval.lower - bounds[rival].interval.upper + ahead
            together = difference_lower(bounds[number], bounds[rival]) + ahead
            joint[rows] = torch.minimum(joint[rows], together)
            separate[rows] = torch.minimum(separate[rows], apart)
    return joint, separate


def _attacked(
    scores: ClassScores, x: Tensor, own: Tensor, perturbation: PerturbationSet, steps: int
) -> tuple[Tensor, Tensor]:
    """The least margin that is met, [batch], and the number of inputs that were evaluated, [batch]: against whichever
    rival leads, and where that breaks nothing, against each of the nearest by half as many steps. Examples that are
    certified are not spared, as the attack is to test the certificates.
    """

    def objective(point: Tensor) -> Tensor:
        return _margin(scores(point), own)

    _, least = descend(objective, x, perturbation, x, steps)
    met = torch.full_like(own, steps + 1)  # x and a point after each step
    targeted = (steps + 1) // 2
    others = scores(x).scatter(0, own[None], -torch.inf)
    nearest = others.topk(min(TARGETS, len(others) - 1), 0).indices
    for rivals in nearest:
        rows = (least > 0).nonzero()[:, 0]
        if len(rows) == 0:
            break
        picked = torch.stack([own[rows], rivals[rows]])

        def toward(point: Tensor, picked: Tensor = picked) -> Tensor:
            first, second = scores.of_classes(point, picked)
            return first - second

        point, _ = descend(toward, x[rows], perturbation.rows(rows, x), x[rows], targeted)
        least[rows] = torch.minimum(least[rows], _margin(scores(point), own[rows]))
        met[rows] += targeted  # x is counted already
    return least, met


def _check(columns: dict[str, Tensor]) -> None:
    """Raises SandwichViolationError unless certified <= attacked <= margin, to within float64 rounding."""
    margin = columns["margin"]
    attacked = columns.get("attacked", margin)
    allowed = ALLOWANCE * (1 + margin.abs())
    for low, high in ((columns["certified"], attacked), (attacked, margin)):
        holds = low <= high + allowed
        if not holds.all():
            row = int((~holds).nonzero()[0])
            values = {name: column[row].item() for name, column in columns.items()}
            raise SandwichViolationError(
                f"{int((~holds).sum())} of {len(holds)} rows break certified <= attacked <= margin; the first: {values}"
            )
