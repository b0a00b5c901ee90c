"""Which notebooks have to run, in which order, and why: decided from what the results were made of, never from clocks.

A notebook is up to date when its cells, `paperlib`, the pins, the data and the results it reads are those that its
published files were made from, and those files are intact.
"""

import hashlib
import json
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import nbformat

from paperlib.paper.results import library_files
from scripts.nbfile import NotebookError
from scripts.publish import Site, changed_file, file_digest, read_json


@dataclass(frozen=True)
class Notebook:
    """A source notebook; `needs` are the numbers of the notebooks whose results it reads.

    One of the long profile is computed by that profile alone, or small by the smoke profile; the paper profile draws it
    from its published rows.
    """

    path: Path
    needs: tuple[str, ...]
    figures: tuple[str, ...]
    source: str  # hash of its cells and promises, without outputs
    profile: str = "paper"  # or "long"

    @property
    def number(self) -> str:
        return self.path.name[:2]

    @classmethod
    def read(cls, path: Path) -> "Notebook":
        nb = nbformat.read(path, as_version=4)
        about = nb.metadata.get("paperlib", {})
        needs, figures = (tuple(about.get(key, ())) for key in ("needs", "figures"))
        if odd := [name for name in figures if not name.startswith(path.name[:3])]:
            raise NotebookError(
                f"{path.name} promises {', '.join(odd)}: a figure's name begins with its notebook's number"
            )
        profile = about.get("profile", "paper")
        if profile not in ("paper", "long"):
            raise NotebookError(
                f'{path.name} is of the profile {profile!r}: there are "paper", the default, and "long"'
            )
        cells = [[cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))] for cell in nb.cells]
        source = json.dumps([cells, needs, figures])
        return cls(path, needs, figures, hashlib.sha256(source.encode()).hexdigest(), profile)

    def is_drawn_only(self, site: Site) -> bool:
        """Whether this site draws it from rows that another profile has computed."""
        return self.profile == "long" and site.profile == "paper"

    def lacks_rows(self, site: Site) -> str | None:
        """Why this site has nothing to draw it from, and what to do; None where it can be made."""
        if not self.is_drawn_only(site) or any((site.home / "figures" / "data").glob(f"{self.number}_*.csv")):
            return None
        command = f"make figures PROFILE=long NB={self.number} DATASET={site.dataset}"
        return f"{self.path.name} has no rows for {site.dataset} yet; `{command}` makes them, in hours"


def discover(root: Path) -> dict[str, Notebook]:
    """The numbered notebooks by number, each after all that it needs."""
    found: dict[str, Notebook] = {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        if path.name[:2] in found:
            raise NotebookError(f"{found[path.name[:2]].path.name} and {path.name} have the same number")
        found[path.name[:2]] = Notebook.read(path)
    if not found:
        raise NotebookError(f"no notebooks/NN_*.ipynb under {root}")
    for notebook in found.values():
        if unknown := sorted(set(notebook.needs) - set(found)):
            raise NotebookError(f"{notebook.path.name} needs {', '.join(unknown)}, and there is no such notebook")
    sorter = TopologicalSorter({number: found[number].needs for number in sorted(found)})
    try:
        return {number: found[number] for number in sorter.static_order()}
    except CycleError as error:
        raise NotebookError(f"notebooks need each other in a circle: {' -> '.join(error.args[1])}") from error


def fingerprint(site: Site, notebooks: dict[str, Notebook], number: str) -> str:
    """A hash of all that the results depend on: code, pins, data, parameters, and what its needs published."""
    files = [*library_files(site.root), site.root / "requirements.lock"]
    parts: list[object] = [site.profile, site.dataset, site.checksum, notebooks[number].source]
    parts += [[str(path.relative_to(site.root)), file_digest(path)] for path in files if path.is_file()]
    for need in sorted(notebooks[number].needs):
        data = {
            n: sha for n, sha in read_json(site.stamp(need)).get("files", {}).items() if n.startswith("figures/data/")
        }
        parts.append([need, fingerprint(site, notebooks, need), data])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def outdated(site: Site, notebooks: dict[str, Notebook], number: str) -> str | None:
    """Why the notebook has to run, or None when its published results are up to date and intact."""
    stamp = read_json(site.stamp(number))
    if not stamp:
        return "not made here yet"
    if stamp.get("fingerprint") != fingerprint(site, notebooks, number):
        return "code, data or earlier results have changed"
    if name := changed_file(site, stamp):
        return f"{name} is not as it was published"
    return None


def published(site: Site, notebook: Notebook) -> bool:
    """Whether the home holds its figures (a fresh clone has no stamps); without figures the stamp decides."""
    there = all((site.home / "figures" / f"{name}.png").is_file() for name in notebook.figures)
    return there and bool(notebook.figures or read_json(site.stamp(notebook.number)))


def plan(site: Site, notebooks: dict[str, Notebook], only: str | None) -> list[str]:
    """The numbers to look at, in order; for one notebook: what it needs first, as far as that was never published.

    In the long profile these are its notebooks, and likewise what they need first.
    """
    if only is None and site.profile != "long":
        return list(notebooks)
    if only is None:
        wanted = {number for number, notebook in notebooks.items() if notebook.profile == "long"}
    else:
        wanted = {only[:2].zfill(2)}
    if unknown := sorted(wanted - set(notebooks)):
        raise NotebookError(f"no notebook {', '.join(unknown)}; there are {', '.join(sorted(notebooks))}")
    if site.profile == "long" and (paper := sorted(n for n in wanted if notebooks[n].profile != "long")):
        raise NotebookError(f"notebook {', '.join(paper)} is not of the long profile: leave out PROFILE=long")
    missing: set[str] = set()

    def collect(one: str) -> None:
        for need in notebooks[one].needs:
            if need not in missing and not published(site, notebooks[need]):
                missing.add(need)
                collect(need)

    for number in wanted:
        collect(number)
    if missing := missing - wanted:
        names, asked = ", ".join(sorted(missing)), ", ".join(sorted(wanted))
        print(f"{asked} needs {names}, not yet made for {site.profile} on {site.dataset}: first {names}")
    return [one for one in notebooks if one in missing | wanted]
