"""Find the numbers that are typed into the prose of the chapters.

A figure that comes from a computation is inserted (`mlm_utils.prose.insert` and `{glue:text}`),
so that it cannot outlive the computation. A number that comes from elsewhere, such as the
constant of a published prior, is listed with its source in `tools/allowed_numbers.toml`.

Refused are decimals, percentages, and whole numbers beside the words of a diagnostic (draws,
divergences, ESS, R-hat, MCSE). Other whole numbers count and name things too often to be judged.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

# What of a directive is prose: (its argument, its body). Any other directive is refused.
DIRECTIVES = {
    **dict.fromkeys(["admonition", "exercise", "exercise-start", "grid-item-card"], (True, True)),
    "grid": (False, True),  # its argument counts columns
    "index": (False, False),
    **dict.fromkeys(["important", "note", "seealso", "tab-item", "tip", "warning"], (True, True)),
    **dict.fromkeys(["figure", "glossary", "solution", "tab-set"], (False, True)),
    **dict.fromkeys(["exercise-end", "image", "solution-end", "solution-start"], (False, False)),
    **dict.fromkeys(["bibliography", "footbibliography"], (False, False)),
    **dict.fromkeys(["code-block", "code-cell", "math"], (False, False)),
}
DIRECTIVE = re.compile(r"\{(?P<name>[^}]+)\}\s*(?P<argument>.*)")
# Of a role the reader sees the text, except of these: nothing typed, or a title before <target>.
SILENT_ROLES = re.compile(r"(glue|cite|footcite)(:.*)?|eq")
TARGET_ROLES = {"doc", "download", "numref", "ref", "term"}
TITLE = re.compile(r"(?P<title>.*\S)\s*<[^<>]*>", re.DOTALL)

WHOLE = r"\d+(?:,\d{3})*"
SIGN = r"(?:(?<![\w)])[-+\u2212])?"
DECIMAL = rf"{SIGN}(?:{WHOLE}(?:\.\d+)+(?:e[-+]?\d+)?|{WHOLE}e[-+]?\d+|(?<!\w)\.\d+)"
FIGURE = rf"(?:{DECIMAL}|{WHOLE})"
TYPED = re.compile(
    rf"{FIGURE}(?:[\s\\,]*%|\s+(?:per\s?cent|percentage\s+points?)\b)"
    rf"|{FIGURE}\s+(?:\w+\s+)?(?:divergen\w+|draws?|ESS|MCSEs?)\b"
    rf"|\b(?:ESS|R-hat|MCSEs?)\s+(?:[a-z]+\s+){{0,2}}{FIGURE}"
    rf"|{DECIMAL}"
)
# A formula that holds nothing but a number is a number all the same.
NUMBER_IN_DOLLARS = re.compile(r"\$(?:[\d.,\s{}+\u2212-]|\\(?:approx|pm|[%,;: !]))+\$")

PARSER = create_md_parser(
    MdParserConfig(enable_extensions={"amsmath", "colon_fence", "deflist", "dollarmath"}),
    RendererHTML,
)


class Passage(NamedTuple):
    """A run of text: its first line, all of it, and the same with what is not prose blanked."""

    line: int
    text: str
    prose: str


def check(chapters: Path, allowed: Path) -> list[str]:
    """Return what is wrong with the numbers of the chapters and with the list of allowed ones.

    Parameters
    ----------
    chapters : Path
        Folder of MyST chapters.
    allowed : Path
        TOML: a table a chapter, and one named ``everywhere``, from phrases that hold a number
        to the source of that number in words.

    Returns
    -------
    list of str
        A message a fault, with file, line, number, sentence and remedy.
    """
    listed = tomllib.loads(allowed.read_text(encoding="utf-8"))
    entries = {(name, phrase): words for name in listed for phrase, words in listed[name].items()}
    problems, used = [], set()
    for page in sorted(chapters.glob("*.md")):
        own = [entry for entry in entries if entry[0] in ("everywhere", page.stem)]
        try:
            for passage in passages(page.read_text(encoding="utf-8"), 1):
                for hit in TYPED.finditer(passage.prose):
                    allowing = {entry for entry in own if covers(entry[1], passage.text, hit)}
                    used |= allowing
                    if not allowing:
                        problems.append(f"{page.name}:{describe(passage, hit)}")
        except ValueError as error:
            problems.append(f"{page.name}:{error}")
    for (name, phrase), words in entries.items():
        where = f"{allowed.name}: [{name}] {phrase!r}"
        if (name, phrase) not in used:
            problems.append(f"{where} allows no number of that page: remove it")
        if not re.search("[a-z]{2}", phrase, re.IGNORECASE):
            problems.append(f"{where} is no phrase: give the words around the number too")
        if not isinstance(words, str) or len(words.split()) < 3:
            problems.append(f"{where} has no source: say in words where the number comes from")
    return problems


def passages(source: str, first: int) -> Iterator[Passage]:
    """Yield the prose of a Markdown text whose first line has a given number.

    Raises
    ------
    ValueError
        If a directive is not in `DIRECTIVES`, or `insert` is given a typed figure.
    """
    line = first
    for token in PARSER.parse(source):
        if token.map:
            line = first + token.map[0]
        if token.type == "inline":
            yield Passage(line, *read(token.children))
        elif token.type == "html_block" and not token.content.startswith("<!--"):
            yield Passage(line, token.content, token.content)
        elif token.type in ("fence", "colon_fence") and (found := DIRECTIVE.match(token.info)):
            yield from read_directive(**found.groupdict(), content=token.content, line=line)


def read(tokens) -> tuple[str, str]:
    """Return the text of inline tokens, and the text with what is not prose blanked."""
    text = prose = ""
    address = False
    for token in tokens:
        role = token.meta["name"] if token.type == "myst_role" else ""
        shown, hidden = token.content, False
        if token.type in ("softbreak", "hardbreak"):
            shown = "\n"
        elif token.type == "code_inline":
            shown, hidden = f"`{shown}`", True
        elif token.type.startswith("math") or role == "math":
            shown = f"${shown}$"
            hidden = not NUMBER_IN_DOLLARS.fullmatch(shown)
        elif role in TARGET_ROLES and (titled := TITLE.fullmatch(shown)):
            shown = titled["title"]
        elif role in TARGET_ROLES or SILENT_ROLES.fullmatch(role):
            shown, hidden = f"{{{role}}}`{shown}`", True
        elif address or token.type == "html_inline":
            hidden = True
        address = token.type == "link_open" and token.info == "auto"
        text += shown
        prose += "\0" * len(shown) if hidden else shown
    return text, prose


def read_directive(name: str, argument: str, content: str, line: int) -> Iterator[Passage]:
    """Yield the prose of a directive that opens on a line: title, caption, alt text, body."""
    if name not in DIRECTIVES:
        raise ValueError(f"{line}: {{{name}}} is new: say in tools/prose.py what of it is prose")
    argument_is_prose, body_is_prose = DIRECTIVES[name]
    if argument_is_prose:
        yield from passages(argument, line)
    options, body = split_options(content)
    for option, text, above in options:
        if option == "alt":
            yield Passage(line + 1 + above, text, text)
        elif option == "caption":
            yield from passages(text, line + 1 + above)
    start = line + 1 + content[: len(content) - len(body)].count("\n")
    if body_is_prose:
        yield from passages(body, start)
    elif name == "code-cell":
        for figure, above in typed_figures(body):
            raise ValueError(f"{start + above}: insert() is given {figure}: compute it instead")


def split_options(content: str) -> tuple[list[tuple[str, str, int]], str]:
    """Return the options of a directive (name, text, lines above the text) and its body."""
    if block := re.match(r"---\n(.*?\n)---(?:\n|$)", content, re.DOTALL):
        options, nodes = [], [yaml.compose(block[1])]
        for node in nodes:  # grows on the way
            for key, value in node.value:
                if isinstance(value, yaml.MappingNode):
                    nodes.append(value)
                elif isinstance(value, yaml.ScalarNode):
                    above = 1 + value.start_mark.line + (value.style in ("|", ">"))
                    options.append((key.value, value.value, above))
    else:
        block = re.match(r"(?::\w[^\n]*(?:\n|$))*", content)
        pairs = enumerate(line[1:].partition(":") for line in block[0].splitlines())
        options = [(name, text.strip(), above) for above, (name, _, text) in pairs]
    return options, content[block.end() :]


def typed_figures(code: str) -> Iterator[tuple[str, int]]:
    """Yield the numbers that calls of `insert` are given as literals, and the lines above."""
    for call in ast.walk(ast.parse(code)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "insert":
            for value in [v for a in call.args if isinstance(a, ast.Dict) for v in a.values]:
                number = value.operand if isinstance(value, ast.UnaryOp) else value
                if isinstance(number, ast.Constant):
                    yield ast.unparse(value), value.lineno - 1


def covers(phrase: str, text: str, hit: re.Match) -> bool:
    """Whether a phrase stands around a hit in a text; a line end counts as a space."""
    pattern = r"\s+".join(re.escape(word) for word in phrase.split())
    spans = [match.span() for match in re.finditer(pattern, text)]
    return any(start <= hit.start() and hit.end() <= end for start, end in spans)


def describe(passage: Passage, hit: re.Match) -> str:
    """Return the line of a hit, its number, its sentence and what to do about it."""
    line = passage.line + passage.text.count("\n", 0, hit.start())
    before = re.split(r"[.:?!]\s", passage.text[: hit.start()])[-1]
    after = re.split(r"(?<=[.:?!])\s", passage.text[hit.end() :])[0]
    sentence = " ".join(f"{before}{hit[0]}{after}".split())
    return (
        f"{line}: {' '.join(hit[0].split())!r} is typed in {sentence!r}: insert it "
        "(mlm_utils.prose.insert, {glue:text}) or give its source in tools/allowed_numbers.toml"
    )
