"""A page holds its text, formulas, figures and style, and links to its neighbours: it needs no server and no network.

A notebook becomes a page by nbconvert, and so does a Markdown file, as a notebook of one cell.
"""

import base64
import html
import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from scripts.formulas import FormulaError, mathml

TEMPLATES = Path(__file__).with_name("templates")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ .+$", re.MULTILINE)
# a formula and what follows it without a space, such as a full stop, which a browser would put on the next line
UNBROKEN = re.compile(r"""\(?<math display="inline">(?:(?!</math>).)*</math>[^\s<]+""", re.DOTALL)
# what a browser would fetch
FETCHED = re.compile(r"""<(?:img|script|iframe|video|audio|source)\b[^>]*?\bsrc="(?!data:)([^"]*)"|<link\b[^>]*>""")


class PageError(ValueError):
    """A page cannot be made; the message names the file and what in it is at fault."""


class Renderer(IPythonRenderer):
    """Markdown as HTML: formulas are MathML, images are inside, and a link to a file leads to that file's page.

    A link to a file that has no page would lead nowhere, and is shown as its text.
    """

    def __init__(self, file: Path, links: Mapping[str, str], **options: Any) -> None:
        super().__init__(escape=False, **options)
        self.file, self.links = file, links

    def _formula(self, latex: str, *, display: bool) -> str:
        try:
            return mathml(latex, display=display)
        except FormulaError as error:
            raise PageError(f"{self.file.name}: the formula {latex.strip()!r} cannot be shown: {error}") from error

    def inline_math(self, body: str) -> str:
        return self._formula(body, display=False)

    def block_math(self, body: str) -> str:
        return f'<span class="formula">{self._formula(body, display=True)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        path = self.file.parent / url
        if path.is_file():
            kind, content = mimetypes.guess_type(path)[0], base64.b64encode(path.read_bytes()).decode()
            url = f"data:{kind};base64,{content}"
        return super().image(text, url, title)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        path, mark, place = url.partition("#")
        if path and ":" not in path:
            name = PurePosixPath(path).name
            if name not in self.links:
                return text
            url = f"{self.links[name]}{mark}{place}"
        return super().link(text, url, title)


def rendered(markdown: str, file: Path, links: Mapping[str, str], **options: Any) -> str:
    """The Markdown of a file as HTML; `options` are those of nbconvert's renderer."""
    text = MarkdownWithMath(renderer=Renderer(file, links, **options)).render(markdown)
    return UNBROKEN.sub(r'<span class="unbroken">\g<0></span>', text)


@dataclass(frozen=True)
class Source:
    """The notebook or the Markdown file that one page is made from."""

    file: Path
    notebook: NotebookNode

    @classmethod
    def read(cls, file: Path) -> "Source":
        if file.suffix == ".ipynb":
            return cls(file, nbformat.read(file, as_version=4))
        cell = nbformat.v4.new_markdown_cell(file.read_text(encoding="utf-8"), id="text")
        return cls(file, nbformat.v4.new_notebook(cells=[cell]))

    @property
    def page(self) -> str:
        return f"{self.file.stem}.html"

    @cached_property
    def prose(self) -> str:
        """All Markdown without its fenced code, in which a line may look like a heading."""
        return "\n\n".join(FENCED.sub("", cell.source) for cell in self.notebook.cells if cell.cell_type == "markdown")

    @cached_property
    def title(self) -> str:
        """The first heading, as plain text."""
        heading = HEADING.search(self.prose)
        return self.plain(heading[0]) if heading else self.file.stem

    @property
    def paragraph(self) -> str:
        """The first paragraph after the first heading, in Markdown."""
        heading = HEADING.search(self.prose)
        blocks = [block.strip() for block in re.split(r"\n\s*\n", self.prose[heading.end() if heading else 0 :])]
        return next((block for block in blocks if block and not re.match(r"#|!\[|\||\$\$", block)), "")

    @property
    def figure(self) -> str | None:
        """The first figure among the outputs, as base64 PNG."""
        return next((output.data["image/png"] for cell in self.notebook.cells for output in figures(cell)), None)

    def plain(self, markdown: str) -> str:
        text = rendered(markdown, self.file, {}, exclude_anchor_links=True)
        return html.unescape(re.sub(r"<[^>]+>", "", text)).strip()

    def described(self) -> NotebookNode:
        """The notebook with words for each figure: the heading that it stands under."""
        heading = self.title
        for cell in self.notebook.cells:
            if cell.cell_type == "markdown" and (found := HEADING.findall(FENCED.sub("", cell.source))):
                heading = self.plain(found[-1])
            for output in figures(cell):
                output.metadata["alt"] = heading
        return self.notebook


def figures(cell: NotebookNode) -> list[NotebookNode]:
    """The outputs of the cell that hold a figure."""
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


@dataclass(frozen=True)
class Link:
    """One entry of a page's bar."""

    rel: Literal["index", "prev", "next"]
    href: str
    text: str


def render(source: Source, links: Mapping[str, str], bar: Sequence[Link] = ()) -> str:
    """The whole page; `links` leads from the names of files to their pages.

    Raises:
        PageError: a formula that cannot be shown, or something that a browser would have to fetch.
    """

    def prose(markdown: str, attachments: dict[str, dict[str, str]] | None = None) -> str:
        return rendered(markdown, source.file, links, attachments=attachments)

    exporter = HTMLExporter(
        template_name="page",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"prose": prose},
    )
    about = {"title": source.title, "bar": bar}
    text, _ = exporter.from_notebook_node(source.described(), resources={"page": about})
    if fetched := FETCHED.search(text):
        raise PageError(f"{source.file.name}: {fetched[1] or fetched[0]} is not inside the page")
    return text
