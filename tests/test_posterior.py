"""NUTS against quadrature: the draws have the posterior's moments and quantiles.

Every model is compared whole, within the error of its draws: with the data of the book where its
scales are few enough for a grid, else with thirty made-up rows and one predictor. Behind the
references stand Bayes' theorem at fixed scales and, for the smallest model, a closed form.
"""

import functools
import inspect

import arviz as az
import exact
import jax
import numpy as np
import pandas as pd
import pytest
from exact import entries
from numpyro.handlers import condition
from numpyro.infer.util import log_density
from scipy import stats
from test_models import WITH_PREDICTORS, draw_points, unstack, with_bug

from mlm_utils import formulas, models
from mlm_utils.data import load_eight_schools, load_published_tables
from mlm_utils.quadrature import exact as exactly_by_lattice
from mlm_utils.sampling import fit, summary

ROUTES, SCHOOLS, CHEESES, GROUPS = "abcdef", "ABCDEFGH", "ABCD", ("rural", "urban")
COEFFICIENTS = ("intercept", "x")
PUBLISHED = ("varying_slope_published", "varying_intercept_slope_published")
MADE_UP = tuple(exact.NORMAL_SITES)

# Model -> its parameters, one name an entry.
PUBLISHED_SLOPES = [
    *("alpha", "sigma"),
    *entries("tau_j", GROUPS),
    *entries("beta_j", CHEESES, GROUPS),
]
OWN_SLOPES = ["alpha", "sigma", "beta[x]", "tau_beta[x]", *entries("beta_j", ROUTES, "x")]
CORRELATED = [
    *("sigma", "L_Omega[x, intercept]"),
    *entries("tau", COEFFICIENTS),
    *entries("coefficient_j", ROUTES, COEFFICIENTS),
]
PARAMETERS = {
    "two_level": ["mu", "tau", *entries("theta", ROUTES)],
    "eight_schools": ["mu", "tau", *entries("z", SCHOOLS), *entries("theta", SCHOOLS)],
    "varying_intercept": [
        *("alpha", "sigma", "tau"),
        *entries("beta", CHEESES),
        *entries("alpha_j", GROUPS),
    ],
    "varying_slope_published": PUBLISHED_SLOPES,
    "varying_intercept_slope_published": [
        *PUBLISHED_SLOPES,
        *("tau_alpha", *entries("alpha_j", GROUPS)),
    ],
    "varying_slope": OWN_SLOPES,
    "varying_intercept_slope": [*OWN_SLOPES, "tau_alpha", *entries("alpha_j", ROUTES)],
    "correlated_effects_published": [*CORRELATED, *entries("gamma_j", ROUTES, COEFFICIENTS)],
    "correlated_effects": [*CORRELATED, "alpha", "beta[x]", *entries("z", ROUTES, COEFFICIENTS)],
}
EVERY = [(model, name) for model, names in PARAMETERS.items() for name in names]

# Sites compared by quantiles alone. With two groups the posterior of a half-Cauchy scale of
# intercepts falls off as tau^-4: the variance is finite but the fourth moment is not, so the sd of
# the draws does not settle, and its MCSE, an estimate that needs the fourth moment, says nothing.
# The intercepts follow their scale, and stop only where the wide prior of alpha stops them. The
# posterior of tau_j falls off as tau^-6, that of tau with six groups as tau^-8: the sd settles,
# its MCSE, whose own error needs the eighth moment, does not.
HEAVY_TAILS = {
    "varying_intercept": {"tau", "alpha", "alpha_j"},
    "varying_slope_published": {"tau_j"},
    "varying_intercept_slope_published": {"tau_j", "tau_alpha", "alpha", "alpha_j"},
    "correlated_effects": {"tau"},
}


@pytest.fixture(scope="module")
def problems(rows):
    """The models' arguments and labels: cheese, the eight schools, and two made-up tables."""
    rng = np.random.default_rng(11)
    idx = np.repeat(np.arange(6), [2, 3, 4, 5, 6, 10]).astype(np.int32)
    y = rng.normal(rng.normal(4.0, 3.0, 6)[idx], 4.0)
    schools = load_eight_schools()
    return (
        {model: (rows.arguments, rows.labels) for model in PARAMETERS}
        | {
            "two_level": (
                {"idx": idx, "y": y, "n_groups": 6, "sigma": 4.0},
                {"group": ("route", tuple(ROUTES))},
            ),
            "eight_schools": (
                {"se": schools["se"].to_numpy(), "y": schools["effect"].to_numpy()},
                {"group": ("school", tuple(SCHOOLS))},
            ),
        }
        | dict.fromkeys(MADE_UP, thirty_rows())
    )


def thirty_rows():
    """Return arguments and labels of six unequal groups with intercepts and slopes of their own."""
    rng = np.random.default_rng(4)
    idx = np.repeat(np.arange(6), [3, 4, 4, 5, 6, 8]).astype(np.int32)
    x = rng.normal(size=len(idx))
    own = [4.0, 1.0] + rng.normal(size=(6, 2)) @ [[2.5, 1.0], [0.0, 2.5]]
    y = rng.normal(own[idx, 0] + own[idx, 1] * x, 2.0)
    labels = {
        "predictor": ("predictor", ("x",)),
        "coefficient": ("coefficient", COEFFICIENTS),
        "coefficient_2": ("coefficient_2", COEFFICIENTS),
        "group": ("group", tuple(ROUTES)),
    }
    return {"X": x[:, None], "idx": idx, "y": y, "n_groups": 6} | {
        "y_mean": float(y.mean()),
        "y_sd": float(y.std(ddof=1)),
    }, labels


@pytest.fixture(scope="module")
def quadrature(problems):
    """Return a function from a model to its exact posterior."""

    @functools.cache
    def integrate(model):
        arguments, _ = problems[model]
        if model == "two_level":
            return exact.posterior_two_level(**arguments, group_levels=ROUTES)
        if model == "eight_schools":
            return exact.posterior_eight_schools(**arguments, levels=SCHOOLS)
        if model in MADE_UP:
            return exact.posterior_own_slopes(
                model, **arguments, predictor="x", group_levels=ROUTES
            )
        columns = [arguments[name] for name in ("X", "idx", "y", "y_mean", "y_sd")]
        levels = {"predictor_levels": CHEESES, "group_levels": GROUPS}
        if model == "varying_intercept":
            return exact.posterior_varying_intercept(*columns, **levels)
        return exact.posterior_published_slopes(*columns, intercepts="intercept" in model, **levels)

    return integrate


@pytest.fixture(scope="module")
def fitted(problems, request):
    """Return a function from a model to a fit of it that passed the gate."""
    options = {
        "two_level": {"target_accept": 0.95, "centred": {"theta": 0.0}},
        "eight_schools": {"target_accept": 0.95, "draws": 2000},
        # At 0.99 most keys leave one or two divergences, and a lucky one none.
        "varying_slope_published": {"target_accept": 0.997, "draws": 2000, "key": 2},
        "varying_intercept_slope_published": {"target_accept": 0.997, "draws": 2000},
        "varying_slope": {"target_accept": 0.99, "draws": 2000, "centred": {"beta_j": 0.0}},
        "varying_intercept_slope": {
            "target_accept": 0.98,
            "draws": 2000,
            "centred": {"alpha_j": 0.0, "beta_j": 0.0},
        },
        "correlated_effects_published": {"target_accept": 0.99},
        "correlated_effects": {"target_accept": 0.98, "key": 2},
    }

    @functools.cache
    def of(model):
        if model == "varying_intercept":
            return request.getfixturevalue("posterior")
        return refit(model, problems, **options[model])

    return of


def refit(model, problems, key=1, **options):
    arguments, labels = problems[model]
    program = getattr(models, model)
    return fit(program, arguments, key=jax.random.key(key), labels=labels, **options)


def entry(draws, name):
    """Return the draws of a parameter by its name, ``site[label, label]``."""
    site, _, labels = name.removesuffix("]").partition("[")
    values = draws[site]
    return values.sel(dict(zip(values.dims[2:], labels.split(", "), strict=True)) if labels else {})


def assert_draws_agree(draws, exactly, name, heavy_tails=()):
    """Compare the draws of one parameter with the quadrature, within 4 Monte Carlo errors.

    Some 1,800 figures are compared, each of which is as far off by chance once in 16,000 times: a
    new set of keys raises a false alarm with a probability of 12 percent at most. The keys are
    fixed, so that it is raised once or never.
    """
    values = entry(draws, name)
    figures = {}
    if name.partition("[")[0] not in heavy_tails:
        figures["mean"] = values.mean().item(), {"method": "mean"}
        figures["sd"] = values.std(ddof=1).item(), {"method": "sd"}
    for p in exact.PROBABILITIES:
        figures[f"{100 * p:g}%"] = values.quantile(p).item(), {"method": "quantile", "prob": p}
    for figure, (drawn, method) in figures.items():
        mcse, wanted = az.mcse(values, **method).item(), exactly.loc[name, figure]
        assert abs(drawn - wanted) < 4 * mcse, (
            f"{figure} of {name}: drawn {drawn:.4f} (MCSE {mcse:.4f}), exactly {wanted:.4f}"
        )


# --- Whole posteriors


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_draws_agree_with_quadrature(model, name, fitted, quadrature):
    draws = fitted(model)["posterior"].to_dataset()
    assert_draws_agree(draws, quadrature(model), name, HEAVY_TAILS.get(model, ()))


@pytest.fixture(scope="module")
def integrated(problems):
    """Return a function from a model to a fit with its Gaussian part integrated out."""
    options = {"eight_schools": {"target_accept": 0.95}}  # tau is not kept from 0
    return functools.cache(
        lambda model: refit(model, problems, integrate=True, **options.get(model, {}))
    )


QUICK = ("two_level", "varying_intercept", "varying_slope_published", "correlated_effects")
INTEGRATED = [
    pytest.param(model, name, marks=() if model in QUICK else pytest.mark.full)
    for model, name in EVERY
]


@pytest.mark.parametrize(("model", "name"), INTEGRATED)
def test_integrated_draws_agree_with_quadrature(model, name, integrated, quadrature):
    draws = integrated(model)["posterior"].to_dataset()
    assert_draws_agree(draws, quadrature(model), name, HEAVY_TAILS.get(model, ()))


# Models of at most three scales, which the package works out without MCMC.
FEW_SCALES = (
    "two_level",
    "eight_schools",
    "varying_intercept",
    "varying_slope_published",
    "varying_slope",
    "varying_intercept_slope",
)


@pytest.fixture(scope="module")
def worked_out(problems):
    """Return a function from a model to its posterior by the package's own quadrature."""

    @functools.cache
    def of(model):
        arguments, labels = problems[model]
        return exactly_by_lattice(
            getattr(models, model), arguments, key=jax.random.key(1), labels=labels
        )

    return of


@pytest.mark.parametrize("model", FEW_SCALES)
def test_moments_of_a_lattice_agree_with_quadrature(model, worked_out, quadrature):
    moments = worked_out(model)["moments"].to_dataset()
    exactly = quadrature(model)
    for name in PARAMETERS[model]:
        site, _, labels = name.removesuffix("]").partition("[")
        values = moments[site]
        if labels:
            values = values.sel(dict(zip(values.dims[1:], labels.split(", "), strict=True)))
        mean, sd = values.to_numpy()
        assert abs(mean - exactly.loc[name, "mean"]) < 2e-4 * sd, name
        assert abs(sd / exactly.loc[name, "sd"] - 1) < 2e-4, name


@pytest.mark.parametrize("model", FEW_SCALES)
def test_draws_from_a_lattice_agree_with_quadrature(model, worked_out, quadrature):
    draws = worked_out(model)["posterior"].to_dataset()
    for name in PARAMETERS[model]:
        assert_draws_agree(draws, quadrature(model), name, HEAVY_TAILS.get(model, ()))


@pytest.mark.parametrize("model", PARAMETERS)
def test_every_parameter_is_compared(model, fitted, quadrature):
    drawn = summary(fitted(model), round_to="none")
    exactly, draws = quadrature(model), fitted(model)["posterior"].to_dataset()
    if "L_Omega" in draws:  # its other entries are constants and a function of the one compared
        first, second = (draws["L_Omega"].sel(coefficient=label) for label in COEFFICIENTS)
        assert (first == [1.0, 0.0]).all()
        np.testing.assert_allclose((second**2).sum("coefficient_2"), 1.0, rtol=1e-12)
        drawn = drawn.drop(set(entries("L_Omega", COEFFICIENTS, COEFFICIENTS)) - set(exactly.index))
    assert set(PARAMETERS[model]) == set(drawn.index) == set(exactly.index)
    assert exactly.notna().all(axis=None)
    for name in drawn.index:  # the summary writes each figure beside its own name
        np.testing.assert_allclose(drawn.loc[name, "mean"], entry(draws, name).mean(), rtol=1e-9)


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_two_groups_of_published_slopes_are_one_name_too_many(model, fitted, quadrature):
    """Rural and urban slopes have one posterior: exactly by quadrature, and in the draws."""
    exactly, draws = quadrature(model), fitted(model)["posterior"].to_dataset()
    for rural in [*entries("tau_j", ["rural"]), *entries("beta_j", CHEESES, ["rural"])]:
        urban = rural.replace("rural", "urban")
        np.testing.assert_allclose(exactly.loc[urban], exactly.loc[rural], rtol=1e-8)
        difference = entry(draws, urban) - entry(draws, rural)
        if rural.startswith("tau_j"):  # a difference of heavy tails: its median
            error = az.mcse(difference, method="quantile", prob=0.5).item()
            assert abs(difference.median().item()) < 4 * error, urban
        else:
            error = az.mcse(difference, method="mean").item()
            assert abs(difference.mean().item()) < 4 * error, urban


@pytest.mark.parametrize(
    ("published_as", "model"),
    [
        ("varying_intercept", "varying_intercept"),
        ("varying_slope", "varying_slope_published"),
    ],
)
def test_the_published_table_is_the_posterior_of_the_published_program(
    published_as, model, quadrature
):
    tables = load_published_tables().set_index("parameter")
    published = tables[tables["model"] == published_as]
    assert set(published.index) == set(PARAMETERS[model])
    exactly = quadrature(model)["mean"].loc[published.index]
    assert (abs(published["mean"] - exactly) < 4 * published["mcse"]).all()


def test_a_fit_of_a_model_with_a_bug_disagrees(rows, quadrature):
    draws = fit(
        with_bug("varying_intercept", "rate for scale"),
        rows.arguments,
        key=jax.random.key(1),
        labels=rows.labels,
        target_accept=0.95,
        dense_mass=True,
    )
    with pytest.raises(AssertionError, match="mean of sigma"):
        assert_draws_agree(
            draws["posterior"].to_dataset(), quadrature("varying_intercept"), "sigma"
        )


@pytest.mark.parametrize(
    ("dimension", "swapped", "name"),
    [
        ("background", ["urban", "rural"], "alpha_j[rural]"),
        ("cheese", ["B", "A", "C", "D"], "beta[A]"),
    ],
)
def test_draws_with_swapped_labels_disagree(dimension, swapped, name, posterior, quadrature):
    draws = posterior["posterior"].to_dataset().assign_coords({dimension: swapped})
    with pytest.raises(AssertionError, match="mean of"):
        assert_draws_agree(draws, quadrature("varying_intercept"), name)


def test_half_centred_the_posterior_stays_the_same(problems, quadrature):
    draws = refit("two_level", problems, key=2, target_accept=0.997, centred={"theta": 0.5})
    assert set(draws["posterior"]) == {"mu", "tau", "theta"}
    for name in PARAMETERS["two_level"]:
        assert_draws_agree(draws["posterior"].to_dataset(), quadrature("two_level"), name)


# Model -> a bug of its quadrature (text of exact.py, its replacement), and what must notice.
BUGS_OF_QUADRATURE = {
    "varying_slope": (
        ('"varying_slope": stats.halfnorm(scale=5)', '"varying_slope": stats.halfnorm(scale=1)'),
        "tau_beta[x]",
    ),
    "varying_intercept_slope": (
        ("[[first, zero], [zero, last]]", "[[last, zero], [zero, first]]"),
        "tau_alpha",
    ),
    "correlated_effects_published": (("root = 5 * Sigma", "root = Sigma"), "tau[intercept]"),
    "correlated_effects": (
        ("0.75 * (1 - rho**2)", "35 / 32 * (1 - rho**2) ** 3"),  # LKJ(4)
        "L_Omega[x, intercept]",
    ),
}


@pytest.mark.parametrize("model", BUGS_OF_QUADRATURE)
def test_a_quadrature_with_a_bug_disagrees(model, fitted, problems):
    (right, wrong), name = BUGS_OF_QUADRATURE[model]
    source = inspect.getsource(exact)
    assert source.count(right) == 1, f"{right!r} must occur once in exact.py"
    namespace = {"__name__": "exact_with_bug"}
    exec(source.replace(right, wrong), namespace)
    namespace["on_two_grids"] = lambda compute, ranges, steps, _: compute(ranges, steps)
    buggy = namespace["posterior_own_slopes"](
        model, **problems[model][0], predictor="x", group_levels=ROUTES
    )
    draws = fitted(model)["posterior"].to_dataset()
    with pytest.raises(AssertionError, match="drawn"):
        assert_draws_agree(draws, buggy, name)


# --- A closed form


TAU = 3.0


@pytest.fixture(scope="module")
def closed_form(problems):
    """The posterior of the two-level model with tau known: every parameter is normal."""
    arguments, _ = problems["two_level"]
    size = np.bincount(arguments["idx"])
    mean = np.bincount(arguments["idx"], weights=arguments["y"]) / size
    weight = 1 / (TAU**2 + arguments["sigma"] ** 2 / size)  # of a group's mean, for mu
    precision = 1 / 10.0**2 + weight.sum()
    mu = weight @ mean / precision
    kept = TAU**2 * weight  # of the way from mu to the group's mean
    centre = np.r_[mu, mu + kept * (mean - mu)]
    variance = np.r_[1 / precision, TAU**2 * (1 - kept) + (1 - kept) ** 2 / precision]
    quantiles = stats.norm.ppf(exact.PROBABILITIES, centre[:, None], np.sqrt(variance)[:, None])
    return pd.DataFrame(
        np.column_stack([centre, np.sqrt(variance), quantiles]),
        index=["mu", *entries("theta", ROUTES)],
        columns=exact.FIGURES,
    )


def test_with_tau_known_the_draws_agree_with_the_closed_form(problems, closed_form):
    def known_tau(**arguments):
        with condition(data={"tau": TAU}):
            models.two_level(**arguments)

    arguments, labels = problems["two_level"]
    draws = fit(known_tau, arguments, key=jax.random.key(1), labels=labels)["posterior"]
    assert set(draws) == {"mu", "theta"}
    for name in closed_form.index:
        assert_draws_agree(draws.to_dataset(), closed_form, name)
    with pytest.raises(AssertionError, match="drawn"):
        assert_draws_agree(draws.to_dataset(), closed_form + 0.3, "mu")


def test_with_tau_known_the_quadrature_is_the_closed_form(problems, closed_form):
    arguments, _ = problems["two_level"]
    member = np.eye(6)[arguments["idx"]]
    part = exact.gaussian_part_groups(member, arguments["y"], arguments["sigma"])
    prior_sd = np.r_[10.0, np.full(6, TAU)]
    given = exact.condition(*part, np.zeros(7), prior_sd[None], np.ones(1))
    A = np.eye(7) + np.outer(np.r_[0, np.ones(6)], np.eye(7)[0])  # theta_j = mu + its deviation
    mean, variance = exact.project(given, A)
    for j, name in enumerate(closed_form.index):
        figures = exact.figures_of_mixture(np.ones(1), mean[:, j], variance[:, j])
        np.testing.assert_allclose(figures, closed_form.loc[name], rtol=1e-6)


# --- Gaussian parts


@pytest.mark.parametrize(
    "model", [model for model in WITH_PREDICTORS if model != "varying_intercept"]
)
def test_with_its_scales_fixed_the_model_is_its_gaussian(model, rows):
    """Gradient and Hessian of the log density are those of the closed form.

    A quadratic has one Hessian everywhere, so that these two hold its whole shape.
    """
    points = unstack(draw_points(model, rows.arguments, n=3))
    sites, *_ = exact.gaussian_sites(model, points[0], **rows.arguments)

    def log_joint(theta, scales):
        values, at = {}, 0
        for site, shape in sites.items():
            width = int(np.prod(shape))
            values[site] = theta[at : at + width].reshape(shape)
            at += width
        return log_density(getattr(models, model), (), rows.arguments, scales | values)[0]

    gradient, hessian = jax.jit(jax.grad(log_joint)), jax.jit(jax.hessian(log_joint))
    for point in points:
        _, Z, prior_mean, prior_sd = exact.gaussian_sites(model, point, **rows.arguments)
        given = exact.condition(
            *(Z, rows.y, prior_mean, prior_sd[None], np.array([point["sigma"]]))
        )
        precision = Z.T @ Z / point["sigma"] ** 2 + np.diag(prior_sd**-2.0)
        scales = {site: value for site, value in point.items() if site not in sites}
        theta = np.concatenate([np.ravel(point[site]) for site in sites])
        for at in (theta, given.mean[0]):
            np.testing.assert_allclose(
                -hessian(at, scales), precision, rtol=1e-9, atol=1e-12 * precision.max()
            )
        pull = precision @ (given.mean[0] - theta)
        np.testing.assert_allclose(
            gradient(theta, scales), pull, rtol=1e-7, atol=1e-9 * abs(pull).max()
        )


@pytest.mark.parametrize("model", PARAMETERS)
def test_the_two_references_agree(model, problems):
    """Bayes' theorem at fixed scales: joint density = marginal x prior x conditional."""
    arguments, _ = problems[model]
    y = arguments["y"]
    for point in unstack(draw_points(model, arguments, n=5)):
        if model == "two_level":
            sites, prior_mean = ["mu", "theta"], np.zeros(7)
            prior_sd = np.r_[10.0, np.full(6, point["tau"])]
            Z, scaled = exact.gaussian_part_groups(
                np.eye(6)[arguments["idx"]], y, arguments["sigma"]
            )
            noise, log_units = 1.0, -len(y) * np.log(arguments["sigma"])
        elif model == "eight_schools":
            sites, prior_mean = ["mu", "z"], np.zeros(9)
            prior_sd = np.r_[20.0, np.full(8, point["tau"])]
            Z, scaled = exact.gaussian_part_groups(np.eye(8), y, arguments["se"])
            noise, log_units = 1.0, -np.log(arguments["se"]).sum()
        elif model == "varying_intercept":
            sites, prior_mean = (
                ["alpha", "beta", "alpha_j"],
                np.r_[arguments["y_mean"], np.zeros(6)],
            )
            prior_sd = np.r_[2.5 * arguments["y_sd"], np.full(4, 2.0), np.full(2, point["tau"])]
            Z, scaled = exact.gaussian_part_rows(arguments["X"], arguments["idx"], 2), y
            noise, log_units = point["sigma"], 0.0
        else:
            sites, Z, prior_mean, prior_sd = exact.gaussian_sites(model, point, **arguments)
            scaled, noise, log_units = y, point["sigma"], 0.0
        given = exact.condition(Z, scaled, prior_mean, prior_sd[None], np.array([noise]))
        theta = np.concatenate([np.ravel(point[site]) for site in sites])
        log_volume = 0.0
        if model == "two_level":
            theta[1:] -= point["mu"]  # deviations from mu
        if model == "eight_schools":
            theta[1:] *= point["tau"]
            log_volume = 8 * np.log(point["tau"])
        conditional = stats.multivariate_normal(given.mean[0], given.covariance[0])
        rest = (
            given.log_marginal[0]
            + log_units
            + log_volume
            + log_prior_of_scales(model, point, arguments)
        )
        joint = getattr(formulas, model)(point, **arguments)
        np.testing.assert_allclose(rest + conditional.logpdf(theta), joint, rtol=1e-8)


def log_prior_of_scales(model, point, arguments):
    """Return the log prior density of the scales, as the quadrature has it."""
    log_prior = 0.0
    if "sigma" in point:
        log_prior += exact.prior_of_sigma(arguments["y_sd"]).logpdf(point["sigma"])
    if "L_Omega" in point:
        log_prior += exact.log_prior_of_rho(point["L_Omega"][1, 0])
    for site, value in point.items():
        if site.startswith("tau"):
            log_prior += exact.PRIORS_OF_TAU[model].logpdf(value).sum()
    return log_prior


@pytest.mark.parametrize("model", MADE_UP)
def test_groups_are_solved_one_by_one_as_they_are_together(model, problems):
    """At fixed scales the quadrature's short way gives what one Gaussian of all groups does."""
    arguments, _ = problems[model]
    for point in unstack(draw_points(model, arguments, n=5)):
        sites, Z, prior_mean, prior_sd = exact.gaussian_sites(model, point, **arguments)
        sigma = np.array([point["sigma"]])
        whole = exact.condition(Z, arguments["y"], prior_mean, prior_sd[None], sigma)
        taus = [point[site] for site in ("tau_alpha", "tau_beta", "tau") if site in point]
        A, names, rho = np.eye(len(prior_mean)), list(sites), None
        if "L_Omega" in point:
            rho = point["L_Omega"][1, :1]
            L = np.diag(point["tau"]) @ point["L_Omega"]
            if model == "correlated_effects_published":
                own = np.kron(np.eye(6), L @ L.T + 1e-6 * np.eye(2))
            else:
                own = np.hstack([np.tile(np.eye(2), (6, 1)), np.kron(np.eye(6), L)])
            A, names = np.vstack([A, own]), [*names, "coefficient_j"]
        log_marginal, mean, variance = exact.solve_own_slopes(
            model, sigma, np.hstack(taus)[:, None], rho, **arguments
        )
        assert tuple(names) == exact.NORMAL_SITES[model]
        np.testing.assert_allclose(log_marginal, whole.log_marginal, rtol=1e-10)
        np.testing.assert_allclose((mean, variance), exact.project(whole, A), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_slopes_reach_the_data_through_their_sum_alone(model, rows):
    """The quadrature's reduction, at fixed scales: nine slopes become four, and back."""
    intercepts = "intercept" in model
    for point in unstack(draw_points(model, rows.arguments, n=5)):
        noise = np.array([point["sigma"]])
        _, Z, prior_mean, prior_sd = exact.gaussian_sites(model, point, **rows.arguments)
        whole = exact.condition(Z, rows.y, prior_mean, prior_sd[None], noise)
        s = np.hypot(*point["tau_j"])
        Z = exact.gaussian_part_rows(rows.X, rows.idx, 2 if intercepts else 0)
        sd = np.r_[2.5 * rows.y_sd, np.full(4, s), np.full(Z.shape[1] - 5, point.get("tau_alpha"))]
        sd = sd.astype(float)
        mean = np.r_[rows.y_mean, np.zeros(Z.shape[1] - 1)]
        reduced = exact.condition(Z, rows.y, mean, sd[None], noise)
        np.testing.assert_allclose(reduced.log_marginal, whole.log_marginal, rtol=1e-10)
        e = point["tau_j"] / s
        c, variance = reduced.mean[0, 1:5], np.diag(reduced.covariance[0])[1:5]
        slopes = whole.mean[0, 1:9].reshape(4, 2)
        np.testing.assert_allclose(slopes, np.outer(c, e) / s, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(
            np.diag(whole.covariance[0])[1:9].reshape(4, 2),
            np.outer(variance, e**2) / s**2 + 1 - e**2,
            rtol=1e-6,
        )


def test_a_coarse_or_narrow_grid_is_refused(rows):
    Z, prior_mean = exact.gaussian_part_rows(rows.X, rows.idx, 2), np.r_[rows.y_mean, np.zeros(6)]

    def solve(scales):
        prior_sd = np.full((len(scales["sigma"]), 7), 2.0)
        given = exact.condition(Z, rows.y, prior_mean, prior_sd, scales["sigma"])
        return given.log_marginal, *exact.project(given, np.eye(7))

    names = [f"theta[{i}]" for i in range(7)]
    log_priors = {"sigma": exact.prior_of_sigma(rows.y_sd).logpdf}
    good = {"ranges": {"sigma": (1.0, 4.0)}, "steps": {"sigma": 0.02}}
    exact.integrate_scales(solve, names, log_priors=log_priors, **good)
    for bad in ({"ranges": {"sigma": (1.9, 2.1)}}, {"steps": {"sigma": 0.5}}):
        with pytest.raises(AssertionError, match="on a finer grid"):
            exact.integrate_scales(solve, names, log_priors=log_priors, **(good | bad))
