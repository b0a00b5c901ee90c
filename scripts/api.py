"""The reference of the library by pdoc, from the docstrings: a page for each module, and a search without a server."""

import pkgutil
from pathlib import Path

import pdoc.doc
import pdoc.render

import paperlib
from paperlib.paper.results import ROOT
from scripts.pages import TEMPLATES, rendered


def modules() -> list[str]:
    """`paperlib`, which has the public names, and then every module below it; none that a name marks as private.

    pdoc alone would find the first only: the package says with `__all__` what it exports, and modules are not among it.
    """
    below = pkgutil.walk_packages(paperlib.__path__, "paperlib.")
    return ["paperlib", *sorted(module.name for module in below if "._" not in module.name)]


def reference() -> dict[str, str]:
    """The text of each file of the reference, by its path; the first is that of `paperlib`."""
    pdoc.render.configure(docformat="google", template_directory=TEMPLATES / "api")
    pdoc.render.env.filters["to_html"] = _to_html
    documented = {name: pdoc.doc.Module.from_name(name) for name in modules()}
    files = {f"{name.replace('.', '/')}.html": pdoc.render.html_module(m, documented) for name, m in documented.items()}
    files["search.js"] = pdoc.render.search_index(documented)
    # the value of a constant may be a path: the folder that this machine keeps the repository in is no one's concern
    return {name: text.replace(str(ROOT), ".") for name, text in files.items()}


def _to_html(docstring: str) -> str:
    """As in the other pages, so that formulas are set in the same way."""
    return rendered(docstring, Path("API reference"), {}, exclude_anchor_links=True)
