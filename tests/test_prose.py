"""A number typed into the prose of a chapter is found wherever a reader sees it, and only there."""

import importlib
import inspect
import json
import re
import tomllib
from pathlib import Path

import arviz as az
import pytest

from mlm_utils.sampling import MAX_RHAT, MIN_ESS, fit

ROOT = Path(__file__).parents[1]
ALLOWED = ROOT / "tools" / "allowed_numbers.toml"
SOURCE = "the published prior"


@pytest.fixture(scope="module")
def prose():
    """The module of tools/ that finds typed numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        yield importlib.import_module("prose")


@pytest.fixture
def problems(prose, tmp_path):
    """Return a function from a page and a list of allowed numbers to what is wrong with them."""

    def find(page, allowed=()):
        lines = []
        for table, entries in dict(allowed).items():
            lines += [
                f"[{table}]",
                *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in entries.items()),
            ]
        (tmp_path / "chapters").mkdir(exist_ok=True)
        (tmp_path / "chapters" / "page.md").write_text(page, encoding="utf-8")
        (tmp_path / "allowed.toml").write_text("\n".join(lines), encoding="utf-8")
        return prose.check(tmp_path / "chapters", tmp_path / "allowed.toml")

    return find


PLACES = {
    "paragraph": "Urban raters score higher,\nby {number} points.",
    "sentence end": "By how much? By\n{number}.",
    "strong text": "By\n**{number}** points.",
    "heading": "Text.\n\n## {number} points\n",
    "list item": "- one\n- two\n- by {number} points\n",
    "numbered list": "1. one\n2. by {number} points\n",
    "list in a list": "- one\n  - by\n    {number} points\n",
    "definition": "`mu`\n: The mean.\n\n`tau`\n: The sd, {number} points.\n",
    "quotation": "> By\n> {number} points.\n",
    "table": "| a | b |\n|---|---|\n| c | d |\n| e | {number} |\n",
    "head of a table": "\n| a | {number} |\n|---|---|\n| c | d |\n",
    "admonition": ":::{admonition} Before\n:class: tip\n\nBy {number} points.\n:::\n",
    "title of an admonition": "\n:::{admonition} By {number} points\n:class: tip\n\nText.\n:::\n",
    "note": ":::{note}\nText.\nBy {number} points.\n:::\n",
    "admonition in an admonition": "::::{note}\n:::{tip}\nBy {number} points.\n:::\n::::\n",
    "exercise": "```{exercise-start} T\n:label: ex-a\n```\nBy {number}?\n```{exercise-end}\n```\n",
    "title of an exercise": "```{exercise-start} By {number}\n:label: ex-a\n```\nText.\n",
    "solution": "```{solution-start} ex-a\n```\nBy\n{number} points.\n```{solution-end}\n```\n",
    "glossary": "```{glossary}\nshrinkage\n  A pull by {number} points.\n```\n",
    "caption": (
        "```{code-cell} ipython3\n---\nmystnb:\n  figure:\n    caption: |\n"
        "      Scores. A bar\n      stands for {number} points.\n    name: fig-a\n---\n1 + 1\n```\n"
    ),
    "caption on one line": (
        "```{code-cell} ipython3\n---\nmystnb:\n  figure:\n"
        "    caption: By {number} points.\n---\n1 + 1\n```\n"
    ),
    "alt text": (
        "```{code-cell} ipython3\n---\ntags: [hide-input]\nmystnb:\n  image:\n    alt: |\n"
        "      A bar that ends\n      at {number} points.\n---\n1 + 1\n```\n"
    ),
    "alt text of a picture": "Text ![ends at {number} points](a.png).",
    "figure": "```{figure} a.png\n:alt: ends at {number}\n\nText.\n```\n",
    "caption of a figure": "```{figure} a.png\n:alt: a bar\n\nIt ends at {number}.\n```\n",
    "text of a link": "See [{number} points](a.md).",
    "title of a reference": "See {doc}`{number} points <random_slope>`.",
    "footnote": "Text.[^a]\n\n[^a]: By {number} points.\n",
    "number beside a citation": "By {number} points {footcite:p}`rubin1981estimation`.",
    "after a formula with a decimal": "With $x = 4.5$ it is {number}.",
    "HTML": "<div>\nBy {number} points.\n</div>\n",
}


@pytest.mark.parametrize("number", ["3.7", "0.95", "1,234.5", "12 %", "1e-3"])
@pytest.mark.parametrize("place", PLACES)
def test_typed_number_is_found_with_its_line(problems, place, number):
    page = "---\njupytext:\n  formats: md:myst\n---\n\n" + PLACES[place].replace("{number}", number)
    (line,) = [at for at, text in enumerate(page.split("\n"), 1) if number in text]
    (problem,) = problems(page)
    assert problem.startswith(f"page.md:{line}: {number!r} is typed in ")
    assert "mlm_utils.prose.insert, {glue:text}" in problem
    assert "tools/allowed_numbers.toml" in problem


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It fell by -1.2 points.", "-1.2"),
        ("It fell by \u22121.2 points.", "\u22121.2"),
        ("Between 3-4.5 points.", "4.5"),
        ("A share of .95 of them.", ".95"),
        ("It took 1.2e-05 seconds.", "1.2e-05"),
        ("Version 1.2.3 of it.", "1.2.3"),
        ("In 12% of the draws.", "12%"),
        ("In 12 per cent of the draws.", "12 per cent"),
        ("In 12 percent of the draws.", "12 percent"),
        ("By 12 percentage points.", "12 percentage points"),
        ("In $3.7$ points.", "3.7"),
        (r"In $\approx 3.7$ points.", "3.7"),
        (r"In $12\,\%$ of the draws.", r"12\,\%"),
        ("In {math}`3.7` points.", "3.7"),
        ("With 7 divergences.", "7 divergences"),
        ("With 7 divergent steps.", "7 divergent"),
        ("It has 4,000 draws.", "4,000 draws"),
        ("It has 812 effective draws.", "812 effective draws"),
        ("An ESS of 812 is enough.", "ESS of 812"),
        ("An R-hat of 2 is too much.", "R-hat of 2"),
        ("They differ by 3 MCSE.", "3 MCSE"),
    ],
)
def test_form_of_a_number_is_found(problems, text, found):
    (problem,) = problems(text)
    assert problem.startswith(f"page.md:1: {found!r} is typed in ")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("It is $x = 3.7$ or $3.7 x$ or {math}`x = 3.7`.", id="formula"),
        pytest.param("$$\nx = 3.7\n$$\n", id="displayed formula"),
        pytest.param("```{math}\n:label: eq-a\nx = 3.7\n```\n", id="math directive"),
        pytest.param("\\begin{align}\nx = 3.7\n\\end{align}\n", id="amsmath"),
        pytest.param("Pass `target_accept=0.95`.", id="code"),
        pytest.param("```python\nx = 3.7\n```\n", id="literal block"),
        pytest.param("Text.\n\n    x = 3.7\n", id="indented block"),
        pytest.param("```{code-cell} ipython3\nx = 3.7  # 12 %\n```\n", id="code cell"),
        pytest.param(
            "```{code-cell} ipython3\n---\ntags: [a]\nmystnb:\n  figure:\n    name: fig-3.7\n"
            "---\nax.set_title(f'by {x} of 3.7 points')\n```\n",
            id="title of a plot",
        ),
        pytest.param("By {glue:text}`gap_3.7:.1f` points, {glue:text}`share:.0f` %.", id="glue"),
        pytest.param("{glue:text}`n:.0f` draws, {glue:text}`d:.0f` divergences.", id="glued count"),
        pytest.param("See [there](a3.7.md) and <https://example.org/3.7>.", id="link"),
        pytest.param("See {footcite:p}`rubin3.7` and {cite}`a3.7`.", id="citation"),
        pytest.param("See {doc}`a3.7`, {ref}`b3.7`, {doc}`there <c3.7>`, {eq}`d3.7`.", id="target"),
        pytest.param("(label-3.7)=\n# Title\n", id="label"),
        pytest.param("% By 3.7 points.\n", id="comment"),
        pytest.param("<!-- By 3.7 points. -->\n", id="HTML comment"),
        pytest.param("There are 160 scores and 20 raters, in 1981; 5 points.", id="whole numbers"),
        pytest.param("Careless 3, chess 4; 30 drawers.", id="other words"),
    ],
)
def test_what_is_no_typed_figure_passes(problems, text):
    assert problems(text) == []


def test_every_number_of_a_page_is_found_in_its_own_line(problems):
    page = "# One\n\nBy 1.5 or\n2.5 points.\n\n- In `0.5`\n  some 3.5 cases, 4.5 others.\n"
    found = [re.match(r"page\.md:(\d+): '(.*?)'", problem).groups() for problem in problems(page)]
    assert found == [("3", "1.5"), ("4", "2.5"), ("7", "3.5"), ("7", "4.5")]


def test_message_gives_the_sentence(problems):
    (problem,) = problems("Before. The gap is\n3.7 points wide, $x = 1$. After.")
    assert " is typed in 'The gap is 3.7 points wide, $x = 1$.': insert it" in problem


@pytest.mark.parametrize("table", ["page", "everywhere"])
def test_allowed_phrase_lets_its_own_number_pass(problems, table):
    page = "The prior is a bell of width\n2.5 sds.\nThe gap is 2.5."
    (problem,) = problems(page, {table: {"width 2.5 sds": SOURCE}})
    assert problem.startswith("page.md:3: '2.5'")


@pytest.mark.parametrize("phrase", ["2.5 points", "gap is 12.5", "gap is 12.5 p", "gap is 2.57"])
def test_phrase_that_cuts_a_number_does_not_allow_it(problems, phrase):
    typed, unused = problems("The gap is 12.57 points.", {"page": {phrase: SOURCE}})
    assert typed.startswith("page.md:1: '12.57'")
    assert unused == f"allowed.toml: [page] {phrase!r} allows no number of that page: remove it"


def test_phrase_of_one_page_does_not_serve_another(problems, tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "other.md").write_text("A gap of 2.5.\n")
    (problem,) = problems("A gap of 2.5.\n", {"other": {"gap of 2.5": SOURCE}})
    assert problem.startswith("page.md:1: '2.5'")


@pytest.mark.parametrize(
    ("table", "phrase", "source", "says"),
    [
        ("page", "gap 9.9", SOURCE, "allows no number of that page: remove it"),
        ("everywhere", "gap 9.9", SOURCE, "allows no number of that page: remove it"),
        ("pgae", "gap 2.5", SOURCE, "allows no number of that page: remove it"),
        ("page", "wide, $x = 1.5$", SOURCE, "allows no number of that page: remove it"),
        ("page", "2.5", SOURCE, "is no phrase: give the words around the number too"),
        ("page", "gap 2.5", "", "has no source: say in words where the number comes from"),
        ("page", "gap 2.5", 2.5, "has no source: say in words where the number comes from"),
    ],
)
def test_faulty_entry_of_the_list_is_refused(problems, table, phrase, source, says):
    allowed = {"page": {"A gap 2.5": SOURCE}}
    allowed[table] = allowed.get(table, {}) | {phrase: source}
    found = problems("A gap 2.5 wide, $x = 1.5$.\n", allowed)
    assert found == [f"allowed.toml: [{table}] {phrase!r} {says}"]


@pytest.mark.parametrize("value", ["3.7", "-3.7", "7", "'3.7'"])
def test_figure_typed_into_insert_is_refused(problems, value):
    page = (
        "Text.\n\n```{code-cell} ipython3\n:tags: [remove-cell]\n\n"
        f"insert({{'right': x.mean(), 'wrong': {value}}})\n```\n"
    )
    assert problems(page) == [f"page.md:6: insert() is given {value}: compute it instead"]


def test_unknown_directive_is_refused(problems):
    (problem,) = problems("Text.\n\n:::{sidebar} Title\nBy 3.7 points.\n:::\n")
    assert problem.startswith("page.md:3: {sidebar} is new: say in tools/prose.py")


def test_no_chapter_holds_a_typed_figure(prose):
    assert prose.check(ROOT / "chapters", ALLOWED) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_RHAT", f"{MAX_RHAT}"),
        ("MIN_ESS", f"{MIN_ESS}"),
        ("target_accept of", f"{inspect.signature(fit).parameters['target_accept'].default}"),
        ("stats.ci_prob", f"{100 * az.rcParams['stats.ci_prob']:.0f} %"),
    ],
)
def test_number_said_to_be_one_of_the_package_is_that_one(name, value):
    tables = tomllib.loads(ALLOWED.read_text(encoding="utf-8")).values()
    phrases = [phrase for table in tables for phrase, source in table.items() if name in source]
    assert phrases
    assert [phrase for phrase in phrases if value not in phrase] == []
