"""How much an input must be distorted to distort its code and its reconstruction: the path over lambda of
Gondim-Ribeiro et al. 2018 (arXiv 1806.04646), its distortion-distortion curve and the area under it (AUDDC). Penalty,
divergence and normalisation are those of the authors' code.

No perturbation set bounds this adversary: a penalty on the distortion does, and the data range.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.latent import Divergence, encode, measure_of
from paperlib.threats.output import distance, reconstruct
from paperlib.threats.perturbation import check_range
from paperlib.threats.search import check_attack, check_like

LAMBDAS = (0.0, *(2.0 ** (-20 + 40 * k / 49) for k in range(50)))


@outside_inference_mode
def distortion_path(
    vae: VAE,
    x: Tensor,
    toward: Tensor,
    lambdas: Sequence[float] = LAMBDAS,
    divergence: Divergence = "kl",
    steps: int = 200,
    low: float = 0.0,
    high: float = 1.0,
) -> pd.DataFrame:
    """The least penalised divergence for each lambda, among all that a search with Adam meets:

        min over low <= x' <= high of  lambda * ||x' - x||_2^2 + D( q(z|x'), q(z|toward) )

    Each lambda takes the best of the points at which the searches for all of them ended. So along a growing lambda the
    input distortion never grows and the divergence never falls, as it is for the true minima. The searches start at x,
    and no point is worse than it.

    A latent distortion shrinks when a posterior collapses; models are compared by the output distortion alone.

    Args:
        x, toward: [batch, *data_shape] in the data range.
        lambdas: penalties, none negative; the default is 0 and 50 values from 2^-20 to 2^20, evenly in the logarithm.
        divergence: as for `latent_attack`.
        steps: steps of Adam for each lambda, all of them at once: memory is that of `batch * len(lambdas)` examples.
        low, high: the data range.

    Returns:
        One row per example and lambda: index, lambda, norm (||x' - x||_2), divergence (D), and the distortions
        input_distortion = ||x' - x|| / ||toward - x||, latent_distortion = D / D( q(z|x), q(z|toward) ) and
        output_distortion = (||dec(x') - toward|| - e) / (||dec(x) - toward|| - e) with the model's own error
        e = ||dec(toward) - toward||: at x they are 0, 1, 1; at the target 1, 0, 0. The last one is NaN for an example
        whose reconstruction is as near to the target as the target's own.

    Raises:
        ValueError: no lambda, a negative or non-finite one, fewer than one step, an unknown divergence, data outside
            the data range, shapes or dtypes that do not fit, a target with the same data or code as x.
    """
    check_range(low, high)
    check_attack(vae, x, steps)
    check_like("toward", toward, x)
    measure = measure_of(divergence)
    for name, data in (("x", x), ("toward", toward)):
        if data.numel() and not low <= data.min() <= data.max() <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], got [{data.min()}, {data.max()}]")
    penalties = torch.tensor(lambdas, dtype=x.dtype, device=x.device)
    if len(penalties) == 0 or not ((penalties >= 0) & penalties.isfinite()).all():
        raise ValueError(f"lambdas must be finite and not negative, at least one of them, got {list(lambdas)}")

    code, own_error = encode(vae, toward), distance(reconstruct(vae, toward), toward)
    whole = {"input": distance(x, toward), "latent": measure(encode(vae, x), code)}
    gained = distance(reconstruct(vae, x), toward) - own_error
    for name, size in whole.items():
        if not (size > 0).all():
            index = (~(size > 0)).nonzero()[0].item()
            raise ValueError(f"example {index} and its target have the same {name}, no distortion is relative to that")

    def terms(point: Tensor) -> tuple[Tensor, Tensor]:
        """||x' - x|| and D for [lambdas, batch, *data_shape], each [lambdas, batch]."""
        mean, log_var = (part.repeat(len(point), 1) for part in code)
        divergences = measure(vae.encode(point.flatten(0, 1)), (mean, log_var)).view(point.shape[:2])
        return torch.linalg.vector_norm((point - x).flatten(2), dim=2), divergences

    points = _search(terms, x, penalties, steps, low, high)
    with torch.no_grad():
        norms, divergences = terms(points)
    best = (penalties[:, None, None] * norms.square() + divergences).argmin(1)  # [lambdas, batch], the path's points
    columns = {"norm": norms.gather(0, best), "divergence": divergences.gather(0, best)}
    chosen = points[best, torch.arange(len(x), device=x.device)]
    targets = toward.repeat(len(best), *[1] * (x.ndim - 1))
    outputs = distance(reconstruct(vae, chosen.flatten(0, 1)), targets).view(best.shape) - own_error
    columns["input_distortion"] = columns["norm"] / whole["input"]
    columns["latent_distortion"] = columns["divergence"] / whole["latent"]
    columns["output_distortion"] = outputs / torch.where(gained > 0, gained, torch.nan)
    table = {name: column.T.flatten().double().cpu().numpy() for name, column in columns.items()}
    examples = [example for example in range(len(x)) for _ in lambdas]
    return pd.DataFrame({"index": examples, "lambda": list(lambdas) * len(x), **table})


def auddc(rows: pd.DataFrame, distortion: Literal["output", "latent"] = "output") -> pd.Series:
    """The area under the distortion-distortion curve of each example, indexed by `index`; at most 1 where no distortion
    is above 1, and the larger, the more an input must be distorted for its reconstruction (or code) to change.

    The curve runs in straight lines from x at (0, 1) through the points of `distortion_path`, by growing input
    distortion, and from the last of them at the least distortion that was met to input distortion 1; points beyond the
    target are left out.

    Args:
        rows: of `distortion_path`.
        distortion: which one stands against the input's; models are compared by "output" alone, since a latent
            distortion says nothing of a collapsed posterior.

    Raises:
        ValueError: another distortion.
    """
    if distortion not in ("output", "latent"):
        raise ValueError(f'distortion must be "output" or "latent", got {distortion!r}')

    def area(curve: pd.DataFrame) -> float:
        inside = curve[curve["input_distortion"] <= 1].sort_values("input_distortion", kind="stable")
        reached = inside[f"{distortion}_distortion"].to_numpy()
        least = reached.min(initial=1.0)
        last = inside["input_distortion"].max() if len(inside) else 0.0
        across = np.concatenate([[0.0], inside["input_distortion"], [last, 1.0]])
        return float(np.trapezoid(np.concatenate([[1.0], reached, [least, least]]), across))

    areas = {index: area(curve) for index, curve in rows.groupby("index")}
    return pd.Series(areas, name="auddc", dtype=float).rename_axis("index")


@torch.enable_grad()
def _search(
    terms: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, penalties: Tensor, steps: int, low: float, high: float
) -> Tensor:
    """The best point that Adam meets for each penalty, [lambdas, batch, *data_shape]; it starts at x."""
    best = point = x.expand(len(penalties), *x.shape)
    least = torch.full(point.shape[:2], torch.inf, dtype=x.dtype, device=x.device)
    variable = point.clone().requires_grad_()
    # Adam does not feel how large the penalty is. The first steps cross the data range in ten, later ones shrink.
    rate = (high - low) / 10
    optimizer = torch.optim.Adam([variable], lr=rate)
    for step in range(steps):
        norm, divergence = terms(variable)
        cost = penalties[:, None] * norm.square() + divergence
        (variable.grad,) = torch.autograd.grad(cost.sum(), variable)
        with torch.no_grad():
            lower = (cost < least).view(*cost.shape, *[1] * (x.ndim - 1))
            best, least = torch.where(lower, variable, best), torch.minimum(cost, least)
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()
        with torch.no_grad():
            # outside the graph: a clamp inside it would have no gradient at the end of the data range
            variable.clamp_(low, high)
    return best.detach()
