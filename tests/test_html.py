"""The pages of `make html`: formulas, links, figures, the reference; nothing that a browser would have to fetch."""

import base64
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pdoc.render
import pytest

import paperlib
from paperlib.paper.results import ROOT
from scripts import html
from scripts.formulas import FormulaError, mathml
from scripts.html import build
from scripts.pages import PageError, Source, render, rendered

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
COSTS = """# What it *costs* at $\\kappa = 0.5$

A table, with $\\epsilon$ and a picture:

| notebook | $t$ |
|:---------|----:|
| one      | 1.5 |

![A pixel](../figures/pixel.png) and [notebook 3](../notebooks/03_attacks.ipynb#Is-the-attack-weak?), [more](more.md),
[the library](../paperlib), [a script](../scripts/html.py), [elsewhere](https://arxiv.org/abs/2004.10608).

`echo $HOME $PATH`

```sh
# not a heading
echo $HOME $PATH
```
"""


class Page(HTMLParser):
    """What is asked of a page here: its words, links and figures, and all that a browser would fetch for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[tuple[str, str]] = []  # (the elements around, the text)
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in {"img", "meta", "link", "input", "br", "wbr", "hr", "path"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        while tag in self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.words.append((" ".join(self.open), data))

    def all(self, tag: str, attribute: str) -> list[str]:
        return [attrs[attribute] for name, attrs in self.tags if name == tag and attribute in attrs]

    @cached_property
    def ids(self) -> set[str]:
        return {attrs["id"] for _, attrs in self.tags if "id" in attrs}

    def inside(self, tag: str) -> str:
        return "".join(text for around, text in self.words if tag in around.split())

    def fetched(self) -> Iterator[str]:
        """Addresses that are loaded to show the page; a link is followed by the reader only."""
        for tag, attrs in self.tags:
            if tag in {"script", "img", "iframe", "source", "video", "audio", "embed", "input"}:
                yield from (attrs[name] for name in ("src", "srcset") if name in attrs)
            if tag in {"link", "use", "image", "object"}:
                yield from (attrs[name] for name in ("href", "xlink:href", "data") if name in attrs)
        yield from re.findall(r"url\([\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", self.inside("style"))
        yield from re.findall(r"\.src = \"([^\"]+)\"|fetch\(\"([^\"]+)\"", self.inside("script"))


def flat(found: Any) -> str:
    return found if isinstance(found, str) else "".join(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages of the committed notebooks and of two Markdown files, made once."""
    root = tmp_path_factory.mktemp("site")
    for name in ("docs", "figures", "html"):
        (root / name).mkdir()
    (root / "figures" / "pixel.png").write_bytes(PIXEL)
    (root / "docs" / "COSTS.md").write_text(COSTS)
    (root / "docs" / "more.md").write_text("Text without a heading.")
    (root / "html" / "old.html").touch()
    made = build(ROOT / "notebooks", root / "docs", root / "html")
    assert sorted(made) == sorted(str(p.relative_to(root / "html")) for p in (root / "html").rglob("*") if p.is_file())
    return root / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {str(path.relative_to(site)): Page(path) for path in sorted(site.rglob("*.html"))}


def notebook(*cells: Any) -> Source:
    return Source(Path("07_bad.ipynb"), nbformat.v4.new_notebook(cells=list(cells)))


def shown(markdown: str) -> str:
    return rendered(markdown, Path("07_bad.ipynb"), {})


# ---- every page


def test_no_page_fetches_anything_but_the_search_of_the_reference(site: Path, pages: dict[str, Page]) -> None:
    searches = 0
    for name, page in pages.items():
        outside = [address for address in map(flat, page.fetched()) if not address.startswith(("data:", "#"))]
        for address in outside:
            assert name.startswith("api/") and address.endswith("search.js"), f"{name} fetches {address}"
            assert (page.path.parent / address).resolve() == site / "api" / "search.js"
            searches += 1
    assert searches == sum(name.startswith("api/") for name in pages), "the address of the search was not found"


def test_what_would_be_fetched_is_found(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        '<link rel="stylesheet" href="a"><script src="b"></script><img src="c"><style>@import "d"; p { background: '
        'url(e) }</style><script>s.src = "f"; fetch("g")</script><a href="https://here">a link</a>'
    )
    assert sorted(map(flat, Page(path).fetched())) == list("abcdefg")


def test_every_link_leads_to_a_page_that_exists(pages: dict[str, Page]) -> None:
    inner, others = 0, {page.path: page for page in pages.values()}
    for name, page in pages.items():
        for href in page.all("a", "href"):
            if "://" not in href:
                file, _, place = href.partition("#")
                target = (page.path.parent / file).resolve() if file else page.path
                assert target.is_file(), f"{name} links to {href}"
                # pdoc links to constructors that a class inherits, and shows none without arguments
                shown = not place or place.endswith(".__init__") or place in others[target].ids
                assert shown, f"{name} links to {href}"
                inner += 1
    assert inner > 1000


def test_no_page_names_a_folder_of_this_machine(site: Path) -> None:
    for path in site.rglob("*.*"):
        assert str(ROOT) not in path.read_text(encoding="utf-8"), path.name
        assert str(site.parent) not in path.read_text(encoding="utf-8"), path.name


# ---- the index, and the bar of each page


def test_the_index_shows_each_notebook_in_order_and_the_library(pages: dict[str, Page]) -> None:
    index = pages["index.html"]
    order = [*(f"{path.stem}.html" for path in NOTEBOOKS), "COSTS.html", "more.html", "api/paperlib.html"]
    assert list(dict.fromkeys(href for href in index.all("a", "href") if not href.startswith("#"))) == order
    assert index.inside("title") == index.inside("h1").rstrip("¶") == html.HEADING
    assert (paperlib.__doc__ or "").split("\n")[0] in index.inside("p")
    for path in NOTEBOOKS:
        source = Source.read(path)
        assert source.title in index.all("img", "alt") and source.title in index.inside("h2")
        assert re.match(r"\*\*Claim\.\*\* ", source.paragraph)
    assert index.inside("p").count("Claim.") == len(NOTEBOOKS)


def test_each_page_links_to_the_index_and_to_its_neighbours(pages: dict[str, Page]) -> None:
    order = [*(f"{path.stem}.html" for path in NOTEBOOKS), "COSTS.html", "more.html"]
    for before, name, after in zip([None, *order], order, [*order[1:], None], strict=False):
        bar = [(attrs["rel"], attrs["href"]) for tag, attrs in pages[name].tags if tag == "a" and "rel" in attrs]
        expected = [("index", "index.html"), ("prev", before), ("next", after)]
        assert bar == 2 * [(rel, href) for rel, href in expected if href], name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_is_titled_by_its_first_heading_and_its_figures_by_theirs(path: Path, pages: dict[str, Page]) -> None:
    page, source = pages[f"{path.stem}.html"], nbformat.read(path, as_version=4)
    headings = re.findall(r"^#+ (.+)$", "\n".join(c.source for c in source.cells if c.cell_type == "markdown"), re.M)
    assert page.inside("title") == headings[0]
    figures = [o for c in source.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    alts = page.all("img", "alt")
    assert len(alts) == len(figures) > 0
    assert set(alts) <= set(headings[1:]) and alts == sorted(alts, key=headings.index)


# ---- formulas


def formulas_of(source: Source) -> list[str]:
    """What lies between dollars outside code, in the Markdown of cells and outputs; found without the renderer."""
    texts = [cell.source for cell in source.notebook.cells if cell.cell_type == "markdown"]
    outputs = [output for cell in source.notebook.cells for output in cell.get("outputs", [])]
    texts += [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
    return [f for text in texts for f in re.findall(r"\$\$.+?\$\$|\$[^$]+\$", re.sub(r"`[^`]*`", "", text), re.DOTALL)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_is_mathml(path: Path, pages: dict[str, Page]) -> None:
    page, formulas = pages[f"{path.stem}.html"], formulas_of(Source.read(path))
    displays = page.all("math", "display")
    assert len(displays) == len(formulas) > 0
    assert displays.count("block") == sum(formula.startswith("$$") for formula in formulas)
    assert "\\" not in page.inside("math")
    prose = "".join(text for around, text in page.words if not {"pre", "code", "style"} & set(around.split()))
    assert "$" not in prose and "\\" not in prose
    assert "mathjax" not in page.text.lower() and "script" not in {tag for tag, _ in page.tags}


@pytest.mark.parametrize(
    ("latex", "why"),
    [
        (r"\nosuchcommand x", r"unknown \nosuchcommand"),
        (r"\text{a \nosuchcommand}", r"unknown \nosuchcommand"),
        (r"\frac{1}", "missing argument"),
        (r"{x", "brace without its partner"),
        (r"x}", "brace without its partner"),
        (r"\left( x", "ExtraLeftOrMissingRight"),
        (r"a & b", "unknown &"),
        (r"a \\ b", "line break"),
        (r"\begin{nosuch} a \end{nosuch}", "unknown environment"),
        (r"\mathcal\alpha", "no α in the alphabet script"),
    ],
)
def test_a_bad_formula_is_named(latex: str, why: str) -> None:
    with pytest.raises(PageError) as caught:
        shown(f"Text with ${latex}$.")
    assert str(caught.value).startswith(f"07_bad.ipynb: the formula {latex!r} cannot be shown: ")
    assert why in str(caught.value)


@pytest.mark.parametrize("place", ["cell", "text/markdown", "text/latex"])
def test_a_bad_formula_is_found_wherever_it_stands(place: str) -> None:
    formula = r"$$\nosuchcommand$$"
    cell = nbformat.v4.new_markdown_cell(f"# A title\n\n{formula}")
    if place != "cell":
        output = nbformat.v4.new_output("display_data", {place: formula, "text/plain": "a formula"})
        cell = nbformat.v4.new_code_cell("1", outputs=[output])
    with pytest.raises(PageError, match=r"^07_bad\.ipynb: the formula .*nosuchcommand"):
        render(notebook(cell), {})


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\mathcal N", "<mi>𝒩</mi>"),
        (r"\mathbb E + \mathbb R", "<mi>𝔼</mi><mo>+</mo><mi>ℝ</mi>"),
        (r"\mathbb{1}", "𝟙"),
        (r"\mathrm{ELBO}", "<mi>ELBO</mi>"),
        (r"x'", "<mrow><mi>x</mi><mi>′</mi></mrow>"),
        (r"x'_i", "<msub><mrow><mi>x</mi><mi>′</mi></mrow><mi>i</mi></msub>"),
        (r"|W|", '<mo stretchy="false" lspace="0em" rspace="0em">|</mo><mi>W</mi><mo'),
        (r"\underline l", '<mrow class="underline"><mi>l</mi></mrow>'),
        (r"\overline{a b}", '<mrow class="overline"><mrow><mi>a</mi><mi>b</mi></mrow></mrow>'),
        (
            r"\underbrace{C}_{\text{low}}",
            '<munder><mrow class="underbrace"><mrow><mi>C</mi></mrow></mrow><mrow><mtext>low',
        ),
        (r"a < b", "<mo>&lt;</mo>"),
        (r"\text{a < b}", "<mtext>a\u00a0&lt;\u00a0b</mtext>"),
        (r"\log p", '<mo lspace="0em" rspace="0.167em">log</mo><mi>p</mi>'),
        (r"2\log(p)", '<mn>2</mn><mo lspace="0.167em" rspace="0em">log</mo><mo'),
        (r"\min_x y", '<munder><mo lspace="0em" rspace="0.167em" movablelimits="true">min</mo><mi>x</mi></munder>'),
        (r"\arg\min_x", '<mo lspace="0em" rspace="0.167em">arg</mo><munder>'),
        (r"\lVert x \rVert", '<mo lspace="0em" rspace="0em" form="prefix" stretchy="false">‖</mo><mi>x</mi><mo'),
        (r"\rVert_2", 'form="postfix" stretchy="false">‖</mo><mn>2</mn></msub>'),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
        (r"\tfrac12", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
    ],
)
def test_a_formula_is_set_as_tex_would(latex: str, expected: str) -> None:
    text = mathml(latex, display=True)
    assert expected in text
    assert text.startswith('<math display="block">')
    assert mathml(latex, display=False).startswith('<math display="inline">')


def test_an_empty_formula_is_an_error() -> None:
    with pytest.raises(FormulaError, match="NoAvailableTokens"):
        mathml(" ", display=False)


def test_dollars_in_code_and_escaped_ones_are_no_formulas() -> None:
    text = shown("`$a$` costs \\$5 or \\$6\n\n```\n$b$\n```\n\n    $c$\n\nand $d$")
    assert text.count("<math") == 1 and all(f"${letter}$" in text for letter in "abc") and "$5 or $6" in text
    printed = nbformat.v4.new_output("stream", text="$y$")
    page = render(notebook(nbformat.v4.new_code_cell('"$x$"', outputs=[printed])), {})
    assert "<math" not in page and "$x$" in page and "$y$" in page


def test_a_full_stop_stays_on_the_line_of_its_formula() -> None:
    unbroken = re.findall(r'<span class="unbroken">(.*?)</span>', shown("Some ($a$), $b$ and $c$-th, $d$."))
    assert [re.sub("<[^>]+>", "", text) for text in unbroken] == ["(a),", "c-th,", "d."]


def test_environments_and_latex_outputs_are_formulas() -> None:
    assert shown("\\begin{align*}\na &= b\n\\end{align*}").count('<math display="block">') == 1
    latex = nbformat.v4.new_output("display_data", {"text/latex": r"$\displaystyle \frac{1}{2}$", "text/plain": "0.5"})
    assert "<mfrac>" in render(notebook(nbformat.v4.new_code_cell("half", outputs=[latex])), {})


# ---- Markdown pages


def test_a_markdown_file_becomes_a_page(pages: dict[str, Page]) -> None:
    page = pages["COSTS.html"]
    assert page.inside("title") == "What it costs at κ=0.5"
    assert page.all("math", "display") == ["inline"] * 3
    assert "one" in page.inside("td") and page.all("img", "alt") == ["A pixel"]
    assert page.all("img", "src") == [f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a" and not attrs.get("class")]
    notebook_3, arxiv = "03_attacks.html#Is-the-attack-weak?", "https://arxiv.org/abs/2004.10608"
    assert links == [notebook_3, "more.html", "api/paperlib.html", arxiv]
    assert "a script" in page.inside("p")
    assert "$HOME $PATH" in page.inside("code") and "# not a heading\necho $HOME $PATH" in page.inside("pre")
    assert pages["more.html"].inside("title") == "more"


@pytest.mark.parametrize(
    ("markdown", "named"),
    [
        ("![](no.png)", "no.png"),
        ("![](https://example.org/a.png)", "https://example.org/a.png"),
        ('<img alt="" src="b.png">', "b.png"),
        ('<script src="c.js"></script>', "c.js"),
        ('<link rel="stylesheet" href="d.css">', "d.css"),
    ],
)
def test_what_is_not_inside_the_page_is_an_error(markdown: str, named: str) -> None:
    with pytest.raises(PageError, match=rf"^07_bad.ipynb: .*{re.escape(named)}.* is not inside the page"):
        render(notebook(nbformat.v4.new_markdown_cell(markdown)), {})


# ---- the reference


def library() -> list[str]:
    """The modules, found by their files and not by their names in the package."""
    files = (path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "paperlib").rglob("*.py"))
    names = {".".join(parts).removesuffix(".__init__") for parts in files}
    return sorted(name for name in names if "._" not in name)


def test_each_module_has_its_page_and_paperlib_lists_them_all(pages: dict[str, Page]) -> None:
    names = library()
    assert "paperlib" in names and len(names) > 20
    assert sorted(name for name in pages if name.startswith("api/")) == sorted(
        f"api/{name.replace('.', '/')}.html" for name in names
    )
    front = pages["api/paperlib.html"]
    assert {f"paperlib/{name.replace('.', '/')}.html".removeprefix("paperlib/") for name in names[1:]} <= {
        href.partition("#")[0] for href in front.all("a", "href")
    }
    assert set(paperlib.__all__) <= front.ids
    for name in names:
        page, above = pages[f"api/{name.replace('.', '/')}.html"], name.count(".") + 1
        assert name in page.inside("title") and "../" * above + "index.html" in page.all("a", "href")


def test_docstrings_are_readable(pages: dict[str, Page]) -> None:
    """Each opens as in the source, and what is indented there keeps its lines."""
    indented = 0
    for name in library():
        page = pages[f"api/{name.replace('.', '/')}.html"]
        doc = inspect.getdoc(import_module(name)) or ""
        assert squeezed(doc.partition("\n\n")[0]) in squeezed(page.inside("p")), name
        for block in re.findall(r"\n\n((?: {4}.*\n?)+)", doc):
            indented += 1
            assert inspect.cleandoc(block).strip() in page.inside("pre"), name
    assert indented > 0


def squeezed(text: str) -> str:
    return re.sub(r"[`*\s]|paperlib", "", text)  # pdoc completes the names of modules


def test_formulas_of_docstrings_are_set_too_and_bad_ones_are_errors(site: Path) -> None:
    as_html = pdoc.render.env.filters["to_html"]
    assert "𝔼" in as_html("Bounds $\\mathbb E$.")
    with pytest.raises(PageError, match=r"API reference: the formula .*nosuchcommand"):
        as_html("Bounds $\\nosuchcommand$.")


# ---- the command


def test_nothing_is_touched_where_a_page_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "old.html").touch()
    with pytest.raises(FileNotFoundError, match="no executed notebooks"):
        build(tmp_path, tmp_path, tmp_path / "html")
    nbformat.write(notebook(nbformat.v4.new_markdown_cell("# One")).notebook, tmp_path / "01_one.ipynb")
    for name, text, why in (("a.md", "$\\nosuch$", r"a\.md: the formula"), ("index.md", "# Mine", r"index\.md")):
        (tmp_path / name).write_text(text)
        with pytest.raises(PageError, match=why):
            build(tmp_path, tmp_path, tmp_path / "html")
        (tmp_path / name).unlink()
    assert [path.name for path in (tmp_path / "html").iterdir()] == ["old.html"]


@pytest.mark.parametrize(
    ("asked", "folder"),
    [
        ({}, "notebooks"),
        ({"profile": "smoke"}, "build/smoke-mnist5k/notebooks"),
        ({"profile": "smoke", "dataset": "fashion-mnist"}, "build/smoke-fashion-mnist/notebooks"),
    ],
)
def test_the_notebooks_are_those_of_profile_and_data_set(
    asked: dict[str, Any], folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretend(notebooks: Path, docs: Path, target: Path) -> list[str]:
        assert (notebooks, docs, target) == (ROOT / folder, ROOT / "docs", ROOT / "build" / "html")
        raise PageError("what was wrong")

    monkeypatch.setattr(html, "build", pretend)
    assert html.main(**asked) == 1
    assert capsys.readouterr().err == "error: what was wrong\n"
