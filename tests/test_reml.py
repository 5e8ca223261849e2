"""Where the priors are weak, the posterior lies where restricted maximum likelihood (REML) does.

Forty groups of twenty rows leave the priors of the random-intercept model little to say. A median
and a maximum are not one thing, nor are these priors flat: the two may differ by 0.3 posterior
standard deviations (0.1 is seen, at tau).
"""

import jax
import numpy as np
import pandas as pd
import pytest
from statsmodels.regression.mixed_linear_model import MixedLM

from mlm_utils.design import design
from mlm_utils.models import varying_intercept
from mlm_utils.sampling import fit

GROUPS, ROWS = 40, 20
NEAR = 0.3


@pytest.fixture(scope="module")
def table():
    """Draw scores of three kinds of cheese, from forty raters of twenty each."""
    rng = np.random.default_rng(8)
    rater = np.repeat(np.arange(GROUPS), ROWS)
    kind = rng.integers(3, size=len(rater))
    mean = np.array([5.0, 6.0, 4.5])[kind] + rng.normal(0.0, 1.5, GROUPS)[rater]
    return pd.DataFrame(
        {
            "score": rng.normal(mean, 2.0),
            "kind": np.array(["hard", "soft", "blue"])[kind],
            "rater": [f"r{number:02}" for number in rater],
        }
    )


@pytest.fixture(scope="module")
def draws(table):
    """Return the draws of everything that REML estimates as well."""
    rows = design(table, outcome="score", predictor="kind", group="rater")
    posterior = fit(
        varying_intercept,
        rows.arguments,
        key=jax.random.key(1),
        labels=rows.labels,
        target_accept=0.9,
        dense_mass=True,
    )["posterior"]
    beta = posterior["beta"]
    return {
        "sigma": posterior["sigma"],
        "tau": posterior["tau"],
        "hard - blue": beta.sel(kind="hard") - beta.sel(kind="blue"),
        "soft - blue": beta.sel(kind="soft") - beta.sel(kind="blue"),
    }


def reml(table):
    """Return the REML estimates by statsmodels."""
    kinds = pd.get_dummies(table["kind"], dtype=float)
    found = MixedLM(table["score"], kinds, groups=table["rater"]).fit(reml=True)
    assert found.converged
    return {
        "sigma": np.sqrt(found.scale),
        "tau": np.sqrt(found.cov_re.iloc[0, 0]),
        "hard - blue": found.fe_params["hard"] - found.fe_params["blue"],
        "soft - blue": found.fe_params["soft"] - found.fe_params["blue"],
    }


def distances(draws, estimates):
    """Return how far the posterior medians lie from estimates, in posterior sds."""
    return {
        name: abs(values.median().item() - estimates[name]) / values.std().item()
        for name, values in draws.items()
    }


def test_the_posterior_lies_where_reml_does(table, draws):
    far = distances(draws, reml(table))
    assert set(far) == {"sigma", "tau", "hard - blue", "soft - blue"}
    assert max(far.values()) < NEAR, far


@pytest.mark.parametrize(
    ("mistake", "names"),
    [
        ("raters taken for pairs", ["sigma", "tau"]),
        ("kinds confused", ["hard - blue", "soft - blue"]),
    ],
)
def test_reml_of_another_table_lies_elsewhere(mistake, names, table, draws):
    other = {
        "raters taken for pairs": {"rater": np.repeat(np.arange(GROUPS // 2), 2 * ROWS)},
        "kinds confused": {"kind": table["kind"].replace({"hard": "soft", "soft": "hard"})},
    }[mistake]
    far = distances(draws, reml(table.assign(**other)))
    assert min(far[name] for name in names) > 3 * NEAR, far
