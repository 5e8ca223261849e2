"""NUTS against quadrature: the draws have the posterior's moments, within their own error."""

import arviz as az
import exact
import jax
import numpy as np
import pytest
from scipy import stats
from test_models import with_bug

from mlm_utils.sampling import fit

PARAMETERS = {
    "alpha": {},
    "beta[A]": {"cheese": "A"},
    "beta[B]": {"cheese": "B"},
    "beta[C]": {"cheese": "C"},
    "beta[D]": {"cheese": "D"},
    "alpha_j[rural]": {"background": "rural"},
    "alpha_j[urban]": {"background": "urban"},
    "sigma": {},
    "tau": {},
}


@pytest.fixture(scope="session")
def quadrature(rows):
    return exact.posterior_varying_intercept(
        rows.X,
        rows.idx,
        rows.y,
        rows.y_mean,
        rows.y_sd,
        predictor_levels=rows.labels["predictor"][1],
        group_levels=rows.labels["group"][1],
    )


def assert_draws_agree(draws, quadrature, name):
    """Compare the draws of one parameter with the quadrature, within 4 Monte Carlo errors."""
    values = draws[name.partition("[")[0]].sel(PARAMETERS[name])
    if name == "tau":
        # Quantiles for tau: with two groups its posterior falls off as tau^-4. The variance is
        # finite but the fourth moment is not, so the sd of the draws does not settle and its
        # MCSE, an estimate that needs the fourth moment, says nothing.
        figures = {
            f"quantile {p}": (
                values.quantile(p).item(),
                exact_quantile,
                az.mcse(values, method="quantile", prob=p).item(),
            )
            for p, exact_quantile in quadrature.quantiles[name].items()
        }
    else:
        figures = {
            "mean": (values.mean().item(), quadrature.mean[name]),
            "sd": (values.std(ddof=1).item(), quadrature.sd[name]),
        }
        figures = {
            method: (*pair, az.mcse(values, method=method).item())
            for method, pair in figures.items()
        }
    for figure, (drawn, exactly, mcse) in figures.items():
        assert abs(drawn - exactly) < 4 * mcse, (
            f"{figure} of {name}: drawn {drawn:.4f} (MCSE {mcse:.4f}), exactly {exactly:.4f}"
        )


@pytest.mark.parametrize("name", PARAMETERS)
def test_draws_agree_with_quadrature(name, posterior, quadrature):
    assert_draws_agree(posterior["posterior"].to_dataset(), quadrature, name)


def test_every_parameter_is_compared(posterior, quadrature):
    assert set(PARAMETERS) == set(az.summary(posterior).index) == set(quadrature.mean)


def test_a_fit_of_a_model_with_a_bug_disagrees(rows, quadrature):
    draws = fit(
        with_bug("rate for scale"),
        rows.arguments,
        key=jax.random.key(1),
        labels=rows.labels,
        target_accept=0.95,
        dense_mass=True,
    )
    with pytest.raises(AssertionError, match="mean of sigma"):
        assert_draws_agree(draws["posterior"].to_dataset(), quadrature, "sigma")


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
        assert_draws_agree(draws, quadrature, name)


def test_the_two_references_agree(rows):
    """Bayes' theorem at fixed scales: joint density = marginal x prior x conditional."""
    Z, y = exact.gaussian_part_varying_intercept(rows.X, rows.idx, rows.y, rows.n_groups)
    rng = np.random.default_rng(4)
    for tau, sigma in [(0.3, 5.0), (4.0, 7.5), (300.0, 12.0)]:
        prior_mean = np.r_[rows.y_mean, np.zeros(6)]
        prior_sd = np.r_[2.5 * rows.y_sd, np.full(4, 2.0), tau, tau]
        given = exact.condition(Z, y, prior_mean, prior_sd[None], np.array([sigma]))
        rest = given.log_marginal[0] + stats.halfcauchy.logpdf(tau, scale=2)
        rest += stats.expon.logpdf(sigma, scale=rows.y_sd)
        conditional = stats.multivariate_normal(given.mean[0], given.covariance[0])
        for theta in rng.normal(prior_mean, 3, (5, 7)):
            point = {"alpha": theta[0], "beta": theta[1:5], "alpha_j": theta[5:]}
            joint = exact.log_density_varying_intercept(
                point | {"tau": tau, "sigma": sigma},
                *(rows.X, rows.idx, rows.y, rows.y_mean, rows.y_sd),
            )
            np.testing.assert_allclose(rest + conditional.logpdf(theta), joint, rtol=1e-9)


def test_a_coarse_or_narrow_grid_is_refused(rows):
    Z, y = exact.gaussian_part_varying_intercept(rows.X, rows.idx, rows.y, rows.n_groups)
    settings = {
        "names": [f"theta[{i}]" for i in range(7)],
        "prior_mean": np.r_[rows.y_mean, np.zeros(6)],
        "prior_sd": lambda scales: np.full((len(scales["sigma"]), 7), 2.0),
        "noise": "sigma",
        "log_priors": {"sigma": stats.expon(scale=rows.y_sd).logpdf},
    }
    good = {"ranges": {"sigma": (1.0, 4.0)}, "steps": {"sigma": 0.02}}
    exact.integrate_scales(Z, y, **settings, **good)
    for bad in ({"ranges": {"sigma": (1.9, 2.1)}}, {"steps": {"sigma": 0.5}}):
        with pytest.raises(AssertionError, match="on a finer grid"):
            exact.integrate_scales(Z, y, **settings, **(good | bad))
