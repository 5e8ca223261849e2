"""What the comparison of engines makes of runs: who agrees, who passed the gate, who is faster."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


verdict = load("verdict")


def made_up(engine, seed=1, *, mean=0.0, ess=1000.0, sampling=1.0, whole=10.0, divergences=0):
    return {
        "problem": "p",
        "engine": engine,
        "seed": seed,
        "max_rhat": 1.0,
        "min_ess_bulk": ess,
        "min_ess_tail": ess,
        "divergences": divergences,
        "sampling_seconds": sampling,
        "whole_seconds": whole,
        "quantities": {"a": {"mean": mean, "sd": 1.0, "mcse": 0.03}},
    }


def test_ratios_are_of_effective_draws_a_second_seed_by_seed():
    runs = [
        made_up("numpyro", 1, ess=1000, sampling=2.0),
        made_up("integrated", 1, ess=3000, sampling=1.0),
        made_up("stan", 1, ess=1500, sampling=3.0, whole=30.0),
        made_up("numpyro", 2, ess=4000, sampling=1.0),
        made_up("integrated", 2, ess=2000, sampling=1.0),
        made_up("stan", 2, ess=1000, sampling=2.0, whole=30.0),
    ]
    sampling, whole = (verdict.ratios(runs)["p"][clock] for clock in ("sampling", "whole"))
    assert sampling["numpyro"]["stan"]["by_seed"] == pytest.approx([1.0, 8.0])
    assert sampling["integrated"]["stan"]["by_seed"] == pytest.approx([6.0, 4.0])
    assert sampling["best"]["stan"]["by_seed"] == pytest.approx([6.0, 8.0])
    assert sampling["best"]["stan"]["median"] == pytest.approx(7.0)
    assert sampling["best"]["stan"]["range"] == pytest.approx([6.0, 8.0])
    assert whole["best"]["stan"]["by_seed"] == pytest.approx([6.0, 12.0])
    assert "nutpie" not in sampling["best"]


def test_an_engine_that_is_off_is_found():
    engines = ("numpyro", "integrated", "stan", "pymc")
    agreed = verdict.agreement([made_up(engine) for engine in engines])
    assert agreed["comparisons"] == 4
    assert 3.0 < agreed["bound"] < 3.1  # two-sided, 0.01 shared by four comparisons
    assert all(told["distance"] == 0 for told in agreed["worst"]["p"].values())
    off = [made_up(engine, mean=0.2 * (engine == "stan")) for engine in engines]
    worst = verdict.agreement(off)["worst"]["p"]
    assert max(worst, key=lambda engine: worst[engine]["distance"]) == "stan"
    assert worst["stan"]["distance"] == pytest.approx(0.2 / np.hypot(0.03, 0.03 / np.sqrt(3)))
    assert worst["stan"]["distance"] > agreed["bound"]


def test_a_run_that_missed_the_gate_is_marked_and_not_pooled():
    missed = made_up("pymc", mean=5.0, divergences=3)
    assert verdict.misses(missed) == ["3 divergences"]
    assert verdict.misses(made_up("pymc", ess=399.0)) == ["bulk ESS 399", "tail ESS 399"]
    assert verdict.misses(made_up("pymc") | {"max_rhat": float("nan")}) == ["R-hat nan"]
    worst = verdict.agreement([made_up("numpyro"), made_up("stan"), missed])["worst"]["p"]
    assert worst["numpyro"]["distance"] == 0
    assert worst["pymc"]["distance"] > 100
