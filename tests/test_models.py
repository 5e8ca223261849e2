"""The models are their formulas, in the package and in the chapters, and nothing less passes."""

import ast
import functools
import inspect
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jupytext
import numpy as np
import pytest
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.util import log_density
from scipy import integrate

from mlm_utils import formulas, models, sampling
from mlm_utils.data import load_eight_schools

CHAPTERS = Path(__file__).parent.parent / "chapters"

# A chapter and a model that it writes out in full.
WRITTEN_OUT = [
    ("what_is_a_multilevel_model", "two_level"),
    ("pooling", "eight_schools"),
    ("random_intercept", "varying_intercept"),
    ("random_slope", "varying_slope_published"),
    ("random_slope", "varying_slope"),
    ("random_intercept_slope", "varying_intercept_slope_published"),
    ("random_intercept_slope", "varying_intercept_slope"),
    ("correlated_effects", "correlated_effects_published"),
    ("correlated_effects", "correlated_effects"),
    *(("who_is_the_group", part) for part in ("multilevel", "group_effects", "scale_distribution")),
]

# Model -> its sites -> their dimensions, as its docstring has them. Computed sites come last.
GROUPS, PREDICTORS, COEFFICIENTS = ("group",), ("predictor",), ("coefficient",)
SITES = {
    "two_level": {"mu": (), "tau": (), "theta": GROUPS},
    "eight_schools": {"mu": (), "tau": (), "z": GROUPS, "theta": GROUPS},
    "varying_intercept": {
        "alpha": (),
        "sigma": (),
        "tau": (),
        "beta": PREDICTORS,
        "alpha_j": GROUPS,
    },
    "varying_slope_published": {
        "alpha": (),
        "sigma": (),
        "tau_j": GROUPS,
        "beta_j": PREDICTORS + GROUPS,
    },
    "varying_intercept_slope_published": {
        "alpha": (),
        "sigma": (),
        "tau_alpha": (),
        "tau_j": GROUPS,
        "alpha_j": GROUPS,
        "beta_j": PREDICTORS + GROUPS,
    },
    "varying_slope": {
        "alpha": (),
        "sigma": (),
        "beta": PREDICTORS,
        "tau_beta": PREDICTORS,
        "beta_j": GROUPS + PREDICTORS,
    },
    "varying_intercept_slope": {
        "alpha": (),
        "sigma": (),
        "tau_alpha": (),
        "alpha_j": GROUPS,
        "beta": PREDICTORS,
        "tau_beta": PREDICTORS,
        "beta_j": GROUPS + PREDICTORS,
    },
    "correlated_effects_published": {
        "sigma": (),
        "L_Omega": ("coefficient", "coefficient_2"),
        "tau": COEFFICIENTS,
        "gamma_j": GROUPS + COEFFICIENTS,
        "coefficient_j": GROUPS + COEFFICIENTS,
    },
    "correlated_effects": {
        "alpha": (),
        "sigma": (),
        "beta": PREDICTORS,
        "L_Omega": ("coefficient", "coefficient_2"),
        "tau": COEFFICIENTS,
        "z": GROUPS + COEFFICIENTS,
        "coefficient_j": GROUPS + COEFFICIENTS,
    },
}
COMPUTED = {
    "eight_schools": ["theta"],
    "correlated_effects_published": ["coefficient_j"],
    "correlated_effects": ["coefficient_j"],
}
MODELS = list(SITES)
WITH_IDX = [model for model in MODELS if model != "eight_schools"]
WITH_PREDICTORS = [model for model in WITH_IDX if model != "two_level"]

# Model -> name of the bug -> (text of the model, its replacement). Each must be noticed.
LEVEL = "Normal(y_mean, 2.5 * y_sd)"
ROWS = "Normal(mu, sigma)"
OF_ALPHA_AND_SIGMA = {
    "rate for scale": ("Exponential(1 / y_sd)", "Exponential(y_sd)"),
    "mean of y dropped": (LEVEL, "Normal(0.0, 2.5 * y_sd)"),
    "alpha too narrow": (LEVEL, "Normal(y_mean, y_sd)"),
    "sigma squared": (ROWS, "Normal(mu, sigma**2)"),
}
OWN_SLOPES = {
    "slope index ignored": ("beta + beta_j[idx]", "beta + beta_j[0]"),
    "slope index reversed": ("beta + beta_j[idx]", "beta + beta_j[n_groups - 1 - idx]"),
    "slopes of the group dropped": ("beta + beta_j[idx]", "beta"),
    "slopes of the population dropped": ("beta + beta_j[idx]", "beta_j[idx]"),
    "slopes subtracted": ("beta + beta_j[idx]", "beta - beta_j[idx]"),
    "slopes summed over groups": ("beta + beta_j[idx]", "beta + beta_j.sum(axis=0)"),
    "slopes transposed": ("beta + beta_j[idx]", "beta + beta_j.T[idx]"),
    "predictors dropped": ("jnp.sum(X * ", "jnp.sum("),
    "tau_beta squared": ("Normal(0.0, tau_beta)", "Normal(0.0, tau_beta**2)"),
    "tau_beta a variance": ("Normal(0.0, tau_beta)", "Normal(0.0, jnp.sqrt(tau_beta))"),
    "tau_beta of groups": ("Normal(0.0, tau_beta)", "Normal(0.0, tau_beta[:, None])"),
    "tau_beta of the first": ("Normal(0.0, tau_beta)", "Normal(0.0, tau_beta[0])"),
    "tau_beta half as wide": ('"tau_beta", dist.HalfNormal(5.0', '"tau_beta", dist.HalfNormal(2.5'),
    "tau_beta half-Cauchy": ('"tau_beta", dist.HalfNormal(5.0', '"tau_beta", dist.HalfCauchy(5.0'),
    "beta half as wide": ("Normal(0.0, 2.0)", "Normal(0.0, 1.0)"),
}
PUBLISHED_SLOPES = {
    "slope of one's own group": (
        "X @ beta_j @ tau_j",
        "jnp.sum(X * (beta_j * tau_j)[:, idx].T, axis=1)",
    ),
    "slopes dropped": (" + X @ beta_j @ tau_j", ""),
    "slopes transposed": ("X @ beta_j @ tau_j", "X @ beta_j.T @ tau_j"),
    "slopes unscaled": ("X @ beta_j @ tau_j", "X @ beta_j.sum(axis=1)"),
    "tau_j of predictors": ("X @ beta_j @ tau_j", "X @ (tau_j[:, None] * beta_j).sum(axis=1)"),
    "tau_j squared": ("X @ beta_j @ tau_j", "X @ beta_j @ tau_j**2"),
    "tau_j a variance": ("X @ beta_j @ tau_j", "X @ beta_j @ jnp.sqrt(tau_j)"),
    "tau_j applied twice": ("Normal(0.0, 1.0)", "Normal(0.0, tau_j)"),
    "tau_j half as wide": ('"tau_j", dist.HalfCauchy(2', '"tau_j", dist.HalfCauchy(1'),
    "tau_j half-normal": ('"tau_j", dist.HalfCauchy', '"tau_j", dist.HalfNormal'),
    "beta_j as wide as beta": ("Normal(0.0, 1.0)", "Normal(0.0, 2.0)"),
}
OWN_LEVELS = {
    "level index ignored": ("alpha_j[idx]", "alpha_j[0]"),
    "level dropped": (" + alpha_j[idx]", ""),
    "tau_alpha squared": ("Normal(0.0, tau_alpha)", "Normal(0.0, tau_alpha**2)"),
    "tau_alpha fixed to 1": ("Normal(0.0, tau_alpha)", "Normal(0.0, 1.0)"),
}
OF_CORRELATION = {
    "group index ignored": ("coefficient_j[idx]", "coefficient_j[0]"),
    "group index reversed": ("coefficient_j[idx]", "coefficient_j[n_groups - 1 - idx]"),
    "groups summed": ("coefficient_j[idx]", "coefficient_j.sum(axis=0)"),
    "intercept dropped": ("jnp.ones(X.shape[0])", "jnp.zeros(X.shape[0])"),
    "intercept put last": ("[jnp.ones(X.shape[0]), X]", "[X, jnp.ones(X.shape[0])]"),
    "columns scaled": ("tau[:, None] * L_Omega", "tau * L_Omega"),
    "factor transposed before scaling": ("tau[:, None] * L_Omega", "tau[:, None] * L_Omega.T"),
    "tau a variance": ("tau[:, None] * L_Omega", "jnp.sqrt(tau)[:, None] * L_Omega"),
    "tau squared": ("tau[:, None] * L_Omega", "tau[:, None]**2 * L_Omega"),
    "tau dropped": ("tau[:, None] * L_Omega", "L_Omega"),
    "no correlation": ("tau[:, None] * L_Omega", "jnp.diag(tau)"),
    "LKJ uniform": ("LKJCholesky(W.shape[1], 2.0)", "LKJCholesky(W.shape[1], 1.0)"),
    "LKJ too tight": ("LKJCholesky(W.shape[1], 2.0)", "LKJCholesky(W.shape[1], 4.0)"),
    "tau half as wide": ("HalfCauchy(2.0)", "HalfCauchy(1.0)"),
    "tau half-normal": ("HalfCauchy(2.0)", "HalfNormal(2.0)"),
}
BUGS = {
    "two_level": {
        "group index ignored": ("theta[idx]", "theta[0]"),
        "group index reversed": ("theta[idx]", "theta[n_groups - 1 - idx]"),
        "groups averaged": ("theta[idx]", "theta.mean()"),
        "groups dropped": ("theta[idx]", "mu"),
        "mean of the population dropped": ("Normal(mu, tau)", "Normal(0.0, tau)"),
        "tau squared": ("Normal(mu, tau)", "Normal(mu, tau**2)"),
        "tau a variance": ("Normal(mu, tau)", "Normal(mu, jnp.sqrt(tau))"),
        "tau and sigma swapped": ("Normal(mu, tau)", "Normal(mu, sigma)"),
        "sigma squared": ("Normal(theta[idx], sigma)", "Normal(theta[idx], sigma**2)"),
        "tau half as wide": ("HalfNormal(5.0)", "HalfNormal(2.5)"),
        "tau half-Cauchy": ("HalfNormal(5.0)", "HalfCauchy(5.0)"),
        "mu half as wide": ("Normal(0.0, 10.0)", "Normal(0.0, 5.0)"),
        "mu with a precision": ("Normal(0.0, 10.0)", "Normal(0.0, 0.1)"),
    },
    "eight_schools": {
        "error of another school": ("Normal(theta, se)", "Normal(theta, se[::-1])"),
        "one error for all": ("Normal(theta, se)", "Normal(theta, se[0])"),
        "errors as variances": ("Normal(theta, se)", "Normal(theta, jnp.sqrt(se))"),
        "errors squared": ("Normal(theta, se)", "Normal(theta, se**2)"),
        "mean of the population dropped": ("mu + tau * z", "tau * z"),
        "effects dropped": ("mu + tau * z", "mu"),
        "tau dropped": ("mu + tau * z", "mu + z"),
        "tau squared": ("mu + tau * z", "mu + tau**2 * z"),
        "tau applied twice": ("Normal(0.0, 1.0)", "Normal(0.0, tau)"),
        "effects summed": ("mu + tau * z", "mu + tau * z.sum()"),
        "tau half-Cauchy": ("HalfNormal(10.0)", "HalfCauchy(10.0)"),
        "mu half as wide": ("Normal(0.0, 20.0)", "Normal(0.0, 10.0)"),
    },
    "varying_intercept": OF_ALPHA_AND_SIGMA
    | {
        "group index ignored": ("alpha_j[idx]", "alpha_j[0]"),
        "group index reversed": ("alpha_j[idx]", "alpha_j[n_groups - 1 - idx]"),
        "group effect dropped": (" + alpha_j[idx]", ""),
        "group effect subtracted": ("+ alpha_j[idx]", "- alpha_j[idx]"),
        "predictors dropped": (" + X @ beta", ""),
        "predictors reversed": ("X @ beta", "X @ beta[::-1]"),
        "tau squared": ("Normal(0.0, tau)", "Normal(0.0, tau**2)"),
        "tau fixed to 1": ("Normal(0.0, tau)", "Normal(0.0, 1.0)"),
        "tau half as wide": ("HalfCauchy(2.0)", "HalfCauchy(1.0)"),
        "tau half-normal": ("HalfCauchy(2.0)", "HalfNormal(2.0)"),
        "beta half as wide": ("Normal(0.0, 2.0)", "Normal(0.0, 1.0)"),
    },
    "varying_slope_published": OF_ALPHA_AND_SIGMA | PUBLISHED_SLOPES,
    "varying_intercept_slope_published": OF_ALPHA_AND_SIGMA
    | PUBLISHED_SLOPES
    | OWN_LEVELS
    | {"tau_alpha of slopes": ("Normal(0.0, tau_alpha)", "Normal(0.0, tau_j)")},
    "varying_slope": OF_ALPHA_AND_SIGMA | OWN_SLOPES,
    "varying_intercept_slope": OF_ALPHA_AND_SIGMA
    | OWN_SLOPES
    | OWN_LEVELS
    | {"tau_beta of levels": ("Normal(0.0, tau_beta)", "Normal(0.0, tau_alpha)")},
    "correlated_effects_published": OF_CORRELATION
    | {
        "rate for scale": OF_ALPHA_AND_SIGMA["rate for scale"],
        "sigma squared": OF_ALPHA_AND_SIGMA["sigma squared"],
        "mean of y added": (ROWS, "Normal(y_mean + mu, sigma)"),
        "as repaired": ("gamma_j @ Sigma", "gamma_j @ L_Sigma.T"),
        "Sigma of a transposed factor": ("L_Sigma @ L_Sigma.T", "L_Sigma.T @ L_Sigma"),
        "Sigma scaled once": ("L_Sigma @ L_Sigma.T", "L_Sigma @ L_Omega.T"),
        "nothing added to Sigma": ("1e-6", "0.0"),
        "gamma_j standard normal": ("Normal(0.0, 5.0)", "Normal(0.0, 1.0)"),
        "gamma_j sd a variance": ("Normal(0.0, 5.0)", "Normal(0.0, 25.0)"),
    },
    "correlated_effects": OF_CORRELATION
    | OF_ALPHA_AND_SIGMA
    | {
        "as published": ("z @ L_Sigma.T", "z @ (L_Sigma @ L_Sigma.T)"),
        "factor transposed": ("z @ L_Sigma.T", "z @ L_Sigma"),
        "mean of the population dropped": ("population + z", "z"),
        "intercept of the population last": ("[alpha[None], beta]", "[beta, alpha[None]]"),
        "tau applied twice": ("Normal(0.0, 1.0)", "Normal(0.0, tau)"),
        "beta half as wide": ("Normal(0.0, 2.0)", "Normal(0.0, 1.0)"),
    },
}


class Problem(NamedTuple):
    """Arguments of a model, 100 points stacked, and the formula's log density at each."""

    arguments: dict
    points: dict
    written: np.ndarray


@pytest.fixture(scope="session")
def problem(rows):
    """Return a function that sets a model a problem: the book's data, or made-up ones."""

    @functools.cache
    def pose(model, data="made up"):
        arguments = book_arguments(model, rows) if data == "the book's" else made_up(model)
        points = draw_points(model, arguments)
        formula = getattr(formulas, model)
        written = [formula(point, **arguments) for point in unstack(points)]
        return Problem(arguments, points, np.array(written))

    return pose


def book_arguments(model, rows):
    """Return the arguments with which the book calls a model, or much the same."""
    if model == "two_level":
        return {"idx": rows.idx, "y": rows.y, "n_groups": rows.n_groups, "sigma": 7.5}
    if model == "eight_schools":
        schools = load_eight_schools()
        return {"se": schools["se"].to_numpy(), "y": schools["effect"].to_numpy()}
    return rows.arguments


def made_up(model):
    """Return arguments with unequal groups, as many of them as predictors, which are no dummies.

    So an axis taken for another runs, and is noticed by its numbers alone.
    """
    rng = np.random.default_rng(7)
    idx = rng.permutation(np.repeat(np.arange(3), [3, 8, 13])).astype(np.int32)
    y = rng.normal(20, 6, len(idx))
    if model == "two_level":
        return {"idx": idx, "y": y, "n_groups": 3, "sigma": 4.2}
    if model == "eight_schools":
        return {"se": rng.uniform(2, 9, 5), "y": y[:5]}
    X = rng.normal(0.5, 1.5, (len(idx), 3))
    moments = {"y_mean": float(y.mean()), "y_sd": float(y.std(ddof=1))}
    return {"X": X, "idx": idx, "y": y, "n_groups": 3} | moments


def draw_points(model, arguments, n=100):
    """Draw parameter values far and wide, near the posterior and off it, stacked."""
    rng = np.random.default_rng(20260701)
    sizes = {"group": arguments.get("n_groups", len(arguments["y"]))}
    if "X" in arguments:
        sizes["predictor"] = arguments["X"].shape[1]
        sizes["coefficient"] = sizes["coefficient_2"] = 1 + sizes["predictor"]
    points = {}
    for site, dims in SITES[model].items():
        shape = (n, *(sizes[dim] for dim in dims))
        if site in COMPUTED.get(model, []):
            continue
        if site == "L_Omega":
            points[site] = draw_factors(rng, shape)
        elif site == "sigma":
            points[site] = np.exp(rng.normal(2, 1, shape))
        elif site.startswith("tau"):
            points[site] = np.exp(rng.normal(0.5, 1.5, shape))
        elif site == "alpha":
            points[site] = rng.normal(arguments["y_mean"], 20, shape)
        else:
            points[site] = rng.normal(0, 6, shape)
    return points


def draw_factors(rng, shape):
    """Draw Cholesky factors of correlation matrices, weakly to strongly correlated."""
    factor = np.tril(rng.normal(size=shape))
    spread = np.exp(rng.normal(0, 1, (shape[0], shape[1])))
    np.einsum("nii->ni", factor)[...] = spread
    return factor / np.linalg.norm(factor, axis=2, keepdims=True)


def unstack(points):
    """Return the single points of a stack."""
    n = len(next(iter(points.values())))
    return [{site: values[i] for site, values in points.items()} for i in range(n)]


def densities(model, arguments, points):
    """Return a model's log density at each of the stacked points."""
    return jax.vmap(lambda point: log_density(model, (), arguments, point)[0])(points)


def assert_density_is_the_formula(model, problem):
    """Compare a model's log density with the formula's; return the worst relative difference."""
    drawn = densities(model, problem.arguments, problem.points)
    np.testing.assert_allclose(drawn, problem.written, atol=1e-9, rtol=1e-12)
    return float(np.max(np.abs(drawn - problem.written) / np.maximum(1, np.abs(problem.written))))


def with_bug(model, bug):
    """Return a model with a bug of the table written into its source."""
    right, wrong = BUGS[model][bug]
    source = inspect.getsource(getattr(models, model))
    assert source.count(right) == 1, f"{right!r} must occur once in the source of {model}"
    namespace = dict(vars(models))
    exec(source.replace(right, wrong), namespace)
    return namespace[model]


def model_in_chapter(path, name):
    """Return the definition of a function in the code cells of a Markdown chapter."""
    assert path.exists(), f"{path.name} is not written yet, and is to define {name}"
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


# --- The density


def test_every_model_of_the_package_is_in_the_tables():
    public = inspect.getmembers(models, inspect.isfunction)
    written = {name for name, function in public if function.__module__ == models.__name__}
    names = {name for name in written if "y" in inspect.signature(getattr(models, name)).parameters}
    assert names - {"multilevel"} == set(SITES) == set(BUGS)  # it has a file of tests of its own
    assert written == {model for _, model in WRITTEN_OUT}
    assert min(len(bugs) for bugs in BUGS.values()) >= 12


@pytest.mark.parametrize("data", ["the book's", "made up"])
@pytest.mark.parametrize("model", MODELS)
def test_density_is_the_formula(model, data, problem, record_property):
    posed = problem(model, data)
    worst = assert_density_is_the_formula(getattr(models, model), posed)
    record_property("density", [model, data, len(posed.written), f"{worst:.1e}"])


@pytest.mark.parametrize(("model", "bug"), [(model, bug) for model in BUGS for bug in BUGS[model]])
def test_a_planted_bug_changes_the_density(model, bug, problem):
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_density_is_the_formula(with_bug(model, bug), problem(model))


@pytest.mark.parametrize("model", MODELS)
def test_an_unobserved_outcome_changes_the_density(model, problem):
    arguments, points, written = problem(model)
    unobserved = seed(getattr(models, model), jax.random.key(0))
    value, _ = log_density(unobserved, (), arguments | {"y": None}, unstack(points)[0])
    assert abs(value - written[0]) > 1


@pytest.mark.parametrize("eta", [1.0, 2.0, 3.5])
def test_the_lkj_formula_integrates_to_one(eta):
    def factor(*rows):
        free = np.zeros((1 + len(rows), 1 + len(rows)))
        for i, row in enumerate(rows, 1):
            free[i, : len(row)] = row
        np.fill_diagonal(free, np.sqrt(1 - np.sum(free**2, axis=1)))
        return np.exp(formulas.lkj_cholesky(free, eta))

    two, _ = integrate.quad(lambda a: factor([a]), -1, 1)
    # The second row lies in a disc, and the density does not know the direction.
    three, _ = integrate.dblquad(lambda r, a: 2 * np.pi * r * factor([a], [r, 0.0]), -1, 1, 0, 1)
    np.testing.assert_allclose([two, three], 1.0, rtol=1e-7)


# --- Groups and rows


@pytest.mark.parametrize("data", ["the book's", "made up"])
@pytest.mark.parametrize("model", WITH_IDX)
def test_permuting_the_groups_of_rows_changes_the_density(model, data, problem):
    arguments, points, _ = problem(model, data)
    shuffled = arguments | {"idx": np.random.default_rng(1).permutation(arguments["idx"])}
    right = densities(getattr(models, model), arguments, points)
    wrong = densities(getattr(models, model), shuffled, points)
    if model == "varying_slope_published":
        # What the published program computes: its groups are not groups of rows.
        np.testing.assert_array_equal(right, wrong)
    else:
        assert np.all(np.abs(right - wrong) > 1e-6)


def test_the_groups_of_rows_choose_the_published_intercept_and_no_slope(problem):
    model = models.varying_intercept_slope_published
    arguments, points, _ = problem("varying_intercept_slope_published")
    shuffled = arguments | {"idx": np.random.default_rng(1).permutation(arguments["idx"])}
    level = points | {"alpha_j": np.repeat(points["alpha_j"][:, :1], 3, axis=1)}
    np.testing.assert_array_equal(
        densities(model, arguments, level), densities(model, shuffled, level)
    )


@pytest.mark.parametrize(
    "model", [model for model in WITH_PREDICTORS if model != "varying_intercept"]
)
def test_only_published_slopes_can_swap_their_groups(model, problem):
    arguments, points, _ = problem(model, "the book's")
    moved = {
        site: np.flip(points[site], axis=1 + dims.index("group"))
        for site, dims in SITES[model].items()
        if "group" in dims and site in points and site != "alpha_j"
    }
    before = densities(getattr(models, model), arguments, points)
    after = densities(getattr(models, model), arguments, points | moved)
    if model in ("varying_slope_published", "varying_intercept_slope_published"):
        assert set(moved) == {"tau_j", "beta_j"}
        np.testing.assert_allclose(after, before, rtol=1e-13)
    else:
        assert np.all(np.abs(after - before) > 1e-6)


def test_permuting_the_errors_of_schools_changes_the_density(problem):
    arguments, points, _ = problem("eight_schools")
    moved = arguments | {"se": np.roll(arguments["se"], 1)}
    before = densities(models.eight_schools, arguments, points)
    assert np.all(np.abs(densities(models.eight_schools, moved, points) - before) > 1e-6)


@pytest.mark.parametrize(
    ("model", "site"), [("correlated_effects_published", "gamma_j"), ("correlated_effects", "z")]
)
def test_prior_covariance_of_a_groups_coefficients(model, site, problem):
    """Given Sigma: 25 Sigma^2 about 0 as published, Sigma about (alpha, beta) as repaired.

    No draws: the coefficients are linear in `site`, so that their covariance is J J', times the
    variance of `site`, with J their Jacobian in the model's own computation.
    """
    arguments, points, _ = problem(model)
    for point in unstack(points)[:10]:
        fixed = {name: value for name, value in point.items() if name != site}

        def trace_at(value, fixed=fixed):
            program = substitute(getattr(models, model), data=fixed | {site: value})
            return trace(seed(program, jax.random.key(0))).get_trace(**arguments)

        zero = jnp.zeros_like(point[site])
        sites = trace_at(zero)
        variance = np.unique(sites[site]["fn"].variance)
        assert variance.size == 1
        assert np.all(sites[site]["fn"].mean == 0.0)
        jacobian = jax.jacobian(lambda value: trace_at(value)["coefficient_j"]["value"])(zero)
        covariance = variance * np.einsum("iakc,jbkc->ijab", jacobian, jacobian)
        scales = np.diag(point["tau"])
        Sigma = scales @ point["L_Omega"] @ point["L_Omega"].T @ scales
        if model == "correlated_effects_published":
            Sigma = Sigma + 1e-6 * np.eye(4)
            one, mean = 25 * Sigma @ Sigma, np.zeros(4)
            assert not np.allclose(one, Sigma, rtol=0.1)
        else:
            one, mean = Sigma, np.array([point["alpha"], *point["beta"]])
        tolerance = {"rtol": 1e-10, "atol": 1e-12 * np.abs(one).max()}
        for i in range(3):
            np.testing.assert_allclose(sites["coefficient_j"]["value"][i], mean, rtol=1e-14)
            for j in range(3):
                np.testing.assert_allclose(covariance[i, j], one * (i == j), **tolerance)


# --- Outcomes, names and bad inputs


@pytest.mark.parametrize("model", MODELS)
def test_with_y_the_model_observes_it(model, problem):
    arguments = problem(model).arguments
    y = trace(seed(getattr(models, model), jax.random.key(3))).get_trace(**arguments)["y"]
    assert y["is_observed"]
    np.testing.assert_array_equal(y["value"], arguments["y"])


@pytest.mark.parametrize("model", MODELS)
def test_without_y_the_model_draws_one_outcome_a_row(model, problem):
    arguments, points, _ = problem(model)
    program = substitute(getattr(models, model), data=unstack(points)[0])
    sites = trace(seed(program, jax.random.key(3))).get_trace(**(arguments | {"y": None}))
    n = len(arguments["y"])
    assert sites["y"]["value"].shape == (n,)
    assert not sites["y"]["is_observed"]
    assert np.unique(sites["y"]["value"]).size == n


@pytest.mark.parametrize("model", MODELS)
def test_sites_have_the_dimensions_of_the_docstring(model, rows):
    arguments = book_arguments(model, rows)
    names = {"predictor": "cheese", "group": "background"}
    labels = dict(rows.labels)
    if model == "eight_schools":
        names, labels = {"group": "school"}, {"group": ("school", tuple("ABCDEFGH"))}
    dims, coords = sampling._check_call(
        getattr(models, model), arguments, jax.random.key(1), labels
    )
    row = "school" if model == "eight_schools" else "row"
    expected = {site: [names.get(dim, dim) for dim in dims] for site, dims in SITES[model].items()}
    assert {site: dims.get(site, []) for site in expected} == expected
    assert dims["y"] == [row]
    assert coords[row] == list(labels["group" if model == "eight_schools" else "row"][1])
    docstring = inspect.getdoc(getattr(models, model))
    assert all(f"``{site}``" in docstring for site in SITES[model])


@pytest.mark.parametrize("model", WITH_PREDICTORS)
def test_the_model_refuses_bad_arrays_itself(model, problem, refuses):
    arguments, points, _ = problem(model, "the book's")
    point = unstack(points)[0]
    for spoiled, *says in [
        ({"idx": arguments["idx"] + 1}, "idx[80] is 2", "raise n_groups"),
        ({"X": arguments["X"][:, 0]}, "X must have shape (n, k)", "(160,)", "reshape"),
        ({"y": arguments["y"][:, None]}, "y must have shape (160,)", "(160, 1)", "reshape"),
        ({"y_sd": 0.0}, "y_sd must be positive", "0.0", "scale"),
    ]:
        with refuses(ValueError, *says):
            log_density(getattr(models, model), (), arguments | spoiled, point)


def spoil(array, value):
    """Return a copy of an array with one entry changed."""
    array = np.array(array, dtype=float)
    array[2] = value
    return array


BAD_INPUTS = {
    "sigma zero": ("two_level", {"sigma": 0.0}, ValueError, ["sigma", "positive", "0.0", "scale"]),
    "sigma negative": (
        "two_level",
        {"sigma": -1},
        ValueError,
        ["sigma", "positive", "-1", "scale"],
    ),
    "sigma NaN": ("two_level", {"sigma": np.nan}, ValueError, ["sigma", "finite", "nan", "check"]),
    "sigma infinite": (
        "two_level",
        {"sigma": np.inf},
        ValueError,
        ["sigma", "finite", "inf", "check"],
    ),
    "sigma text": ("two_level", {"sigma": "4"}, TypeError, ["sigma", "number", "'4'", "float("]),
    "sigma a truth": ("two_level", {"sigma": True}, TypeError, ["sigma", "True", "float("]),
    "sigma missing": ("two_level", {"sigma": None}, TypeError, ["sigma", "None", "float("]),
    "sigma of rows": (
        "two_level",
        {"sigma": np.full(24, 4.2)},
        TypeError,
        ["sigma", "number", "array", "float("],
    ),
    "sigma of rows in JAX": (
        "two_level",
        {"sigma": jnp.full(24, 4.2)},
        TypeError,
        ["sigma", "number", "Array", "float("],
    ),
    "idx too high": (
        "two_level",
        {"idx": np.arange(24) % 4},
        ValueError,
        ["idx[3] is 3", "0 .. 2", "n_groups=3", "raise n_groups"],
    ),
    "idx negative": (
        "two_level",
        {"idx": np.arange(24) % 4 - 1},
        ValueError,
        ["idx[0] is -1", "0 .. 2", "number the groups from 0"],
    ),
    "idx of floats": (
        "two_level",
        {"idx": np.zeros(24)},
        TypeError,
        ["idx", "integers", "float64", "convert"],
    ),
    "y too short": ("two_level", {"y": np.ones(23)}, ValueError, ["y", "(24,)", "(23,)"]),
    "one group": ("two_level", {"n_groups": 1}, ValueError, ["n_groups", "at least 2", "got 1"]),
    "error zero": ("eight_schools", {"se": 0.0}, ValueError, ["se[2] is 0.0", "must be positive"]),
    "error negative": (
        "eight_schools",
        {"se": -3.0},
        ValueError,
        ["se[2] is -3.0", "must be positive"],
    ),
    "error NaN": ("eight_schools", {"se": np.nan}, ValueError, ["se[2] is nan", "drop or impute"]),
    "error infinite": ("eight_schools", {"se": np.inf}, ValueError, ["se[2] is inf", "finite"]),
    "one school": (
        "eight_schools",
        {"se": np.array([3.0]), "y": np.array([1.0])},
        ValueError,
        ["se", "at least two", "(1,)"],
    ),
    "errors a column": (
        "eight_schools",
        {"se": np.ones((5, 1))},
        ValueError,
        ["se", "(n,)", "(5, 1)", "reshape"],
    ),
    "estimates a column": (
        "eight_schools",
        {"y": np.ones((5, 1))},
        ValueError,
        ["y", "(5,)", "(5, 1)", "reshape"],
    ),
    "estimates too few": ("eight_schools", {"y": np.ones(4)}, ValueError, ["y", "(5,)", "(4,)"]),
    "one estimate": ("eight_schools", {"y": np.ones(1)}, ValueError, ["y", "(5,)", "(1,)"]),
    "estimate NaN": ("eight_schools", {"y": np.nan}, ValueError, ["y[2] is nan", "drop or impute"]),
    "errors a list": ("eight_schools", {"se": [1.0] * 5}, TypeError, ["se", "list", "asarray"]),
    "estimates a list": ("eight_schools", {"y": [1.0] * 5}, TypeError, ["y", "list", "asarray"]),
    "errors text": (
        "eight_schools",
        {"se": np.array(["1"] * 5)},
        TypeError,
        ["se", "numbers", "<U1", "convert"],
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_bad_input_is_refused(case, problem, refuses):
    model, change, error, says = BAD_INPUTS[case]
    arguments = problem(model).arguments
    if model == "eight_schools":
        change = {
            name: spoil(arguments[name], value) if isinstance(value, float) else value
            for name, value in change.items()
        }
    point = unstack(problem(model).points)[0]
    with refuses(error, *says):
        log_density(getattr(models, model), (), arguments | change, point)


# --- The chapters


@pytest.mark.parametrize(("chapter", "model"), WRITTEN_OUT)
def test_the_chapter_writes_the_model_of_the_package(chapter, model):
    written = model_in_chapter(CHAPTERS / f"{chapter}.md", model)
    assert_same_program(written, getattr(models, model))


@pytest.mark.parametrize("bug", [None, "group index ignored"])
def test_a_chapter_with_another_model_is_noticed(bug, tmp_path):
    model = inspect.getsource(models.varying_intercept)
    if bug:
        model = model.replace(*BUGS["varying_intercept"][bug])
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


def test_a_chapter_that_is_not_there_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match=r"absent\.md is not written"):
        model_in_chapter(tmp_path / "absent.md", "two_level")
