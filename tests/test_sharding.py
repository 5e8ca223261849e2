"""Rows spread over devices and processes: the same density, the same draws, no silent failure.

What processes must agree on is tested with threads that stand for them, and the whole with real
processes, started as a reader starts them.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import arviz as az
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from jax.sharding import Mesh
from numpyro.infer.util import potential_energy
from test_multilevel import made_up

from mlm_utils import models, sharding
from mlm_utils.multilevel_design import Group, Predictor, multilevel_design
from mlm_utils.sampling import fit
from mlm_utils.sharding import connect, design_of_parts, gather, shard
from mlm_utils.terms import ScalePrior

COMMAND = [sys.executable, str(Path(__file__).parents[1] / "tools" / "fit_sharded.py")]


def made_rows(n, n_groups=6):
    rng = np.random.default_rng(5)
    idx = rng.integers(n_groups, size=n).astype(np.int32)
    X = rng.normal(size=(n, 2))
    y = 2 + X @ [1.0, -0.5] + rng.normal(size=n_groups)[idx] + rng.normal(size=n)
    return {"X": X, "idx": idx, "y": y, "n_groups": n_groups, "y_mean": 2.0, "y_sd": 2.0}


def devices(count):
    return Mesh(jax.devices()[:count], ("row",))


# --- Devices of one process


def density(model, arguments, points):
    """Return what NUTS sees, the log density and its gradient on its own coordinates."""
    leaves, rebuild = sharding._split(arguments)

    @jax.jit
    def look(point, leaves):
        potential = lambda point: potential_energy(model, (), rebuild(leaves), point)  # noqa: E731
        return jax.value_and_grad(potential)(point)

    return [jax.device_get(look(point, leaves)) for point in points]


@pytest.mark.parametrize("n", [24, 23, 5])
@pytest.mark.parametrize("name", ["varying_intercept", "correlated_effects", "multilevel"])
def test_the_density_and_its_gradient_are_those_of_all_rows_in_one_place(name, n):
    model = getattr(models, name)
    if name == "multilevel":
        arguments = made_up("three terms")
        arguments["terms"] = tuple(
            term._replace(idx=term.idx[:n], W=term.W[:n]) for term in arguments["terms"]
        )
        arguments |= {"X": arguments["X"][:n], "y": arguments["y"][:n]}
    else:
        arguments = made_rows(n)
    seeded = numpyro.handlers.seed(model, jax.random.key(2))
    sites = numpyro.handlers.trace(seeded).get_trace(**arguments)
    shapes = {
        site: dist.transforms.biject_to(s["fn"].support).inverse_shape(np.shape(s["value"]))
        for site, s in sites.items()
        if s["type"] == "sample" and not s["is_observed"]
    }
    rng = np.random.default_rng(1)
    points = [{site: rng.normal(size=shape) for site, shape in shapes.items()} for _ in range(3)]
    spread_model, spread = shard(model, arguments, devices(4))
    assert len(spread["y"].sharding.device_set) == 4
    assert (spread_model is model) == (n % 4 == 0)
    for one, other in zip(
        density(model, arguments, points), density(spread_model, spread, points), strict=True
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), one, other
        )


def test_the_same_key_gives_the_same_draws_and_the_same_posterior():
    arguments = made_rows(47)
    model, spread = shard(models.varying_intercept, arguments, devices(2))
    options = {"key": jax.random.key(3), "chains": 2, "target_accept": 0.9}
    short = options | {"warmup": 10, "draws": 10, "exhibit": True}
    one = fit(models.varying_intercept, arguments, **short)
    two = fit(model, spread, labels={"row": ("row", tuple(range(47)))}, **short)
    assert set(two.children) == {"posterior", "sample_stats"}  # nothing a row is gathered
    for site in one["posterior"]:
        np.testing.assert_allclose(two["posterior"][site], one["posterior"][site], rtol=1e-6)


def test_the_posterior_is_the_same_where_the_draws_part():
    rows = made_rows(203)
    arguments = {name: rows[name] for name in ("idx", "y", "n_groups")} | {"sigma": 1.2}
    model, spread = shard(models.two_level, arguments, devices(2))
    options = {"key": jax.random.key(3), "warmup": 300, "draws": 700, "target_accept": 0.9}
    one, two = fit(models.two_level, arguments, **options), fit(model, spread, **options)
    one, two = (az.summary(fitted, round_to="none") for fitted in (one, two))
    assert not np.array_equal(one["mean"], two["mean"])
    apart = (one["mean"] - two["mean"]) / np.hypot(one["mcse_mean"], two["mcse_mean"])
    assert (abs(apart) < 4).all()


def test_no_copy_is_made_where_rows_divide_and_codes_keep_their_type():
    _, spread = shard(models.varying_intercept, made_rows(8), devices(2))
    assert "is_row" not in spread
    assert spread["idx"].dtype == np.int32
    assert isinstance(spread["n_groups"], int)
    assert [shard.data.shape for shard in spread["X"].addressable_shards] == [(4, 2)] * 2


def with_factor(y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    numpyro.factor("more", -mean)


@pytest.mark.parametrize(
    ("model", "changed", "error", "says"),
    [
        (models.varying_intercept, {"y": None}, ValueError, ["the outcome y", "NoneType"]),
        (models.varying_intercept, {"idx": np.full(8, 6)}, ValueError, ["idx[0] is 6", "0 .. 5"]),
        (models.varying_intercept, {"X": np.ones((7, 2))}, ValueError, ["idx", "(7,)"]),
        (with_factor, {"y": np.ones(8)}, ValueError, ["'more'", "one observed value a row"]),
        (
            models.eight_schools,
            {"se": np.ones(8), "y": np.ones(8)},
            ValueError,
            ["'z'", "fit it in one process"],
        ),
    ],
)
def test_shard_refuses(refuses, model, changed, error, says):
    arguments = made_rows(8) | changed if model is models.varying_intercept else changed
    with refuses(error, *says):
        shard(model, arguments)


def test_fit_does_not_integrate_over_spread_rows(refuses):
    model, spread = shard(models.varying_intercept, made_rows(8), devices(2))
    with refuses(ValueError, "integrate", "spread over devices"):
        fit(model, spread, key=jax.random.key(1), integrate=True)


def test_shard_refuses_a_mesh_of_two_axes(refuses):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    with refuses(TypeError, "one axis"):
        shard(models.varying_intercept, made_rows(8), mesh)


# --- Threads that stand for processes


@pytest.fixture
def as_processes(monkeypatch):
    """Return a function that runs one function a process, and returns results or errors."""

    def run(*functions):
        count = len(functions)
        me, barrier, values = (
            threading.local(),
            threading.Barrier(count, timeout=60),
            [None] * count,
        )

        def gather(value):
            values[me.number] = value
            barrier.wait()
            gathered = list(values)
            barrier.wait()
            return gathered

        def start(number):
            me.number = number
            try:
                return functions[number]()
            except (TypeError, ValueError, RuntimeError) as error:
                return error

        monkeypatch.setattr(sharding, "gather", gather)
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda: me.number)
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(start, range(count)))

    return run


def made_table():
    rng = np.random.default_rng(6)
    n = 40
    table = pd.DataFrame(
        {
            "y": rng.normal(10, 3, n),
            "x": rng.normal(size=n),
            "kind": rng.choice(["a", "b", "c"], n),
            "school": np.sort(rng.choice([f"s{k}" for k in range(6)], n)),
        }
    )
    return table  # by school: no part holds all of them


GROUPS = [Group("school", slopes=["x"]), Group(("school", "kind"))]


def test_parts_are_coded_as_the_whole_table(as_processes):
    table = made_table()
    options = {"outcome": "y", "population": ["x", Predictor("kind", "sum")], "groups": GROUPS}
    whole = multilevel_design(table, **options)
    parts = table.iloc[:11], table.iloc[11:]
    found = as_processes(*(lambda part=part: design_of_parts(part, **options) for part in parts))
    for design, y_mean, y_sd in found:
        np.testing.assert_allclose([y_mean, y_sd], [table["y"].mean(), table["y"].std()])
        assert design.sources == whole.sources
        labels = {name: pair for name, pair in whole.labels.items() if name != "row"}
        assert {name: design.labels[name] for name in labels} == labels
    designs = [design for design, _, _ in found]
    np.testing.assert_array_equal(np.concatenate([one.X for one in designs]), whole.X)
    for t, term in enumerate(whole.terms):
        for field in ("idx", "W"):
            both = np.concatenate([getattr(one.terms[t], field) for one in designs])
            np.testing.assert_array_equal(both, getattr(term, field))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"y": np.nan}, ["process 1", "'y'"]),
        ({"x": "much"}, ["column x is numbers in process 0 and labels in process 1"]),
    ],
)
def test_a_spoilt_part_is_refused_by_all(as_processes, spoil, says):
    table = made_table()
    parts = table.iloc[:20], table.iloc[20:].assign(**spoil)
    found = as_processes(
        *(lambda p=p: design_of_parts(p, outcome="y", population=["x"]) for p in parts)
    )
    for error in found:
        assert isinstance(error, ValueError)
        assert all(text in str(error) for text in says), error


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        (made_table().assign(y=1.0), {}, "constant"),
        (made_table(), {"population": ["y"]}, "drop it there"),
        (made_table().assign(z=lambda t: 2 * t["x"]), {"population": ["x", "z"]}, "'z' is 2 x 'x'"),
        (made_table().assign(id=range(40)), {"groups": ["id"]}, "each row is a group"),
        (made_table(), {"groups": [Group("school", nested_in="kind")]}, "group by both columns"),
    ],
)
def test_what_all_rows_together_do_not_tell_is_refused(refuses, table, options, says):
    with refuses(ValueError, says):
        design_of_parts(
            table.astype({"id": str}) if "id" in table else table, outcome="y", **options
        )


def test_all_but_the_rows_must_be_the_same(as_processes, monkeypatch):
    rows, one_at_a_time, examine = made_rows(8), threading.Lock(), sharding._examine

    def alone(*arguments):  # NumPyro has one stack of handlers
        with one_at_a_time:
            return examine(*arguments)

    monkeypatch.setattr(sharding, "_examine", alone)
    found = as_processes(
        lambda: shard(models.varying_intercept, rows, devices(2)),
        lambda: shard(models.varying_intercept, rows | {"y_mean": 2.5}, devices(2)),
    )
    for error in found:
        assert "argument y_mean is 2.0 in process 0 and 2.5 in process 1" in str(error)


def test_one_process_has_itself_alone():
    assert gather({"a": 1}) == [{"a": 1}]


# --- Real processes


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("node1", 2, 0), ValueError, "'host:port'"),
        (("node1:99999", 2, 0), ValueError, "'host:port'"),
        (("node1:9876", 2, 2), ValueError, "0 .. 1"),
        (("node1:9876", 0, 0), ValueError, "processes"),
        (("node1:9876", 2, True), TypeError, "process"),
    ],
)
def test_connect_refuses(refuses, arguments, error, says):
    with refuses(error, says):
        connect(*arguments)
    with refuses(ValueError, "at least 1 second"):
        connect("node1:9876", 2, 0, wait=0.5)


def roll(port, count, process, wait=5.0):
    try:
        sharding._call_the_roll("localhost", port, count, process, wait)
    except (TimeoutError, RuntimeError) as error:
        return error


def test_the_roll_names_who_is_missing_or_there_twice():
    with ThreadPoolExecutor(3) as pool:
        port = free_port()
        assert list(pool.map(lambda k: roll(port, 3, k), range(3))) == [None] * 3
        port = free_port()
        two = list(pool.map(lambda k: roll(port, 4, k, 1.0), [0, 2]))
        assert all(isinstance(error, TimeoutError) and "[1, 3]" in str(error) for error in two)
        port = free_port()
        twice = list(pool.map(lambda k: roll(port, 4, k), [0, 1, 1]))
        assert all("two processes 1" in str(error) for error in twice)
        port = free_port()
        counts = list(pool.map(lambda k: roll(port, 2 + k, k), [0, 1]))
        assert all("process 1 counts 3 processes, 0 counts 2" in str(error) for error in counts)
    late = roll(free_port(), 2, 1, 1.0)
    assert isinstance(late, TimeoutError)
    assert "did not reach process 0" in str(late)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two files of one table, the second with groups that the first lacks."""
    folder = tmp_path_factory.mktemp("parts")
    table = made_table()
    table.iloc[:15].to_csv(folder / "0.csv", index=False)
    table.iloc[15:].to_csv(folder / "1.csv", index=False)
    return [str(folder / "0.csv"), str(folder / "1.csv")]


def command(parts, *options):
    given = ["--outcome=y", "--population", "x", "--groups", "school"]
    return [*COMMAND, *parts, *given, "--chains=2", "--exhibit", *map(str, options)]


def test_two_processes_draw_what_one_draws(parts, tmp_path):
    draws = tmp_path / "draws.npz"
    started = command(parts, "--warmup=4", "--draws=4", "--output", draws)
    done = subprocess.run(started, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "b_school[s5, intercept]" in done.stdout
    assert "Gloo" not in done.stdout
    table = pd.concat(map(pd.read_csv, parts), ignore_index=True)
    whole = multilevel_design(table, outcome="y", population=["x"], groups=["school"])
    y_mean, y_sd = table["y"].mean(), table["y"].std()
    prior = whole.prior(
        beta={"intercept": (y_mean, 2.5 * y_sd), "x": (0.0, 2.5 * y_sd)},
        sigma=ScalePrior("exponential", y_sd),
        tau=ScalePrior("half-normal", y_sd),
    )
    alone = fit(
        models.multilevel,
        whole.arguments | {"prior": prior},
        key=jax.random.key(1),
        chains=2,
        warmup=4,
        draws=4,
        exhibit=True,
    )["posterior"]
    together = np.load(draws)
    assert set(together) == set(alone)
    for site in alone:
        np.testing.assert_allclose(together[site], alone[site], rtol=1e-6, atol=1e-6)


def children(process):
    """Return the pids of the processes that a process started, by their numbers."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    command = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in pids}
    return {int(said[-2]): int(pid) for pid, said in command.items() if "--worker" in said}


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def started(parts):
    """A fit without an end, whose two processes compute together."""
    process = subprocess.Popen(
        command(parts, "--warmup=100000", "--wait=8"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "40 rows in 2 processes (15, 25); 6 groups\n"
        yield process, children(process)
    finally:
        process.kill()
        process.communicate()


def test_a_process_that_is_killed_ends_all_and_is_named(started):
    process, workers = started
    time.sleep(5)  # to compile, and to have begun to draw
    os.kill(workers[1], signal.SIGKILL)
    start = time.monotonic()
    assert process.wait(timeout=20) == 1
    assert time.monotonic() - start < 5
    said = process.stderr.read()
    assert said.startswith("error: process 1 ended by signal SIGKILL")
    assert "nothing was fitted" in said
    assert not any(map(is_there, workers.values()))


def test_no_process_outlives_the_one_that_watches(started):
    process, workers = started
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_there, workers.values())), 5)


def test_a_process_that_stops_is_given_up(started):
    process, workers = started
    os.kill(workers[1], signal.SIGSTOP)
    assert process.wait(timeout=30) == 1
    assert "heartbeat" in process.stderr.read()
    assert not any(map(is_there, workers.values()))


def test_a_process_that_never_comes_is_named(parts):
    alone = command(parts, f"--coordinator=localhost:{free_port()}", "--process=0", "--wait=1")
    done = subprocess.run(alone, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "of 2 processes, [1] did not come" in done.stderr


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--process=0"], "belong together"),
        (["--processes=0"], "at least 1"),
        (["--processes=3"], "2 parts for 3 processes"),
        (["--output=draws.nc"], "must end with .csv or .npz"),
    ],
)
def test_the_command_refuses(parts, changed, says):
    done = subprocess.run(command(parts, *changed), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr
