"""Blocks of the prose files that show notebooks 10 to 12; see `scripts.readme`."""

from paperlib.paper import certified_likelihood_tables, front_tables, ladder, ladder_tables
from paperlib.paper.likelihood_rows import CONFIDENCE
from paperlib.paper.mnist_training import EPS
from paperlib.paper.results import ROOT
from paperlib.paper.tables import markdown
from paperlib.runtime.rows import read_header, read_rows

DATA = ROOT / "figures" / "data"


def ladder_block() -> str:
    """Distance from the attack and time of each bound, and what branch and bound reaches."""
    rows = read_rows(DATA / "10_ladder.csv")
    note = (
        "Mean distance below the strongest attack in nats, rounded up, and milliseconds for an image on one thread, "
        f"side by side with another process; {rows['index'].nunique()} test images. "
    )
    search = read_rows(DATA / "10_branching.csv")
    reached = ladder_tables.branching_sentence(search)
    note += f"Branch and bound over {search['images'].max()} images. {reached}"
    return f"{markdown(ladder_tables.ladder_table(ladder.ladder_means(rows)))}\n\n{note}"


def likelihood_block() -> str:
    """What is certified of the likelihood beside what is certified of the ELBO, at one radius."""
    rows = read_rows(DATA / "11_likelihood.csv")
    note = (
        f"Nats, means over the first {rows['index'].nunique():,} test images; certified log p with confidence "
        f"{CONFIDENCE:g} for each image, rounded down. K is the number of latents whose weights are averaged."
    )
    return f"{markdown(certified_likelihood_tables.bounds(rows[rows['eps'] == EPS]))}\n\n{note}"


def front_block() -> str:
    """Longer training: our models and those of notebook 2, means over the seeds."""
    rows, header = read_rows(DATA / "12_front.csv"), read_header(DATA / "12_front.csv")["config"]
    seeds = rows.groupby(["recipe", "kappa", "train_eps"])["seed"].nunique().max()
    note = (
        f"Means of {seeds} seeds [lowest, highest], in nats, over {header['images']:,} test images at radius "
        f"{header['eps']}; minutes of training on one core of a shared machine. Certificates are rounded down."
    )
    return f"{markdown(front_tables.points(rows))}\n\n{note}"
