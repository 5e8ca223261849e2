"""One call from a model to labelled draws: dimensions, keys, the gate, the ledger, bad calls."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import arviz as az
import IPython
import jax
import myst_nb
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from IPython.core.displaypub import CapturingDisplayPublisher
from scipy import stats

import mlm_utils
from mlm_utils import prose, sampling
from mlm_utils.models import two_level, varying_intercept
from mlm_utils.sampling import ConvergenceError, fit, posterior_predictive, prior_predictive

SHORT = {"warmup": 100, "draws": 100}  # too short for the gate


def fit_short(rows, key=5, **options):
    options = SHORT | {"labels": rows.labels, "exhibit": True} | options
    return fit(varying_intercept, rows.arguments, key=jax.random.key(key), **options)


@pytest.fixture(scope="session")
def short(rows):
    return fit_short(rows)


def standardise(y, parameters, X, idx):
    """Return ``(y - mu) / sigma``, standard normal where draws and outcomes belong together."""
    group = parameters["alpha_j"].isel(background=xr.DataArray(idx, dims="row"))
    effect = parameters["beta"].dot(xr.DataArray(X, dims=["row", "cheese"]), dim="cheese")
    z = (y - parameters["alpha"] - group - effect) / parameters["sigma"]
    assert set(z.dims) == {"chain", "draw", "row"}
    return z


# --- What a fit returns


def test_draws_carry_the_dimensions_and_labels_of_the_design(posterior):
    draws = posterior["posterior"]
    assert {name: values.dims[2:] for name, values in draws.items()} == {
        "alpha": (),
        "sigma": (),
        "tau": (),
        "beta": ("cheese",),
        "alpha_j": ("background",),
    }
    assert draws["cheese"].values.tolist() == ["A", "B", "C", "D"]
    assert draws["background"].values.tolist() == ["rural", "urban"]
    assert (draws.sizes["chain"], draws.sizes["draw"]) == (4, 1000)
    assert {values.dtype for values in draws.values()} == {np.dtype("float64")}


def test_a_fit_holds_four_groups(posterior, rows):
    assert set(posterior.children) == {
        *("posterior", "sample_stats", "log_likelihood", "observed_data")
    }
    assert posterior["observed_data"]["y"].dims == ("row",)
    np.testing.assert_array_equal(posterior["observed_data"]["y"], rows.y)
    assert {"diverging", "energy", "n_steps"} <= set(posterior["sample_stats"])


def test_log_likelihood_is_that_of_each_row_at_each_draw(short, rows):
    parameters = short["posterior"].to_dataset()
    z = standardise(short["observed_data"]["y"], parameters, rows.X, rows.idx)
    expected = stats.norm.logpdf(z.transpose("chain", "draw", "row"))
    expected -= np.log(parameters["sigma"].values)[:, :, None]
    np.testing.assert_allclose(short["log_likelihood"]["y"], expected, rtol=1e-10)


def test_without_labels_dimensions_are_the_plates(rows):
    drawn = prior_predictive(varying_intercept, rows.arguments, key=jax.random.key(1), draws=3)
    assert drawn["prior"]["beta"].dims == ("chain", "draw", "predictor")
    assert drawn["prior"]["alpha_j"].dims == ("chain", "draw", "group")
    assert drawn["prior"]["group"].values.tolist() == [0, 1]


def test_the_same_key_gives_the_same_draws_and_another_key_others(short, rows):
    again, other = fit_short(rows), fit_short(rows, key=6)
    for name, draws in short["posterior"].items():
        np.testing.assert_array_equal(again["posterior"][name], draws)
        assert not np.any(other["posterior"][name].values == draws.values)


def test_a_fit_hands_its_options_to_the_sampler(rows, monkeypatch):
    given = {}

    def stop(program, arguments, keys, *, progress):
        given.update(program.kernel + program.length, chains=len(keys), progress=progress)
        raise InterruptedError

    monkeypatch.setattr(sampling, "draw", stop)
    options = {"chains": 3, "warmup": 30, "draws": 20, "target_accept": 0.91, "dense_mass": True}
    with pytest.raises(InterruptedError):
        fit_short(rows, progress=True, **options)
    assert given == {
        "chains": 3,
        "num_warmup": 30,
        "num_samples": 20,
        "target_accept_prob": 0.91,
        "dense_mass": True,
        "progress": True,
    }


def test_chains_differ(short):
    assert len(np.unique(short["posterior"]["alpha"].isel(draw=-1))) == 4


# --- The gate


def test_a_fit_that_misses_the_gate_is_refused_with_parameter_and_figure(rows):
    with pytest.raises(ConvergenceError) as refusal:
        fit_short(rows, exhibit=False)
    message = str(refusal.value)
    assert "'varying_intercept' did not converge" in message
    assert any(f"ess_bulk of {name} is " in message for name in ("alpha", "tau", "alpha_j[rural]"))
    assert "(< 400)" in message
    assert "Draw longer" in message


def test_an_exhibit_that_passes_the_gate_is_refused(rows, refuses):
    with refuses(ConvergenceError, "'healthy'", "passed the gate", "R-hat 1.0", "exhibit=True"):
        fit(
            varying_intercept,
            rows.arguments,
            key=jax.random.key(1),
            labels=rows.labels,
            target_accept=0.95,
            dense_mass=True,
            name="healthy",
            exhibit=True,
        )


GATE = {
    "nothing": ({}, []),
    "rhat": ({"shift": 1.0}, ["r_hat of theta is", "(> 1.01)", "ess_bulk of theta is"]),
    "rhat of 1.013": ({"shift": 0.4}, ["r_hat of theta is 1.013 (> 1.01)"]),
    "few draws": ({"draws": 50}, ["ess_bulk of theta is", "ess_tail of theta is", "(< 400)"]),
    "divergence": ({"divergences": 2}, ["2 divergent transitions", "(> 0)"]),
    "stuck": ({"scale": 0.0}, ["r_hat of theta is nan"]),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # stuck: 0 / 0
@pytest.mark.parametrize("case", GATE)
def test_the_gate_names_every_miss_and_nothing_else(case):
    change, says = GATE[case]
    setting = {"shift": 0.0, "draws": 1000, "divergences": 0, "scale": 1.0} | change
    rng = np.random.default_rng(1)
    draws = setting["scale"] * rng.normal(size=(4, setting["draws"]))
    draws[0] += setting["shift"]
    diverging = np.zeros(draws.shape, bool)
    diverging[1, : setting["divergences"]] = True
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"theta": (("chain", "draw"), draws)}),
            "sample_stats": xr.Dataset({"diverging": (("chain", "draw"), diverging)}),
        }
    )
    misses = sampling._record(tree)["misses"]
    assert bool(misses) == bool(says)
    for text in says:
        assert text in "; ".join(misses)


def test_the_record_holds_the_worst_figures():
    rng = np.random.default_rng(1)
    good, bad = rng.normal(size=(2, 4, 500))
    bad += np.arange(4)[:, None]
    tree = az.from_dict(
        {
            "posterior": {"good": good, "bad": bad},
            "sample_stats": {"diverging": np.zeros((4, 500), bool)},
        }
    )
    record, table = sampling._record(tree), sampling.summary(tree, round_to="none")
    assert record["max_rhat"] == table.loc["bad", "r_hat"] > 1.5
    assert record["min_ess_bulk"] == table.loc["bad", "ess_bulk"] < 20
    assert record["min_ess_tail"] == table["ess_tail"].min() < table["ess_tail"].max()
    assert [miss.split()[2] for miss in record["misses"]] == ["bad"] * len(record["misses"])


# --- Bad calls


def of_nothing(X, idx, y=None, *, n_groups, y_mean, y_sd):
    numpyro.sample("kappa", dist.Normal(0, 1))


def another(X, idx, y=None, *, n_groups, y_mean, y_sd):
    kappa = numpyro.sample("kappa", dist.Normal(0, 1))
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(kappa, 1), obs=y)


def without(rows, name):
    return {key: value for key, value in rows.arguments.items() if key != name}


BAD_CALLS = {
    "no chain": ({"chains": 0}, ValueError, ["chains", "at least", "got 0"]),
    "chains negative": ({"chains": -2}, ValueError, ["chains", "at least", "got -2"]),
    "chains a float": ({"chains": 2.0}, TypeError, ["chains", "integer", "2.0", "try chains="]),
    "chains a truth": ({"chains": True}, TypeError, ["chains", "integer", "True", "try chains="]),
    "no warm-up": ({"warmup": 0}, ValueError, ["warmup", "at least 1", "got 0"]),
    "three draws": ({"draws": 3}, ValueError, ["draws", "at least 4", "got 3"]),
    "draws text": ({"draws": "1000"}, TypeError, ["draws", "integer", "'1000'", "try draws="]),
    "accept nothing": ({"target_accept": 0}, ValueError, ["target_accept", "(0, 1)", "try 0.9"]),
    "accept all": ({"target_accept": 1}, ValueError, ["target_accept", "got 1", "try 0.9"]),
    "accept more": ({"target_accept": 1.5}, ValueError, ["target_accept", "1.5", "try 0.9"]),
    "accept NaN": ({"target_accept": np.nan}, ValueError, ["target_accept", "nan", "try 0.9"]),
    "accept text": ({"target_accept": "0.9"}, TypeError, ["target_accept", "'0.9'", "try 0.9"]),
    "key an integer": ({"key": 1}, TypeError, ["key", "got 1", "jax.random.key(1)"]),
    "key missing": ({"key": None}, TypeError, ["key", "got None", "jax.random.key(1)"]),
    "key of old style": (
        {"key": np.array([0, 1], dtype=np.uint32)},
        TypeError,
        ["key", "uint32", "jax.random.key(1)"],
    ),
    "model a name": ({"model": "varying_intercept"}, TypeError, ["model", "'varying_intercept'"]),
    "model of nothing": ({"model": of_nothing}, ValueError, ["of_nothing", "observes nothing"]),
    "arguments a list": (
        {"arguments": lambda r: list(r.arguments.values())},
        TypeError,
        ["arguments", "mapping", "list", "design.arguments"],
    ),
    "arguments a design": (
        {"arguments": lambda r: r},
        TypeError,
        ["arguments", "mapping", "Design", "design.arguments"],
    ),
    "argument missing": (
        {"arguments": lambda r: without(r, "idx")},
        TypeError,
        ["arguments", "varying_intercept", "missing", "'idx'"],
    ),
    "argument unknown": (
        {"arguments": lambda r: r.arguments | {"groups": 2}},
        TypeError,
        ["arguments", "varying_intercept", "unexpected", "'groups'"],
    ),
    "y None": (
        {"arguments": lambda r: r.arguments | {"y": None}},
        ValueError,
        ["varying_intercept", "observes nothing", "pass y"],
    ),
    "y absent": (
        {"arguments": lambda r: without(r, "y")},
        ValueError,
        ["varying_intercept", "observes nothing", "pass y"],
    ),
    "group out of range": (
        {"arguments": lambda r: r.arguments | {"idx": r.idx + 1}},
        ValueError,
        ["idx[80] is 2", "0 .. 1", "number the groups from 0"],
    ),
    "labels too few": (
        {"labels": {"group": ("background", ("rural",))}},
        ValueError,
        ["labels['group']", "1 values", "'background'", "size 2", "one label a position"],
    ),
    "labels too many": (
        {"labels": {"predictor": ("cheese", tuple("ABCDE"))}},
        ValueError,
        ["labels['predictor']", "5 values", "'cheese'", "size 4", "one label a position"],
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_refused_before_anything_runs(case, rows, refuses, monkeypatch):
    monkeypatch.setattr(sampling, "draw", None)  # a call that got this far would fail otherwise
    change, error, says = BAD_CALLS[case]
    call = {"model": varying_intercept, "key": jax.random.key(1), **change}
    arguments = call.pop("arguments", lambda r: r.arguments)(rows)
    with refuses(error, *says):
        fit(call.pop("model"), arguments, **call)


def test_one_chain_is_refused_at_once(rows, refuses, monkeypatch):
    monkeypatch.setattr(sampling, "draw", None)
    with refuses(ValueError, "chains", "at least 2", "got 1"):
        fit(varying_intercept, rows.arguments, key=jax.random.key(1), chains=1)


@pytest.mark.parametrize("function", [fit, prior_predictive])
def test_single_precision_is_refused(function, rows, refuses):
    with (
        jax.enable_x64(False),
        refuses(RuntimeError, "float64 is off", "mlm_utils.setup()"),
    ):
        function(varying_intercept, rows.arguments, key=jax.random.key(1))


def test_predictions_check_their_call_as_a_fit_does(rows, short, refuses):
    bad = rows.arguments | {"idx": rows.idx - 1}
    with refuses(ValueError, "idx[0] is -1", "number the groups from 0"):
        prior_predictive(varying_intercept, bad, key=jax.random.key(1))
    with refuses(ValueError, "idx[0] is -1", "number the groups from 0"):
        posterior_predictive(varying_intercept, bad, short, key=jax.random.key(1))
    with refuses(TypeError, "key", "got 1", "jax.random.key(1)"):
        posterior_predictive(varying_intercept, rows.arguments, short, key=1)
    with refuses(ValueError, "draws", "at least 1", "got 0"):
        prior_predictive(varying_intercept, rows.arguments, key=jax.random.key(1), draws=0)


def test_the_posterior_of_another_model_is_refused(rows, short, refuses):
    with refuses(ValueError, "posterior", "['kappa']", "another"):
        posterior_predictive(another, rows.arguments, short, key=jax.random.key(1))


@pytest.mark.parametrize("thing", [None, {}, xr.DataTree(), xr.Dataset()])
def test_what_is_not_a_posterior_is_refused(thing, rows, refuses):
    with refuses(TypeError, "posterior", "fit() returned", type(thing).__name__):
        posterior_predictive(varying_intercept, rows.arguments, thing, key=jax.random.key(1))


def test_a_posterior_with_other_groups_is_refused(rows, short, refuses):
    third = rows.arguments | {"n_groups": 3, "idx": np.full(160, 2)}
    with refuses(ValueError, "alpha_j"):
        posterior_predictive(varying_intercept, third, short, key=jax.random.key(1))


# --- Predictions


def test_prior_predictive_draws_parameters_and_an_outcome_from_each(rows):
    drawn = prior_predictive(
        varying_intercept, rows.arguments, key=jax.random.key(2), labels=rows.labels, draws=500
    )
    assert set(drawn.children) == {"prior", "prior_predictive"}
    assert set(drawn["prior"]) == {"alpha", "beta", "alpha_j", "sigma", "tau"}
    y = drawn["prior_predictive"]["y"]
    assert (y.dims, y.shape) == (("chain", "draw", "row"), (1, 500, 160))
    assert drawn["prior"]["beta"].dims == ("chain", "draw", "cheese")
    z = standardise(y, drawn["prior"].to_dataset(), rows.X, rows.idx)
    assert z.mean().item() == pytest.approx(0, abs=0.02)
    assert z.std().item() == pytest.approx(1, abs=0.02)


def test_prior_predictive_ignores_the_outcome(rows):
    def draw(y):
        arguments = rows.arguments | {"y": y}
        return prior_predictive(varying_intercept, arguments, key=jax.random.key(2), draws=5)

    observed, none = draw(rows.y), draw(None)
    np.testing.assert_array_equal(observed["prior_predictive"]["y"], none["prior_predictive"]["y"])


def test_posterior_predictive_draws_one_outcome_from_each_draw_in_its_order(rows, posterior):
    drawn = posterior_predictive(
        varying_intercept, rows.arguments, posterior, key=jax.random.key(3), labels=rows.labels
    )
    y = drawn["posterior_predictive"]["y"]
    assert (y.dims, y.shape) == (("chain", "draw", "row"), (4, 1000, 160))
    z = standardise(y, posterior["posterior"].to_dataset(), rows.X, rows.idx)
    assert z.mean().item() == pytest.approx(0, abs=0.01)
    assert z.std().item() == pytest.approx(1, abs=0.01)
    np.testing.assert_array_equal(drawn["observed_data"]["y"], rows.y)


def test_each_outcome_follows_its_own_draw_and_group():
    theta = np.arange(2.0 * 3 * 4).reshape(2, 3, 4)  # chain, draw, group: no two alike
    posterior = az.from_dict(
        {"posterior": {"mu": theta[..., 0], "tau": 1 + theta[..., 0], "theta": theta}}
    )
    arguments = {"idx": np.array([3, 0, 2, 2]), "n_groups": 4, "sigma": 1e-3}
    drawn = posterior_predictive(two_level, arguments, posterior, key=jax.random.key(3))
    y = drawn["posterior_predictive"]["y"]
    np.testing.assert_allclose(y, theta[..., arguments["idx"]], atol=0.01)


def test_posterior_predictive_takes_new_rows(rows, posterior):
    new = rows.arguments | {"X": np.eye(4)[[1, 1, 2]], "idx": np.array([0, 1, 1])}
    labels = dict(rows.labels) | {"row": ("tasting", ("B rural", "B urban", "C urban"))}
    drawn = posterior_predictive(
        varying_intercept, new, posterior, key=jax.random.key(3), labels=labels
    )
    y = drawn["posterior_predictive"]["y"]
    assert (y.dims, y.shape) == (("chain", "draw", "tasting"), (4, 1000, 3))
    assert y["tasting"].values.tolist() == ["B rural", "B urban", "C urban"]
    assert "observed_data" not in drawn.children
    z = standardise(
        y.rename(tasting="row").drop_vars("row"),
        posterior["posterior"].to_dataset(),
        new["X"],
        new["idx"],
    )
    assert z.std().item() == pytest.approx(1, abs=0.04)


def test_as_many_new_rows_as_old_are_not_taken_for_the_observed_ones(rows, posterior):
    new = rows.arguments | {"idx": 1 - rows.idx}
    drawn = posterior_predictive(varying_intercept, new, posterior, key=jax.random.key(3))
    assert "observed_data" not in drawn.children


# --- The ledger


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("MLM_LEDGER", str(tmp_path / "fits"))
    monkeypatch.setattr(sampling, "_chapter", None)
    return tmp_path / "fits"


def test_a_fit_is_recorded_under_its_chapter_and_two_of_one_name_are_refused(ledger, rows, refuses):
    mlm_utils.setup("a_chapter")
    fit_short(rows, name="first")
    (path,) = ledger.iterdir()
    assert path.name == "a_chapter.first.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record | SHORT == record
    assert record["chapter"] == "a_chapter"
    assert (record["name"], record["model"]) == ("first", "varying_intercept")
    assert (record["chains"], record["exhibit"]) == (4, True)
    assert record["misses"]
    assert record["max_rhat"] > 1
    assert 0 < record["min_ess_bulk"] < 400
    assert record["min_ess_tail"] > 0
    assert record["divergences"] >= 0
    assert record["data"]["shapes"] == {"X": [160, 4], "idx": [160], "y": [160]}
    assert len(record["data"]["sha256"]) == 64
    assert record["seconds_sample"] > 0
    assert record["seconds_compile"] >= 0
    assert set(record["parameters"]["alpha_j[rural]"]) == {"mean", "sd", "mcse"}
    assert len(record["parameters"]) == 9
    with refuses(RuntimeError, "'a_chapter'", "'first'", "another name="):
        fit_short(rows, name="first")


def test_no_ledger_is_written_outside_a_build(tmp_path, monkeypatch):
    monkeypatch.delenv("MLM_LEDGER", raising=False)
    monkeypatch.setattr(sampling, "_chapter", "a_chapter")
    monkeypatch.chdir(tmp_path)
    assert sampling._ledger_path("first") is None
    assert list(tmp_path.iterdir()) == []


def test_a_build_without_a_chapter_is_refused(ledger, refuses):
    with refuses(RuntimeError, "no chapter is named", "mlm_utils.setup(chapter=...)"):
        sampling._ledger_path("first")
    assert not ledger.exists()


def test_setup_clears_the_records_of_its_own_chapter_alone(ledger):
    ledger.mkdir()
    for name in ("slope.first", "slope.second", "slope_and_intercept.first", "intercept.slope"):
        (ledger / f"{name}.json").write_text("{}")
    mlm_utils.setup("slope")
    left = sorted(path.name for path in ledger.iterdir())
    assert left == ["intercept.slope.json", "slope_and_intercept.first.json"]


def test_setup_outside_a_build_clears_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLM_LEDGER", raising=False)
    monkeypatch.setattr(sampling, "_chapter", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slope.first.json").write_text("{}")
    mlm_utils.setup("slope")
    assert (tmp_path / "slope.first.json").exists()


@pytest.mark.parametrize("chapter", ["", "Slope", "slope.md", "a/b", "../up", "1st", "two words"])
def test_a_chapter_that_is_no_slug_is_refused(chapter, refuses):
    with refuses(ValueError, "chapter", repr(chapter), "random_intercept"):
        mlm_utils.setup(chapter)


def test_a_fit_cannot_be_named_out_of_the_ledger(ledger, rows, refuses, monkeypatch):
    monkeypatch.setattr(sampling, "draw", None)
    mlm_utils.setup("a_chapter")
    with refuses(ValueError, "name", "'../up'"):
        fit_short(rows, name="../up")


def test_the_digest_of_the_data_tells_other_data_apart(rows):
    digest = sampling._describe(rows.arguments)["sha256"]
    assert sampling._describe(dict(reversed(rows.arguments.items())))["sha256"] == digest
    for change in ({"y": rows.y[::-1]}, {"y_sd": 1.0}, {"idx": rows.idx.astype(np.int64)}):
        assert sampling._describe(rows.arguments | change)["sha256"] != digest


# --- The progress bar


def stand_in(monkeypatch, *, terminal, shell):
    stream = SimpleNamespace(isatty=lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    notebook = type(shell, (), {})() if shell else None
    ipython = SimpleNamespace(get_ipython=lambda: notebook)
    monkeypatch.setitem(sys.modules, "IPython", ipython)


@pytest.mark.parametrize(
    ("terminal", "shell", "watches"),
    [
        (True, None, True),
        (False, "ZMQInteractiveShell", True),
        (False, "TerminalInteractiveShell", False),
        (False, None, False),
    ],
    ids=["terminal", "notebook", "piped IPython", "pipe"],
)
def test_someone_watches_a_terminal_or_a_notebook(terminal, shell, watches, monkeypatch):
    monkeypatch.delenv("MLM_LEDGER", raising=False)
    stand_in(monkeypatch, terminal=terminal, shell=shell)
    assert sampling._someone_watches() is watches


@pytest.mark.parametrize("shell", [None, "ZMQInteractiveShell"])
def test_nobody_watches_a_build_even_at_a_terminal(shell, ledger, monkeypatch):
    stand_in(monkeypatch, terminal=True, shell=shell)
    assert sampling._someone_watches() is False


def test_nobody_watches_where_there_is_no_standard_error(monkeypatch):
    monkeypatch.delenv("MLM_LEDGER", raising=False)
    stand_in(monkeypatch, terminal=False, shell=None)
    monkeypatch.setattr(sys, "stderr", None)
    assert sampling._someone_watches() is False


# --- Figures in the prose


@pytest.fixture
def page(monkeypatch):
    """Stand in for a notebook; return what was published in it."""
    shell = SimpleNamespace(display_pub=CapturingDisplayPublisher())
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    return shell.display_pub.outputs


def test_figures_reach_the_page_unrounded_and_as_myst_nb_glues_them(page, monkeypatch):
    prose.insert({"slope": np.float64(1) / 3, "groups": 20, "worst": "alpha_j[rural]"})
    ours = [(output["data"], output["metadata"]) for output in page]
    theirs = []
    monkeypatch.setattr(
        "myst_nb.ext.glue.ipy_display", lambda data, raw, metadata: theirs.append((data, metadata))
    )
    for name, value in {"slope": 1 / 3, "groups": 20.0, "worst": "alpha_j[rural]"}.items():
        myst_nb.glue(name, value, display=False)
    assert ours == theirs


def test_outside_a_notebook_figures_are_only_checked(capsys):
    prose.insert({"groups": 20})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("figure", "error", "says"),
    [
        (np.nan, ValueError, ["figure 'slope' is nan", "computation"]),
        (-np.inf, ValueError, ["figure 'slope' is -inf", "computation"]),
        (None, TypeError, ["figure 'slope'", "None", "float()"]),
        (True, TypeError, ["figure 'slope'", "True", "float()"]),
        (np.ones(1), TypeError, ["figure 'slope'", "array([1.])", "float()"]),
    ],
    ids=["NaN", "infinite", "nothing", "a truth", "an array"],
)
def test_a_bad_figure_keeps_all_from_the_page(figure, error, says, page, refuses):
    with refuses(error, *says):
        prose.insert({"groups": 20, "slope": figure})
    assert page == []


# --- Setting up


def test_setup_turns_on_float64_and_four_devices():
    assert jax.config.jax_enable_x64
    assert len(jax.devices("cpu")) == 4


def test_setup_makes_intervals_equal_tailed_and_90_percent_wide():
    draws = np.random.default_rng(1).exponential(size=(4, 500))  # skewed: tails differ
    table = sampling.summary(az.from_dict({"posterior": {"theta": draws}}), round_to="none")
    interval = table.loc["theta", ["eti90_lb", "eti90_ub"]].astype(float)
    np.testing.assert_allclose(interval, np.quantile(draws, [0.05, 0.95]), rtol=0.01)


def test_setup_keeps_compiled_programs_where_it_says(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        mlm_utils.setup()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mlm-utils" / "jax")
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "other"))
        mlm_utils.setup()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "other")
        mlm_utils.setup(cache=False)
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_setup_after_jax_has_started_warns():
    code = "import jax; jax.devices(); import mlm_utils; mlm_utils.setup(cache=False)"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "RuntimeWarning: JAX was running with 1 device(s)" in done.stderr
    assert "restart and call setup() first" in done.stderr


def test_a_summary_writes_every_figure_beside_its_own_name():
    numbers = np.arange(6.0).reshape(3, 2)
    draws = np.random.default_rng(1).normal(0, 1e-3, (4, 100, 3, 2)) + numbers
    posterior = az.from_dict(
        {"posterior": {"a": draws[..., 0, :], "b": draws}},
        dims={"a": ["group"], "b": ["predictor", "group"]},
        coords={"group": ["g", "h"], "predictor": ["p", "q", "r"]},
    )
    table = sampling.summary(posterior, ["b", "a"], round_to="none")
    names = ["b[p, g]", "b[p, h]", "b[q, g]", "b[q, h]", "b[r, g]", "b[r, h]", "a[g]", "a[h]"]
    assert table.index.tolist() == names
    np.testing.assert_allclose(table["mean"].astype(float), [0, 1, 2, 3, 4, 5, 0, 1], atol=1e-3)
    with pytest.raises(KeyError, match="gamma"):
        sampling.summary(posterior, ["gamma"])
