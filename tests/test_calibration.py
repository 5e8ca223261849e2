"""Simulation-based calibration: its arithmetic, what it finds, and every model put through it.

An exact fit raises an alarm once in a hundred calibrations (`ALARM`, over all quantities of a
model); a second key would be tried before a model is blamed. The keys are fixed, so that a run
here does not depend on chance.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import simuk
from arviz_stats.ecdf_utils import get_pointwise_confidence_band, simulate_confidence_bands
from numpyro.infer import NUTS
from scipy import stats
from test_models import MODELS, SITES, with_bug
from test_multilevel import made_up

from mlm_utils import calibration, models
from mlm_utils.calibration import Calibration, calibrate, uniform_band, uniformity
from mlm_utils.models import multilevel

ALARM = 0.01
SIMULATIONS = 1024

# Coordinates in which short fits converge over the whole prior.
CENTRED = {
    "two_level": {"theta": 0.0},
    "varying_intercept": {"alpha_j": 0.0},
    "varying_intercept_slope_published": {"alpha_j": 0.0},
    "varying_slope": {"beta_j": 0.0},
    "varying_intercept_slope": {"alpha_j": 0.0, "beta_j": 0.0},
}


def arguments_of(model):
    """Return a small design with unequal groups for a model."""
    rng = np.random.default_rng(5)
    idx = rng.permutation(np.repeat(np.arange(4), [3, 5, 7, 9])).astype(np.int32)
    if model == "two_level":
        return {"idx": idx, "n_groups": 4, "sigma": 4.2}
    if model == "eight_schools":
        return {"se": rng.uniform(5, 20, 8)}
    X = rng.normal(0.0, 1.0, (len(idx), 2))
    return {"X": X, "idx": idx, "n_groups": 4, "y_mean": 20.0, "y_sd": 6.0}


def run(model, program=None, **options):
    options = {"key": jax.random.key(1), "centred": CENTRED.get(model)} | options
    program = getattr(models, model) if program is None else program
    return calibrate(program, arguments_of(model), **options)


def uniform(rng, simulations=200, draws=63, quantities=1):
    ranks = rng.integers(0, draws + 1, (simulations, quantities))
    return Calibration(pd.DataFrame(ranks), draws, np.zeros(simulations, int))


def alarms(found):
    return found["p_value"].min() * len(found) < ALARM


@pytest.fixture(scope="module")
def small():
    """A calibration of a model with everything at its smallest."""
    return run("two_level", simulations=40, warmup=20, draws=7, thin=2)


# --- The test of uniformity


def test_false_alarms_are_as_rare_as_stated():
    found = uniformity(uniform(np.random.default_rng(3), quantities=2000))
    for rate in (0.01, 0.05, 0.2):
        raised = (found["p_value"] <= rate).sum()
        assert stats.binomtest(int(raised), 2000, rate).pvalue > 0.001
        assert raised > 0


def test_the_band_holds_uniform_ranks_as_often_as_stated():
    ranks = uniform(np.random.default_rng(4), quantities=2000).ranks.to_numpy()
    share = np.stack([(ranks <= r).mean(axis=0) for r in range(63)])
    for probability in (0.5, 0.9, 0.99):
        band = uniform_band(200, 63, probability)
        np.testing.assert_allclose(band["expected"], np.arange(1, 64) / 64)
        within = (share >= band[["lower"]].to_numpy()) & (share <= band[["upper"]].to_numpy())
        kept = int(within.all(axis=0).sum())
        # Counts are whole, so that a band holds at least its probability.
        assert stats.binomtest(kept, 2000, probability, alternative="less").pvalue > 0.001
        assert kept < 2000 * (1 + probability) / 2


def test_the_band_is_the_one_of_arviz():
    expected = np.arange(1, 64) / 64
    rng = np.random.default_rng(6)
    pointwise = simulate_confidence_bands(200, 1, expected, 0.9, 2000, rng)
    lower, upper = get_pointwise_confidence_band(pointwise, 200, expected)
    band = uniform_band(200, 63, 0.9)
    assert np.abs(band["lower"] - lower).max() <= 1.01 / 200
    assert np.abs(band["upper"] - upper).max() <= 1.01 / 200


@pytest.mark.parametrize(
    ("what", "ranks"),
    [
        ("too low", lambda rng: rng.binomial(63, rng.beta(1.0, 1.4, 400))),
        ("too narrow a posterior", lambda rng: rng.binomial(63, rng.beta(0.6, 0.6, 400))),
        ("too wide a posterior", lambda rng: rng.binomial(63, rng.beta(1.6, 1.6, 400))),
        ("stuck at the end", lambda rng: np.r_[np.full(24, 63), rng.integers(0, 64, 376)]),
    ],
)
def test_uneven_ranks_raise_the_alarm(what, ranks):
    rng = np.random.default_rng(8)
    found = uniformity(Calibration(pd.DataFrame({"tau": ranks(rng)}), 63, np.zeros(400)))
    assert alarms(found), what
    assert found["deviation"]["tau"] > 0.03


def test_the_deviation_is_the_largest_distance_from_the_expected_share():
    ranks = pd.DataFrame({"low": [0, 0, 0, 0], "even": [0, 1, 2, 3], "high": [3, 3, 3, 3]})
    found = uniformity(Calibration(ranks, 3, np.zeros(4)))
    assert found["deviation"].tolist() == [0.75, 0.0, 0.75]
    assert found["p_value"]["even"] > 0.9
    assert found["p_value"]["low"] < 0.1


# --- What it finds


def test_a_right_model_passes_and_a_wrong_one_does_not():
    found = uniformity(run("two_level", simulations=256))
    assert not alarms(found)
    wrong = with_bug("two_level", "tau squared")
    assert alarms(uniformity(run("two_level", wrong, simulator=models.two_level, simulations=256)))


@pytest.mark.full
def test_a_fit_to_other_data_is_noticed_by_the_likelihood_alone():
    """A model that ignores the data passes for each parameter: its posterior is its prior."""

    def of_nothing(idx, y=None, *, n_groups, sigma):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = numpyro.sample("tau", dist.HalfNormal(5.0))
        with numpyro.plate("group", n_groups):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
        with numpyro.plate("row", idx.shape[0]), numpyro.handlers.scale(scale=1e-12):
            numpyro.sample("y", dist.Normal(theta[idx], sigma), obs=y)

    found = uniformity(run("two_level", of_nothing, simulator=models.two_level, simulations=256))
    assert alarms(found.loc[["log_likelihood"]])
    assert not alarms(found.drop("log_likelihood"))


GENERAL = ["crossed", "slopes, centred", "correlated"]


@pytest.mark.full
@pytest.mark.parametrize("model", [*MODELS, *GENERAL])
def test_a_model_is_calibrated(model, record_property):
    if model in GENERAL:
        done = calibrate(multilevel, made_up(model), key=jax.random.key(1), simulations=SIMULATIONS)
    else:
        done = run(model, simulations=SIMULATIONS)
    found = uniformity(done)
    least = found["p_value"].idxmin()
    figures = (
        f"multilevel, {model}" if model in GENERAL else model,
        *(SIMULATIONS, len(found), least, f"{found['p_value'][least]:.4f}"),
        f"{(done.diverging > 0).mean():.1%}",
    )
    record_property("calibration", list(figures))
    assert not alarms(found), found.sort_values("p_value").head().to_string()


# What single fits find in minutes, ours find in seconds: the same posteriors, by another hand.
@pytest.mark.full
@pytest.mark.filterwarnings("default")
def test_simuk_ranks_the_same_truths_alike(monkeypatch):
    arguments, n, draws = arguments_of("two_level"), 48, 400
    ours, drawn = {}, {}
    run_batches = calibration._run_in_batches

    def keep(function, tasks, n, progress):
        _, _, _, drawn["truth"], drawn["y"] = jax.device_get(tasks)
        return run_batches(function, tasks, n, progress)

    monkeypatch.setattr(calibration, "_run_in_batches", keep)
    ours = run("two_level", simulations=n, draws=draws, thin=4, warmup=300).ranks
    program = numpyro.handlers.reparam(
        models.two_level, config={"theta": numpyro.infer.reparam.LocScaleReparam(0.0)}
    )
    kernel = NUTS(program, target_accept_prob=0.95)
    theirs = simuk.SBC(
        kernel,
        num_simulations=n,
        seed=2,
        sample_kwargs={"num_warmup": 300, "num_samples": 4 * draws},
        data_dir=arguments | {"y": drawn["y"][0]},
        progress_bar=False,
    )
    pairs = ({name: drawn["truth"][name] for name in ("mu", "tau")}, {"y": drawn["y"]})
    monkeypatch.setattr(theirs, "_get_prior_predictive_samples_numpyro", lambda: pairs)
    theirs.var_names = ["mu", "tau"]
    theirs.simulations = {"mu": [], "tau": []}
    theirs.run_simulations()
    for name in ("mu", "tau"):
        found = theirs.simulations["prior_sbc"][name].to_numpy().ravel() / (4 * draws)
        np.testing.assert_allclose(ours[name] / draws, found, atol=0.15)
        assert np.corrcoef(ours[name], found)[0, 1] > 0.99


# --- What it returns and refuses


def test_a_row_a_simulation_and_a_column_a_quantity(small):
    names = ["log_likelihood", "mu", "tau", *(f"theta[{j}]" for j in range(4))]
    assert sorted(small.ranks.columns) == names
    assert small.ranks.shape == (40, 7)
    assert small.ranks.to_numpy().min() >= 0
    assert small.ranks.to_numpy().max() <= small.draws == 7
    assert small.diverging.shape == (40,)
    assert small.ranks.nunique().min() > 2


def test_columns_carry_labels_and_no_entry_that_never_moves(monkeypatch):
    def no_ranks(function, tasks, n, progress):
        truth = tasks[3] | {"log_likelihood": np.zeros(n)}
        return {name: np.zeros(np.shape(at), int) for name, at in truth.items()}, np.zeros(n, int)

    monkeypatch.setattr(calibration, "_run_in_batches", no_ranks)
    labels = {
        "group": ("rater", tuple("abcd")),
        "coefficient": ("effect", ("level", "x", "z")),
        "coefficient_2": ("effect_2", ("level", "x", "z")),
    }
    done = run("correlated_effects", labels=labels, simulations=32)
    assert {"tau[level]", "z[a, x]", "coefficient_j[d, z]", "beta[1]"} <= set(done.ranks)
    factor = {name for name in done.ranks if name.startswith("L_Omega")}
    assert factor == {f"L_Omega[{ab}]" for ab in ("x, level", "z, level", "x, x", "z, x", "z, z")}
    assert set(done.ranks.columns.str.split("[").str[0]) == {
        *SITES["correlated_effects"],
        "log_likelihood",
    }


def test_the_same_key_gives_the_same_ranks_and_another_others(small):
    again = run("two_level", simulations=40, warmup=20, draws=7, thin=2)
    pd.testing.assert_frame_equal(again.ranks, small.ranks)
    other = run("two_level", simulations=40, warmup=20, draws=7, thin=2, key=jax.random.key(2))
    assert (other.ranks != small.ranks).to_numpy().mean() > 0.5


def test_the_outcome_given_is_not_used(small):
    arguments = arguments_of("two_level") | {"y": np.full(24, 1e6)}
    again = calibrate(
        models.two_level, arguments, key=jax.random.key(1), centred=CENTRED["two_level"],
        simulations=40, warmup=20, draws=7, thin=2,
    )  # fmt: skip
    pd.testing.assert_frame_equal(again.ranks, small.ranks)


def of_nothing_at_all(idx, y=None, *, n_groups, sigma):
    numpyro.sample("y", dist.Normal(jnp.zeros(len(idx)), sigma), obs=y)


BAD_CALLS = {
    "few simulations": ({"simulations": 31}, ValueError, ["simulations", "at least 32", "31"]),
    "half a simulation": ({"simulations": 40.5}, TypeError, ["simulations", "integer", "40.5"]),
    "no draws": ({"draws": 0}, ValueError, ["draws", "at least 1", "0"]),
    "no thinning": ({"thin": 0}, ValueError, ["thin", "at least 1"]),
    "no warm-up": ({"warmup": 0}, ValueError, ["warmup", "at least 1"]),
    "no tree": ({"max_tree_depth": 0}, ValueError, ["max_tree_depth", "at least 1"]),
    "certain acceptance": ({"target_accept": 1.0}, ValueError, ["target_accept", "(0, 1)", "1.0"]),
    "a number for a key": ({"key": 1}, TypeError, ["key", "jax.random.key(1)"]),
    "unknown site": ({"centred": {"eta": 0.0}}, ValueError, ["centred", "'eta'", "theta"]),
    "other sites": (
        {"simulator": of_nothing_at_all},
        ValueError,
        ["simulator", "['y']", "theta", "same sites"],
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_refused_before_anything_runs(case, refuses, monkeypatch):
    options, error, says = BAD_CALLS[case]
    monkeypatch.setattr(calibration, "_run_in_batches", lambda *_: pytest.fail("it ran"))
    with refuses(error, *says):
        run("two_level", **options)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((0, 63, 0.9), ValueError, ["simulations", "at least 1"]),
        ((100, 0, 0.9), ValueError, ["draws", "at least 1"]),
        ((100, 63, 90), ValueError, ["probability", "(0, 1)", "90"]),
        ((100, 63, "all"), TypeError, ["probability", "number", "'all'"]),
    ],
)
def test_a_band_of_nothing_is_refused(arguments, error, says, refuses):
    with refuses(error, *says):
        uniform_band(*arguments)
