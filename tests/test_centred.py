"""The option `centred` of a fit: other coordinates for the sampler, or a refusal."""

import jax
import numpy as np
import pytest

from mlm_utils import models, sampling
from mlm_utils.sampling import fit

SHORT = {"warmup": 50, "draws": 20, "exhibit": True}  # too short for the gate
ROUTES = {
    "idx": np.repeat(np.arange(6), 2),
    "y": np.array([1.0, 2.0, 3.0, 5.0, 8.0, 6.0, 2.0, 1.0, 0.0, 4.0, 7.0, 3.0]),
    "n_groups": 6,
    "sigma": 2.0,
}
SCHOOLS = {"se": np.array([3.0, 4.0, 5.0]), "y": np.array([1.0, 8.0, 4.0])}
ARGUMENTS = {"two_level": ROUTES, "eight_schools": SCHOOLS}

# Case -> (model, centred, error, what the message says).
BAD_CENTRED = {
    "unknown site": (
        *("two_level", {"alpha": 0.5}, ValueError),
        ["centred", "'alpha'", "two_level", "choose from ['mu', "],
    ),
    "observed site": ("two_level", {"y": 0.5}, ValueError, ["centred", "'y'", "choose from"]),
    "computed site": (
        *("eight_schools", {"theta": 0.5}, ValueError),
        ["centred", "'theta'", "eight_schools", "choose from ['mu', "],
    ),
    "plate": ("two_level", {"group": 0.5}, ValueError, ["centred", "'group'", "choose from"]),
    "second site unknown": (
        *("two_level", {"theta": 0.5, "sigma": 0.5}, ValueError),
        ["centred", "'sigma'", "choose from"],
    ),
    "below 0": ("two_level", {"theta": -0.1}, ValueError, ["centred['theta']", "-0.1", "try 0.5"]),
    "above 1": ("two_level", {"theta": 1.01}, ValueError, ["centred['theta']", "1.01", "try 0.5"]),
    "NaN": ("two_level", {"theta": np.nan}, ValueError, ["centred['theta']", "nan", "try 0.5"]),
    "text": ("two_level", {"theta": "0.5"}, ValueError, ["centred['theta']", "'0.5'", "try 0.5"]),
    "a truth": ("two_level", {"theta": True}, ValueError, ["centred['theta']", "True", "try 0.5"]),
    "nothing": ("two_level", {"theta": None}, ValueError, ["centred['theta']", "None", "try 0.5"]),
    "a scale": (
        *("two_level", {"tau": 0.5}, ValueError),
        ["centred", "'tau'", "location", "choose from ['mu', 'theta']"],
    ),
    "a number": ("two_level", 0.5, TypeError, ["centred", "mapping", "0.5", "try {"]),
    "a list": ("two_level", ["theta"], TypeError, ["centred", "mapping", "['theta']", "try {"]),
    "a site alone": ("two_level", "theta", TypeError, ["centred", "mapping", "'theta'", "try {"]),
}


@pytest.mark.parametrize("case", BAD_CENTRED)
def test_a_bad_centring_is_refused_before_anything_runs(case, refuses, monkeypatch):
    monkeypatch.setattr(sampling, "draw", None)  # a call that got this far would fail otherwise
    model, centred, error, says = BAD_CENTRED[case]
    with refuses(error, *says):
        fit(getattr(models, model), ARGUMENTS[model], key=jax.random.key(1), centred=centred)


def test_neither_end_leaves_a_trace_in_the_draws():
    written, centred, standardised = (
        fit(models.two_level, ROUTES, key=jax.random.key(1), centred=option, **SHORT)
        for option in (None, {"theta": 1.0}, {"theta": 0})
    )
    for drawn in (written, centred, standardised):
        assert set(drawn["posterior"]) == {"mu", "tau", "theta"}
        assert drawn["posterior"]["theta"].dims == ("chain", "draw", "group")
        assert set(drawn["log_likelihood"]) == {"y"}
    for site, draws in written["posterior"].items():
        np.testing.assert_array_equal(centred["posterior"][site], draws)
        assert not np.any(standardised["posterior"][site].values == draws.values)
