"""What a training step and a certificate cost, as ratios beside their targets.

`python -m scripts.bench` lets all cases take turns in one process, round by round, so that whatever else the
machine does disturbs them alike; a ratio is the median of its values in the rounds. Times are no result of the paper:
a ratio that misses its target is reported and nothing else.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Literal

import pandas as pd
import torch
import tyro
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from paperlib import VAE, Crown, LinfBall, TrainConfig, certificate, conv_vae, load_dataset, mlp_vae, pgd, robust_loss
from paperlib.certificates.method import Method
from paperlib.data.datasets import data_origin
from paperlib.models.elbo import elbo_terms
from paperlib.paper.plots.style import style
from paperlib.paper.results import Results
from paperlib.paper.tables import markdown
from paperlib.runtime.device import tune_malloc
from paperlib.runtime.progress import Progress
from paperlib.runtime.rows import read_header, write_rows
from scripts.bench_report import cost_figure, device_table, ratio_table, step_table
from scripts.publish import start_command

DATASET = "mnist5k"  # needs no network
PRODUCT = re.compile("mm|conv")  # in torch's names of matrix products and convolutions


@dataclass(frozen=True)
class BenchmarkOptions:
    """Measure what steps and certificates cost; write rows and figure."""

    quick: bool = False
    """Tiny and in seconds, into build/: shows that the benchmark runs, and measures nothing."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda writes rows alone: targets, shares and the figure are for the CPU."""


@dataclass(frozen=True)
class BenchmarkSizes:
    rounds: int = 30
    seconds: float = 150.0  # no round begins later: a busy machine gets fewer rounds, not more minutes
    repeats: int = 5  # steps in a row, as in training
    batch: int = 256
    hidden: int = 512
    conv_batch: int = 64
    images: int = 500  # at a time by `certify`
    refined: int = 100  # at a time by `certify` with a method that refines boxes
    alpha_steps: int = 10
    attack_steps: int = 10
    # Small, as no network here is trained: at 0.1 its logits are of a size that training never meets, where exp
    # underflows and takes several times as long.
    eps: float = 0.01


QUICK = BenchmarkSizes(
    rounds=2, repeats=1, batch=4, hidden=8, conv_batch=2, images=4, refined=2, alpha_steps=1, attack_steps=1
)


@dataclass(frozen=True)
class BenchmarkCase:
    """`kind` is "step", "products" (the bare ones of the step of the same name) or "image"."""

    kind: str
    name: str
    call: Callable[[], object]
    repeats: int = 1
    count: int = 1  # images, times the steps of an attack: what is measured is the time of one
    less: Callable[[], object] | None = None  # its time is no part of what is measured

    def seconds(self) -> float:
        spent = _clock(self.call, self.repeats) - (_clock(self.less, self.repeats) if self.less else 0.0)
        return spent / self.count


def _clock(call: Callable[[], object], repeats: int) -> float:
    call()  # brings its own weights back into the caches
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begin = perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (perf_counter() - begin) / repeats


def step(vae: VAE, x: Tensor, ball: LinfBall, kappa: float, bound: str = "ibp") -> Callable[[], None]:
    """One step of `train`, on weights of its own that stay as they are, so that each round does the same work."""
    vae = copy.deepcopy(vae).train()
    noise = torch.randn(len(x), vae.latent_dim, device=x.device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.0, fused=True)

    def call() -> None:
        loss = robust_loss(vae, x, ball, noise, kappa, method=bound)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), TrainConfig.clip)
        optimizer.step()

    return call


def products(vae: VAE, batch: int, passes: int, backward_passes: int = 0) -> Callable[[], None]:
    """Nothing but the matrix products of a step: for each layer one forward, and backward one for the input and one

    for the weight, as often as numbers pass through the network and coefficients are substituted backward through it.
    """
    forward, backward = [], []
    for layer in (module for module in vae.modules() if isinstance(module, nn.Linear)):
        weight, where = layer.weight, layer.weight.device
        x = torch.rand(batch, layer.in_features, device=where)
        gradient = torch.rand(batch, layer.out_features, device=where)
        forward.append((x, weight.detach().T))
        backward += [(gradient, weight.detach()), (gradient.T, x)]
    # The network's input needs no gradient, but backward substitution goes down to it, by products of the same shapes.
    pairs = (forward + backward[:0:-1]) * passes + (forward + backward[::-1]) * backward_passes

    def call() -> None:
        for left, right in pairs:
            torch.mm(left, right)

    return call


def cases(sizes: BenchmarkSizes, device: str = "cpu") -> list[BenchmarkCase]:
    data = load_dataset(DATASET)
    digits, ball = data.x.to(device), data.ball(sizes.eps)
    vae, conv = mlp_vae(data.shape, hidden=(sizes.hidden,)).to(device), conv_vae().to(device)
    x, pictures = digits[: sizes.batch], digits[: sizes.conv_batch].view(-1, 1, 28, 28)
    # kappa, bound, and what passes through the network: the input, or centre and radius of its box, or all three
    steps: dict[str, tuple[float, str, int]] = {
        "VAE": (1.0, "ibp", 1),
        "proVAE kappa=0": (0.0, "ibp", 2),
        "proVAE kappa=0.5": (0.5, "ibp", 3),
        "linear kappa=0": (0.0, "crown-ibp", 2),
        "linear kappa=0.5": (0.5, "crown-ibp", 3),
    }
    found = []
    for name, (kappa, bound, passes) in steps.items():
        bare = products(vae, len(x), passes, backward_passes=int(bound != "ibp"))
        found.append(BenchmarkCase("step", name, step(vae, x, ball, kappa, bound), sizes.repeats))
        found.append(BenchmarkCase("products", name, bare, sizes.repeats))
    for name, kappa in (("conv VAE", 1.0), ("conv proVAE kappa=0", 0.0)):
        found.append(BenchmarkCase("step", name, step(conv, pictures, ball, kappa), sizes.repeats))
    return found + per_image(vae.in_float64(), digits[: sizes.images].double(), ball, sizes)


def per_image(vae: VAE, x: Tensor, ball: LinfBall, sizes: BenchmarkSizes) -> list[BenchmarkCase]:
    """Clean ELBO, a step of the attack and each certificate, as `certify` computes them."""
    noise = torch.randn(len(x), vae.latent_dim, dtype=x.dtype, device=x.device)
    quietly = torch.no_grad()

    def certified(name: str, images: int, method: str | Method) -> BenchmarkCase:
        part, draw = x[:images], noise[:images]
        call = quietly(lambda: certificate(vae, part, ball, draw, method))
        return BenchmarkCase("image", name, call, count=len(part))

    def attack(steps: int) -> Callable[[], Tensor]:
        return quietly(lambda: pgd(vae, x, ball, noise, steps=steps))

    attacked, more = len(x) * sizes.attack_steps, attack(1 + sizes.attack_steps)
    return [
        BenchmarkCase("image", "clean ELBO", quietly(lambda: elbo_terms(vae, x, noise, x)), count=len(x)),
        BenchmarkCase("image", "attack step", more, count=attacked, less=attack(1)),
        certified("ibp", sizes.images, "ibp"),
        certified("crown-ibp", sizes.images, "crown-ibp"),
        certified("crown", sizes.refined, Crown(sizes.alpha_steps)),
    ]


def measure(every: list[BenchmarkCase], sizes: BenchmarkSizes) -> pd.DataFrame:
    """A row for each round and case: seconds of a step, of the products of a step, or for an image."""
    rows: list[dict[str, Any]] = []
    begin = perf_counter()
    with Progress("bench", sizes.rounds) as progress:
        for number in range(sizes.rounds):
            rows += [{"kind": one.kind, "name": one.name, "round": number, "seconds": one.seconds()} for one in every]
            progress.step()
            if perf_counter() - begin > sizes.seconds:
                break
    return pd.DataFrame(rows)


def profiled(every: list[BenchmarkCase]) -> pd.DataFrame:
    """For each step the share of its time that goes into matrix products, into all other tensor operations

    (activations, bounds, likelihood, optimizer) and into the rest, which is Python, autograd and the profiler itself.
    """
    rows = []
    for one in (one for one in every if one.kind == "step"):
        one.call()
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            begin = perf_counter()
            for _ in range(4 * one.repeats):
                one.call()
            spent = perf_counter() - begin
        own = {event.key: event.self_cpu_time_total / 1e6 / spent for event in watched.key_averages()}
        in_products = sum(share for key, share in own.items() if PRODUCT.search(key))
        in_tensors = sum(share for key, share in own.items() if key.startswith("aten::"))
        parts = {"products": in_products, "elementwise": in_tensors - in_products, "other": 1 - in_tensors}
        rows.append({"name": one.name, **parts})
    return pd.DataFrame(rows)


def main(options: BenchmarkOptions) -> None:
    torch.manual_seed(0)
    tune_malloc()  # as the processes of experiments and commands do
    sizes = QUICK if options.quick else BenchmarkSizes()
    results = Results(*(("smoke", DATASET) if options.quick else ("paper", "mnist")), recompute=True)  # where to write
    start_command(results.target / "data")
    every = cases(sizes, options.device)
    begin = perf_counter()
    rows = measure(every, sizes)
    if options.device == "cuda":
        path = results.target / "data" / "00_cost_cuda.csv"
        write_rows(path, rows, asdict(sizes), data_origin(DATASET), perf_counter() - begin)
        print(f"{markdown(device_table(rows))}\n\nrows are in {path}")
        return
    shares = profiled(every)
    seconds = perf_counter() - begin
    for name, frame in (("00_cost", rows), ("00_profile", shares)):
        write_rows(results.target / "data" / f"{name}.csv", frame, asdict(sizes), data_origin(DATASET), seconds)
    about = read_header(results.target / "data" / "00_cost.csv")
    style()
    results.figure(cost_figure(rows, about), "00_cost")
    for table in (ratio_table(rows), step_table(rows, shares)):
        print(f"{markdown(table)}\n")
    print(f"rows and figure are in {results.target}; `make readme` writes the committed ones into README.md")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkOptions))
