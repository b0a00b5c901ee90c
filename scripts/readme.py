"""Every number in the prose files comes from the committed rows: blocks between markers are written anew from them.

`python -m scripts.readme` rewrites the blocks of all `PAGES`; a test fails when they differ.
A block stands between `<!-- name -->` and `<!-- /name -->`.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd

from paperlib.paper.classifier_tables import accuracy
from paperlib.paper.detection_tables import verdicts
from paperlib.paper.mnist_training import EPS, digit_models, file_name
from paperlib.paper.results import ROOT
from paperlib.paper.rival_tables import summary
from paperlib.paper.tables import by_method, headline, markdown, tradeoff
from paperlib.paper.tighter_training import released_models
from paperlib.runtime.files import atomic
from paperlib.runtime.numbers import rounded_down
from paperlib.runtime.rows import read_header, read_rows
from scripts.bench_report import device_table, ratio_table, step_table
from scripts.plan import Notebook
from scripts.publish import start_command
from scripts.result_blocks import front_block, ladder_block, likelihood_block

PAGES = ("README.md", "docs/costs.md", "figures/data/README.md")
DATA = ROOT / "figures" / "data"


def headline_block() -> str:
    """The headline table with what it was measured on."""
    certified, attacked = read_rows(DATA / "04_certified.csv"), read_rows(DATA / "03_attacked.csv")
    linear, ceiling = read_rows(DATA / "05_linear.csv"), read_rows(DATA / "03_ceiling.csv")
    rows = certified[certified["eps"] == EPS].set_index("model")
    images, draws = rows["images"].max(), rows["draws"].max()
    dataset = read_header(DATA / "04_certified.csv")["dataset"]
    note = (
        f"ELBO in nats at radius {EPS} (mean ± standard error over images), data set `{dataset}`. Clean and certified: "
        f"all {images:,} test images, {draws} noise draws (linear bound: one). Ceiling: what no model whatever passes "
        "in the worst case, as its likelihood is Bernoulli; mean over the same images. Attacked: PGD with "
        f"{read_header(DATA / '03_attacked.csv')['config']['steps']} steps on the first "
        f"{attacked['index'].nunique():,} test images. Certificates are rounded down, the ceiling is rounded up."
    )
    return f"{markdown(headline(certified, attacked, ceiling, EPS, linear))}\n\n{note}"


def reading_block() -> str:
    """The headline in a sentence, for readers who skip tables."""
    certified, attacked = read_rows(DATA / "04_certified.csv"), read_rows(DATA / "03_attacked.csv")
    linear = read_rows(DATA / "05_linear.csv").set_index(["model", "eps"])["crown"]
    bound = certified[certified["eps"] == EPS].set_index("model")["certified"]
    reached = attacked[attacked["eps"] == EPS].groupby("model")["attacked"].mean()
    robust = "proVAE kappa=0.5"
    lost, kept = _clean(certified, "VAE"), _clean(certified, robust)
    return (
        f"At radius {EPS} an attack drives the plain VAE from {lost} to {reached['VAE']:.0f} nats, and its certificate "
        f"by intervals ({float(rounded_down(bound['VAE'], 0)):,.0f}) says nothing. The proVAE with κ = 0.5 is driven "
        f"from {kept} to {reached[robust]:.0f}, and *no* perturbation of that size can push its mean below "
        f"{rounded_down(linear[robust, EPS], 0)} (intervals: {rounded_down(bound[robust], 0)})."
    )


def methods_block() -> str:
    """Certificates by each method beside the attack."""
    rows, attacked = read_rows(DATA / "05_linear.csv"), read_rows(DATA / "03_attacked.csv")
    return markdown(by_method(rows, attacked))


def tradeoff_block() -> str:
    """Training on either bound: means over the seeds."""
    path = DATA / "06_tradeoff.csv"
    header = read_header(path)["config"]
    note = (
        f"Means of {len({config['seed'] for config in header['models']})} seeds [lowest, highest], in nats, over "
        f"{header['images']:,} test images at radius {header['eps']} and one noise draw. Certificates are rounded down."
    )
    return f"{markdown(tradeoff(read_rows(path)))}\n\n{note}"


def rivals_block() -> str:
    """All defences on equal terms, on the first data set of the comparison: means over the seeds."""
    path = DATA / "07_rivals.csv"
    rows, header = read_rows(path), read_header(path)["config"]
    rows = rows[~rows["recipe"].str.contains("convolutional")]
    note = (
        f"Means of {len(header['seeds'])} seeds [lowest, highest], in nats, over {header['images']} test images of "
        f"`{header['datasets'][0]}` and one noise draw. The same network, data and steps for each, tuned by as many "
        "trials; attacked: the strongest of a suite; certified: by the tightest of our bounds for each, rounded down."
    )
    return f"{markdown(summary(rows, header['datasets'][0], (('linf', 0.1), ('l2', 1.0))))}\n\n{note}"


def detection_block() -> str:
    """Certified verdicts on heartbeats at two radii."""
    rows = read_rows(DATA / "08_detection.csv")
    shown = rows[rows["eps"].isin((0.05, 0.1))]
    note = (
        f"Per cent of {rows['abnormal'].max():,} abnormal test beats with an alarm, and of {rows['normal'].max():,} "
        "normal ones without. Radii are for each sample, in standard deviations of a beat. Attacked: the strongest of "
        "a suite; certified: no change within the radius turns the verdict, rounded down."
    )
    return f"{markdown(verdicts(shown, 'model', 'eps'))}\n\n{note}"


def classifier_block() -> str:
    """Certified accuracies of the generative classifier at each radius."""
    rows = read_rows(DATA / "09_margins.csv")
    note = (
        f"Per cent of {rows['images'].max():,} test digits, beside published certified classifiers without a model of "
        "the digits; certified shares are rounded down."
    )
    return f"{markdown(accuracy(rows))}\n\n{note}"


def cost_block() -> str:
    """What steps and certificates cost: ratios beside their targets, and where the time of a step goes."""
    rows, header = read_rows(DATA / "00_cost.csv"), read_header(DATA / "00_cost.csv")
    steps = step_table(rows, read_rows(DATA / "00_profile.csv"))
    note = (
        f"Measured with `make bench` on {header['processor']} (torch threads: {header['threads']}): medians over "
        f"{rows['round'].nunique()} rounds in which all take turns, of untrained networks. The shares of a step's time "
        "are the profiler's."
    )
    return f"{markdown(ratio_table(rows))}\n\n{markdown(steps)}\n\n{note}"


def cuda_block() -> str:
    """What steps and certificates cost on a GPU."""
    rows, header = read_rows(DATA / "00_cost_cuda.csv"), read_header(DATA / "00_cost_cuda.csv")
    sizes = header["config"]
    note = (
        f"`python -m scripts.bench --device cuda` on one {header['processor']}, torch {header['packages']['torch']}: "
        f"medians over {rows['round'].nunique()} rounds, steps of {sizes['batch']} images (convolutional: "
        f"{sizes['conv_batch']}), certificates of {sizes['images']} images at a time (CROWN: {sizes['refined']}, "
        f"{sizes['alpha_steps']} steps for alpha)."
    )
    return f"{markdown(device_table(rows))}\n\n{note}"


def _clean(certified: pd.DataFrame, model: str) -> str:
    rows = certified[(certified["model"] == model) & (certified["eps"] == EPS)]
    return f"{rows['clean'].item():.0f}"


def map_block() -> str:
    """Notebook, claim, figures, measured seconds and memory: claims are the first paragraph of each notebook."""
    runs: dict[str, dict[str, float]] = json.loads((DATA / "runs.json").read_text())
    table = []
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook, cells = Notebook.read(path), nbformat.read(path, as_version=4).cells
        claim = re.search(r"\*\*Claim\.\*\* (.+)", cells[0].source)
        run = runs.get(notebook.number)  # none before its first run by `make figures`
        table.append(
            {
                "notebook": f"[{path.stem}](notebooks/{path.name})",
                "claim": claim[1] if claim else "",
                "figures": ", ".join(f"[{name[3:]}](figures/{name}.png)" for name in notebook.figures),
                "time": f"{run['seconds'] / 60:.1f} min" if run else "",
                "memory": f"{run['peak_gib']:.1f} GiB" if run else "",
            }
        )
    total = sum(run["seconds"] for run in runs.values()) / 60
    cores = {run["cores"] for run in runs.values()}
    processor = read_header(DATA / "04_certified.csv")["processor"].partition(",")[0]
    frame = pd.DataFrame(table)
    text = frame.to_markdown(index=False, disable_numparse=True)
    where = f"{'/'.join(map(str, sorted(cores)))} CPU cores ({processor})"
    return (
        f"{text}\n\nMeasured with `make figures` on {where}; {total:.0f} min in all. Memory: that of the largest "
        "process; there is one for each core."
    )


def checkpoints_block() -> str:
    """The released digit models: file, digest of the configuration, SHA-256."""
    released = {file_name(name): config for name, config in digit_models("mnist", "paper").items()}
    released |= released_models("mnist", "paper")
    table = [
        {
            "file": f"{name}.safetensors",
            "trained on": "ELBO" if config.kappa == 1 else config.bound,
            "kappa": f"{config.kappa:g}",
            "configuration": f"`{config.digest}`",
            "SHA-256": f"`{hashlib.sha256((DATA / f'{name}.safetensors').read_bytes()).hexdigest()}`",
        }
        for name, config in released.items()
    ]
    return str(pd.DataFrame(table).to_markdown(index=False))


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": headline_block,
    "reading": reading_block,
    "methods": methods_block,
    "tradeoff": tradeoff_block,
    "rivals": rivals_block,
    "detection": detection_block,
    "classifier": classifier_block,
    "ladder": ladder_block,
    "likelihood": likelihood_block,
    "front": front_block,
    "cost": cost_block,
    "cuda": cuda_block,
    "map": map_block,
    "checkpoints": checkpoints_block,
}


def filled(text: str) -> str:
    """The text with every generated block made anew; raises ValueError for a marker that names no block."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name not in BLOCKS:
            raise ValueError(f"<!-- {name} --> names no block; known are {sorted(BLOCKS)}")
        return f"<!-- {name} -->\n{BLOCKS[name]()}\n<!-- /{name} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", block, text, flags=re.DOTALL)


def main() -> None:
    start_command(*{(ROOT / page).parent for page in PAGES})
    for page in PAGES:
        path = Path(ROOT / page)
        text = path.read_text(encoding="utf-8")
        new = filled(text)
        if new == text:
            print(f"{page} is up to date")
            continue
        with atomic(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
        print(f"{page} written anew")


if __name__ == "__main__":
    main()
