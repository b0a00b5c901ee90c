"""Numbers that somebody typed into prose although they were measured: they go stale unseen when results change.

A digit may stand in the prose of a notebook where it is part of a reference (notebook 4, section 3), of a citation (a
year, an arXiv id), of a formula, or of a definition: a count or a size that the notebook's code states, too, or another
setting that the code cell beside it states. Nothing of this excuses a number with a unit of measurement behind it
(nats, per cent, times, seconds): such numbers are computed from rows. Small counts are written as words, and a word
with a unit behind it is as wrong as a digit.
"""

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterable, Iterator

from nbformat import NotebookNode

_ONES = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
_TENS = "eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundreds?|thousands?|millions?|dozens?"
_WORD = rf"(?:{_ONES}|{_TENS}|tens)"
_UNIT = (
    r"(?:nats?|per\s?cents?|%|times|fold|orders?\s+of\s+magnitude|(?:milli)?seconds?|minutes?|hours?|ms|[GM]i?B)(?!\w)"
)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
_FRACTION = r"(?:third|quarter|fifth|tenth|hundredth|thousandth|millionth)"
_ABOUT = r"nearly|about|almost|some|over|under|roughly|than"
VALUE = "\N{BLACK SQUARE}"  # stands for what an f-string computes

WITH_UNIT = [
    re.compile(rf"(?<!\w){_NUMBER}\$?[\s-]*(?:\w+\s+)?{_UNIT}"),
    re.compile(rf"\b{_WORD}(?:(?:[\s-]+|\s+(?:and|to|or|of)\s+){_WORD})*[\s-]+(?:of\s+)?(?:\w+\s+)?{_UNIT}", re.I),
    re.compile(r"\b(?:twice|thrice|\w+fold)\s+(?:as|the|an?|of|that|those)\b|\bhalf\s+as\b", re.I),
    re.compile(rf"\b(?:an?|one|{_ABOUT})\s+{_FRACTION}\b|\b{_FRACTION}s\b|\b(?:{_ABOUT})\s+half\b", re.I),
]
EXCUSED = re.compile(
    r"```.*?```|`[^`]*`|<(pre|code)>.*?</\1>"  # code
    r"|\]\([^)]*\)|https?://\S+"  # where links lead
    r"|^[#*]*\s*\d+\.\s"  # the number of a heading or of an item in a list
    r"|\b(?:notebook|section|figure|table|equation|chapter)s?\s\d+(?:(?:,\s|\sand\s|\sto\s|,\sand\s)\d+)*"
    r"|\barXiv:?\s?\d{4}\.\d{4,5}|(?<!\d)\d{4}\.\d{5}(?!\d)"
    r"|(?:et\sal\.|[A-Z]\w+),?\s\(?(?:19|20)\d\d\b",  # a citation's year
    re.DOTALL | re.MULTILINE,
)
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]+\$", re.DOTALL)


def typed_numbers(text: str, settings: frozenset[float] = frozenset()) -> list[str]:
    """What looks like a typed result in Markdown text; `settings` are the numbers that code states."""
    excused = EXCUSED.sub(" ", text)
    wrong = [match[0] for pattern in WITH_UNIT for match in pattern.finditer(excused)]
    for formula in FORMULA.findall(excused):
        # whole numbers below a hundred make up formulas; others are settings
        wrong += [number for number in _numbers(formula) if _value(number) not in settings and not _small(number)]
    prose = FORMULA.sub(" ", excused)
    return wrong + [number for number in _numbers(prose) if _value(number) not in settings | {0.0, 1.0}]


def typed_in(nb: NotebookNode) -> Iterator[tuple[int, str]]:
    """Cell and finding, for all Markdown of a notebook: its Markdown cells, and the text that its code displays."""
    stated = [_stated(cell) for cell in nb.cells]
    counts = {number for numbers in stated for number in numbers or () if number.is_integer() and number >= 10}
    for place, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            before = next((part for part in reversed(stated[:place]) if part is not None), frozenset())
            after = next((part for part in stated[place + 1 :] if part is not None), frozenset())
            texts, settings = [cell.source], before | after | counts
        elif cell.cell_type == "code":
            texts, settings = _displayed(cell.source), (stated[place] or frozenset()) | counts
        else:
            continue
        yield from ((place, number) for text in texts for number in typed_numbers(text, settings))


def fixed_observations(nb: NotebookNode) -> Iterator[str]:
    """What was seen in results, as text that no run can contradict; a network with written weights is no result."""
    for before, cell in itertools.pairwise(nb.cells):
        if cell.cell_type == "markdown" and "**What we saw" in cell.source and "weight.data" not in before.source:
            yield cell.source


def _numbers(text: str) -> list[str]:
    return re.findall(rf"(?<![\w.]){_NUMBER}(?!\w)", text)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _small(number: str) -> bool:
    return number.isdigit() and int(number) < 100


def _stated(cell: NotebookNode) -> frozenset[float] | None:
    """The numbers in a code cell, its strings and comments, not in displayed text; None for cells that state none."""
    if cell.cell_type != "code" or "parameters" in cell.metadata.get("tags", []):
        return None
    nodes = list(ast.walk(ast.parse(cell.source)))
    strings: list[ast.expr] = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    strings += [argument for call in _calls_of_markdown(nodes) for argument in call.args]
    shown = {id(part) for node in strings for part in _parts(node)}
    values = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in shown]
    stated = {float(value) for value in values if isinstance(value, int | float)}
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    texts = [token.string for token in tokens if token.type == tokenize.COMMENT]
    texts += [value for value in values if isinstance(value, str)]
    return frozenset(stated | {_value(number) for text in texts for number in _numbers(text)})


def _displayed(source: str) -> list[str]:
    """The text in each call of `Markdown`, with a mark in place of what is computed."""
    return [_text(argument) for call in _calls_of_markdown(ast.walk(ast.parse(source))) for argument in call.args]


def _calls_of_markdown(nodes: Iterable[ast.AST]) -> list[ast.Call]:
    calls = (node for node in nodes if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Markdown"]


def _parts(node: ast.expr) -> list[ast.expr]:
    """A string's own text and what it computes, in order; sums of strings are taken apart."""
    if isinstance(node, ast.JoinedStr):
        return node.values
    return [*_parts(node.left), *_parts(node.right)] if isinstance(node, ast.BinOp) else [node]


def _text(node: ast.expr) -> str:
    return "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in _parts(node))
