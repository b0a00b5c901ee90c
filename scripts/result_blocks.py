"""Blocks of the prose files that show notebooks 10 and 11; see `scripts.readme`."""

from paperlib.paper import certified_likelihood_tables, ladder, ladder_tables
from paperlib.paper.likelihood_rows import CONFIDENCE
from paperlib.paper.mnist_training import EPS
from paperlib.paper.results import ROOT
from paperlib.paper.tables import markdown
from paperlib.runtime.rows import read_rows

DATA = ROOT / "figures" / "data"


def ladder_block() -> str:
    """Distance from the attack and time of each bound, and what branch and bound reaches."""
    rows = read_rows(DATA / "10_ladder.csv")
    note = (
        "Mean distance below the strongest attack in nats, rounded up, and milliseconds for an image on one thread, "
        f"beside other work; {rows['index'].nunique()} test images. "
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
