"""A normal family fitted to a posterior finds what it can express, and errs as theory says it must.

With known scales the posterior is normal, and so is each family's best member, in closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

from mlm_utils import models
from mlm_utils.approximation import GUIDES, Problem, approximate
from mlm_utils.sampling import ConvergenceError, summary
from mlm_utils.terms import Prior, ScalePrior, Term

KEY = jax.random.key(1)
ALPHA_SD, TAU, SIGMA = 3.0, 1.5, 1.0
N_GROUPS = 5
KEYS = 5_000  # estimates of a loss


def known_scales(idx, y=None, *, n_groups):
    """Draw an intercept and groups around it, every scale known."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, ALPHA_SD))
    with numpyro.plate("group", n_groups):
        alpha_j = numpyro.sample("alpha_j", dist.Normal(0.0, TAU))
    with numpyro.plate("row", idx.shape[0]):
        numpyro.sample("y", dist.Normal(alpha + alpha_j[idx], SIGMA), obs=y)


def made_up():
    """Return few rows of groups of different sizes, in no order."""
    rng = np.random.default_rng(2)
    idx = rng.permutation(np.repeat(np.arange(N_GROUPS), [1, 2, 3, 4, 6])).astype(np.int32)
    y = 2 + rng.normal(0, TAU, N_GROUPS)[idx] + rng.normal(size=len(idx))
    return {"idx": idx, "y": y, "n_groups": N_GROUPS}


def closed_form(arguments):
    """Return mean and precision of (alpha, alpha_j) given y."""
    W = np.column_stack([np.ones(len(arguments["idx"])), np.eye(N_GROUPS)[arguments["idx"]]])
    precision = W.T @ W / SIGMA**2 + np.diag(1 / np.r_[ALPHA_SD, np.full(N_GROUPS, TAU)] ** 2)
    return np.linalg.solve(precision, W.T @ arguments["y"] / SIGMA**2), precision


@pytest.fixture(scope="module")
def found():
    """Return the draws of (alpha, alpha_j) of every guide, and the trees they come from."""
    trees = {
        guide: approximate(known_scales, made_up(), key=KEY, guide=guide, steps=3000, draws=4000)
        for guide in GUIDES
    }
    drawn = {}
    for guide, tree in trees.items():
        posterior = tree["posterior"]
        drawn[guide] = np.column_stack([posterior["alpha"][0], posterior["alpha_j"][0]])
    return drawn, trees


@pytest.mark.parametrize("guide", GUIDES)
def test_the_means_are_those_of_the_posterior(found, guide):
    mean, precision = closed_form(made_up())
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert (abs(found[0][guide].mean(axis=0) - mean) < 0.12 * sd).all()


def test_the_structured_covariance_is_that_of_the_posterior(found):
    covariance = np.linalg.inv(closed_form(made_up())[1])
    sd = np.sqrt(np.diag(covariance))
    off = (np.cov(found[0]["structured"].T) - covariance) / np.outer(sd, sd)
    assert abs(off).max() < 0.1
    attributes = found[1]["structured"]["optimisation"].attrs
    assert attributes["pareto_k"] < 0.7  # draws that could be reweighted to the posterior's


def test_mean_field_sds_are_conditional_sds_and_so_too_small(found):
    """The best independent normal has the sds of each number given all others."""
    precision = closed_form(made_up())[1]
    own = found[0]["mean-field"].std(axis=0)
    np.testing.assert_allclose(own, 1 / np.sqrt(np.diag(precision)), rtol=0.08)
    assert own[0] < 0.5 * np.sqrt(np.linalg.inv(precision)[0, 0])


def test_the_bound_is_below_the_evidence_and_met_by_the_structured_guide(found):
    arguments = made_up()
    W = np.column_stack([np.ones(len(arguments["idx"])), np.eye(N_GROUPS)[arguments["idx"]]])
    prior = np.diag(np.r_[ALPHA_SD, np.full(N_GROUPS, TAU)] ** 2)
    covariance = W @ prior @ W.T + SIGMA**2 * np.eye(len(W))
    evidence = dist.MultivariateNormal(0.0, covariance).log_prob(arguments["y"])
    elbo = {guide: tree["optimisation"].attrs["elbo"] for guide, tree in found[1].items()}
    assert abs(elbo["structured"] - evidence) < 0.02
    assert elbo["mean-field"] < evidence - 0.3


def losses(guide, batch, count, params=None, model=known_scales, arguments=None, plate="group"):
    """Return estimates of the loss at one place, one a key, and the place."""
    arguments = arguments or made_up()
    problem = Problem(model, arguments, guide=guide, batch=batch, plate=plate)
    model, guide = problem.of(problem.data)
    svi = SVI(model, guide, Adam(0.1), Trace_ELBO())
    if params is None:
        params = svi.get_params(svi.init(KEY))
        if "effects_loc" in params:  # groups of which each has means of its own
            params["effects_loc"] += np.random.default_rng(4).normal(size=(N_GROUPS, 1))
    one = jax.vmap(lambda key: Trace_ELBO().loss(key, params, model, guide))
    return np.asarray(jax.jit(one)(jax.random.split(jax.random.key(5), count))), params


@pytest.mark.parametrize("guide", ["mean-field", "structured"])
def test_a_batch_estimates_the_loss_of_all_groups_without_bias(guide):
    by_batch, params = losses(guide, 2, KEYS)
    if guide == "structured":
        of_all = losses(guide, None, KEYS, params)[0]
    else:  # without a batch all numbers stand in one row
        both = ("loc", "scale")
        own = {what: jnp.append(params[what], params[f"effects_{what}"]) for what in both}
        of_all = losses(guide, None, KEYS, own)[0]
    error = np.hypot(by_batch.std(), of_all.std()) / np.sqrt(KEYS)
    assert error < 0.01 * of_all.mean()
    assert abs(by_batch.mean() - of_all.mean()) < 4 * error


@pytest.mark.parametrize("model", [models.varying_intercept_slope, models.multilevel])
def test_a_batch_estimates_the_loss_of_the_models_of_the_book(model):
    """The plate of the groups lies in two dimensions of the one, and in a term of the other."""
    rng = np.random.default_rng(6)
    arguments = made_up()
    idx, y = arguments["idx"], arguments["y"]
    X, plate = rng.normal(size=(len(idx), 2)), "group"
    if model is models.multilevel:
        term, plate = Term("rater", idx, N_GROUPS, X), "rater"
        scale = ScalePrior("half-normal", 2.0)
        prior = Prior(np.zeros(2), np.ones(2), scale, {"rater": scale})
        arguments = {"X": X, "terms": (term,), "y": y, "prior": prior}
    else:
        arguments |= {"X": X, "n_groups": N_GROUPS + 1, "y_mean": 2.0, "y_sd": 1.5}  # one is empty
    options = {"model": model, "arguments": arguments, "plate": plate}
    by_batch, params = losses("structured", 2, KEYS, **options)
    of_all, _ = losses("structured", None, KEYS, params, **options)
    error = np.hypot(by_batch.std(), of_all.std()) / np.sqrt(KEYS)
    assert error < 0.01 * of_all.mean()
    assert abs(by_batch.mean() - of_all.mean()) < 4 * error


def counts(idx, y=None, *, n_groups):
    """Draw numbers of successes, which are not normal given the population."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 1.0))
    with numpyro.plate("group", n_groups):
        alpha_j = numpyro.sample("alpha_j", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", idx.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(alpha + alpha_j[idx])), obs=y)


def test_newton_steps_lead_to_the_mode_of_effects_that_are_not_normal():
    arguments = made_up() | {"y": np.arange(len(made_up()["idx"])) % 6}
    problem = Problem(counts, arguments, guide="structured", newton=12)
    alpha = 0.3
    move, log_scale = problem._given({"alpha": jnp.asarray(alpha)}, problem.data, None)
    mode = np.asarray(move(jnp.zeros((N_GROUPS, 1))))[:, 0]
    idx, y = arguments["idx"], arguments["y"]
    expected = np.bincount(idx, np.exp(alpha + mode[idx]))
    np.testing.assert_allclose(np.bincount(idx, y) - expected - mode, 0.0, atol=1e-9)
    np.testing.assert_allclose(log_scale, -0.5 * np.log1p(expected), rtol=1e-9)


@pytest.mark.parametrize("guide", ["mean-field", "structured"])
def test_batches_lead_where_all_groups_lead(found, guide):
    tree = approximate(known_scales, made_up(), key=KEY, guide=guide, batch=2, steps=6000)
    mean, precision = closed_form(made_up())
    posterior = tree["posterior"]
    drawn = np.column_stack([posterior["alpha"][0], posterior["alpha_j"][0]])
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert (abs(drawn.mean(axis=0) - mean) < 0.2 * sd).all()
    np.testing.assert_allclose(drawn.std(axis=0), found[0][guide].std(axis=0), rtol=0.15)


def test_the_same_key_gives_the_same_draws_in_the_form_of_a_fit():
    arguments = {"se": np.array([2.0, 1.0, 3.0]), "y": np.array([1.0, 0.0, 4.0])}
    labels = {"group": ("school", ("A", "B", "C"))}
    one, again = (
        approximate(
            models.eight_schools,
            arguments,
            key=KEY,
            guide="structured",
            steps=1000,
            learning_rate=0.05,
            draws=200,
            labels=labels,
        )
        for _ in range(2)
    )
    assert one["posterior"].dataset.equals(again["posterior"].dataset)
    assert one["posterior"]["theta"].dims == ("chain", "draw", "school")
    computed = one["posterior"]["mu"] + one["posterior"]["tau"] * one["posterior"]["z"]
    np.testing.assert_allclose(one["posterior"]["theta"], computed)
    assert one["optimisation"]["loss"].shape == (1000,)
    assert "theta[A]" in summary(one).index


# --- What it refuses


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"guide": "full"}, ValueError, ["guide", "'full'", "mean-field"]),
        ({"steps": 10}, ValueError, ["steps", "10"]),
        ({"steps": 1e3}, TypeError, ["steps", "1000.0"]),
        ({"learning_rate": 0.0}, ValueError, ["learning_rate", "positive"]),
        ({"draws": 1}, ValueError, ["draws"]),
        ({"newton": 0}, ValueError, ["newton"]),
        ({"batch": 1}, ValueError, ["batch", "at least 2"]),
        ({"batch": N_GROUPS}, ValueError, ["batch", "below 5 groups"]),
        ({"batch": 2, "guide": "low-rank"}, ValueError, ["low-rank", "all groups"]),
        ({"guide": "structured", "plate": "school"}, ValueError, ["'school'", "['group', 'row']"]),
        ({"key": 1}, TypeError, ["key"]),
    ],
)
def test_options_out_of_range_are_refused(change, error, says, refuses):
    with refuses(error, *says):
        approximate(known_scales, made_up(), **{"key": KEY} | change)


def test_a_model_without_an_outcome_is_refused(refuses):
    with refuses(ValueError, "known_scales", "observes nothing", "pass y"):
        approximate(known_scales, made_up() | {"y": None}, key=KEY)


def test_a_batch_of_a_model_whose_rows_have_no_groups_is_refused(refuses):
    with refuses(ValueError, "eight_schools", "must take one idx"):
        approximate(models.eight_schools, {"se": np.ones(5), "y": np.ones(5)}, key=KEY, batch=2)


def test_a_batch_of_a_model_that_is_no_sum_over_rows_is_refused(refuses):
    def total(idx, y=None, *, n_groups):
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 1.0))
        with numpyro.plate("group", n_groups):
            alpha_j = numpyro.sample("alpha_j", dist.Normal(alpha, 1.0))
        numpyro.sample("y", dist.Normal(alpha_j[idx].sum(), 1.0), obs=y)

    with refuses(ValueError, "total", "one value a row", "(16,)"):
        approximate(total, made_up() | {"y": 3.0}, key=KEY, batch=2)


def test_a_weighted_model_is_refused(refuses):
    with refuses(ValueError, "weights the density of ['alpha', 'alpha_j', 'y']"):
        approximate(numpyro.handlers.scale(known_scales, scale=0.5), made_up(), key=KEY)


def mixed(idx, y=None, *, n_groups):
    """Draw rows of which each involves two groups."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 1.0))
    with numpyro.plate("group", n_groups):
        alpha_j = numpyro.sample("alpha_j", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", idx.shape[0]):
        numpyro.sample("y", dist.Normal(alpha + alpha_j[idx] + alpha_j[idx - 1], 1.0), obs=y)


def test_effects_that_depend_on_one_another_are_refused(refuses):
    with refuses(ValueError, "['alpha_j']", "mixed", "depend on one another"):
        approximate(mixed, made_up(), key=KEY, guide="structured")


def test_a_loss_that_still_falls_or_is_no_number_is_refused(refuses):
    with refuses(ConvergenceError, "mean-field", "still fell", "more steps"):
        far = made_up() | {"y": made_up()["y"] + 100}
        approximate(known_scales, far, key=KEY, steps=400, learning_rate=0.002)
    with refuses(ConvergenceError, "loss", "lower learning_rate"):
        approximate(known_scales, made_up(), key=KEY, steps=100, learning_rate=1e200)
