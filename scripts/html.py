"""The published notebooks as pages that need no network, with an index and the library's reference, in build/html.

A Markdown file in `docs/` is a page, too.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import nbformat
import tyro

import paperlib
from paperlib.paper.results import ROOT, home
from scripts.api import reference
from scripts.figures import FigureOptions, dataset_of
from scripts.pages import Link, PageError, Source, render
from scripts.publish import start_command

HEADING = "Provably robust deep generative models"


def index(sources: Sequence[Source]) -> Source:
    """Title, one sentence, and for each page its title, first paragraph and first figure."""
    sentence = (paperlib.__doc__ or "").partition("\n\n")[0]
    cells = [nbformat.v4.new_markdown_cell(f"# {HEADING}\n\n{sentence}", id="title")]
    for source in sources:
        name, figure = source.file.name, source.figure
        cell = nbformat.v4.new_markdown_cell(f"## [{source.title}]({name})\n\n{source.paragraph}", id=source.file.stem)
        if figure:
            cell.source = f"[![{source.title}](attachment:figure)]({name})\n\n{cell.source}"
            cell.attachments = {"figure": {"image/png": figure}}
        cells.append(cell)
    library = "## [The library](paperlib)\n\nEvery public name and every module of `paperlib`, from the docstrings."
    cells.append(nbformat.v4.new_markdown_cell(library, id="library"))
    return Source(Path("index"), nbformat.v4.new_notebook(cells=cells))


def bar(sources: Sequence[Source], place: int) -> list[Link]:
    """The index, the page before and the page after the one at `place`."""
    before, after = sources[:place][-1:], sources[place + 1 :][:1]
    return [
        Link("index", "index.html", "Index"),
        *(Link("prev", source.page, source.title) for source in before),
        *(Link("next", source.page, source.title) for source in after),
    ]


def build(notebooks: Path, docs: Path, target: Path) -> list[str]:
    """Write a page for each numbered notebook and each Markdown file of `docs`, the index, and the reference.

    `target` holds nothing else afterwards; where a page cannot be made it is left as it was. Returns what it holds.

    Raises:
        FileNotFoundError: there are no notebooks.
        PageError: a page cannot be made.
    """
    paths = [*sorted(notebooks.glob("[0-9][0-9]_*.ipynb")), *sorted(docs.glob("*.md"))]
    if not paths or paths[0].suffix == ".md":
        raise FileNotFoundError(f"no executed notebooks in {notebooks}")
    sources = [Source.read(path) for path in paths]
    if any(source.page == "index.html" for source in sources):
        raise PageError("index.md: the index of all pages has this name, and is made from them")
    links = {source.file.name: source.page for source in sources} | {"paperlib": "api/paperlib.html"}
    pages = {source.page: render(source, links, bar(sources, place)) for place, source in enumerate(sources)}
    pages["index.html"] = render(index(sources), links)
    pages |= {f"api/{name}": text for name, text in reference().items()}
    shutil.rmtree(target, ignore_errors=True)
    for name, text in pages.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(pages)


def main(profile: Literal["paper", "smoke"] = "paper", dataset: str = "auto") -> int:
    """Turn the published notebooks of a profile and data set into pages under build/html."""
    target = ROOT / "build" / "html"
    start_command(target.parent, *filter(Path.exists, [target]))
    published = home(profile, dataset_of(FigureOptions(profile=profile, dataset=dataset, redraw=True)))
    try:
        pages = build(published / "notebooks", ROOT / "docs", target)
    except FileNotFoundError as error:
        print(f"error: {error}; run `make figures` first", file=sys.stderr)
        return 1
    except PageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{sum(name.endswith('.html') for name in pages)} pages; the first is {target / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
