"""The published notebooks as pages that need no server, with an index: `build/html/index.html`.

Figures and style are inside each page; formulas are set by MathJax from the network, and shown as
LaTeX without it.
"""

import html
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import tyro
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from paperlib.paper.results import ROOT, home

STYLE = """
body { font: 17px/1.55 Georgia, serif; color: #222; max-width: 46rem; margin: 3rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 0 0 .4rem; }
a { color: #0b5394; text-decoration: none; } a:hover { text-decoration: underline; }
article { display: flex; gap: 1.5rem; padding: 1.5rem 0; border-top: 1px solid #ddd; align-items: flex-start; }
article div { flex: 1; } article p { margin: 0; }
img { width: 13rem; border: 1px solid #eee; } footer { border-top: 1px solid #ddd; color: #777; font-size: .85rem; }
@media (max-width: 40rem) { article { flex-direction: column; } img { width: 100%; } }
"""


@dataclass(frozen=True)
class Entry:
    """What the index says of one notebook: first heading, first paragraph (Markdown), first figure (base64 PNG)."""

    name: str
    title: str
    paragraph: str
    figure: str | None


def describe(name: str, nb: NotebookNode) -> Entry:
    prose = "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    heading = re.search(r"^#+\s+(.+)$", prose, re.MULTILINE)
    blocks = [block.strip() for block in re.split(r"\n\s*\n", prose[heading.end() if heading else 0 :])]
    paragraph = next((block for block in blocks if block and not re.match(r"#|!\[|\||```|\$\$", block)), "")
    outputs = [out for cell in nb.cells if cell.cell_type == "code" for out in cell.outputs]
    figure = next((out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})), None)
    return Entry(name, heading.group(1) if heading else name, paragraph, figure and "".join(figure.split()))


def index_page(entries: list[Entry], mathjax: str, heading: str) -> str:
    articles = []
    for entry in entries:
        link = f"{html.escape(entry.name)}.html"
        image = f'<a href="{link}"><img alt="" src="data:image/png;base64,{entry.figure}"></a>' if entry.figure else ""
        title, text = html.escape(entry.title), markdown2html(entry.paragraph)
        articles.append(f'<article>{image}<div><h2><a href="{link}">{title}</a></h2>{text}</div></article>')
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title><style>{STYLE}</style>
<script>window.MathJax = {{ tex2jax: {{ inlineMath: [["$", "$"]] }} }};</script>
<script async src="{mathjax}"></script></head>
<body><h1>{heading}</h1>
{chr(10).join(articles)}
<footer>The pages hold their figures and need no server. Formulas are set by MathJax from the network; without it they
are shown as LaTeX.</footer></body></html>
"""


def build(notebooks: Path, target: Path, heading: str = "Provably robust deep generative models") -> list[str]:
    """Write one page for each numbered notebook and the index into `target`, which holds nothing else afterwards."""
    paths = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no executed notebooks in {notebooks}")
    exporter = HTMLExporter(embed_images=True)
    exporter.log.setLevel("ERROR")  # it warns of figures without alternative text; their captions stand in the prose
    pages, entries = {}, []
    for path in paths:
        nb = nbformat.read(path, as_version=4)
        page, _ = exporter.from_notebook_node(nb, resources={"metadata": {"name": path.stem, "path": str(path.parent)}})
        page = re.sub(
            r'<script src="[^"]*require[^"]*"></script>', "", page
        )  # from the network, for widgets: none here
        pages[f"{path.stem}.html"] = re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', page)
        entries.append(describe(path.stem, nb))
    pages["index.html"] = index_page(entries, exporter.mathjax_url, heading)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name, page in pages.items():
        (target / name).write_text(page, encoding="utf-8")
    return sorted(pages)


def main(profile: str = "paper", dataset: str = "mnist") -> int:
    """Turn the published notebooks of a profile and data set into pages under build/html."""
    target = ROOT / "build" / "html"
    try:
        pages = build(home(profile, dataset) / "notebooks", target)
    except FileNotFoundError as error:
        print(f"error: {error}; run `make figures` first", file=sys.stderr)
        return 1
    print(f"{len(pages) - 1} pages and an index: {target / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
