"""What must not matter does not: laws that hold for any table and any point, model by model.

A law moves a table and a point together and says how the log density answers. Hypothesis draws
the tables, the same in every run: few rows, groups without a row, with one or with all. Their
shapes are few, because JAX compiles a model anew for each.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpyro.infer.util import compute_log_probs
from scipy import stats
from test_models import MODELS, SITES, WITH_IDX, WITH_PREDICTORS, draw_points, with_bug

from mlm_utils import formulas, models
from mlm_utils.design import design

EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)
UNTIL_BROKEN = settings(EXAMPLES, phases=[Phase.generate], report_multiple_bugs=False)
SHAPES = [(2, 2, 2), (4, 4, 1), (12, 5, 3)]  # rows, groups, predictors
BY_ROW = {"X", "idx", "y", "se"}
IN_UNITS_OF_Y = {"y", "y_mean", "y_sd", "sigma", "se"}
GENERATORS = st.builds(np.random.default_rng, st.integers(0, 2**32 - 1))
PUBLISHED_SLOPES = ["varying_slope_published", "varying_intercept_slope_published"]

# Model -> its sites without units, the same whatever the outcome is measured in. Where a product
# has the units, one factor carries them: tau_j of tau_j beta_j, and gamma_j of Sigma gamma_j.
NO_UNITS = {
    "two_level": set(),
    "eight_schools": {"z"},
    "varying_intercept": set(),
    "varying_slope_published": {"beta_j"},
    "varying_intercept_slope_published": {"beta_j"},
    "varying_slope": set(),
    "varying_intercept_slope": set(),
    "correlated_effects_published": {"L_Omega", "tau"},
    "correlated_effects": {"L_Omega", "z"},
}
# Model -> its sites in the units of the outcome whose prior does not follow them, its scale being
# a number in the program: measured in other units, the same data meet another prior.
FIXED_UNITS = {
    "two_level": {"mu", "tau"},
    "eight_schools": {"mu", "tau"},
    "varying_intercept": {"tau", "beta"},
    "varying_slope_published": {"tau_j"},
    "varying_intercept_slope_published": {"tau_alpha", "tau_j"},
    "varying_slope": {"beta", "tau_beta"},
    "varying_intercept_slope": {"tau_alpha", "beta", "tau_beta"},
    "correlated_effects_published": {"gamma_j"},
    "correlated_effects": {"beta", "tau"},
}


class Case(NamedTuple):
    """The name of a model, arguments for it and a point."""

    model: str
    arguments: dict
    point: dict


@st.composite
def cases(draw, model, shapes=SHAPES):
    """Draw a table and a point: a shape, a spread of rows over groups, a seed for the numbers."""
    n, n_groups, n_predictors = draw(st.sampled_from(shapes))
    spread, rng = draw(st.sampled_from(["together", "evenly", "anyhow"])), draw(GENERATORS)
    if spread == "together":
        idx = np.repeat(rng.integers(n_groups), n)
    elif spread == "evenly":
        idx = rng.permutation(np.arange(n) % n_groups)
    else:
        idx = rng.integers(n_groups, size=n)
    idx = idx.astype(np.int32)
    y = rng.normal(20, 6, n)
    if model == "two_level":
        arguments = {"idx": idx, "y": y, "n_groups": n_groups, "sigma": rng.uniform(1, 9)}
    elif model == "eight_schools":
        arguments = {"se": rng.uniform(2, 9, n), "y": y}
    else:
        X = rng.normal(0.5, 1.5, (n, n_predictors))
        moments = {"y_mean": rng.normal(20, 6), "y_sd": rng.uniform(1, 9)}
        arguments = {"X": X, "idx": idx, "y": y, "n_groups": n_groups} | moments
    points, i = draw_points(model, arguments), rng.integers(100)
    return Case(model, arguments, {site: values[i] for site, values in points.items()})


def hold(law, *density, how=EXAMPLES, **drawn):
    """Try a law on everything that is drawn."""
    how(given(**drawn)(law))(*density)


@functools.cache
def compiled(program, n_groups):
    """Return the log density of a model, compiled: arguments and point -> site -> entries."""
    fixed = {} if n_groups is None else {"n_groups": n_groups}

    def by_site(arguments, point):
        return compute_log_probs(program, (), arguments | fixed, point, sum_log_prob=False)[0]

    return jax.jit(by_site)


def log_density(program, case):
    """Return the log density of a case: site -> a number for each entry."""
    # Arrays all: for a number of another type JAX would compile anew.
    varied = {name: np.asarray(value) for name, value in case.arguments.items()}
    varied.pop("n_groups", None)
    return jax.device_get(compiled(program, case.arguments.get("n_groups"))(varied, case.point))


def sums(by_site):
    """Return the log density of each site as one number."""
    return {site: entries.sum() for site, entries in by_site.items()}


def take(model, by_site, dim, order):
    """Take the entries along a dimension in another order, in every site that has it."""
    axes = {site: dims.index(dim) for site, dims in SITES[model].items() if dim in dims}
    return {
        site: np.take(entries, order, axes[site]) if site in axes else entries
        for site, entries in by_site.items()
    }


def take_rows(case, rows):
    """Take some rows of a table in another order."""
    model, arguments, point = case
    if model == "eight_schools":  # whose rows are its groups
        point = take(model, point, "group", rows)
    moved = {name: arguments[name][rows] for name in BY_ROW & set(arguments)}
    return Case(model, arguments | moved, point)


def assert_same(actual, expected):
    """Compare two mappings from sites to log densities, to rounding."""
    assert set(actual) == set(expected)
    for site, entries in expected.items():
        np.testing.assert_allclose(actual[site], entries, rtol=1e-11, atol=1e-9, err_msg=site)


# --- The laws of a density


def it_is_the_formula(density, case, rng):
    written = getattr(formulas, case.model)(case.point, **case.arguments)
    assert_same({"joint": sum(sums(density(case)).values())}, {"joint": written})


def rows_have_no_order(density, case, rng):
    order = rng.permutation(len(case.arguments["y"]))
    assert_same(sums(density(take_rows(case, order))), sums(density(case)))


def groups_have_no_order(density, case, rng):
    model, arguments, point = case
    order = rng.permutation(arguments["n_groups"])
    idx = np.argsort(order).astype(np.int32)[arguments["idx"]]
    moved = Case(model, arguments | {"idx": idx}, take(model, point, "group", order))
    assert_same(sums(density(moved)), sums(density(case)))


def predictors_have_no_order(density, case, rng):
    model, arguments, point = case
    order = rng.permutation(arguments["X"].shape[1])
    expected = sums(density(case))
    moved = take(model, point, "predictor", order)
    moved = take(model, moved, "coefficient", [0, *(1 + order)])
    if "L_Omega" in point:
        # Omega keeps its density. That of its Cholesky factor has the Jacobian besides.
        permuted = moved["L_Omega"]
        moved["L_Omega"] = np.linalg.cholesky(permuted @ permuted.T)
        expected["L_Omega"] += log_jacobian(moved["L_Omega"]) - log_jacobian(point["L_Omega"])
        if "z" in point:
            # The new factor gives a group the same coefficients from a rotated z.
            moved["z"] = np.linalg.solve(moved["L_Omega"], permuted @ point["z"].T).T
    moved = Case(model, arguments | {"X": arguments["X"][:, order]}, moved)
    assert_same(sums(density(moved)), expected)


def log_jacobian(factor):
    """Return the log Jacobian of the map from a Cholesky factor to its correlation matrix."""
    return np.arange(len(factor))[::-1] @ np.log(np.diag(factor))


def origin_of_y_is_free(density, case, rng):
    model, arguments, point = case
    shift = rng.uniform(-100, 100)
    located = {name: arguments[name] + shift for name in {"y", "y_mean"} & set(arguments)}
    moved = {site: point[site] + shift for site in {"alpha", "mu", "theta"} & set(point)}
    expected = density(case)
    if "mu" in point:
        # The prior of mu stays where it is, and its change is the only one.
        prior = stats.norm(0, {"two_level": 10, "eight_schools": 20}[model])
        change = prior.logpdf(moved["mu"]) - prior.logpdf(point["mu"])
        expected["mu"] = expected["mu"] + change
    assert_same(density(Case(model, arguments | located, point | moved)), expected)


def unit_of_y_is_free_where_the_prior_follows(density, case, rng):
    model, arguments, point = case
    unit = rng.choice([0.01, 0.1, 2.54, 12.0])
    scaled = {name: arguments[name] * unit for name in IN_UNITS_OF_Y & set(arguments)}
    moved = {site: point[site] * unit for site in set(point) - NO_UNITS[model]}
    expected = density(case)
    for site in {"y"} | set(moved):
        expected[site] = expected[site] - np.log(unit)
    actual = density(Case(model, arguments | scaled, point | moved))
    fixed = {
        site for site in moved if not np.isclose(actual[site], expected[site], rtol=1e-9).any()
    }
    assert fixed == FIXED_UNITS[model]
    follow = set(expected) - fixed
    assert_same({site: actual[site] for site in follow}, {site: expected[site] for site in follow})


def a_group_without_rows_adds_its_prior(density, case, rng):
    model, arguments, point = case
    n_groups, idx = arguments["n_groups"], arguments["idx"]
    place, twin = rng.integers(n_groups + 1), rng.integers(n_groups)
    # The new group has the parameters of another, and must have their prior.
    order = np.insert(np.arange(n_groups), place, twin)
    wider = {"n_groups": n_groups + 1, "idx": idx + (idx >= place).astype(np.int32)}
    moved = Case(model, arguments | wider, take(model, point, "group", order))
    assert_same(density(moved), take(model, density(case), "group", order))


def halves_of_the_rows_add_up(density, case, rng):
    order = rng.permutation(len(case.arguments["y"]))
    halves = [density(take_rows(case, half))["y"] for half in np.split(order, 2)]
    assert_same({"y": np.concatenate(halves)}, {"y": density(case)["y"][order]})


LAWS = {
    it_is_the_formula: MODELS,
    rows_have_no_order: MODELS,
    groups_have_no_order: WITH_IDX,
    predictors_have_no_order: WITH_PREDICTORS,
    # As published, every coefficient has prior mean 0: there is nothing to take up a shift.
    origin_of_y_is_free: [model for model in MODELS if model != "correlated_effects_published"],
    unit_of_y_is_free_where_the_prior_follows: MODELS,
    a_group_without_rows_adds_its_prior: [
        model for model in WITH_IDX if model not in PUBLISHED_SLOPES
    ],
    halves_of_the_rows_add_up: MODELS,
}
# These compile a model for a second shape, and so take the largest tables alone.
RESHAPING = {a_group_without_rows_adds_its_prior, halves_of_the_rows_add_up}
# A law, a model and a bug that breaks it.
BROKEN = [
    (it_is_the_formula, "correlated_effects_published", "nothing added to Sigma"),
    (rows_have_no_order, "eight_schools", "error of another school"),
    (groups_have_no_order, "varying_intercept", "group index ignored"),
    (groups_have_no_order, "correlated_effects", "group index reversed"),
    (predictors_have_no_order, "varying_slope", "tau_beta of the first"),
    (predictors_have_no_order, "correlated_effects", "factor transposed"),
    (origin_of_y_is_free, "varying_slope_published", "mean of y dropped"),
    (origin_of_y_is_free, "two_level", "mu half as wide"),
    (unit_of_y_is_free_where_the_prior_follows, "varying_intercept", "rate for scale"),
    (unit_of_y_is_free_where_the_prior_follows, "varying_intercept_slope", "tau_beta a variance"),
    (a_group_without_rows_adds_its_prior, "varying_slope", "slopes summed over groups"),
    (halves_of_the_rows_add_up, "eight_schools", "effects summed"),
]


def hold_for(law, program, model, how=EXAMPLES):
    """Try a law on a program that is a model, or is to be one."""
    case = cases(model, SHAPES[-1:] if law in RESHAPING else SHAPES)
    hold(law, functools.partial(log_density, program), how=how, case=case, rng=GENERATORS)


@pytest.mark.parametrize(("law", "model"), [(law, model) for law in LAWS for model in LAWS[law]])
def test_the_density_obeys(law, model):
    hold_for(law, getattr(models, model), model)


@pytest.mark.parametrize(("law", "model", "bug"), BROKEN)
def test_a_planted_bug_breaks(law, model, bug):
    program = with_bug(model, bug)
    with pytest.raises(AssertionError):
        hold_for(law, program, model, how=UNTIL_BROKEN)


def test_every_law_is_broken_by_a_bug():
    assert {law for law, _, _ in BROKEN} == set(LAWS)


@pytest.mark.parametrize("model", PUBLISHED_SLOPES)
def test_a_group_without_rows_moves_the_rows_of_published_slopes(model):
    # As published, the slopes of all groups are summed, those of an empty one included. The
    # outcome is compared last, so that the priors have passed.
    law = a_group_without_rows_adds_its_prior
    with pytest.raises(AssertionError, match=r"(?m)^y$"):
        hold_for(law, getattr(models, model), model, how=UNTIL_BROKEN)


def test_the_groups_drawn_hold_no_row_one_row_or_all_rows():
    drawn = []

    def keep(case):
        rows = np.bincount(case.arguments["idx"], minlength=case.arguments["n_groups"])
        drawn.append(sorted(rows.tolist()))

    hold(keep, how=settings(EXAMPLES, max_examples=100), case=cases("two_level"))
    assert {len(rows) for rows in drawn} == {2, 4, 5}
    assert all(rows in drawn for rows in ([0, 2], [0, 0, 0, 4], [0, 0, 0, 0, 12]))
    assert all(rows in drawn for rows in ([1, 1], [1, 1, 1, 1], [2, 2, 2, 3, 3]))
    assert any(0 < rows[0] < rows[-1] - 1 for rows in drawn)
    assert any(rows[0] == 0 and 1 in rows for rows in drawn)


# --- The laws of a design


@st.composite
def tables(draw):
    """Draw a table with two columns of text, or of categories of which one may be empty."""
    row = st.tuples(st.sampled_from("pqr"), st.sampled_from("abc"), st.integers(-99, 99))
    rows = [("q", "b", 0), *draw(st.lists(row, max_size=10)), ("p", "a", 1)]
    table = pd.DataFrame(rows, columns=["kind", "site", "y"])
    if draw(st.booleans()):
        table = categorise(table, draw(st.permutations("pqr")), draw(st.permutations("abc")))
    return table


def categorise(table, kinds, sites):
    """Return a table whose labels are categories, in the orders given."""
    kind, site = pd.Categorical(table["kind"], kinds), pd.Categorical(table["site"], sites)
    return table.assign(kind=kind, site=site)


def design_of(table):
    return design(table, outcome="y", predictor="kind", group="site")


def rows_of_a_design_have_no_order(table, data):
    order = np.array(data.draw(st.permutations(range(len(table)))))
    before, after = design_of(table), design_of(table.iloc[order, ::-1])
    for name in ("X", "idx", "y"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name)[order])
    assert (after.labels, after.n_groups) == (before.labels, before.n_groups)
    moments = (before.y_mean, before.y_sd)
    np.testing.assert_allclose((after.y_mean, after.y_sd), moments, rtol=1e-13, atol=1e-13)


def names_of_groups_are_only_labels(table, data):
    names = dict(zip("abc", data.draw(st.permutations("xyz")), strict=True))
    before, after = design_of(table), design_of(table.assign(site=table["site"].map(names)))
    groups = [names[label] for label in before.labels["group"][1]]
    if table["site"].dtype != "category":
        groups = sorted(groups)
    assert after.labels == before.labels | {"group": ("site", tuple(groups))}
    assert [groups[j] for j in after.idx] == table["site"].map(names).tolist()
    for name in ("X", "y", "n_groups", "y_mean", "y_sd"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def categories_in_another_order_permute_the_codes(table, data):
    kinds, sites = data.draw(st.permutations("pqr")), data.draw(st.permutations("abc"))
    before = design_of(categorise(table, list("pqr"), list("abc")))
    after = design_of(categorise(table, kinds, sites))
    assert after.labels == before.labels | {
        "predictor": ("kind", tuple(kinds)),
        "coefficient": ("coefficient", ("intercept", *kinds)),
        "coefficient_2": ("coefficient_2", ("intercept", *kinds)),
        "group": ("site", tuple(sites)),
    }
    np.testing.assert_array_equal(after.X, before.X[:, ["pqr".index(kind) for kind in kinds]])
    np.testing.assert_array_equal(np.array(sites)[after.idx], np.array(list("abc"))[before.idx])
    np.testing.assert_array_equal(after.y, before.y)


DESIGN_LAWS = [
    rows_of_a_design_have_no_order,
    names_of_groups_are_only_labels,
    categories_in_another_order_permute_the_codes,
]


@pytest.mark.parametrize("law", DESIGN_LAWS)
def test_a_design_obeys(law):
    hold(law, table=tables(), data=st.data())


@pytest.mark.parametrize("law", DESIGN_LAWS)
def test_codes_by_appearance_break(law, monkeypatch):
    def by_appearance(column, levels=None):
        codes, labels = pd.factorize(column)
        return codes.astype(np.int32), tuple(labels)

    monkeypatch.setattr("mlm_utils.design.group_codes", by_appearance)
    with pytest.raises(AssertionError):
        hold(law, how=UNTIL_BROKEN, table=tables(), data=st.data())
