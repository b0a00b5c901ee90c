"""A formula of the pages is MathML, which browsers set by themselves: no script, font or network is needed.

latex2mathml reads the LaTeX. What it passes over in silence is an error here, and what a browser would show otherwise
than TeX is put right: alphabets, named operators with their space and limits, norms, colons.
"""

import html
import re
import unicodedata
from contextlib import suppress
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter

THIN, WIDE = "0.167em", "0.278em"  # TeX's spaces around operators with a name and around relations
ROWS = {"math", "mrow", "mstyle", "mtd", "msqrt"}
SCRIPTS = {"msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
PARTS = SCRIPTS | {"mfrac": 2, "mroot": 2}  # how many children an element must have
BESIDE_TO_BELOW = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
OPENING, CLOSING = {"(", "[", "{"}, {")", "]", "}"}
WITH_LIMITS = {"min", "max", "inf", "sup", "lim"}

# What latex2mathml does not know is written in its words. Of a norm's bars it forgets which is the left one: until the
# formula is MathML, signs that no formula holds stand for them.
REWRITTEN = {
    "{aligned}": "{split}",
    r"\arg": r"\operatorname{arg}",
    r"\lVert": "\ue000",
    r"\rVert": "\ue001",
    r"\lvert": "\ue002",
    r"\rvert": "\ue003",
}
# Browsers draw these lines from parts of a font for mathematics, and badly without one: the style sheet draws them.
DRAWN = {("munder", "―"): "underline", ("mover", "―"): "overline", ("munder", "⏟"): "underbrace"}
BARS = {"\ue000": ("‖", "prefix"), "\ue001": ("‖", "postfix"), "\ue002": ("|", "prefix"), "\ue003": ("|", "postfix")}


class FormulaError(ValueError):
    """The LaTeX cannot be shown as it is meant."""


def mathml(latex: str, *, display: bool) -> str:
    """The formula as one <math> element; raises FormulaError where the LaTeX is broken or a command is unknown."""
    rewritten = re.sub(r"\\[A-Za-z]+|\{aligned\}", lambda word: REWRITTEN.get(word[0], word[0]), latex)
    try:
        math = Converter(display="block" if display else "inline").convert_to_element(rewritten)
    except Exception as error:  # a dozen classes that share no base
        raise FormulaError(type(error).__name__) from error
    if problem := _problem(rewritten, math):
        raise FormulaError(problem)
    del math.attrib["xmlns"]  # HTML needs none
    for element in math.iter():
        element.text = html.unescape(element.text or "")
        _alphabet(element)
        _punctuation(element)
    for element in list(math.iter()):
        if element.tag in ROWS:
            _named_operators(element)
        _upright_word(element)
        _drawn(element)
        _prime(element)
    return ElementTree.tostring(math, encoding="unicode", short_empty_elements=False)


def _problem(latex: str, math: Element) -> str | None:
    """What latex2mathml has let pass; it writes known symbols as entities, so anything else is what it left over."""
    plain = re.sub(r"\\.", "", latex)
    if plain.count("{") != plain.count("}"):
        return "a brace without its partner"
    for element in math.iter():
        if left_over := re.search(r"\\[A-Za-z]*|^[{}&#$]$", element.text or ""):
            return f"unknown {left_over[0]}"
        if len(element) != PARTS.get(element.tag, len(element)):
            return "a missing argument"
        if element.tag == "mspace" and "linebreak" in element.attrib:
            return r"a line break \\ outside of a table"
    if latex.count(r"\begin") > len(list(math.iter("mtable"))):
        return "an unknown environment"
    return None


def _alphabet(element: Element) -> None:
    """Letters of script, double-struck and bold alphabets by themselves: browsers ignore the attribute for them."""
    if (variant := element.get("mathvariant", "normal")) != "normal":
        del element.attrib["mathvariant"]
        alphabet = variant.upper().replace("BOLD-", "BOLD ")
        element.text = "".join(_letter(letter, alphabet) for letter in element.text or "")


def _letter(letter: str, alphabet: str) -> str:
    name = re.fullmatch(r"(?:LATIN |GREEK )?(CAPITAL|SMALL|DIGIT)(?: LETTER)? (\w+)", unicodedata.name(letter, ""))
    if name is None:
        return letter
    # letters that are older than the alphabets, such as the double-struck R, have the short name
    for start in (f"MATHEMATICAL {alphabet}", alphabet):
        with suppress(KeyError):
            return unicodedata.lookup(f"{start} {name[1]} {name[2]}")
    raise FormulaError(f"no {letter} in the alphabet {alphabet.lower()}")


def _upright_word(element: Element) -> None:
    r"""A word in \mathrm as one name, which is upright as it is, and not as letters of which each is a name."""
    if element.tag == "mrow" and len(element) > 1 and all(c.get("mathvariant") == "normal" for c in element):
        element.tag, element.text = "mi", "".join(child.text or "" for child in element)
        element[:] = []


def _drawn(element: Element) -> None:
    """A line over or under what it marks, or a brace under it."""
    if element.tag in {"munder", "mover"} and (drawn := DRAWN.get((element.tag, element[1].text or ""))):
        element.tag, element.attrib = "mrow", {"class": drawn}
        del element[1]


def _prime(element: Element) -> None:
    """A prime beside its letter: fonts hold it raised, and as a superscript it would be raised twice."""
    if element.tag in {"msup", "msubsup"} and re.fullmatch("′+", element[-1].text or ""):
        letter, *index, prime = element
        primed = Element("mrow")
        primed[:] = [letter, prime]
        element.tag, element[:] = ("msub", [primed, *index]) if index else ("mrow", [letter, prime])


def _punctuation(element: Element) -> None:
    """Brackets, bars, colons and semicolons are operators, with the space that TeX gives them."""
    if element.text in BARS:
        element.text, form = BARS[element.text]
        _operator(element, "0em", "0em", form=form, stretchy="false")
    elif element.tag == "mo" and element.text in OPENING | CLOSING:
        _operator(element, "0em", "0em", form="prefix" if element.text in OPENING else "postfix")
    elif element.tag == "mo" and element.text == "|":
        _operator(element, "0em", "0em")
    elif element.tag == "mi" and element.text == ":":
        _operator(element, WIDE, WIDE)
    elif element.tag == "mi" and element.text == ";":
        _operator(element, "0em", THIN)


def _operator(element: Element, before: str, after: str, **attributes: str) -> None:
    element.tag = "mo"
    element.attrib.update(lspace=before, rspace=after, **attributes)


def _named_operators(row: Element) -> None:
    """log, min, arg: a thin space on either side unless a bracket or another operator gives it, limits below."""
    for before, child, after in zip([None, *row[:-1]], list(row), [*row[1:], None], strict=True):
        core = _core(child)
        if core.tag in {"mi", "mo"} and re.fullmatch(r"[A-Za-z]{2,}", core.text or ""):
            spaced = before is not None and _is_operand(_core(before))
            opens = after is None or _core(after).text in OPENING
            _operator(core, THIN if spaced else "0em", "0em" if opens else THIN)
            if core.text in WITH_LIMITS:
                core.set("movablelimits", "true")
                child.tag = BESIDE_TO_BELOW.get(child.tag, child.tag)


def _core(element: Element) -> Element:
    """What scripts and limits are attached to."""
    while element.tag in SCRIPTS:
        element = element[0]
    return element


def _is_operand(element: Element) -> bool:
    return element.tag not in {"mo", "mspace"} or element.get("form") == "postfix"
