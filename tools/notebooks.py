"""Write every page with code as a plain notebook, for Colab and for any folder.

MyST is turned into Markdown that every notebook can draw. What the book counts through (figures,
equations, exercises) keeps its number, and a figure that a page inserts into its text keeps the
value of the last build; without one, its name stands there. The folder also gets the wheel of
`mlm_utils`, which the first cell of a notebook installs where it is missing.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from textwrap import indent

import address
import jupytext
import nbformat
from docutils.nodes import make_id
from myst_nb.core.variables import format_plain_text
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prose import DIRECTIVE, PARSER, TITLE, split_options
from pybtex.backends.markdown import Backend
from pybtex.database import parse_file
from pybtex.style.formatting.plain import Style
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).parents[1]
# A role, or a code span, in which nothing is one.
ROLE = re.compile(
    r"\{(?P<name>[a-z:]+)\}`(?P<text>[^`]+)`|\[(?P<title>[^]]+)\]\(#(?P<label>[\w-]+)\)"
    r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)",
    re.DOTALL,
)
SOLUTION = "#### Solution"
BOXES = {"admonition", "important", "note", "seealso", "tip", "warning"}
FOLDED = {
    "remove-cell": "Values and checks of the text",
    "hide-input": "Code that the book folds",
}

README = """\
# Multilevel Models in Python, as notebooks

The chapters{site} as plain notebooks, written from its sources: changes belong there. They run in
any folder: install `{wheel}` with pip, or let the first cell do it where it knows
that file's address. Figures in the text are those of the book; your run computes them again.
"""


class Book:
    """What pages say of each other: titles, numbers, sources and figures of the last build."""

    def __init__(self, source: Path, home: address.Address | None):
        self.source, self.home = source, home
        self.owners = packages_distributions()  # module -> packages that bring it
        self.sources = parse_file(source / "references.bib")
        names = [name.removeprefix("chapters/") for name in parse_toc_yaml(source / "_toc.yml")]
        self.pages = {
            name: jupytext.read(source / "chapters" / f"{name}.md", fmt="md:myst") for name in names
        }
        self.labels = {}  # label -> what it is called, its page, its anchor there
        self.counts = dict.fromkeys(["figure", "equation", "exercise"], 0)
        for name, page in self.pages.items():
            for cell in page.cells:
                self.read_labels(name, cell)

    def read_labels(self, page: str, cell) -> None:
        """Note what of a cell can be referred to, and number what the book numbers."""
        if figure := cell.metadata.get("mystnb", {}).get("figure"):
            self.count("figure", "Fig. {}", page, figure["name"])
        if cell.cell_type == "code":
            return
        targets, tokens = [], PARSER.parse(cell.source)
        for token, after in zip(tokens, [*tokens[1:], None], strict=True):
            if token.type == "myst_target":
                targets.append(token.content)
            elif token.type == "heading_open":
                # A page's own name is that of {doc}; Sphinx lets no label be written with a slash.
                whole = [f"/{page}"] if token.tag == "h1" else []
                for label in [*targets, *whole]:
                    self.labels[label] = (after.content, page, "" if whole else make_id(label))
                targets = []
            elif token.type == "fence" and (found := DIRECTIVE.match(token.info)):
                label = dict(o[:2] for o in split_options(token.content)[0]).get("label")
                if found["name"] == "math" and label:
                    self.count("equation", "({})", page, label, "equation-")
                elif found["name"] == "exercise-start":
                    self.count("exercise", "Exercise {}", page, label)

    def count(self, kind: str, form: str, page: str, label: str, prefix: str = "") -> None:
        """Give the next number of a kind to a label."""
        self.counts[kind] += 1
        self.labels[label] = (form.format(self.counts[kind]), page, prefix + make_id(label))


class Page:
    """One page on its way from MyST to a plain notebook."""

    def __init__(self, book: Book, name: str):
        self.book, self.name, self.cited = book, name, []
        values = book.source / "_build" / "jupyter_execute" / "chapters" / f"{name}.glue.json"
        self.values = json.loads(values.read_text()) if values.exists() else {}

    def notebook(self, wheel: str) -> nbformat.NotebookNode:
        """Return the page as a notebook that installs what it needs."""
        cells = [code_cell(self.install(wheel), "Install what is missing")]
        for cell in self.book.pages[self.name].cells:
            if cell.cell_type == "markdown":
                cells += map(text_cell, self.convert(cell.source))
                continue
            tags = cell.metadata.get("tags", [])
            folded = next((FOLDED[tag] for tag in tags if tag in FOLDED), None)
            cells.append(code_cell(cell.source.strip("\n"), folded, tags))
            if figure := cell.metadata.get("mystnb", {}).get("figure"):
                number, _, _ = self.book.labels[figure["name"]]
                cells.append(text_cell(f"**{number}.** {self.inline(figure['caption'].strip())}"))
        closed = []
        for number, cell in enumerate(cells):
            cell.id = f"cell-{number}"
            if "jp-MarkdownHeadingCollapsed" in cell.metadata:
                cell.metadata["id"] = cell.id  # by which Colab knows it
                closed.append(cell.id)
        metadata = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
            "colab": {"toc_visible": True, "collapsed_sections": closed},
        }
        return nbformat.v4.new_notebook(cells=cells, metadata=metadata)

    def install(self, wheel: str) -> str:
        """Return the code that installs the wheel, and what only this page imports, if missing."""
        home = self.book.home
        needed = {"mlm_utils": home.raw(wheel) if home else wheel} | self.extras()
        if home:
            modules = "import subprocess\nimport sys\n"
            remedy = (
                'pip = [sys.executable, "-m", "pip", "install", "--quiet"]\n'
                "    subprocess.run([*pip, *missing], check=True)"
            )
        else:
            modules = "import shlex\n"
            remedy = (
                'remedy = f"pip install {shlex.join(missing)}"\n'
                '    raise ModuleNotFoundError(f"run this beside the wheel first: {remedy}")'
            )
        return (
            f"{modules}from importlib.util import find_spec\n\n"
            f"needed = {json.dumps(needed, indent=4)}\n"
            "missing = [what for name, what in needed.items() if find_spec(name) is None]\n"
            f"if missing:\n    {remedy}"
        )

    def extras(self) -> dict[str, str]:
        """Return what the page imports and the wheel does not bring: module -> requirement."""
        project = tomllib.loads((self.book.source / "pyproject.toml").read_text(encoding="utf-8"))
        extras = {
            canonicalize_name(Requirement(line).name): line
            for line in project["project"]["optional-dependencies"]["book"]
        }
        code = [c.source for c in self.book.pages[self.name].cells if c.cell_type == "code"]
        modules = set()
        for node in (node for source in code for node in ast.walk(ast.parse(source))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.partition(".")[0])
        return {
            module: extras[owner]
            for module in sorted(modules)
            for owner in map(canonicalize_name, self.book.owners.get(module, []))
            if owner in extras
        }

    def convert(self, text: str) -> list[str]:
        """Return MyST text as Markdown, in parts that begin where something can be folded."""
        parts, lines, done = [""], text.splitlines(), 0
        for token in PARSER.parse(text):
            if token.level or not token.map:
                continue
            start, end = token.map
            written, name = "\n".join(lines[start:end]), token.type
            if "fence" in name and (found := DIRECTIVE.match(token.info)):
                name = found["name"]
                written = self.directive(name, found["argument"], token.content)
            elif name in ("myst_target", "myst_line_comment"):
                written = ""
            elif name not in ("fence", "code_block", "math_block", "amsmath"):
                written = self.inline(written)
            if name == "dl_open":
                written = re.sub(r"^(\S.*)\n: +", r"- **\1**: ", written, flags=re.MULTILINE)
            if name in ("heading_open", "exercise-start", "solution-start"):
                parts.append("")
            parts[-1] += "\n".join([*lines[done:start], written, ""])
            if name == "solution-start":
                parts.append("")
            done = end
        return [part.strip("\n") for part in parts if part.strip()]

    def directive(self, name: str, argument: str, content: str) -> str:
        """Return a directive as Markdown."""
        options, body = split_options(content)
        options = dict(option[:2] for option in options)
        label = options.get("label")
        if name in BOXES:
            title = self.inline(argument) or name.title()
            return indent(f"**{title}**\n\n{self.whole(body)}", "> ", lambda _: True)
        if name == "math":
            tag = rf"\tag{{{self.book.labels[label][0].strip('()')}}}" if label else ""
            return f"$$\n{body.strip()}{tag}\n$$"
        if name == "exercise-start":
            return f"### {self.book.labels[label][0]}: {self.inline(argument)}\n"
        if name == "solution-start":
            return SOLUTION
        if name in ("exercise-end", "index", "solution-end"):
            return ""
        if name == "grid-item-card":
            title = self.link(f"/{options['link']}", argument)
            return f"**{title}**\n\n{self.whole(body)}\n"
        if name in ("grid", "tab-set"):
            return self.whole(body)
        if name == "tab-item":
            summary = f"<summary>{argument}</summary>"
            return f"<details>{summary}\n\n{self.whole(body)}\n\n</details>\n"
        if name == "footbibliography":
            entries = Style().format_bibliography(self.book.sources, self.cited)
            rendered = (entry.text.render(Backend()) for entry in entries)
            return "\n".join("- " + " ".join(entry.split()) for entry in rendered)
        raise ValueError(
            f"{self.name}: {{{name}}} is new: say in tools/notebooks.py what it becomes"
        )

    def whole(self, text: str) -> str:
        """Return MyST text as one piece of Markdown."""
        return "\n\n".join(self.convert(text))

    def inline(self, text: str) -> str:
        """Return text with its roles, and its links to labels, as Markdown."""
        return ROLE.sub(self.role, text)

    def role(self, found: re.Match) -> str:
        """Return a role as Markdown; a code span as it is."""
        name, text = found["name"], found["text"]
        if found["label"]:
            return self.link(found["label"], found["title"])
        if name is None:
            return found[0]
        titled = TITLE.fullmatch(text)
        target = text[titled.end("title") :].strip(" <>\n") if titled else text
        title = titled["title"] if titled else None
        if name == "doc":
            return self.link(f"/{target}", title)
        if name in ("eq", "numref", "ref"):
            return self.link(target, title)
        if name == "term":
            return title or text
        if name == "math":
            return f"${text}$"
        if name == "glue:text":
            key, _, form = text.partition(":")
            if key not in self.values:
                return f"`{key}`"
            return format_plain_text(self.values[key]["data"]["text/plain"], form)
        if name in ("footcite:p", "footcite:t"):
            return self.cite(re.split(r"\s*,\s*", text), inside=name.endswith("p"))
        raise ValueError(
            f"{self.name}: {{{name}}} is new: say in tools/notebooks.py what it becomes"
        )

    def link(self, label: str, title: str | None) -> str:
        """Return a title that leads to another page of the published book, where that is known."""
        name, page, anchor = self.book.labels[label]
        title = title or self.inline(name)
        if page == self.name or not self.book.home:
            return title
        place = f"chapters/{page}.html" + (f"#{anchor}" if anchor else "")
        return f"[{title}]({self.book.home.site}{place})"

    def cite(self, keys: list[str], inside: bool) -> str:
        """Return authors and years, with parentheses around both or around the years."""
        cited = []
        for key in keys:
            entry = self.book.sources.entries[key]
            people = entry.persons.get("author") or entry.persons["editor"]
            names = [" ".join(map(str, person.rich_last_names)) for person in people]
            who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
            year = entry.fields["year"]
            cited.append(f"{who}, {year}" if inside else f"{who} ({year})")
        self.cited += [key for key in keys if key not in self.cited]
        return f"({'; '.join(cited)})" if inside else ", ".join(cited)


def text_cell(text: str) -> nbformat.NotebookNode:
    """Return a cell of Markdown, that of a solution folded."""
    metadata = {"jp-MarkdownHeadingCollapsed": True} if text == SOLUTION else {}
    return nbformat.v4.new_markdown_cell(text, metadata=metadata)


def code_cell(code: str, folded: str | None, tags: tuple | list = ()) -> nbformat.NotebookNode:
    """Return a cell of code, folded under a title if it has one."""
    metadata = {"tags": list(tags)} if tags else {}
    if folded:
        metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
        code = f"# @title {folded}\n{code}"
    return nbformat.v4.new_code_cell(code, metadata=metadata)


def build_wheel(folder: Path) -> str:
    """Build the wheel of `mlm_utils` into a folder and return its name."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel.name


def write(folder: Path, home: address.Address | None, source: Path = ROOT) -> list[str]:
    """Write a notebook for each page with code into a folder, with the wheel and a README.

    Parameters
    ----------
    folder : Path
        Emptied first: what stands there was built.
    home : Address or None
        Where the book is published; None where nothing tells it.
    source : Path
        The book's folder.

    Returns
    -------
    list of str
        The pages written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel = build_wheel(folder.resolve())
    book = Book(source, home)
    written = [
        name
        for name, page in book.pages.items()
        if any(cell.cell_type == "code" for cell in page.cells)
    ]
    for name in written:
        nbformat.write(Page(book, name).notebook(wheel), folder / f"{name}.ipynb")
    site = f" of [the published book]({home.site})" if home else ""
    (folder / "README.md").write_text(README.format(site=site, wheel=wheel), encoding="utf-8")
    return written


if __name__ == "__main__":
    pages = write(ROOT / "notebooks", address.find())
    print(f"{len(pages)} notebooks and the wheel they use are in {ROOT / 'notebooks'}")
