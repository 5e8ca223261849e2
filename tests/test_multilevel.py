"""The general model is its formula in every configuration, and its design says what it codes.

Densities are held against SciPy and against the models it contains; tables against codes and
contrasts written out; a fit of the cheese ratings against the analysis of variance.
"""

import functools
import inspect
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
from numpyro.infer.util import log_density
from scipy import stats
from xarray import DataTree

from mlm_utils import formulas, models, sampling
from mlm_utils.data import to_categories
from mlm_utils.models import multilevel
from mlm_utils.multilevel_design import Group, MultilevelDesign, Predictor, multilevel_design
from mlm_utils.sampling import fit, posterior_predictive, prior_predictive
from mlm_utils.terms import Prior, ScalePrior, Term

N_ROWS = 24
HALF_NORMAL, HALF_CAUCHY = ScalePrior("half-normal", 5.0), ScalePrior("half-cauchy", 2.0)
HALF_T, EXPONENTIAL = ScalePrior("half-t", 4.0, 3.0), ScalePrior("exponential", 3.0)
UNEQUAL = ScalePrior("half-t", np.array([9.0, 1.5]), 4)
CORRELATED, CENTRED = {"correlated": True}, {"centred": True}

# Configuration -> the prior of sigma and the terms: name, groups, effects, prior of tau, options.
CONFIGURATIONS = {
    "no term": [HALF_NORMAL],
    "an intercept": [EXPONENTIAL, ("g", 5, 1, HALF_CAUCHY, {})],
    "a centred intercept": [HALF_T, ("g", 5, 1, HALF_NORMAL, CENTRED)],
    "nested": [HALF_CAUCHY, ("person", 9, 1, HALF_T, CENTRED), ("site", 3, 1, HALF_NORMAL, {})],
    "crossed": [HALF_NORMAL, ("g", 5, 1, HALF_NORMAL, {}), ("h", 4, 1, EXPONENTIAL, {})],
    "correlated": [EXPONENTIAL, ("g", 5, 3, HALF_CAUCHY, CORRELATED)],
    "correlated, centred": [EXPONENTIAL, ("g", 4, 2, UNEQUAL, CORRELATED | CENTRED)],
    "slopes": [HALF_T, ("g", 3, 3, ScalePrior("half-normal", np.array([8.0, 2.0, 0.5])), {})],
    "slopes, centred": [EXPONENTIAL, ("g", 3, 3, HALF_NORMAL, CENTRED)],
    "three terms": [
        HALF_T,
        ("g", 5, 2, HALF_NORMAL, CORRELATED),
        ("h", 4, 2, HALF_CAUCHY, CENTRED),
        ("site", 3, 1, EXPONENTIAL, {}),
    ],
}

# Name of the bug -> (text of the module, its replacement, a configuration in which it shows).
EFFECTS, SCALED, ALONE = "b[term.idx]", "tau[:, None] * L_Omega", "tau * z"
BUGS = {
    "index ignored": (EFFECTS, "b[0]", "an intercept"),
    "index reversed": (EFFECTS, "b[term.n_groups - 1 - term.idx]", "an intercept"),
    "index of the first term": (EFFECTS, "b[terms[0].idx % term.n_groups]", "crossed"),
    "groups summed": (EFFECTS, "b.sum(axis=0)", "nested"),
    "effects transposed": (EFFECTS, "b.T[term.idx]", "slopes"),
    "slopes without their columns": ("term.W * b", "b", "slopes"),
    "columns of the population": ("term.W * b", "X[:, : term.W.shape[1]] * b", "correlated"),
    "terms subtracted": ("mu + jnp.sum", "mu - jnp.sum", "crossed"),
    "the last term alone": ("mu = mu + jnp.sum", "mu = X @ beta + jnp.sum", "crossed"),
    "one prior for all terms": ("prior.tau[term.name]", "prior.tau[terms[0].name]", "crossed"),
    "population dropped": ("mu = X @ beta", "mu = 0.0 * X @ beta", "no term"),
    "population means dropped": ("prior.beta_mean, ", "0.0, ", "no term"),
    "population sds as variances": ("mean, prior.beta_sd", "mean, prior.beta_sd**0.5", "no term"),
    "sigma squared": ("Normal(mu, sigma)", "Normal(mu, sigma**2)", "no term"),
    "columns scaled": (SCALED, "tau * L_Omega", "correlated"),
    "tau dropped": (ALONE, "z", "an intercept"),
    "tau squared": (ALONE, "tau**2 * z", "an intercept"),
    "tau a variance": (SCALED, "jnp.sqrt(tau)[:, None] * L_Omega", "correlated, centred"),
    "tau of the first effect": (ALONE, "tau[0] * z", "slopes"),
    "tau of the first effect, correlated": (SCALED, "tau[0] * L_Omega", "correlated"),
    "tau dropped, correlated": (SCALED, "L_Omega", "correlated"),
    "correlation dropped": (SCALED, "jnp.diag(tau)", "correlated"),
    "LKJ uniform": ("LKJCholesky(q, eta)", "LKJCholesky(q, 1.0)", "correlated"),
    "factor transposed": ("z @ L_Sigma.T", "z @ L_Sigma", "correlated"),
    "as published": ("z @ L_Sigma.T", "z @ (L_Sigma @ L_Sigma.T)", "correlated"),
    "tau applied twice": ("Normal(0.0, 1.0)", "Normal(0.0, tau)", "slopes"),
    "centred without tau": ("Normal(0.0, tau)", "Normal(0.0, 1.0)", "slopes, centred"),
    "centred with a variance": ("Normal(0.0, tau)", "Normal(0.0, tau**2)", "nested"),
    "centred uncorrelated": ("_tril=L_Sigma", "_tril=jnp.diag(tau)", "correlated, centred"),
    "rate for mean": ("1 / prior.scale", "prior.scale", "an intercept"),
    "t not folded": ("dist.FoldedDistribution(", "(", "a centred intercept"),
    "t of other df": ("StudentT(prior.df", "StudentT(1 + prior.df", "a centred intercept"),
    "half-normal for half-Cauchy": ("dist.HalfCauchy", "dist.HalfNormal", "an intercept"),
}


class Problem(NamedTuple):
    """Arguments of the model, 100 points stacked, and the formula's log density at each."""

    arguments: dict
    points: dict
    written: np.ndarray


def made_up(configuration):
    """Return arguments with unequal groups, the last of them empty, and columns of no meaning."""
    rng = np.random.default_rng(7)
    sigma, *specified = CONFIGURATIONS[configuration]
    terms, tau = [], {}
    for name, n_groups, q, prior, options in specified:
        idx = rng.integers(n_groups - 1, size=N_ROWS).astype(np.int32)
        W = rng.normal(0.5, 1.5, (N_ROWS, q)) if q > 1 else np.ones((N_ROWS, 1))
        terms.append(Term(name, idx, n_groups, W, **options))
        tau[name] = prior
    if configuration == "nested":
        terms[1] = terms[1]._replace(idx=terms[0].idx // 3)
    X = np.column_stack([np.ones(N_ROWS), rng.normal(0.5, 1.5, (N_ROWS, 3))])
    mean, sd = np.array([20.0, 0.0, -1.0, 0.5]), np.array([10.0, 3.0, 2.0, 0.7])
    prior = Prior(mean, sd, sigma, tau, eta=1.7)
    return {"X": X, "terms": tuple(terms), "y": rng.normal(20, 6, N_ROWS), "prior": prior}


def draw_points(arguments, n=100):
    """Draw parameter values far and wide, near the posterior and off it, stacked."""
    rng = np.random.default_rng(20260701)
    points = {
        "beta": rng.normal(0, 6, (n, arguments["X"].shape[1])),
        "sigma": np.exp(rng.normal(2, 1, n)),
    }
    for term in arguments["terms"]:
        q = term.W.shape[1]
        points[f"tau_{term.name}"] = np.exp(rng.normal(0.5, 1, (n, q)))
        effects = ("b" if term.centred else "z") + f"_{term.name}"
        points[effects] = rng.normal(0, 2, (n, term.n_groups, q))
        if term.correlated:
            factor = np.tril(rng.normal(size=(n, q, q)))
            np.einsum("nii->ni", factor)[...] = np.exp(rng.normal(0, 1, (n, q)))
            factor /= np.linalg.norm(factor, axis=2, keepdims=True)
            points[f"L_Omega_{term.name}"] = factor
    return points


@functools.cache
def problem(configuration):
    """Set the model a problem."""
    arguments = made_up(configuration)
    points = draw_points(arguments)
    written = [formulas.multilevel(point, **arguments) for point in unstack(points)]
    return Problem(arguments, points, np.array(written))


def unstack(points):
    """Return the single points of a stack."""
    n = len(next(iter(points.values())))
    return [{site: values[i] for site, values in points.items()} for i in range(n)]


def densities(arguments, points, model=multilevel):
    """Return a model's log density at each of the stacked points."""
    return jax.vmap(lambda point: log_density(model, (), arguments, point)[0])(points)


def assert_density_is_the_formula(model, configuration):
    """Compare a model's log density with the formula's at 100 points."""
    arguments, points, written = problem(configuration)
    drawn = densities(arguments, points, model)
    np.testing.assert_allclose(drawn, written, atol=1e-9, rtol=1e-12)
    return drawn, written


def with_bug(bug):
    """Return the model with a bug of the table written into its source or that of its parts."""
    right, wrong, _ = BUGS[bug]
    parts = (multilevel, models.group_effects, models.scale_distribution)
    source = "\n".join(inspect.getsource(part) for part in parts)
    assert source.count(right) == 1, f"{right!r} must occur once in the model"
    namespace = vars(models) | {"__name__": "with_a_bug"}
    exec(source.replace(right, wrong), namespace)
    return namespace["multilevel"]


# --- The density


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_density_is_the_formula(configuration, record_property):
    drawn, written = assert_density_is_the_formula(multilevel, configuration)
    worst = np.max(np.abs(drawn - written) / np.maximum(1, np.abs(written)))
    record_property("density", ["multilevel", configuration, len(drawn), f"{worst:.1e}"])


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_changes_the_density(bug):
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_density_is_the_formula(with_bug(bug), BUGS[bug][2])


# --- The models it contains


def contained(name):
    """Return a model, its arguments, the general model's, and how a point of one is the other's.

    The published programs are not among them: they sum slopes over all groups or multiply effects
    by Sigma, which no term does. In two_level and eight_schools sigma is known.
    """
    made = made_up("slopes")
    X, y, (term,) = made["X"][:, 1:], made["y"], made["terms"]
    mean, sd = float(y.mean()), float(y.std(ddof=1))
    ones = np.ones((N_ROWS, 1))
    own = {"X": X, "idx": term.idx, "y": y, "n_groups": 3, "y_mean": mean, "y_sd": sd}
    W, tau, options, effects = {
        "varying_intercept": (ones, HALF_CAUCHY, CENTRED, {"alpha_j": slice(0, 1)}),
        "varying_slope": (X, HALF_NORMAL, CENTRED, {"beta_j": slice(0, 3)}),
        "varying_intercept_slope": (
            *(np.hstack([ones, X]), HALF_NORMAL, CENTRED),
            {"alpha_j": slice(0, 1), "beta_j": slice(1, 4)},
        ),
        "correlated_effects": (np.hstack([ones, X]), HALF_CAUCHY, CORRELATED, {}),
    }[name]
    general = {
        "X": np.hstack([ones, X]),
        "terms": (Term("g", term.idx, 3, W, **options),),
        "y": y,
        "prior": Prior(
            np.array([mean, 0.0, 0.0, 0.0]),
            np.array([2.5 * sd, 2.0, 2.0, 2.0]),
            ScalePrior("exponential", sd),
            {"g": tau},
        ),
    }

    def translate(point):
        translated = {
            "alpha": point["beta"][:, 0],
            "beta": point["beta"][:, 1:],
            "sigma": point["sigma"],
        }
        if name == "correlated_effects":
            sites = {site: point[f"{site}_g"] for site in ("tau", "L_Omega", "z")}
            return translated | sites
        for site, columns in effects.items():
            scale = {"beta_j": "tau_beta"}.get(site, "tau_alpha" if len(effects) > 1 else "tau")
            translated |= {site: point["b_g"][:, :, columns], scale: point["tau_g"][:, columns]}
            if site == "alpha_j":
                translated |= {key: translated[key][..., 0] for key in (site, scale)}
        return translated

    return getattr(models, name), own, general, translate


@pytest.mark.parametrize(
    "name",
    ["varying_intercept", "varying_slope", "varying_intercept_slope", "correlated_effects"],
)
def test_it_contains_the_models_of_the_three_approaches(name):
    model, own, general, translate = contained(name)
    points = draw_points(general)
    expected = densities(own, translate(points), model)
    np.testing.assert_allclose(densities(general, points), expected, atol=1e-9, rtol=1e-12)


# --- What must not matter


def effects_of(term):
    return f"b_{term.name}" if term.centred else f"z_{term.name}"


def rows_in_another_order(arguments, points):
    order = np.random.default_rng(2).permutation(N_ROWS)
    terms = tuple(t._replace(idx=t.idx[order], W=t.W[order]) for t in arguments["terms"])
    rows = {"X": arguments["X"][order], "y": arguments["y"][order], "terms": terms}
    return arguments | rows, points, 0.0


def groups_numbered_anew(arguments, points):
    terms, moved = [], {}
    for term in arguments["terms"]:
        order = np.random.default_rng(3).permutation(term.n_groups)
        terms.append(term._replace(idx=np.argsort(order)[term.idx]))
        moved[effects_of(term)] = points[effects_of(term)][:, order]
    return arguments | {"terms": tuple(terms)}, points | moved, 0.0


def terms_in_another_order(arguments, points):
    return arguments | {"terms": arguments["terms"][::-1]}, points, 0.0


def other_units(arguments, points, shift=-7.0, scale=2.5):
    """Measure the outcome anew, and move the priors along; the Jacobian is that of the sites."""
    prior, by_scale = arguments["prior"], {"beta", "sigma"}
    for term in arguments["terms"]:
        by_scale |= {f"tau_{term.name}"} | ({f"b_{term.name}"} if term.centred else set())
    moved = {site: scale * points[site] for site in by_scale}
    n_moved = sum(points[site][0].size for site in by_scale)
    moved["beta"][:, 0] += shift
    intercept = np.array([shift, 0.0, 0.0, 0.0])
    widen = {name: tau._replace(scale=scale * tau.scale) for name, tau in prior.tau.items()}
    prior = Prior(
        scale * prior.beta_mean + intercept,
        scale * prior.beta_sd,
        prior.sigma._replace(scale=scale * prior.sigma.scale),
        widen,
        prior.eta,
    )
    changed = {"y": scale * arguments["y"] + shift, "prior": prior}
    return arguments | changed, points | moved, -(n_moved + N_ROWS) * np.log(scale)


def one_empty_group_more(arguments, points):
    """Add a group whose effects are zero to each term: its prior density is all that it adds."""
    terms, moved, added = [], {}, 0.0
    for term in arguments["terms"]:
        site, q = effects_of(term), term.W.shape[1]
        terms.append(term._replace(n_groups=term.n_groups + 1))
        moved[site] = np.concatenate([points[site], np.zeros((100, 1, q))], axis=1)
        added = added - q / 2 * np.log(2 * np.pi)
        if term.centred:
            added = added - np.log(points[f"tau_{term.name}"]).sum(axis=1)
        if term.centred and term.correlated:
            diagonal = np.diagonal(points[f"L_Omega_{term.name}"], axis1=1, axis2=2)
            added = added - np.log(diagonal).sum(axis=1)
    return arguments | {"terms": tuple(terms)}, points | moved, added


@pytest.mark.parametrize("configuration", ["slopes", "correlated, centred", "three terms"])
@pytest.mark.parametrize(
    "law",
    [
        rows_in_another_order,
        groups_numbered_anew,
        terms_in_another_order,
        other_units,
        one_empty_group_more,
    ],
    ids=lambda law: law.__name__,
)
def test_the_density_keeps_the_law(law, configuration):
    arguments, points, written = problem(configuration)
    arguments, points, added = law(arguments, points)
    np.testing.assert_allclose(densities(arguments, points), written + added, rtol=1e-11, atol=1e-9)


def test_independent_slopes_are_as_many_terms():
    arguments, points, written = problem("slopes")
    (term,) = arguments["terms"]
    scales = arguments["prior"].tau["g"].scale
    terms, split, tau = [], {site: points[site] for site in ("beta", "sigma")}, {}
    for k in range(3):
        terms.append(term._replace(name=f"g{k}", W=term.W[:, k : k + 1]))
        split |= {f"{site}_g{k}": points[f"{site}_g"][..., k : k + 1] for site in ("tau", "z")}
        tau[f"g{k}"] = ScalePrior("half-normal", float(scales[k]))
    changed = {"terms": tuple(terms), "prior": arguments["prior"]._replace(tau=tau)}
    np.testing.assert_allclose(densities(arguments | changed, split), written, rtol=1e-11)


# --- From a table

COLOURS = pd.DataFrame(
    {
        "y": [3.0, 1.0, 4.0, 1.0, 5.0, 9.0],
        "colour": ["red", "blue", "green", "red", "green", "blue"],
        "size": [1, 2, 4, 3, 1, 2],
        "id": [10, 2, 2, 10, 2, 10],
        "town": ["w", "e", "w", "e", "e", "w"],
    }
)
BLUE, GREEN, RED = (COLOURS["colour"] == c for c in ("blue", "green", "red"))
ONES, SIZE, WEST = np.ones(6), COLOURS["size"], COLOURS["town"] == "w"
# What the population holds -> its columns, what each is called and where it comes from.
POPULATIONS = {
    "nothing": ([], [ONES], ["intercept"], ["intercept"]),
    "a number": (["size"], [ONES, SIZE], ["intercept", "size"], ["intercept", "size"]),
    "dummies": (
        ["colour"],
        [ONES, GREEN, RED],
        ["intercept", "colour green - blue", "colour red - blue"],
        ["intercept", "colour", "colour"],
    ),
    "all levels": (
        ["size", Predictor("colour", "all levels")],
        [SIZE, BLUE, GREEN, RED],
        ["size", "colour blue", "colour green", "colour red"],
        ["size", "colour", "colour", "colour"],
    ),
    "sum to zero": (
        [Predictor("colour", "sum"), "town"],
        [ONES, 1.0 * BLUE - RED, 1.0 * GREEN - RED, WEST],
        ["intercept", "colour blue - mean", "colour green - mean", "town w - e"],
        ["intercept", "colour", "colour", "town"],
    ),
    "an interaction with a number": (
        ["size", Predictor(("town", "size"))],
        [ONES, SIZE, WEST * SIZE],
        ["intercept", "size", "town w - e : size"],
        ["intercept", "size", "town:size"],
    ),
    "a slope a level": (
        [Predictor(("town", "size"), "all levels")],
        [ONES, (1 - WEST) * SIZE, WEST * SIZE],
        ["intercept", "town e : size", "town w : size"],
        ["intercept", "town:size", "town:size"],
    ),
    "a level a cell": (
        [Predictor(("colour", "town"), "all levels")],
        [colour * town for colour in (BLUE, GREEN, RED) for town in (~WEST, WEST)],
        [f"colour {c} : town {t}" for c in ("blue", "green", "red") for t in ("e", "w")],
        ["colour:town"] * 6,
    ),
    "an interaction of contrasts": (
        [Predictor("town", "sum"), Predictor(("town", "id"), "sum")],
        [ONES, 1 - 2.0 * WEST, (1 - 2.0 * WEST) * (1 - 2.0 * (COLOURS["id"] == 10))],
        ["intercept", "town e - mean", "town e - mean : id 2 - mean"],
        ["intercept", "town", "town:id"],
    ),
}


@pytest.mark.parametrize("case", POPULATIONS)
def test_the_population_is_coded_as_said(case):
    population, columns, labels, sources = POPULATIONS[case]
    table = COLOURS.astype({"id": "category"})
    rows = multilevel_design(table, outcome="y", population=population)
    np.testing.assert_array_equal(rows.X, np.column_stack(columns).astype(float))
    assert rows.labels["coefficient"] == ("coefficient", tuple(labels))
    assert rows.sources == tuple(sources)
    assert (rows.X.dtype, rows.y.tolist(), rows.terms) == (np.float64, COLOURS["y"].tolist(), ())


@pytest.mark.parametrize("coding", ["dummy", "sum", "all levels"])
def test_every_coding_spans_the_means_of_the_levels(coding, cheese):
    rows = multilevel_design(cheese, outcome="y", population=[Predictor("cheese", coding)])
    levels = pd.get_dummies(cheese["cheese"]).to_numpy(float)
    solved, _, rank, _ = np.linalg.lstsq(rows.X, levels)
    assert rank == rows.X.shape[1] == 4
    np.testing.assert_allclose(rows.X @ solved, levels, atol=1e-12)


# Case -> the group, its labels, the group of each row of COLOURS, its effects and their columns.
GROUPS = {
    "one column": ("id", (2, 10), [1, 0, 0, 1, 0, 1], {"intercept": ONES}),
    "two columns": (
        Group(("town", "id")),
        *(("e:2", "e:10", "w:2", "w:10"), [3, 0, 2, 1, 0, 3], {"intercept": ONES}),
    ),
    "a slope": (Group("id", ["size"]), (2, 10), None, {"intercept": ONES, "size": SIZE}),
    "a slope alone": (Group("id", ["size"], intercept=False), (2, 10), None, {"size": SIZE}),
    "all levels": (
        *(Group("id", [Predictor("town", "all levels")]), (2, 10), None),
        {"town e": ~WEST, "town w": WEST},
    ),
    "contrasts": (
        *(Group("town", [Predictor("id", "sum")], correlated=True), ("e", "w"), None),
        {"intercept": ONES, "id 2 - mean": 1 - 2.0 * (COLOURS["id"] == 10)},
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_groups_are_coded_as_said(case):
    group, members, idx, effects = GROUPS[case]
    table = COLOURS.astype({"id": "category"})
    rows = multilevel_design(table, outcome="y", groups=[group])
    (term,) = rows.terms
    columns = group.columns if isinstance(group, Group) else group
    assert term.name == (columns if isinstance(columns, str) else "_".join(columns))
    np.testing.assert_array_equal(term.W, np.column_stack(list(effects.values())).astype(float))
    assert (term.n_groups, term.idx.dtype) == (len(members), np.int32)
    if idx is not None:
        assert term.idx.tolist() == idx
    assert rows.labels[term.name] == (term.name, members)
    for dimension in (f"{term.name}_effect", f"{term.name}_effect_2"):
        assert rows.labels[dimension] == (dimension, tuple(effects))


def test_options_of_a_group_reach_its_term():
    group = Group("id", ["size"], correlated=True, centred=True, name="person")
    (term,) = multilevel_design(COLOURS, outcome="y", groups=[group]).terms
    assert (term.name, term.correlated, term.centred) == ("person", True, True)


@pytest.fixture(scope="session")
def reused(cheese):
    """The table as published: ids 1 to 10 in both backgrounds."""
    return cheese.assign(id=cheese["rater"].str.split().str[1].astype(int)).drop(columns="rater")


def test_ids_used_again_are_told_apart_by_two_columns(reused, cheese):
    group = Group(("background", "id"), nested_in="background", name="rater")
    (term,) = multilevel_design(reused, outcome="y", groups=[group]).terms
    (labelled,) = multilevel_design(cheese, outcome="y", groups=["rater"]).terms
    assert term.n_groups == 20
    np.testing.assert_array_equal(term.idx, labelled.idx)
    (naive,) = multilevel_design(reused, outcome="y", groups=["id"]).terms
    assert naive.n_groups == 10


def test_a_category_without_rows_is_a_group_and_a_combination_without_rows_is_none(cheese):
    groups = ["rater", Group(("rater", "cheese"))]
    all_but_one = cheese[(cheese["rater"] != "rural 2") & (cheese["cheese"] != "B")]
    rater, cell = multilevel_design(all_but_one, outcome="y", groups=groups).terms
    assert (rater.n_groups, len(np.unique(rater.idx))) == (20, 19)
    assert cell.n_groups == 19 * 3


def test_new_rows_are_coded_as_the_old_ones(cheese, refuses):
    rows = multilevel_design(
        cheese,
        outcome="y",
        population=[Predictor("background", "sum"), "cheese"],
        groups=[Group("rater", ["cheese"], nested_in="background"), Group(("rater", "cheese"))],
    )
    some = [150, 3, 77]
    new = cheese.iloc[some].drop(columns="y").astype(str)
    coded = rows.new_rows(new)
    np.testing.assert_array_equal(coded.X, rows.X[some])
    for term, old in zip(coded.terms, rows.terms, strict=True):
        np.testing.assert_array_equal(term.idx, old.idx[some])
        np.testing.assert_array_equal(term.W, old.W[some])
        assert (term.name, term.n_groups) == (old.name, old.n_groups)
    assert coded.y is None
    assert coded.labels["row"] == ("row", (0, 1, 2))
    assert dict(coded.labels) | {"row": rows.labels["row"]} == dict(rows.labels)
    with refuses(ValueError, "'rater' holds 'rural 11' in row 150", "not one of"):
        rows.new_rows(new.replace({"rater": {"urban 9": "rural 11"}}))
    with refuses(ValueError, "'rater:cheese' holds 'urban 9:A'", "not one of"):
        kept = cheese[(cheese["rater"] != "urban 9") | (cheese["cheese"] != "A")]
        multilevel_design(kept, outcome="y", groups=[Group(("rater", "cheese"))]).new_rows(
            cheese.iloc[144:145]
        )
    with refuses(ValueError, "'cheese' occurs 0 times"):
        rows.new_rows(new.drop(columns="cheese"))


def test_priors_are_stated_by_predictor_and_by_term(cheese):
    rows = multilevel_design(
        cheese,
        outcome="y",
        population=["background", "cheese"],
        groups=["rater", Group(("rater", "cheese"), name="taste")],
    )
    beta = {"cheese": (0, 15), "intercept": (70, 20.0), "background": (-1, 8)}
    prior = rows.prior(beta=beta, sigma=EXPONENTIAL, tau=HALF_T, eta=3.0)
    assert prior.beta_mean.tolist() == [70.0, -1.0, 0.0, 0.0, 0.0]
    assert prior.beta_sd.tolist() == [20.0, 8.0, 15.0, 15.0, 15.0]
    assert prior[2:] == (EXPONENTIAL, {"rater": HALF_T, "taste": HALF_T}, 3.0)
    tau = {"rater": HALF_T, "taste": HALF_NORMAL}
    assert rows.prior(beta=beta, sigma=EXPONENTIAL, tau=tau).tau == tau


# --- Bad tables

RATER, PAIR = Group("rater"), Group(("rater", "cheese"))
# Case -> what is done to the table, what changes in the call, the error, what it says.
BAD_TABLES = {
    "not a table": (lambda t: t.to_dict(), {}, TypeError, ["DataFrame", "dict"]),
    "no row": (lambda t: t.iloc[:0], {}, ValueError, ["empty", "at least one row"]),
    "no outcome": (None, {"outcome": "rating"}, ValueError, ["'rating' occurs 0", "rename or add"]),
    "no predictor": (None, {"population": ["milk"]}, ValueError, ["'milk' occurs 0", "add"]),
    "no slope": (None, {"groups": [Group("rater", ["milk"])]}, ValueError, ["'milk' occurs 0"]),
    "no group": (None, {"groups": ["judge"]}, ValueError, ["'judge' occurs 0", "rename or add"]),
    "no nest": (
        *(None, {"groups": [Group("rater", nested_in="town")]}, ValueError),
        ["'town' occurs 0", "rename or add"],
    ),
    "column twice": (
        lambda t: pd.concat([t, t["cheese"]], axis=1),
        *({}, ValueError, ["'cheese' occurs 2 times", "rename"]),
    ),
    "outcome as predictor": (
        *(None, {"population": ["y"]}, ValueError),
        ["outcome 'y'", "predictor or a group", "drop it"],
    ),
    "outcome constant": (
        lambda t: t.assign(y=70),
        *({}, ValueError, ["'y' is constant", "70", "160 rows", "another outcome"]),
    ),
    "outcome infinite": (
        lambda t: t.assign(y=t["y"].where(t.index != 7, np.inf)),
        *({}, ValueError, ["'y' is inf in row 7", "finite"]),
    ),
    "outcome missing": (
        lambda t: t.assign(y=t["y"].where(t.index != 7)),
        *({}, ValueError, ["'y' has no value in row 7", "drop or impute"]),
    ),
    "predictor missing": (
        lambda t: t.assign(cheese=t["cheese"].where(t.index != 7)),
        *({}, ValueError, ["'cheese' has no value in row 7", "drop or impute"]),
    ),
    "number infinite": (
        lambda t: t.assign(age=np.where(t.index == 7, -np.inf, t.index)),
        *({"population": ["age"]}, ValueError, ["'age' is -inf in row 7", "finite"]),
    ),
    "number constant": (
        lambda t: t.assign(age=3),
        *({"population": ["age"]}, ValueError),
        ["the population", "'age' is 3 x 'intercept' in every row", "drop it"],
    ),
    "predictor of one level": (
        lambda t: t.assign(cheese="A"),
        *({}, ValueError, ["'cheese' has one level ('A')", "at least two"]),
    ),
    "predictor with an empty level": (
        lambda t: t[t["cheese"] != "B"],
        *({}, ValueError, ["'cheese' has no row of level 'B'", "remove_unused_categories"]),
    ),
    "group of one level": (
        lambda t: t.assign(rater="me"),
        *({}, ValueError, ["'rater' has one level ('me')", "at least two"]),
    ),
    "group of floats": (
        lambda t: t.assign(rater=t.index / 8),
        *({}, TypeError, ["'rater'", "labels", "astype"]),
    ),
    "predictor twice": (
        *(None, {"population": ["cheese", "cheese"]}, ValueError),
        ["'cheese B - A' is 1 x 'cheese B - A' in every row", "drop it"],
    ),
    "two sets of all levels": (
        None,
        {"population": [Predictor(c, "all levels") for c in ("cheese", "background")]},
        ValueError,
        ["'background urban' is 1 x 'cheese A' + ", "-1 x 'background rural'", "fewer levels"],
    ),
    "interaction with an empty cell": (
        lambda t: t[(t["background"] == "rural") | (t["cheese"] != "B")],
        {"population": ["cheese", "background", Predictor(("background", "cheese"))]},
        ValueError,
        ["'background urban - rural : cheese B - A' is zero in every row", "drop it"],
    ),
    "population not a list": (
        *(None, {"population": "cheese"}, TypeError, ["population", "'cheese'", "[...]"]),
    ),
    "one group not in a list": (
        *(None, {"groups": Group("rater")}, TypeError, ["groups", "'rater'", "[...]"]),
    ),
    "slopes not a list": (
        *(None, {"groups": [Group("rater", "cheese")]}, TypeError),
        ["slopes", "'cheese'", "[...]"],
    ),
    "group a bare tuple": (
        *(None, {"groups": [("rater", "cheese")]}, TypeError),
        ["groups", "('rater', 'cheese')", "Group(('a', 'b'))"],
    ),
    "group as predictor": (
        *(None, {"population": [RATER]}, TypeError, ["population", "Predictor(", "'rater'"]),
    ),
    "group of no column": (None, {"groups": [Group(())]}, TypeError, ["groups", "column names"]),
    "coding unknown": (
        *(None, {"population": [Predictor("cheese", "helmert")]}, ValueError),
        ["'cheese'", "'helmert'", "choose one of ('dummy',"],
    ),
    "name twice": (
        *(None, {"groups": [RATER, Group("rater", ["cheese"])]}, ValueError),
        ["two terms are named 'rater'", "name="],
    ),
    "labels that join to one": (
        lambda t: t.assign(
            rater=np.where(t.index < 80, "a:b", "a"), cheese=np.where(t.index < 80, "c", "b:c")
        ),
        *({"population": [], "groups": [PAIR]}, ValueError),
        ["['rater', 'cheese']", "'a:b:c'", "rename"],
    ),
    "ids of two people": (
        lambda t: t.assign(rater=t["rater"].str.split().str[1].astype(int)),
        *({"groups": [Group("rater", nested_in="background")]}, ValueError),
        ["group 1 occurs with 'rural' and 'urban'", "Group(('background', 'rater'))"],
    ),
    "row of its own": (
        lambda t: t.iloc[::2],
        *({"groups": [PAIR]}, ValueError),
        ["each row is a group of its own in 'rater_cheese'", "sigma", "drop the term"],
    ),
    "slope twice": (
        *(None, {"groups": [Group("rater", ["cheese", "cheese"])]}, ValueError),
        ["the term 'rater'", "'cheese B - A' is 1 x 'cheese B - A'", "drop it"],
    ),
    "slope of what a group has once": (
        *(None, {"groups": [Group("rater", ["background"])]}, ValueError),
        ["'background urban - rural' is the same in all rows of a group of 'rater'", "keep it in"],
    ),
    "group in the population": (
        *(None, {"groups": ["cheese"]}, ValueError),
        ["a coefficient for each group of 'cheese'", "drop one"],
    ),
    "one grouping twice": (
        *(None, {"groups": [RATER, Group(("background", "rater"))]}, ValueError),
        ["'rater' and 'background_rater' group the rows in the same way", "drop one"],
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_makes_no_design(case, cheese, refuses):
    change, call, error, says = BAD_TABLES[case]
    call = {"outcome": "y", "population": ["background", "cheese"], "groups": [RATER]} | call
    with refuses(error, *says):
        multilevel_design(change(cheese) if change else cheese, **call)


BAD_PRIORS = {
    "left out": ({"intercept": (70, 20)}, ValueError, ["beta", "['cheese', 'intercept']"]),
    "unknown": (
        {"intercept": (70, 20), "cheese": (0, 9), "milk": (0, 1)},
        *(ValueError, ["nothing else", "'milk'"]),
    ),
    "not a mapping": ((70, 20), ValueError, ["beta must map", "(70, 20)"]),
    "no sd": ({"intercept": 70, "cheese": (0, 9)}, TypeError, ["beta['intercept']", "70", "try"]),
}


@pytest.mark.parametrize("case", BAD_PRIORS)
def test_a_prior_that_does_not_fit_the_design_is_refused(case, cheese, refuses):
    beta, error, says = BAD_PRIORS[case]
    rows = multilevel_design(cheese, outcome="y", population=["cheese"])
    with refuses(error, *says):
        rows.prior(beta=beta, sigma=EXPONENTIAL, tau=HALF_T)


# --- Bad arguments


def of_term(**change):
    return lambda made: {"terms": (made["terms"][0]._replace(**change), *made["terms"][1:])}


def of_prior(**change):
    return lambda made: {"prior": made["prior"]._replace(**change)}


def of_tau(prior):
    return lambda made: {"prior": made["prior"]._replace(tau=made["prior"].tau | {"g": prior})}


BAD_ARGUMENTS = {
    "X flat": (lambda m: {"X": m["X"][:, 0]}, ValueError, ["X", "(n, k)", "(24,)", "reshape"]),
    "X with NaN": (lambda m: {"X": m["X"] * np.nan}, ValueError, ["X[0, 0] is nan", "drop"]),
    "y a column": (lambda m: {"y": m["y"][:, None]}, ValueError, ["y", "(24,)", "(24, 1)"]),
    "one term alone": (lambda m: {"terms": m["terms"][0]}, TypeError, ["terms", "(term,)"]),
    "terms a list": (lambda m: {"terms": list(m["terms"])}, TypeError, ["terms", "tuple"]),
    "idx too high": (
        *(of_term(n_groups=3), ValueError),
        ["term 'g'", "outside 0 .. 2", "n_groups=3", "raise n_groups"],
    ),
    "idx of floats": (of_term(idx=np.zeros(N_ROWS)), TypeError, ["term 'g'", "idx", "integers"]),
    "idx too short": (of_term(idx=np.zeros(9, int)), ValueError, ["term 'g'", "idx", "(24,)"]),
    "one group": (of_term(n_groups=1), ValueError, ["term 'g'", "at least 2", "got 1"]),
    "W flat": (of_term(W=np.ones(N_ROWS)), ValueError, ["term 'g'", "W", "(n, k)", "(24,)"]),
    "W too short": (of_term(W=np.ones((9, 2))), ValueError, ["term 'g'", "9 rows", "24", "same"]),
    "W of no column": (of_term(W=np.ones((24, 0))), ValueError, ["term 'g'", "W", "(24, 0)"]),
    "W infinite": (of_term(W=np.full((24, 2), np.inf)), ValueError, ["term 'g'", "W[0, 0] is inf"]),
    "correlated alone": (
        *(of_term(W=np.ones((N_ROWS, 1))), ValueError),
        ["term 'g'", "correlated", "one column", "False"],
    ),
    "centred a number": (of_term(centred=1), TypeError, ["term 'g'", "centred", "got 1"]),
    "name with a space": (of_term(name="a rater"), ValueError, ["'a rater'", "name=", "letters"]),
    "name a number": (of_term(name=3), ValueError, ["named 3", "name=", "letters"]),
    "name twice": (of_term(name="h"), ValueError, ["called 'h'", "another name="]),
    "name of a site": (of_term(name="sigma"), ValueError, ["called 'sigma'", "another name="]),
    "name of another's site": (of_term(name="tau_h"), ValueError, ["called 'tau_h'"]),
    "name of a dimension": (of_term(name="h_effect"), ValueError, ["called 'h_effect'"]),
    "prior a dict": (
        lambda m: {"prior": m["prior"]._asdict()},
        *(TypeError, ["prior", "must be a Prior"]),
    ),
    "too few means": (of_prior(beta_mean=np.zeros(3)), ValueError, ["beta_mean", "(4,)", "(3,)"]),
    "sds a list": (of_prior(beta_sd=[1.0] * 4), TypeError, ["beta_sd", "list", "asarray"]),
    "sd zero": (of_prior(beta_sd=np.arange(4.0)), ValueError, ["beta_sd[0] is 0.0", "positive"]),
    "eta negative": (of_prior(eta=-1.0), ValueError, ["eta", "positive", "-1.0"]),
    "tau left out": (of_prior(tau={}), ValueError, ["tau", "['g', 'h', 'site']", "ScalePrior"]),
    "tau one prior": (of_prior(tau=HALF_T), ValueError, ["tau", "['g', 'h', 'site']"]),
    "tau a number": (of_tau(5.0), ValueError, ["tau['g']", "5.0", "try ScalePrior("]),
    "family unknown": (
        *(of_tau(ScalePrior("gamma", 2.0)), ValueError),
        ["tau['g']", "'gamma'", "'half-normal'", "try"],
    ),
    "scale negative": (of_tau(ScalePrior("half-t", -2.0, 3)), ValueError, ["tau['g']", "-2.0"]),
    "scale text": (of_tau(ScalePrior("half-cauchy", "2")), TypeError, ["tau['g']", "'2'", "float"]),
    "scales too many": (
        *(of_tau(ScalePrior("half-normal", np.ones(3))), ValueError),
        ["tau['g']", "(2,)", "(3,)"],
    ),
    "one scale zero": (
        *(of_tau(ScalePrior("half-normal", np.array([1.0, 0.0]))), ValueError),
        ["tau['g'][1] is 0.0", "positive"],
    ),
    "sigma of many": (
        *(of_prior(sigma=ScalePrior("half-normal", np.ones(2))), TypeError),
        ["sigma", "number"],
    ),
    "half-t without df": (of_tau(ScalePrior("half-t", 2.0)), ValueError, ["tau['g']", "df=None"]),
    "half-normal with df": (
        *(of_tau(ScalePrior("half-normal", 2.0, 3)), ValueError),
        ["tau['g']", "df=3", "half-t"],
    ),
    "df zero": (of_tau(ScalePrior("half-t", 2.0, 0)), ValueError, ["df of tau['g']", "positive"]),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_the_model_refuses_bad_arguments_itself(case, refuses):
    change, error, says = BAD_ARGUMENTS[case]
    arguments, points, _ = problem("three terms")
    with refuses(error, *says):
        log_density(multilevel, (), arguments | change(arguments), unstack(points)[0])


def test_priors_and_outcomes_may_be_traced():
    arguments, points, written = problem("a centred intercept")
    point = unstack(points)[0]

    @jax.jit
    def compiled(y, scale):
        prior = arguments["prior"]._replace(tau={"g": ScalePrior("half-normal", scale)})
        changed = arguments | {"y": y, "prior": prior}
        return log_density(multilevel, (), changed, point)[0]

    np.testing.assert_allclose(compiled(arguments["y"], 5.0), written[0], rtol=1e-11)


# --- Draws, labels and predictions


class Fitted(NamedTuple):
    """A fit of the cheese ratings: raters, nested in background, and each rater's cheeses."""

    rows: MultilevelDesign
    arguments: dict
    posterior: DataTree


@pytest.fixture(scope="session")
def fitted(cheese):
    raters = [*cheese["rater"].cat.categories, "someone new"]
    rows = multilevel_design(
        cheese.assign(rater=to_categories(cheese["rater"], raters)),
        outcome="y",
        population=["background", "cheese"],
        groups=[Group("rater", nested_in="background"), Group(("rater", "cheese"))],
    )
    ten = ScalePrior("half-normal", 10.0)
    beta = {"intercept": (70, 20), "background": (0, 15), "cheese": (0, 15)}
    arguments = rows.arguments | {"prior": rows.prior(beta=beta, sigma=ten, tau=ten)}
    posterior = fit(
        multilevel,
        arguments,
        key=jax.random.key(1),
        labels=rows.labels,
        warmup=1000,
        draws=1000,
        target_accept=0.9,
    )
    return Fitted(rows, arguments, posterior)


def test_draws_carry_the_labels_of_the_design(fitted):
    draws = fitted.posterior["posterior"].dataset
    assert {site: values.dims[2:] for site, values in draws.items()} == {
        "beta": ("coefficient",),
        "sigma": (),
        "tau_rater": ("rater_effect",),
        "z_rater": ("rater", "rater_effect"),
        "b_rater": ("rater", "rater_effect"),
        "tau_rater_cheese": ("rater_cheese_effect",),
        "z_rater_cheese": ("rater_cheese", "rater_cheese_effect"),
        "b_rater_cheese": ("rater_cheese", "rater_cheese_effect"),
    }
    assert draws["rater"].values[[0, 19, 20]].tolist() == ["rural 1", "urban 10", "someone new"]
    assert draws["coefficient"].values[1] == "background urban - rural"
    table = sampling.summary(fitted.posterior, ["tau_rater_cheese", "b_rater"])
    assert {"tau_rater_cheese[intercept]", "b_rater[rural 3, intercept]"} <= set(table.index)


def test_a_balanced_design_agrees_with_the_analysis_of_variance(fitted, cheese):
    """Mean squares of raters, of their cheeses and of samples, and what they are expected to be."""
    y = cheese["y"].to_numpy(float).reshape(2, 10, 4, 2)  # background, rater, cheese, sample
    rater, cell = y.mean(axis=(2, 3)), y.mean(axis=3)
    samples = ((y - cell[..., None]) ** 2).sum() / 80
    raters = 8 * ((rater - rater.mean(axis=1, keepdims=True)) ** 2).sum() / 18
    additive = rater[..., None] + y.mean(axis=(0, 1, 3)) - y.mean()
    cells = 2 * ((cell - additive) ** 2).sum() / 57
    draws = fitted.posterior["posterior"].dataset
    for scale, expected in (
        (draws["sigma"], samples),
        (draws["tau_rater_cheese"], (cells - samples) / 2),
        (draws["tau_rater"], (raters - cells) / 8),
    ):
        assert scale.median().item() == pytest.approx(np.sqrt(expected), rel=0.12)
    for contrast, difference, error in (
        ("background urban - rural", rater[1].mean() - rater[0].mean(), 2 * raters / 80),
        ("cheese B - A", (cell[:, :, 1] - cell[:, :, 0]).mean(), 2 * cells / 40),
    ):
        values = draws["beta"].sel(coefficient=contrast)
        assert values.mean().item() == pytest.approx(difference, abs=0.15 * np.sqrt(error))
        assert values.std().item() == pytest.approx(np.sqrt(error), rel=0.12)


def test_a_group_without_rows_is_drawn_from_the_population(fitted):
    draws = fitted.posterior["posterior"].dataset
    z = draws["b_rater"].sel(rater="someone new") / draws["tau_rater"]
    assert z.mean().item() == pytest.approx(0, abs=0.1)
    assert z.std().item() == pytest.approx(1, abs=0.1)
    at_home = draws["b_rater"].sel(rater="urban 7") / draws["tau_rater"]
    assert at_home.std().item() < 0.7


def test_outcomes_of_old_and_new_rows_follow_their_own_draws(fitted, cheese):
    rows, arguments, posterior = fitted
    new = rows.new_rows(cheese.iloc[[150, 3]].drop(columns="y"))
    draws = posterior["posterior"].dataset
    for design, observed in ((rows, True), (new, False)):
        drawn = posterior_predictive(
            multilevel,
            arguments | design.arguments,
            posterior,
            key=jax.random.key(2),
            labels=design.labels,
        )
        assert ("observed_data" in drawn.children) == observed
        mean = draws["beta"].to_numpy() @ design.X.T
        for term in design.terms:
            mean += draws[f"b_{term.name}"].to_numpy()[:, :, term.idx, 0]
        z = (drawn["posterior_predictive"]["y"] - mean) / draws["sigma"]
        assert z.dims == ("chain", "draw", "row")
        assert z.mean().item() == pytest.approx(0, abs=0.05)
        assert z.std().item() == pytest.approx(1, abs=0.05)


def test_prior_draws_follow_the_prior():
    arguments, _, _ = problem("three terms")
    drawn = prior_predictive(multilevel, arguments, key=jax.random.key(3), draws=2000)
    prior, y = drawn["prior"].dataset.isel(chain=0), drawn["prior_predictive"]["y"].isel(chain=0)
    mean = prior["beta"].to_numpy() @ arguments["X"].T
    for term in arguments["terms"]:
        b = prior[f"b_{term.name}"].to_numpy()
        mean += np.einsum("nk,dnk->dn", term.W, b[:, term.idx])
    z = (y.to_numpy() - mean) / prior["sigma"].to_numpy()[:, None]
    assert stats.kstest(z.ravel()[::24], "norm").pvalue > 1e-3
    beta = (prior["beta"] - arguments["prior"].beta_mean) / arguments["prior"].beta_sd
    assert stats.kstest(beta.to_numpy()[:, 0], "norm").pvalue > 1e-3
    for site, family in (
        ("tau_g", stats.halfnorm(scale=5)),
        ("tau_h", stats.halfcauchy(scale=2)),
        ("tau_site", stats.expon(scale=3)),
    ):
        assert stats.kstest(prior[site].to_numpy()[:, 0], family.cdf).pvalue > 1e-3
    folded = np.abs(stats.t.rvs(3, scale=4, size=2000, random_state=1))
    assert stats.ks_2samp(prior["sigma"].to_numpy(), folded).pvalue > 1e-3
    correlated = prior["b_g"].to_numpy()[:, 0] / prior["tau_g"].to_numpy()
    np.testing.assert_allclose(correlated.std(axis=0), 1, atol=0.07)


@pytest.mark.parametrize("centred", [False, True])
def test_correlated_effects_have_the_dimensions_of_the_docstring(centred, cheese):
    slopes = [Predictor("cheese", "sum")]
    group = Group("rater", slopes, correlated=True, centred=centred)
    rows = multilevel_design(cheese, outcome="y", groups=[group])
    prior = rows.prior(beta={"intercept": (70, 20)}, sigma=HALF_T, tau=HALF_T)
    arguments = rows.arguments | {"prior": prior}
    dims, coords = sampling._check_call(multilevel, arguments, jax.random.key(1), rows.labels)
    assert dims.pop("z_rater", None) == (None if centred else ["rater", "rater_effect"])
    assert dims == {
        "beta": ["coefficient"],
        "tau_rater": ["rater_effect"],
        "L_Omega_rater": ["rater_effect", "rater_effect_2"],
        "b_rater": ["rater", "rater_effect"],
        "y": ["row"],
    }
    effects = ["intercept", "cheese A - mean", "cheese B - mean", "cheese C - mean"]
    assert coords["rater_effect"] == coords["rater_effect_2"] == effects


def test_the_digest_reads_every_number_of_terms_and_priors():
    arguments, _, _ = problem("three terms")
    described = sampling._describe(arguments)
    assert described["shapes"]["terms.1.W"] == [N_ROWS, 2]
    copied = arguments | {"terms": tuple(t._replace(W=t.W.copy()) for t in arguments["terms"])}
    assert sampling._describe(copied) == described
    term, *others = arguments["terms"]
    prior = arguments["prior"]
    for change in (
        {"terms": (term._replace(idx=term.idx[::-1]), *others)},
        {"terms": (term._replace(n_groups=6), *others)},
        {"terms": (term._replace(name="other"), *others)},
        {"terms": (*others, term)},
        {"prior": prior._replace(eta=2.0)},
        {"prior": prior._replace(tau=prior.tau | {"g": HALF_CAUCHY})},
    ):
        assert sampling._describe(arguments | change)["sha256"] != described["sha256"]


def test_an_argument_that_cannot_be_digested_is_refused(refuses):
    with refuses(TypeError, "terms.0", "object", "arrays, numbers and text"):
        sampling._describe({"terms": (object(),)})
