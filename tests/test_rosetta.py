"""The recorded comparison of engines: what was run is what the page shows, and they agree."""

import ast
import inspect
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpyro.infer.util import log_density
from test_verdict import load, verdict

from mlm_utils import models
from mlm_utils.data import load_benchmark

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
TOLERANCE = 1e-8


problems = load("problems")


@pytest.fixture(scope="module")
def recorded():
    return load_benchmark("engines")


def test_the_shipped_results_are_of_a_full_run(recorded):
    assert not recorded["quick"]
    assert len(recorded["settings"]["seeds"]) >= 3


def test_the_sources_are_those_that_ran(recorded):
    assert recorded["digests"] == problems.digests()


def test_every_engine_ran_every_problem_with_every_seed(recorded):
    ran = [(run["problem"], run["engine"], run["seed"]) for run in recorded["runs"]]
    engines = (*verdict.BOOK, *verdict.PEERS)
    wanted = [
        one
        for one in itertools.product(problems.PROBLEMS, engines, recorded["settings"]["seeds"])
        if one[1] != "exact" or problems.PROBLEMS[one[0]].exact
    ]
    assert sorted(ran) == sorted(wanted)


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_densities_of_all_engines_are_the_books(recorded, name):
    model, arguments, _ = problems.book(name)
    points = problems.points(name)
    ours = [float(log_density(model, (), arguments, point)[0]) for point in points]
    told = [record for record in recorded["densities"] if record["problem"] == name]
    assert {"numpyro", "pymc", "stan"} <= {record["engine"] for record in told}
    for record in told:
        offset = [problems.offset(record["engine"], name, point) for point in points]
        lifted = np.add(record["log_density"], offset)
        np.testing.assert_allclose(lifted, ours, rtol=0, atol=TOLERANCE)


def test_engines_that_passed_the_gate_agree(recorded):
    agreed = verdict.agreement(recorded["runs"])
    # Up to rounding: another processor adds in another order.
    told, again = (json.dumps(each, sort_keys=True) for each in (recorded["agreement"], agreed))
    figure = re.compile(r"\d+\.\d+(?:e-\d+)?")
    assert figure.sub("", told) == figure.sub("", again)
    np.testing.assert_allclose(
        *([float(text) for text in figure.findall(each)] for each in (told, again)), rtol=1e-9
    )
    assert agreed["comparisons"] > 100
    passed = {(run["problem"], run["engine"]) for run in recorded["runs"] if not run["misses"]}
    for problem, engines in agreed["worst"].items():
        for engine, told in engines.items():
            if (problem, engine) in passed:
                assert told["distance"] < agreed["bound"], (problem, engine, told)


def test_the_verdicts_follow_from_the_runs(recorded):
    assert recorded["ratios"] == json.loads(json.dumps(verdict.ratios(recorded["runs"])))
    for run in recorded["runs"]:
        assert run["misses"] == verdict.misses(run)
        whole = run["compile_seconds"] + run["sampling_seconds"]
        assert run["whole_seconds"] > 0.95 * whole, (run["problem"], run["engine"])


FENCES = re.findall(
    r"^```(\w+)\n(.*?)^```$",
    (ROOT / "chapters" / "rosetta.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize("file", sorted(problems.digests()))
def test_the_page_shows_each_program_that_ran(file):
    assert (BENCHMARKS / "models" / file).read_text(encoding="utf-8").strip() in {
        text.strip() for _, text in FENCES
    }


def test_the_page_shows_the_functions_of_the_book():
    shown = [
        node
        for language, text in FENCES
        if language == "python"
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name != "build"
    ]
    assert len(shown) >= len(problems.PROBLEMS)
    for node in shown:
        own = ast.parse(inspect.getsource(getattr(models, node.name))).body[0]
        if ast.get_docstring(own):
            del own.body[0]
        assert ast.dump(own) == ast.dump(node), node.name
