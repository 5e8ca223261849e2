"""Each engine's log density is the book's, at fixed points and up to the stated offset."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from problems import PROBLEMS, offset, points
from run import ENGINES, Bench

TOLERANCE = 1e-8


@pytest.fixture(scope="module")
def densities(tmp_path_factory):
    """Log densities in every language: problem -> records. Stan compiles two programs at once."""

    def work(problem):
        return Bench(tmp_path_factory.mktemp(problem), 200).densities(problem, ENGINES)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PROBLEMS, pool.map(work, PROBLEMS), strict=True))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_densities_are_equal_up_to_the_stated_offset(densities, problem):
    """Of every language that says the problem."""
    book, *others = densities[problem]
    assert book["engine"] == "numpyro"
    assert {"pymc", "stan"} <= {told["engine"] for told in others}
    for told in others:
        lacks = [offset(told["engine"], problem, point) for point in points(problem)]
        np.testing.assert_allclose(
            np.add(told["log_density"], lacks), book["log_density"], rtol=0, atol=TOLERANCE
        )


def test_bambi_says_the_random_intercept(densities):
    """The one problem within its reach."""
    assert "bambi" in {told["engine"] for told in densities["varying_intercept"]}
