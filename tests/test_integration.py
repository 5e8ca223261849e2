"""With its Gaussian part integrated out, a model keeps its density, its posterior and its names.

Whole posteriors are held against quadrature in `test_posterior`; here the algebra is held against
dense normal densities and against the formulas of the models.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from test_models import MODELS, draw_points
from test_multilevel import draw_points as draw_general_points
from test_multilevel import made_up
from test_posterior import thirty_rows

from mlm_utils import formulas, models
from mlm_utils.integration import Integrated, NormalQuantile
from mlm_utils.sampling import fit

KEY = jax.random.key(1)


def arguments_of(model):
    """Return small arguments for a model."""
    rng = np.random.default_rng(3)
    if model == "two_level":
        idx = np.repeat(np.arange(3), [2, 3, 4]).astype(np.int32)
        return {"idx": idx, "n_groups": 3, "sigma": 2.0, "y": rng.normal(size=9)}
    if model == "eight_schools":
        return {"se": rng.uniform(1, 3, 5), "y": rng.normal(size=5)}
    return thirty_rows()[0]


GENERAL = ["nested", "correlated, centred", "three terms"]


@pytest.mark.parametrize("name", [*MODELS, *GENERAL])
def test_the_density_is_that_of_all_over_that_of_the_effects(name):
    """Bayes' theorem: p(y, s) = p(y, u, s) / p(u | y, s), at every u alike."""
    if name in GENERAL:
        model, formula, arguments = models.multilevel, formulas.multilevel, made_up(name)
        points = draw_general_points(arguments, 3)
    else:
        model, formula, arguments = (
            getattr(models, name),
            getattr(formulas, name),
            arguments_of(name),
        )
        points = draw_points(name, arguments, 3)
    integrated = Integrated(model, arguments)

    @jax.jit
    def solve(scales, u):
        """Return what is found, the point at u, and how the effects there spread with u."""

        def at(u):
            return integrated._run(u, scales, arguments)[0]

        def effects(u):
            return jnp.concatenate([jnp.ravel(at(u)[site]) for site in integrated.normal])

        log_density, factored = integrated._solve(scales, arguments)
        none = jnp.zeros(integrated.size)
        mean, root = factored.draw(none), jax.jacfwd(factored.draw)(none)
        return log_density, mean, root, at(u), jax.jacfwd(effects)(u)

    for i, u in itertools.product(
        range(3), np.random.default_rng(1).normal(size=(2, integrated.size))
    ):
        scales = {
            site: jnp.asarray(values[i])
            for site, values in points.items()
            if site not in integrated.normal
        }
        log_density, mean, root, point, spread = jax.device_get(solve(scales, u))
        joint = formula(point, **arguments)
        given_y = stats.multivariate_normal(mean, root @ root.T).logpdf(u)
        given_y -= np.linalg.slogdet(spread)[1]
        found = joint - given_y - formula_of_scales(model, scales, arguments)
        np.testing.assert_allclose(log_density, found, rtol=1e-7, atol=1e-7)


def formula_of_scales(model, scales, arguments):
    """Return the log prior of the scales, as NumPyro has it."""
    fixed = numpyro.handlers.substitute(numpyro.handlers.seed(model, KEY), scales)
    trace = numpyro.handlers.trace(fixed).get_trace(**arguments)
    return float(sum(trace[site]["fn"].log_prob(value).sum() for site, value in scales.items()))


def test_density_and_effects_are_those_of_a_dense_normal():
    arguments, _ = thirty_rows()
    X, idx, y = (arguments[name] for name in ("X", "idx", "y"))
    scales = {"sigma": jnp.array(2.5), "tau": jnp.array(1.7)}
    integrated = Integrated(models.varying_intercept, arguments)
    assert (integrated.normal, integrated.size) == (("alpha", "beta", "alpha_j"), 8)

    W = np.column_stack([np.ones(30), X, np.eye(6)[idx]])
    mean = np.r_[arguments["y_mean"], np.zeros(7)]
    prior = np.diag(np.r_[2.5 * arguments["y_sd"], 2.0, np.full(6, 1.7)] ** 2)
    dense = stats.multivariate_normal(W @ mean, W @ prior @ W.T + 2.5**2 * np.eye(30))
    log_density, _ = integrated._solve(scales, arguments)
    np.testing.assert_allclose(log_density, dense.logpdf(y), rtol=1e-11)

    covariance = np.linalg.inv(np.linalg.inv(prior) + W.T @ W / 2.5**2)
    centre = covariance @ (np.linalg.solve(prior, mean) + W.T @ y / 2.5**2)
    many = {name: jnp.broadcast_to(value, 40_000) for name, value in scales.items()}
    drawn = integrated.complete_all(KEY, many)
    effects = np.column_stack(
        [np.reshape(drawn[site], (40_000, -1)) for site in ("alpha", "beta", "alpha_j")]
    )
    sd = np.sqrt(np.diag(covariance))
    assert (abs(effects.mean(axis=0) - centre) < 4 * sd / 200).all()
    np.testing.assert_allclose(np.corrcoef(effects.T), covariance / np.outer(sd, sd), atol=0.025)
    np.testing.assert_allclose(effects.std(axis=0), sd, rtol=0.02)


def test_draws_have_the_form_of_a_plain_fit(posterior, rows):
    drawn = fit(
        models.varying_intercept, rows.arguments, key=KEY, labels=rows.labels, integrate=True
    )
    for group in ("posterior", "log_likelihood", "observed_data"):
        plain, own = posterior[group].dataset, drawn[group].dataset
        assert plain.sizes == own.sizes
        assert {name: v.dims for name, v in plain.items()} == {n: v.dims for n, v in own.items()}
        for name in plain.coords:
            assert (plain[name] == own[name]).all()
    assert set(posterior["sample_stats"]) <= set(drawn["sample_stats"])
    at = drawn["posterior"].dataset.isel(chain=1, draw=7)
    mean = at["alpha"].item() + at["alpha_j"].to_numpy()[rows.idx] + rows.X @ at["beta"].to_numpy()
    expected = stats.norm.logpdf(rows.y, mean, at["sigma"].item())
    written = drawn["log_likelihood"]["y"].isel(chain=1, draw=7)
    np.testing.assert_allclose(written, expected, rtol=1e-10)


def test_computed_sites_are_computed_draw_by_draw():
    arguments = arguments_of("eight_schools")
    integrated = Integrated(models.eight_schools, arguments)
    drawn = integrated.complete_all(KEY, {"tau": jnp.arange(1.0, 7.0)})
    assert set(drawn) == {"mu", "tau", "z", "theta"}
    computed = drawn["mu"][..., None] + drawn["tau"][..., None] * drawn["z"]
    np.testing.assert_allclose(drawn["theta"], computed, rtol=1e-12)


def test_the_sampler_meets_no_computed_site():
    """A site that is computed from effects at zero would pass for one that was sampled."""
    arguments = arguments_of("eight_schools")
    integrated = Integrated(models.eight_schools, arguments)
    seeded = numpyro.handlers.seed(integrated.model, KEY)
    trace = numpyro.handlers.trace(seeded).get_trace(**arguments)
    drawn = {name for name, site in trace.items() if site["type"] != "plate"}
    assert drawn == {"tau", "y_integrated"}


def test_the_same_key_gives_the_same_effects_and_each_draw_its_own():
    integrated = Integrated(models.two_level, arguments_of("two_level"))
    scales = {"tau": jnp.full(6, 1.5)}
    one, again = (integrated.complete_all(KEY, scales, batch=size)["theta"] for size in (64, 2))
    np.testing.assert_allclose(one, again, rtol=1e-12)
    assert len(np.unique(np.asarray(one)[..., 0])) == 6


# --- What it refuses


def student(x, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.StudentT(4.0, mean + 0 * x, sigma), obs=y)


def curved(x, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(x + jnp.exp(mean), sigma), obs=y)


def of_spread(x, y=None):
    log_sigma = numpyro.sample("log_sigma", dist.Normal(0.0, 1.0))
    mean = numpyro.sample("mean", dist.Uniform(-1.0, 1.0))
    numpyro.sample("y", dist.Normal(mean + 0 * x, jnp.exp(log_sigma)), obs=y)


def of_prior(x, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.Exponential(jnp.exp(mean)))
    numpyro.sample("y", dist.Normal(mean + 0 * x, sigma), obs=y)


def with_a_factor(x, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.factor("pull", -(mean**2))
    numpyro.sample("y", dist.Normal(mean + 0 * x, sigma), obs=y)


def weighted(x, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.handlers.scale(scale=0.5):
        numpyro.sample("y", dist.Normal(mean + 0 * x, sigma), obs=y)


def without_scales(x, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mean + 0 * x, 1.0), obs=y)


def without_effects(x, y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(x, sigma), obs=y)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (student, ["student", "['y']", "a normal y"]),
        (with_a_factor, ["with_a_factor", "density of ['sigma', 'pull'] moves"]),
        (weighted, ["weighted", "weights", "['y']"]),
        (of_prior, ["of_prior", "density of ['sigma'] moves"]),
        (curved, ["curved", "not linear", "['mean']"]),
        (of_spread, ["of_spread", "its sd or the density", "['log_sigma']"]),
        (without_scales, ["['mean']", "some that are not"]),
        (without_effects, ["['sigma']", "[] are normal"]),
    ],
)
def test_a_model_that_is_not_gaussian_given_its_scales_is_refused(model, says, refuses):
    with refuses(ValueError, *says):
        fit(model, {"x": np.arange(5.0), "y": np.ones(5)}, key=KEY, integrate=True)


def test_no_effect_can_be_centred_where_none_is_sampled(rows, refuses):
    with refuses(ValueError, "['alpha_j']", "integrate=True", "leave one"):
        fit(
            models.varying_intercept,
            rows.arguments,
            key=KEY,
            centred={"alpha_j": 0.0},
            integrate=True,
        )


@pytest.mark.parametrize(
    ("prior", "by_scipy"),
    [
        (dist.HalfNormal(3.0), stats.halfnorm(scale=3.0)),
        (dist.HalfCauchy(2.0), stats.halfcauchy(scale=2.0)),
        (dist.Exponential(0.5), stats.expon(scale=2.0)),
    ],
)
def test_a_scale_is_the_quantile_of_its_prior(prior, by_scipy):
    def scale(z):
        fixed = numpyro.handlers.substitute(data={"tau_normal": z})
        with numpyro.handlers.reparam(config={"tau": NormalQuantile()}), fixed:
            return numpyro.sample("tau", prior)

    z = jnp.array([-7.0, -2.0, -0.3, 0.0, 0.5, 3.0, 8.0])
    found, slope = jax.vmap(jax.value_and_grad(scale))(z)
    np.testing.assert_allclose(by_scipy.logcdf(found)[:4], stats.norm.logcdf(z)[:4], rtol=1e-8)
    np.testing.assert_allclose(by_scipy.logsf(found)[3:], stats.norm.logsf(z)[3:], rtol=1e-8)
    np.testing.assert_allclose(slope, stats.norm.pdf(z) / by_scipy.pdf(found), rtol=1e-6)


def test_many_groups_are_found_in_a_few_runs_of_the_model(monkeypatch):
    runs = []
    run = Integrated._run
    monkeypatch.setattr(Integrated, "_run", lambda *given: runs.append(1) or run(*given))
    groups = np.repeat(np.arange(3000, dtype=np.int32), 2)
    y = np.random.default_rng(1).normal(size=6000)
    arguments = {"idx": groups, "n_groups": 3000, "sigma": 2.0, "y": y}
    with jax.disable_jit():
        structure = Integrated(models.two_level, arguments)._structure
    assert structure.blocks.shape == (3000, 1)
    assert len(runs) < 10
