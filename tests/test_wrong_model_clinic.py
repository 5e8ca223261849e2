"""Each check of the clinic fails on the wrong model of its case and passes on the repaired one.

The checks are not written here: the cells of the chapter are run, so that what the reader sees is
what is tested. Cells that fit or draw, and what depends on them, are left out.
"""

import ast
import functools
import linecache
import re
import symtable
from pathlib import Path

import jax
import jupytext
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, trace
from test_models import CHAPTERS

from mlm_utils import checks
from mlm_utils.models import varying_slope

OTHERS, UNUSED, FREE = "hears other groups", "never used", "labels mean nothing"
SURPRISED = {"slope on X[:, 1]": "surprised"}
OUTSIDE = {"fit", "plt", "insert"}  # what needs one of these is not run
CHECKS = {name for name in vars(checks) if callable(getattr(checks, name)) and name[0] != "_"}

# Case -> the checks its section runs, in order -> verdicts that are not "ok".
CASES = {
    "wc-index": [("index_sensitivity", {"idx": UNUSED}), ("index_sensitivity", {})],
    "wc-labels": [("exchangeable_labels", {"group": FREE}), ("exchangeable_labels", {})],
    "wc-links": [
        ("index_sensitivity", {}),
        ("group_links", {"tau_j": OTHERS, "beta_j": OTHERS}),
        ("group_links", {}),
    ],
    "wc-squared": [
        ("scale_exponents", {"tau": "acts as its power 2"}),
        ("unused_inputs", {"y_mean": UNUSED}),
        ("scale_exponents", {}),
        ("unused_inputs", {}),
    ],
    "wc-rate": [
        ("prior_against_data", {"sigma": "far too small"} | SURPRISED),
        ("prior_against_data", SURPRISED),
    ],
    "wc-surprised": [("prior_against_data", SURPRISED), ("prior_against_data", {})],
    "wc-column": [("shapes", {"y": "25600 terms for 160 rows"}), ("shapes", {})],
    "wc-own": [("group_links", {"effect": OTHERS})],
}

# Row of the figure -> check -> what it finds. Repaired models, and mistakes that no check finds,
# have nothing.
NOBODY = {"links": OTHERS, "labels": FREE}
CLINIC = {
    ("wrong", "1, 2  index never used"): NOBODY | {"inputs": UNUSED},
    ("wrong", "3  index in the intercept"): NOBODY,
    ("wrong", "4  covariance, not its root"): {
        "inputs": UNUSED,
        "scales": "acts as its power 2",
        "prior": "far too wide",
    },
    ("wrong", "5  rate for scale"): {"prior": "far too small"},
    ("wrong", "6  narrow prior"): {"prior": "surprised"},
    ("wrong", "7  outcome a column"): {"shapes": "25600 terms for 160 rows"},
    ("repaired", "random slope"): {},
    ("repaired", "random intercept and slope"): {},
    ("repaired", "correlated effects"): {},
    ("repaired", "random intercept"): {},
    ("unnoticed", "groups exchanged in the table"): {},
    ("unnoticed", "every row entered twice"): {},
    ("unnoticed", "another likelihood"): {},
}


def names(source):
    """Return the names that a cell takes from earlier ones, and those it leaves to later ones."""
    tables, read = [symtable.symtable(source, "cell", "exec")], set()
    for table in tables:  # grows on the way
        tables += table.get_children()
        read |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (table is tables[0] or symbol.is_global())
        }
    bound = {s.get_name() for s in tables[0].get_symbols() if s.is_assigned() or s.is_imported()}
    return read - bound, bound


def check_called(tree):
    """Return the name of the check that is all a cell calls, or None."""
    match tree.body:
        case [ast.Expr(ast.Call(ast.Name(name)))] if name in CHECKS:
            return name
    return None


@functools.cache
def run_page(path):
    """Run the cells of a chapter that need no fit; return its names and its checks by section."""
    space, section, found = {"__name__": "chapter"}, None, {}
    absent = set(OUTSIDE)
    for number, cell in enumerate(jupytext.read(path, fmt="md:myst").cells):
        if cell.cell_type != "code":
            section = [section, *re.findall(r"^\((wc-[a-z]+)\)=$", cell.source, re.M)][-1]
            continue
        tree = ast.parse(cell.source)
        tree.body = [s for s in tree.body if "mlm_utils.setup(" not in ast.unparse(s)]
        read, bound = names(cell.source)
        if read & absent or "remove-cell" in cell.metadata.get("tags", []):
            absent |= bound
            continue
        absent -= bound - OUTSIDE
        file = f"<{path.stem}, cell {number}>"
        lines = cell.source.splitlines(keepends=True)
        linecache.cache[file] = (len(cell.source), None, lines, file)  # for inspect.getsource
        if name := check_called(tree):
            value = eval(compile(ast.Expression(tree.body[0].value), file, "eval"), space)
            found.setdefault(section, []).append((name, value))
        else:
            exec(compile(tree, file, "exec"), space)
    return space, found


@pytest.fixture(scope="module")
def page():
    return run_page(CHAPTERS / "wrong_model_clinic.md")


def faults(table):
    """Return the verdicts of a table that are not "ok"."""
    return table.loc[table["verdict"] != "ok", "verdict"].to_dict()


def test_every_check_has_its_case():
    used = {check for case in CASES.values() for check, _ in case}
    public = {"index_sensitivity", "group_links", "exchangeable_labels", "scale_exponents"}
    assert used == public | {"prior_against_data", "shapes", "unused_inputs"}


@pytest.mark.parametrize("case", CASES)
def test_the_page_shows_the_check_fail_and_then_pass(case, page):
    shown = [(name, faults(table)) for name, table in page[1][case]]
    for _, found in shown:
        if case == "wc-rate":  # of C it says what it says of B, but near the limit
            found.pop("slope on X[:, 2]", None)
    assert shown == CASES[case]


def test_the_mistake_of_a_case_is_gone_after_its_repair(page):
    for case in CASES.keys() - {"wc-own"}:  # whose repair is checked as a whole, below
        last = dict(page[1][case])
        for name, table in page[1][case]:
            gone = faults(table).keys() - faults(last[name]).keys()
            assert gone or not faults(table) or table is last[name]


def test_the_verdicts_of_the_figure(page):
    clinic = page[0]["clinic"]
    found = {row: {k: v for k, v in found.items() if v} for row, found in clinic.T.items()}
    for verdicts in found.values():
        for check in [check for check, verdict in verdicts.items() if verdict != verdict]:
            del verdicts[check]  # not run
    assert found == CLINIC
    not_run = clinic.isna().sum(axis=1)
    assert not_run[not_run > 0].to_dict() == {("wrong", "7  outcome a column"): 5}


def test_the_readers_model_is_caught_and_its_repair_passes(page):
    space, _ = page
    assert faults(space["examined"]) == {("links of school", "effect"): OTHERS}
    assert faults(space["sound"]) == {}


def test_another_prior_changes_the_site_it_names_and_no_other(page, rows):
    other = page[0]["with_prior"](varying_slope, beta=dist.Normal(0.0, 10.0))
    old, new = (
        trace(seed(model, jax.random.key(1))).get_trace(**rows.arguments)
        for model in (varying_slope, other)
    )
    assert old.keys() == new.keys()
    assert float(new["beta"]["fn"].base_dist.scale) == 10.0
    assert new["beta"]["value"].shape == old["beta"]["value"].shape
    for name in old.keys() - {"beta", "y"}:
        if old[name]["type"] == "sample":
            assert type(old[name]["fn"]) is type(new[name]["fn"])
            assert (old[name]["value"] == new[name]["value"]).all()


@pytest.mark.parametrize(
    ("case", "text", "other"),
    [
        (
            "wc-index",
            "sensitivity(varying_slope, rows",
            "sensitivity(varying_slope_published, rows",
        ),
        ("wc-column", "shapes(without_door, rows.arguments)", "shapes(without_door, column)"),
    ],
)
def test_a_page_without_the_repair_is_noticed(case, text, other, tmp_path):
    source = Path(CHAPTERS / "wrong_model_clinic.md").read_text(encoding="utf-8")
    assert source.count(text) == 1
    broken = tmp_path / "page.md"
    upto = source.index("(wc-mean)=")
    broken.write_text(source[:upto].replace(text, other), encoding="utf-8")
    _, found = run_page(broken)
    assert [(name, faults(table)) for name, table in found[case]] != CASES[case]
