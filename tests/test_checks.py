"""Each check finds the mistake it is for, names it, and is silent about the repaired model.

The mistakes are those of the published programs, bugs planted in the book's models, and toy models
such as a reader might write. What a check counts is compared with a count made by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from test_models import MODELS, with_bug

from mlm_utils import checks, models
from mlm_utils.data import load_eight_schools
from mlm_utils.design import design
from mlm_utils.multilevel_design import Group, Predictor, multilevel_design
from mlm_utils.terms import ScalePrior

KEY = jax.random.key(1)
OTHERS, UNHEARD = "hears other groups", "heard by no row"
UNUSED, FREE = "never used", "labels mean nothing"
SQUARED, SURPRISED = "acts as its power 2", "surprised"
BY_DRAWS = {
    check: getattr(checks, check)
    for check in (
        "index_sensitivity",
        "group_links",
        "exchangeable_labels",
        "scale_exponents",
        "prior_against_data",
        "unused_inputs",
    )
}

# What the checks find in each model of the book: everything in this table, and nothing else.
B_SURPRISES = {("prior", "slope on X[:, 1]"): SURPRISED}
SLOPES_OF_NOBODY = {
    ("links of idx", "tau_j"): OTHERS,
    ("links of idx", "beta_j"): OTHERS,
    ("labels", "group"): FREE,
}
FINDINGS = {
    "two_level": {},
    "eight_schools": {},
    "varying_intercept": B_SURPRISES,
    "varying_slope_published": SLOPES_OF_NOBODY | {("inputs", "idx"): UNUSED},
    "varying_intercept_slope_published": SLOPES_OF_NOBODY,
    "varying_slope": B_SURPRISES,
    "varying_intercept_slope": B_SURPRISES,
    "correlated_effects_published": {
        ("inputs", "y_mean"): UNUSED,
        ("scales", "tau"): SQUARED,
        ("prior", "y"): "far too wide",
    },
    "correlated_effects": {},
    "multilevel": {("inputs", "prior.eta"): UNUSED},  # no term is correlated
}

# Check -> (model, bug of test_models.BUGS, row of the check's table, verdict).
PLANTED = {
    "index_sensitivity": [
        ("two_level", "group index ignored", "idx", UNUSED),
        ("varying_intercept", "group index ignored", "idx", UNUSED),
        ("varying_intercept", "group effect dropped", "idx", UNUSED),
        ("varying_slope", "slope index ignored", "idx", UNUSED),
        ("correlated_effects", "group index ignored", "idx", UNUSED),
    ],
    "group_links": [
        ("two_level", "group index reversed", "theta", OTHERS),
        ("two_level", "groups averaged", "theta", OTHERS),
        ("varying_intercept", "group index ignored", "alpha_j", OTHERS),
        ("varying_intercept", "group effect dropped", "alpha_j", UNHEARD),
        ("varying_slope", "slopes summed over groups", "beta_j", OTHERS),
        ("varying_intercept_slope", "level index ignored", "alpha_j", OTHERS),
        ("varying_intercept_slope", "slope index reversed", "beta_j", OTHERS),
        ("varying_intercept_slope", "slopes of the group dropped", "beta_j", UNHEARD),
        ("correlated_effects", "group index reversed", "z", OTHERS),
    ],
    "exchangeable_labels": [
        ("two_level", "groups dropped", "group", FREE),
        ("eight_schools", "effects summed", "group", FREE),
        ("varying_slope", "slopes summed over groups", "group", FREE),
        ("varying_intercept_slope", "level dropped", "group", FREE),
    ],
    "scale_exponents": [
        ("two_level", "tau squared", "tau", SQUARED),
        ("two_level", "tau and sigma swapped", "tau", "moves nothing"),
        ("eight_schools", "tau applied twice", "tau", SQUARED),
        ("varying_intercept", "sigma squared", "sigma", SQUARED),
        ("varying_intercept", "tau fixed to 1", "tau", "moves nothing"),
        ("varying_slope", "tau_beta a variance", "tau_beta", "acts as its power 0.5"),
        ("varying_slope_published", "tau_j squared", "tau_j", SQUARED),
        ("correlated_effects", "as published", "tau", SQUARED),
    ],
    "prior_against_data": [
        ("varying_intercept", "rate for scale", "sigma", "far too small"),
        ("varying_slope_published", "rate for scale", "sigma", "far too small"),
        ("varying_intercept", "mean of y dropped", "y", "off centre"),
    ],
    "unused_inputs": [
        ("varying_intercept", "predictors dropped", "X[:, 0]", UNUSED),
        ("varying_slope_published", "slopes dropped", "X[:, 3]", UNUSED),
        ("varying_intercept", "mean of y dropped", "y_mean", UNUSED),
        ("correlated_effects", "mean of y dropped", "y_mean", UNUSED),
    ],
}


@pytest.fixture(scope="session")
def arguments_of(rows, cheese):
    """Return a function from the name of a model to arguments for it."""
    raters = design(cheese, outcome="y", predictor="cheese", group="rater")
    schools = load_eight_schools()
    own = {
        "two_level": {
            "idx": raters.idx,
            "y": raters.y - raters.y_mean,
            "n_groups": 20,
            "sigma": 7.5,
        },
        "eight_schools": {"se": schools["se"].to_numpy(), "y": schools["effect"].to_numpy()},
        "multilevel": general(cheese),
    }
    return lambda model: own.get(model, rows.arguments)


def general(cheese):
    """Return arguments of the general model: raters, each with cheeses, and room for cheese B."""
    made = multilevel_design(
        cheese,
        outcome="y",
        population=["background", Predictor("cheese", "sum")],
        groups=[Group("rater", nested_in="background"), Group(("rater", "cheese"))],
    )
    prior = made.prior(
        beta={"intercept": (70.0, 20.0), "background": (0.0, 15.0), "cheese": (0.0, 15.0)},
        sigma=ScalePrior("half-normal", 10.0),
        tau=ScalePrior("half-normal", 10.0),
    )
    return made.arguments | {"prior": prior}


def faults(table):
    """Return the verdicts of a table that are not "ok"."""
    return table.loc[table["verdict"] != "ok", "verdict"].to_dict()


# --- The models of the book


def test_every_model_and_every_check_is_in_the_tables():
    assert set(FINDINGS) == {*MODELS, "multilevel"}
    assert set(PLANTED) == set(BY_DRAWS)


@pytest.mark.parametrize("model", FINDINGS)
def test_the_checks_find_what_is_wrong_with_a_model_and_nothing_else(model, arguments_of):
    program, groups = getattr(models, model), None
    if model == "multilevel":
        groups = {"terms.0.idx": "rater", "terms.1.idx": "rater_cheese"}
    table = checks.check_model(program, arguments_of(model), key=KEY, groups=groups)
    found = faults(table)
    found.pop(("prior", "slope on X[:, 2]"), None)  # in varying_intercept it is near the limit
    assert found == FINDINGS[model]
    links = [] if model == "eight_schools" else [f"links of {index}" for index in groups or ["idx"]]
    expected = ["shapes", "inputs", *links, "labels", "scales", "prior"]
    assert table.index.unique("check").tolist() == expected


def test_an_index_for_intercepts_alone_passes_the_permutation_and_not_the_links(rows):
    model = models.varying_intercept_slope_published
    assert faults(checks.index_sensitivity(model, rows.arguments, key=KEY)) == {}
    links = checks.group_links(model, rows.arguments, key=KEY)
    assert links["own"].to_dict() == {"tau_j": 1.0, "alpha_j": 1.0, "beta_j": 1.0}
    assert links["other"].to_dict() == {"tau_j": 1.0, "alpha_j": 0.0, "beta_j": 1.0}


def test_published_slopes_are_free_together_and_not_alone(rows):
    model = models.varying_intercept_slope_published
    table = checks.exchangeable_labels(model, rows.arguments, key=KEY)
    assert table["free"].to_dict() == {"group": "tau_j with beta_j", "predictor": ""}


# --- Planted bugs


@pytest.mark.parametrize(
    ("check", "model", "bug", "about", "verdict"),
    [(check, *planted) for check in PLANTED for planted in PLANTED[check]],
)
def test_a_planted_bug_is_found_by_its_check(check, model, bug, about, verdict, arguments_of):
    table = BY_DRAWS[check](with_bug(model, bug), arguments_of(model), key=KEY)
    assert table.loc[about, "verdict"] == verdict  # FINDINGS has the verdict without the bug


# --- Models of a reader


def toy(idx, y=None, *, n_groups):
    """Draw groups with a scale each and rows: a sound model without predictors."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
    with numpyro.plate("group", n_groups):
        tau = numpyro.sample("tau", dist.HalfNormal(2.0))
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with numpyro.plate("row", len(idx)):
        numpyro.sample("y", dist.Normal(share + theta[idx], sigma), obs=y)


def as_column(idx, y=None, *, n_groups):
    """Index a column where a vector is meant, as in ``theta[idx][:, None]``."""
    with numpyro.plate("group", n_groups):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(idx)):
        numpyro.sample("y", dist.Normal(theta[idx][:, None], 1.0), obs=y)


def as_column_without_plates(idx, y=None, *, n_groups):
    """Do the same without a plate over the rows."""
    theta = numpyro.sample("theta", dist.Normal(jnp.zeros(n_groups), 1.0))
    numpyro.sample("y", dist.Normal(theta[idx][:, None], 1.0), obs=y)


def doubled_groups(idx, y=None, *, n_groups):
    """Draw a table of group effects where a list is meant."""
    with numpyro.plate("group", n_groups):
        theta = numpyro.sample("theta", dist.Normal(jnp.zeros((n_groups, 1)), 1.0))
    with numpyro.plate("row", len(idx)):
        numpyro.sample("y", dist.Normal(theta[0][idx], 1.0), obs=y)


def positive(idx, y=None, *, n_groups, prior, power):
    """Draw rows whose sd is a power of a positive parameter."""
    s = numpyro.sample("s", prior)
    with numpyro.plate("row", len(idx)):
        numpyro.sample("y", dist.Normal(0.0, s**power), obs=y)


@pytest.fixture
def toy_arguments():
    """Return 12 rows of 3 unequal groups."""
    idx = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    return {"idx": idx, "y": np.random.default_rng(3).normal(0, 3, 12), "n_groups": 3}


def test_a_sound_toy_passes_whatever_holds_its_arrays(toy_arguments):
    table = checks.check_model(toy, toy_arguments, key=KEY)
    assert faults(table) == {}
    assert table.loc["scales"].index.tolist() == ["sigma", "tau"]
    as_jax = toy_arguments | {name: jnp.asarray(toy_arguments[name]) for name in ("idx", "y")}
    pd.testing.assert_frame_equal(checks.check_model(toy, as_jax, key=KEY), table)


def test_a_scale_of_each_group_is_heard_through_its_effect(toy_arguments):
    links = checks.group_links(toy, toy_arguments, key=KEY)
    assert links.drop(columns="verdict").to_numpy().tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert links.index.tolist() == ["tau", "theta"]


@pytest.mark.parametrize(
    ("model", "y_as_column", "terms"),
    [
        (as_column, False, "144 terms for 12 rows"),
        (as_column_without_plates, False, "144 terms for 12 rows"),
        (toy, True, "144 terms for 12 rows"),
    ],
)
def test_a_column_for_a_vector_is_caught(model, y_as_column, terms, toy_arguments, refuses):
    if y_as_column:
        toy_arguments["y"] = toy_arguments["y"][:, None]
    assert faults(checks.shapes(model, toy_arguments))["y"] == terms
    table = checks.check_model(model, toy_arguments, key=KEY)
    assert table.index.unique("check").tolist() == ["shapes"]
    with refuses(ValueError, "as y", "shape (12,", "shapes()"):
        checks.scale_exponents(model, toy_arguments, key=KEY)


def test_a_column_of_outcomes_is_refused_by_the_books_models(rows, refuses):
    column = rows.arguments | {"y": rows.y[:, None]}
    with refuses(ValueError, "y must have shape (160,)", "(160, 1)"):
        checks.shapes(models.varying_intercept, column)


def test_parameters_beside_their_plates_are_named(toy_arguments):
    other = "not the shape of its plates"
    assert faults(checks.shapes(doubled_groups, toy_arguments)) == {"theta": other}
    assert faults(checks.shapes(as_column_without_plates, toy_arguments))["theta"] == other


@pytest.mark.parametrize(
    ("power", "verdict"),
    [(1, "ok"), (2, SQUARED), (0.5, "acts as its power 0.5"), (-0.5, "acts as its power -0.5")],
)
def test_the_exponent_is_that_of_the_program(power, verdict, toy_arguments):
    arguments = toy_arguments | {"prior": dist.LogNormal(0.0, 1.0), "power": power}
    table = checks.scale_exponents(positive, arguments, key=KEY)
    assert table.loc["s", "exponent"] == pytest.approx(power, abs=1e-6)
    assert table.loc["s", "verdict"] == verdict


@pytest.mark.parametrize(
    ("prior", "of_s", "of_y"),
    [
        (dist.HalfNormal(3.0), "ok", "ok"),
        (dist.HalfNormal(0.1), "far too small", "far too narrow"),
        (dist.HalfNormal(1000.0), "too large", "far too wide"),
        (dist.Exponential(10.0), "far too small", "far too narrow"),
        (dist.HalfNormal(3.0).expand([1]).to_event(1), "ok", "ok"),
    ],
)
def test_a_prior_off_the_scale_of_the_data_is_named(prior, of_s, of_y, toy_arguments):
    arguments = toy_arguments | {"prior": prior, "power": 1}
    verdicts = checks.prior_against_data(positive, arguments, key=KEY)["verdict"]
    assert verdicts.to_dict() == {"s": of_s, "y": of_y}


# --- What is counted


def test_rows_are_counted_by_whom_they_hear(toy_arguments):
    first_only = with_bug("two_level", "group index ignored")
    arguments = toy_arguments | {"sigma": 1.0}
    links = checks.group_links(first_only, arguments, key=KEY).loc["theta"]
    assert (links["own"], links["other"]) == (6 / 12, 6 / 12)  # six rows are in the first group
    reversed_index = with_bug("two_level", "group index reversed")
    links = checks.group_links(reversed_index, arguments, key=KEY).loc["theta"]
    assert (links["own"], links["other"]) == (4 / 12, 8 / 12)  # the middle one is left in place


def test_figures_of_the_data_and_quantiles_of_the_prior_are_those_of_the_table(rows, cheese):
    table = checks.prior_against_data(models.varying_intercept, rows.arguments, key=KEY)
    means = cheese.groupby("cheese", observed=True)["y"].mean()
    slope_of_b = means["B"] - means.drop("B").mean()
    assert table.loc["slope on X[:, 1]", "data"] == pytest.approx(slope_of_b)
    assert table.loc["sigma", "data"] == table.loc["tau", "data"] == pytest.approx(rows.y_sd)
    assert table.loc["y", "data"] == cheese["y"].median()
    exact = {
        "sigma": [-rows.y_sd * np.log(1 - p) for p in (0.05, 0.5, 0.95)],
        "tau": [2 * np.tan(np.pi / 2 * p) for p in (0.05, 0.5, 0.95)],
    }
    for site, quantiles in exact.items():
        drawn = table.loc[site, ["5 %", "50 %", "95 %"]].to_numpy(float)
        np.testing.assert_allclose(drawn, quantiles, rtol=0.3)  # three errors of 1000 draws
    assert table.index.tolist() == ["sigma", "tau", "y", *(f"slope on X[:, {k}]" for k in range(4))]


def test_room_for_cheese_b_ends_the_surprise(cheese):
    made = multilevel_design(
        cheese, outcome="y", population=[Predictor("cheese", "all levels")], groups=["background"]
    )
    verdicts = {}
    for sd in (2.0, 15.0):
        prior = made.prior(
            beta={"cheese": (70.0, sd)},
            sigma=ScalePrior("exponential", 11.7),
            tau=ScalePrior("half-cauchy", 2.0),
        )
        arguments = made.arguments | {"prior": prior}
        table = checks.prior_against_data(models.multilevel, arguments, key=KEY)
        verdicts[sd] = table.loc["slope on X[:, 1]", "verdict"]
    assert verdicts == {2.0: SURPRISED, 15.0: "ok"}


def test_the_change_is_that_of_the_density(toy_arguments):
    def known(idx, y=None, *, n_groups, shift):
        with numpyro.plate("row", len(idx)):
            numpyro.sample("y", dist.Normal(shift + idx, 1.0), obs=y)

    arguments = toy_arguments | {"shift": 1.0}
    table = checks.unused_inputs(known, arguments, key=KEY)
    assert table.index.tolist() == ["idx", "shift", "y"]
    idx, y = arguments["idx"], arguments["y"]
    # A float becomes 1.5 times itself plus 1.
    change = (y - 1.0 - idx) ** 2 / 2 - (y - 2.5 - idx) ** 2 / 2
    assert table.loc["shift", "change"] == pytest.approx(abs(change.sum()))


def test_constant_integers_and_counts_are_left_alone(toy_arguments):
    arguments = toy_arguments | {"idx": np.zeros(12, dtype=int)}
    assert checks.unused_inputs(toy, arguments, key=KEY).index.tolist() == ["y"]


@pytest.mark.parametrize("check", ["index_sensitivity", "prior_against_data", "unused_inputs"])
def test_the_key_decides_the_figures(check, toy_arguments):
    one, same, other = (
        BY_DRAWS[check](toy, toy_arguments, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(one, same)
    assert not one.equals(other)


# --- Doors


def without_y(idx, *, n_groups, y=None):
    """Ignore the outcome it is given."""
    with numpyro.plate("group", n_groups):
        numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.sample("z", dist.Normal(0.0, 1.0), obs=jnp.ones(len(idx)))


BAD_CALLS = {
    "no function": ({"model": "toy"}, TypeError, ["model", "'toy'", "function"]),
    "a list": ({"arguments": [1]}, TypeError, ["arguments", "mapping", "list"]),
    "a missing argument": ({"drop": "idx"}, TypeError, ["arguments do not fit toy", "idx"]),
    "a number for a key": ({"key": 1}, TypeError, ["key", "jax.random.key(1)"]),
    "no draws": ({"draws": 0}, ValueError, ["draws", "at least 1", "got 0"]),
    "half a draw": ({"draws": 0.5}, TypeError, ["draws", "integer", "0.5"]),
    "no outcome": ({"drop": "y"}, ValueError, ["toy", "observes nothing", "pass the outcome"]),
}


@pytest.mark.parametrize("check", BY_DRAWS)
@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_refused(case, check, toy_arguments, refuses):
    change, error, says = BAD_CALLS[case]
    toy_arguments.pop(change.get("drop"), None)
    call = {"model": toy, "arguments": toy_arguments, "key": KEY}
    call |= {name: value for name, value in change.items() if name != "drop"}
    with refuses(error, *says):
        BY_DRAWS[check](**call)


@pytest.mark.parametrize(
    ("index", "change", "says"),
    [
        ("group", {}, ["index 'group'", "no array of integers", "['idx']"]),
        ("y", {}, ["index 'y'", "no array of integers", "['idx']"]),
        ("idx", {"idx": np.zeros(12, dtype=int)}, ["index 'idx'", "one group", "permute"]),
    ],
)
@pytest.mark.parametrize("check", ["index_sensitivity", "group_links"])
def test_a_bad_index_is_refused(check, index, change, says, toy_arguments, refuses):
    with refuses(ValueError, *says):
        BY_DRAWS[check](toy, toy_arguments | change, index, key=KEY)


@pytest.mark.parametrize(
    ("plate", "change"), [("school", {}), ("row", {}), ("group", {"n_groups": 2})]
)
def test_a_plate_without_the_groups_is_refused(plate, change, toy_arguments, refuses):
    with refuses(ValueError, repr(plate), "3 groups", "'idx'", "choose from", "'group'"):
        checks.group_links(toy, toy_arguments | change, "idx", plate, key=KEY)


@pytest.mark.parametrize("check", ["group_links", "scale_exponents", "prior_against_data"])
def test_a_model_that_draws_no_outcome_is_refused(check, toy_arguments, refuses):
    with refuses(ValueError, "without_y", "draws as y nothing", "obs=y"):
        BY_DRAWS[check](without_y, toy_arguments, key=KEY)
