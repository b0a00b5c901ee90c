"""Rows per example: the clean, the attacked and the certified ELBO, and the check that they are in this order."""

import copy
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.method import Method, find_method
from paperlib.models.elbo import Target, elbo, elbo_terms
from paperlib.models.gaussian import collapse_warning
from paperlib.models.vae import VAE
from paperlib.runtime.distributed import distributed_map
from paperlib.runtime.inference import outside_inference_mode
from paperlib.runtime.numbers import rounded_down, with_error
from paperlib.runtime.progress import Progress
from paperlib.threats.attacks import pgd
from paperlib.threats.perturbation import PerturbationSet

NOISE_SEED = 1  # of the noise in all experiments
ALLOWANCE = 1e-10  # of a value's size, for float64 rounding over a few thousand additions


class SandwichViolationError(AssertionError):
    """certified <= attacked <= clean fails by more than float64 rounding, or a value is not finite."""


@outside_inference_mode
def certify(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    *,
    attack: dict[str, Any] | None = None,
    target: Target = "perturbed",
    method: str | Method = "ibp",
    sound: bool = False,
    memory: float = 1.0,
) -> pd.DataFrame:
    """Certified: no x' in the ball around x has an ELBO below `certified`, for the noise draw of its row.

    Computed in float64 on a copy of the model in evaluation mode. Holds in real arithmetic for that model, where
    float64 rounding is about 1e-12 of a value; with sound=True for the model as it is evaluated in its own precision.
    Nothing is claimed about other noise draws or about their expectation: see `certify_expected`.

    Examples pass through in chunks, so that memory does not grow with their number. Inside `process_group` the
    processes share the chunks, and every one returns all rows: at one torch thread each the same bits as one process.

    Args:
        x: [count, *data_shape] in the data range.
        noise: [count, latent_dim], or [draws, count, latent_dim] for several draws of each example.
        attack: arguments of `pgd` (steps, restarts, generator); None leaves `attacked` empty (NaN). The generator, in
            the same state in all processes, seeds one for each chunk.
        target: what the decoder must explain, see `elbo`.
        method, sound: of `elbo_bounds`.
        memory: GiB for intermediate results, see `chunk_size`; changes rounding and random starts, nothing else.

    Returns:
        One row per draw and example: index, draw, eps, clean, log_likelihood, kl (the two parts of clean: clean =
        log_likelihood - kl), attacked, attacked_log_likelihood, attacked_kl, certified. All ELBOs in nats, float64.

    Raises:
        SandwichViolationError: certified <= attacked <= clean does not hold; shows the first row that breaks it.
        ValueError, UnsupportedLayerError: as `elbo_bounds`.
    """
    how: dict[str, Any] = {"attack": attack, "target": target, "method": method, "sound": sound, "memory": memory}
    return evaluate(vae, x, ball, noise, **how).rows


@dataclass(frozen=True)
class Evaluation:
    """The rows of `certify`, and what the attack made of each of them: [rows, *data_shape], float64 on the CPU."""

    rows: pd.DataFrame
    x_adv: Tensor | None


@torch.no_grad()
def evaluate(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    *,
    attack: dict[str, Any] | None,
    target: Target,
    method: str | Method,
    sound: bool,
    memory: float,
    keep: bool = False,
) -> Evaluation:
    """`certify`, with the attacked examples beside its rows if they are to be kept. Arguments and errors as there."""
    method = find_method(method)
    deployed = copy.deepcopy(vae).eval()
    vae = vae.in_float64()
    bounded, dtype = (deployed, next(deployed.parameters()).dtype) if sound else (vae, torch.float64)
    draws = noise if noise.ndim == 3 else noise[None]
    if len(x) == 0:
        raise ValueError("there is no example to certify")
    if draws.shape[1] != len(x):
        raise ValueError(f"noise must have a row for each of the {len(x)} examples, got {list(noise.shape)}")
    size = chunk_size(vae, x, draws[0], method, memory)
    chunks = [(draw, start) for draw in range(len(draws)) for start in range(0, len(x), size)]
    attacks = dict(zip(chunks, _attacks(attack, len(chunks), x.device), strict=True))

    def rows_of(chunk: tuple[int, int]) -> tuple[pd.DataFrame, Tensor | None]:
        number, start = chunk
        part, part_noise = x[start : start + size], draws[number, start : start + size]
        threat = ball.rows(slice(start, start + size), x)
        frame, x_adv = _rows(vae, part.double(), threat, part_noise.double(), attacks[chunk], target)
        certified = method.lower(bounded, part.to(dtype), threat, part_noise.to(dtype), target, sound)
        frame["certified"] = certified.cpu().numpy()
        frame.insert(0, "index", range(start, start + len(frame)))
        frame.insert(1, "draw", number)
        return frame, x_adv.cpu() if keep and x_adv is not None else None

    frames, attacked = [], []
    name = f"{'certify' if attack is None else 'attack and certify'} {ball.label}"
    with Progress(name, len(draws) * len(x)) as progress:
        for frame, x_adv in distributed_map(rows_of, chunks):
            frames.append(frame)
            attacked += [] if x_adv is None else [x_adv]
            progress.step(len(frame))
    rows = pd.concat(frames, ignore_index=True).assign(eps=ball.size)  # of the whole set, not of a chunk's
    check_sandwich(rows)
    return Evaluation(rows, torch.cat(attacked) if attacked else None)


def evaluation_noise(count: int, latent_dim: int, draws: int = 1, seed: int = NOISE_SEED) -> Tensor:
    """Noise for `certify`, [draws, count, latent_dim]; draw d of example i is the same whatever the counts.

    The noise of all experiments: draw d is that of seed + d.
    """
    rows = max(count, 10_000)  # torch draws fewer numbers in another order
    generators = (torch.Generator().manual_seed(seed + draw) for draw in range(draws))
    # In float32 on the CPU whatever torch's defaults are: the seed promises these numbers.
    drawn = [torch.randn(rows, latent_dim, generator=each, dtype=torch.float32, device="cpu") for each in generators]
    return torch.stack([noise[:count] for noise in drawn])


@torch.no_grad()
def chunk_size(vae: VAE, x: Tensor, noise: Tensor, method: str | Method, memory: float) -> int:
    """How many examples at a time keep the intermediate results of `certify` within `memory` GiB; at least one.

    At most the method's `largest_batch`. Generous by what was measured, with and without attack, steps for alpha and
    `sound`; models, examples and rows come on top of it.

    Args:
        vae, x, noise: the model, and examples of which the first is evaluated.

    Raises ValueError for a budget that is not positive, and as `elbo`.
    """
    if not memory > 0:
        raise ValueError(f"memory must be positive, in GiB, got {memory}")
    probe, layer_sizes = vae.in_float64(), [x[:1].numel()]
    for layer in probe.modules():
        if not any(layer.children()):
            layer.register_forward_hook(
                lambda _layer, _inputs, output: layer_sizes.extend(
                    part.numel() for part in ([output] if isinstance(output, Tensor) else output)
                )
            )
    elbo(probe, x[:1].double(), noise[:1].double())
    use = find_method(method).memory(vae, layer_sizes)
    size = (memory * 2**30 / 8 - use.fixed) / use.per_image
    return int(min(max(size, 1), use.largest_batch))


def _attacks(attack: dict[str, Any] | None, count: int, device: torch.device) -> list[dict[str, Any] | None]:
    """The attack for each chunk. Random starts come from generators of their own: any process can take any chunk."""
    if attack is None or attack.get("restarts", 1) == 1:
        return [attack] * count
    given = attack.get("generator")
    seeds = torch.randint(2**62, (count,), generator=given, device="cpu" if given is None else given.device)
    return [{**attack, "generator": torch.Generator(device).manual_seed(seed)} for seed in seeds.tolist()]


def _rows(
    vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, attack: dict[str, Any] | None, target: Target
) -> tuple[pd.DataFrame, Tensor | None]:
    x_adv = None
    log_likelihood, kl = elbo_terms(vae, x, noise, x)
    columns = {"eps": ball.size, "clean": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}
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
    table = {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in columns.items()}
    return pd.DataFrame(table, index=range(len(x))), x_adv


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


def summary(rows: pd.DataFrame) -> str:
    """The rows of `certify` as lines to print: means over images with standard errors; certificates rounded down.

    The last line warns of a posterior that has collapsed, see `collapse_warning`.
    """
    images = rows.groupby("index")[["clean", "log_likelihood", "kl", "attacked", "certified"]].mean()
    mean, error = images.mean(), images.sem()
    parts = f"log-likelihood {mean['log_likelihood']:.1f}, KL {mean['kl']:.1f}"
    lines = [f"clean      {with_error(mean['clean'], error['clean'])} nats  ({parts})"]
    if rows["attacked"].notna().all():
        lines.append(f"attacked   {with_error(mean['attacked'], error['attacked'])} nats")
    lines.append(f"certified  {rounded_down(mean['certified'])} ± {error['certified']:.1f} nats")
    if warning := collapse_warning(mean["kl"]):
        lines.append(f"warning: {warning}")
    return "\n".join(lines)
