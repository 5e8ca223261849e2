"""The models are their formulas, in the package and in the chapters, and nothing less passes."""

import ast
import inspect
from pathlib import Path

import exact
import jax
import jupytext
import numpy as np
import pytest
from numpyro.handlers import seed, trace
from numpyro.infer.util import log_density

from mlm_utils import models

CHAPTERS = Path(__file__).parent.parent / "chapters"

# A chapter and the model that it writes out in full.
WRITTEN_OUT = [("random_intercept", "varying_intercept")]

# Name of the bug -> (text of varying_intercept, its replacement). Each must be noticed.
BUGS = {
    "group index ignored": ("alpha_j[idx]", "alpha_j[0]"),
    "group index reversed": ("alpha_j[idx]", "alpha_j[n_groups - 1 - idx]"),
    "group effect dropped": (" + alpha_j[idx]", ""),
    "group effect subtracted": ("+ alpha_j[idx]", "- alpha_j[idx]"),
    "predictors dropped": (" + X @ beta", ""),
    "predictors reversed": ("X @ beta", "X @ beta[::-1]"),
    "rate for scale": ("Exponential(1 / y_sd)", "Exponential(y_sd)"),
    "tau squared": ("Normal(0.0, tau)", "Normal(0.0, tau**2)"),
    "tau fixed to 1": ("Normal(0.0, tau)", "Normal(0.0, 1.0)"),
    "tau half as wide": ("HalfCauchy(2.0)", "HalfCauchy(1.0)"),
    "tau half-normal": ("HalfCauchy(2.0)", "HalfNormal(2.0)"),
    "beta half as wide": ("Normal(0.0, 2.0)", "Normal(0.0, 1.0)"),
    "mean of y dropped": ("Normal(y_mean, 2.5 * y_sd)", "Normal(0.0, 2.5 * y_sd)"),
    "alpha too narrow": ("Normal(y_mean, 2.5 * y_sd)", "Normal(y_mean, y_sd)"),
    "sigma squared": ("Normal(mu, sigma)", "Normal(mu, sigma**2)"),
}


def with_bug(bug):
    """Return varying_intercept with a bug of the table written into its source."""
    right, wrong = BUGS[bug]
    source = inspect.getsource(models.varying_intercept)
    assert source.count(right) == 1, f"{right!r} must occur once in the model's source"
    namespace = dict(vars(models))
    exec(source.replace(right, wrong), namespace)
    return namespace["varying_intercept"]


def draw_points(rows, n=100):
    """Draw parameter values far and wide, near the posterior and off it."""
    rng = np.random.default_rng(20260701)
    for _ in range(n):
        yield {
            "alpha": rng.normal(rows.y_mean, 20),
            "beta": rng.normal(0, 6, rows.X.shape[1]),
            "alpha_j": rng.normal(0, 10, rows.n_groups),
            "sigma": np.exp(rng.normal(2, 1)),
            "tau": np.exp(rng.normal(1, 2)),
        }


def assert_density_is_the_formula(model, rows):
    """Compare a model's log density with the formula's at 100 points."""
    density = jax.jit(lambda point: log_density(model, (), rows.arguments, point)[0])
    for point in draw_points(rows):
        written = exact.log_density_varying_intercept(
            point, rows.X, rows.idx, rows.y, rows.y_mean, rows.y_sd
        )
        np.testing.assert_allclose(density(point), written, atol=1e-9, rtol=1e-12)


def model_in_chapter(path, name):
    """Return the definition of a function in the code cells of a Markdown chapter."""
    cells = jupytext.read(path, fmt="md:myst").cells
    found = [
        node
        for cell in cells
        if cell.cell_type == "code" and f"def {name}(" in cell.source
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert len(found) == 1, f"{path.name} must define {name} in one cell, not {len(found)}"
    return found[0]


def assert_same_program(written, model):
    """Compare a definition in a chapter with the package's, docstrings aside."""
    packaged = ast.parse(inspect.getsource(model)).body[0]
    for function in (written, packaged):
        if ast.get_docstring(function) is not None:
            del function.body[0]
    assert ast.unparse(written) == ast.unparse(packaged)
    assert ast.dump(written) == ast.dump(packaged)


def test_density_of_varying_intercept_is_its_formula(rows):
    assert_density_is_the_formula(models.varying_intercept, rows)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_changes_the_density(bug, rows):
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_density_is_the_formula(with_bug(bug), rows)


def test_an_unobserved_outcome_changes_the_density(rows):
    point = next(draw_points(rows))
    unobserved = seed(models.varying_intercept, jax.random.key(0))
    value, _ = log_density(unobserved, (), rows.arguments | {"y": None}, point)
    written = exact.log_density_varying_intercept(
        point, rows.X, rows.idx, rows.y, rows.y_mean, rows.y_sd
    )
    assert abs(value - written) > 1


def test_permuting_the_groups_of_rows_changes_the_density(rows):
    shuffled = np.random.default_rng(1).permutation(rows.idx)
    for point in draw_points(rows, 5):
        right, _ = log_density(models.varying_intercept, (), rows.arguments, point)
        wrong, _ = log_density(
            models.varying_intercept, (), rows.arguments | {"idx": shuffled}, point
        )
        assert abs(right - wrong) > 1e-3


def test_permuting_whole_rows_keeps_the_density(rows):
    order = np.random.default_rng(2).permutation(len(rows.y))
    moved = {name: rows.arguments[name][order] for name in ("X", "idx", "y")}
    for point in draw_points(rows, 5):
        before, _ = log_density(models.varying_intercept, (), rows.arguments, point)
        after, _ = log_density(models.varying_intercept, (), rows.arguments | moved, point)
        np.testing.assert_allclose(after, before, rtol=1e-12)


def test_without_y_the_model_draws_one_outcome_a_row(rows):
    drawing = trace(seed(models.varying_intercept, jax.random.key(3)))
    sites = drawing.get_trace(**(rows.arguments | {"y": None}))
    assert sites["y"]["value"].shape == (160,)
    assert not sites["y"]["is_observed"]
    assert np.unique(sites["y"]["value"]).size == 160


def test_sites_lie_in_the_plates_of_the_docstring(rows):
    sites = trace(seed(models.varying_intercept, jax.random.key(0))).get_trace(**rows.arguments)
    plates = {
        name: [plate.name for plate in site["cond_indep_stack"]]
        for name, site in sites.items()
        if site["type"] == "sample"
    }
    assert plates == {
        "alpha": [],
        "sigma": [],
        "tau": [],
        "beta": ["predictor"],
        "alpha_j": ["group"],
        "y": ["row"],
    }


def test_the_model_refuses_bad_arrays_itself(rows):
    shifted = rows.arguments | {"idx": rows.idx + 1}
    with pytest.raises(ValueError, match=r"idx\[80\] is 2"):
        log_density(models.varying_intercept, (), shifted, next(draw_points(rows)))


@pytest.mark.parametrize(("chapter", "model"), WRITTEN_OUT)
def test_the_chapter_writes_the_model_of_the_package(chapter, model):
    written = model_in_chapter(CHAPTERS / f"{chapter}.md", model)
    assert_same_program(written, getattr(models, model))


@pytest.mark.parametrize("bug", [None, "group index ignored"])
def test_a_chapter_with_another_model_is_noticed(bug, tmp_path):
    model = inspect.getsource(models.varying_intercept)
    if bug:
        model = model.replace(*BUGS[bug])
    chapter = tmp_path / "chapter.md"
    chapter.write_text(
        "---\njupytext:\n  text_representation:\n    format_name: myst\n---\n\n# A chapter\n\n"
        f"```{{code-cell}} ipython3\n%matplotlib inline\n```\n\n```{{code-cell}} ipython3\n"
        f"{model}```\n\n```python\ndef varying_intercept(): not a cell\n```\n",
        encoding="utf-8",
    )
    written = model_in_chapter(chapter, "varying_intercept")
    if bug is None:
        assert_same_program(written, models.varying_intercept)
    else:
        with pytest.raises(AssertionError):
            assert_same_program(written, models.varying_intercept)
