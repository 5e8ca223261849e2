"""What the lattice returns beside moments and draws, and what it refuses.

Moments and draws are held against an independent quadrature in `test_posterior`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats
from test_integration import arguments_of
from test_posterior import thirty_rows

from mlm_utils import models, quadrature
from mlm_utils.quadrature import exact
from mlm_utils.sampling import posterior_predictive

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def arguments():
    return arguments_of("two_level")


@pytest.fixture(scope="module")
def worked_out(arguments):
    return exact(models.two_level, arguments, key=KEY, draws=200)


def test_the_evidence_is_the_density_of_the_outcome(arguments, worked_out):
    idx, y, sigma = (arguments[name] for name in ("idx", "y", "sigma"))
    same = idx[:, None] == idx

    def density(tau):  # times e^20, lest it all be less than what quad calls an error
        covariance = 10.0**2 + tau**2 * same + sigma**2 * np.eye(len(y))
        given_tau = stats.multivariate_normal(cov=covariance).logpdf(y)
        return np.exp(20 + given_tau + stats.halfnorm(scale=5).logpdf(tau))

    wanted = np.log(integrate.quad(density, 0, np.inf)[0]) - 20
    found = worked_out["moments"].attrs["log_evidence"]
    np.testing.assert_allclose(found, wanted, atol=1e-7)


def test_the_form_is_that_of_a_fit(posterior, rows):
    tree = exact(models.varying_intercept, rows.arguments, labels=rows.labels, key=KEY)
    for group in ("posterior", "log_likelihood", "observed_data"):
        found, wanted = tree[group].dataset, posterior[group].dataset
        assert set(found) == set(wanted)
        for site in wanted:
            assert found[site].dims == wanted[site].dims
            assert found[site].shape == wanted[site].shape
            assert found[site].dtype == wanted[site].dtype
        assert all(found.coords[dim].equals(wanted.coords[dim]) for dim in wanted.coords)
    moments = tree["moments"].dataset
    assert set(moments) == set(tree["posterior"].dataset)
    assert moments["alpha_j"].dims == ("moment", "background")
    assert list(moments.coords["moment"].to_numpy()) == ["mean", "sd"]
    predicted = posterior_predictive(
        models.varying_intercept, rows.arguments, tree, key=KEY, labels=rows.labels
    )
    assert "observed_data" in predicted.children


def test_draws_are_independent_and_the_key_decides_them(arguments, worked_out):
    again = exact(models.two_level, arguments, key=KEY, draws=200)
    other = exact(models.two_level, arguments, key=jax.random.key(2), draws=200)
    tau = worked_out["posterior"]["tau"].to_numpy()
    np.testing.assert_array_equal(again["posterior"]["tau"], tau)
    assert (
        len(np.unique(np.concatenate([tau.ravel(), other["posterior"]["tau"].values.ravel()])))
        == 1600
    )
    lag = np.corrcoef(tau.ravel()[1:], tau.ravel()[:-1])[0, 1]
    assert abs(lag) < 4 / np.sqrt(800)


def test_two_peaks_are_both_found():
    """A prior of tau with its mass in two places: all of it is summed."""

    def model(y=None):
        log_tau = numpyro.sample(
            "log_tau",
            dist.MixtureSameFamily(
                dist.Categorical(jnp.array([0.3, 0.7])),
                dist.Normal(jnp.array([-6.0, 6.0]), jnp.array([0.2, 0.2])),
            ),
        )
        mean = numpyro.sample("mean", dist.Normal(0.0, 1e-3))
        with numpyro.plate("row", 1):
            numpyro.sample("y", dist.Normal(mean, 1e9 + jnp.exp(log_tau)), obs=y)

    tree = exact(model, {"y": np.zeros(1)}, key=KEY, draws=100)
    mean, sd = tree["moments"]["log_tau"].to_numpy()
    np.testing.assert_allclose(mean, 0.7 * 6 - 0.3 * 6, atol=1e-3)
    np.testing.assert_allclose(sd, np.sqrt(36 + 0.04 - mean**2), rtol=1e-3)


def test_more_than_three_scales_are_refused(refuses):
    arguments, labels = thirty_rows()
    with refuses(ValueError, "correlated_effects", "4 scales", "3", "integrate=True"):
        exact(models.correlated_effects, arguments, key=KEY, labels=labels)


def test_a_computed_site_that_is_not_linear_is_refused(refuses):
    def model(y=None):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        mean = numpyro.sample("mean", dist.Normal(0.0, tau))
        numpyro.deterministic("odds", jnp.exp(mean))
        with numpyro.plate("row", 3):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    with refuses(ValueError, "odds", "not linear", "mean", "from draws"):
        exact(model, {"y": np.arange(3.0)}, key=KEY)


def test_a_lattice_that_grows_too_large_is_refused(arguments, refuses, monkeypatch):
    monkeypatch.setattr(quadrature, "MAX_POINTS", 10)
    with refuses(RuntimeError, "10 points", "two_level", "integrate=True"):
        exact(models.two_level, arguments, key=KEY)


def test_a_lattice_that_is_too_coarse_is_refused(arguments, refuses, monkeypatch):
    monkeypatch.setattr(quadrature, "STEP", 4.0)
    monkeypatch.setattr(quadrature, "WIDEST", 4.0)
    with refuses(RuntimeError, "two_level", "too rough", "posterior sds"):
        exact(models.two_level, arguments, key=KEY)


@pytest.mark.parametrize(("name", "value"), [("chains", 0), ("draws", 2.5)])
def test_counts_are_checked(name, value, arguments):
    with pytest.raises((TypeError, ValueError), match=name):
        exact(models.two_level, arguments, key=KEY, **{name: value})
