"""Rows per example: the clean, the attacked and the certified ELBO, and the check that they are in this order."""

import copy
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.attack import pgd
from paperlib.elbo import Target, certificate, elbo_terms
from paperlib.interval import LinfBall
from paperlib.progress import Progress
from paperlib.vae import VAE

REFINED = 100  # examples at a time by a method that refines boxes: a GiB at the size of the experiments
ALLOWANCE = 1e-10  # of a value's size, for float64 rounding over a few thousand additions


class SandwichViolationError(AssertionError):
    """certified <= attacked <= clean fails by more than float64 rounding, or a value is not finite."""


@torch.no_grad()
def certify(
    vae: VAE,
    x: Tensor,
    ball: LinfBall,
    noise: Tensor,
    *,
    attack: dict[str, Any] | None = None,
    target: Target = "perturbed",
    batch_size: int = 500,
    **how: Any,
) -> pd.DataFrame:
    """Certified: no x' in the ball around x has an ELBO below `certified`, for the noise draw of its row.

    Computed in float64 on a copy of the model in evaluation mode. Holds in real arithmetic for that model, where
    float64 rounding is about 1e-12 of a value; with sound=True for the model as it is evaluated in its own precision.
    Nothing is claimed about other noise draws or about their expectation: see `certify_expected`.

    Args:
        x: [count, *data_shape] in the data range.
        noise: [count, latent_dim], or [draws, count, latent_dim] for several draws of each example.
        attack: arguments of `pgd` (steps, restarts, generator); None leaves `attacked` empty (NaN).
        target: what the decoder must explain, see `elbo`.
        batch_size: examples at a time; bounds the memory, changes no result beyond rounding.
        how: method, steps, budget, tol and sound of `elbo_bounds`.

    Returns:
        One row per draw and example: index, draw, eps, clean, log_likelihood, kl (the two parts of clean: clean =
        log_likelihood - kl), attacked, attacked_log_likelihood, attacked_kl, certified. All ELBOs in nats, float64.

    Raises:
        SandwichViolationError: certified <= attacked <= clean does not hold; shows the first row that breaks it.
        ValueError, UnsupportedLayerError: as `elbo_bounds`.
    """
    deployed = copy.deepcopy(vae).eval()
    vae = vae.in_float64()
    certified_by, dtype = (deployed, next(deployed.parameters()).dtype) if how.get("sound") else (vae, torch.float64)
    if how.get("method") in ("crown", "best"):
        batch_size = min(batch_size, REFINED)
    draws = noise if noise.ndim == 3 else noise[None]
    if draws.shape[1] != len(x):
        raise ValueError(f"noise must have a row for each of the {len(x)} examples, got {list(noise.shape)}")
    frames = []
    name = f"{'certify' if attack is None else 'attack and certify'} eps={ball.eps:g}"
    with Progress(name, len(draws) * len(x)) as progress:
        for number, draw in enumerate(draws):
            for start in range(0, len(x), batch_size):
                part = slice(start, start + batch_size)
                frame = _rows(vae, x[part].double(), ball, draw[part].double(), attack, target)
                certified = certificate(certified_by, x[part].to(dtype), ball, draw[part].to(dtype), target, **how)
                frame["certified"] = certified.cpu().numpy()
                frame.insert(0, "index", range(start, start + len(frame)))
                frame.insert(1, "draw", number)
                frames.append(frame)
                progress.step(len(frame))
    rows = pd.concat(frames, ignore_index=True)
    check_sandwich(rows)
    return rows


def _rows(
    vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, attack: dict[str, Any] | None, target: Target
) -> pd.DataFrame:
    log_likelihood, kl = elbo_terms(vae, x, noise, x)
    columns = {"eps": ball.eps, "clean": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}
    if attack is None:
        columns |= dict.fromkeys(("attacked", "attacked_log_likelihood", "attacked_kl"), float("nan"))
    else:
        x_adv = pgd(vae, x, ball, noise, target=target, **attack)
        log_likelihood, kl = elbo_terms(vae, x_adv, noise, x_adv if target == "perturbed" else x)
        columns |= {
            "attacked": log_likelihood - kl,
            "attacked_log_likelihood": log_likelihood,
            "attacked_kl": kl,
        }
    return pd.DataFrame(
        {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in columns.items()}, index=range(len(x))
    )


def check_sandwich(rows: pd.DataFrame) -> None:
    """Raises SandwichViolationError unless certified <= attacked <= clean in each row, to within float64 rounding.

    Rows without an attack (NaN) are checked for certified <= clean.
    """
    attacked = rows["attacked"].fillna(rows["clean"])
    for low, high in ((rows["certified"], attacked), (attacked, rows["clean"])):
        # written so that a NaN or infinite value is a violation too
        holds = (low <= high + ALLOWANCE * (1 + high.abs())) & (low > -float("inf")) & (high < float("inf"))
        if not holds.all():
            raise SandwichViolationError(
                f"{(~holds).sum()} of {len(rows)} rows break certified <= attacked <= clean; the first is\n"
                f"{rows[~holds].iloc[0].to_string()}"
            )
