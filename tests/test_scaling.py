"""Sums of rows tell a Gaussian multilevel model what the rows do, wherever they are added up.

Densities are held against the model of the rows; sums against loops over the groups; a table that
does not fit into the memory it is allowed against the same rows in memory.
"""

import functools
import json
import operator
import os
import subprocess
import sys
import textwrap

import ibis
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpyro.infer.util import log_density

from mlm_utils import scaling
from mlm_utils.integration import Integrated
from mlm_utils.models import multilevel
from mlm_utils.quadrature import exact
from mlm_utils.sampling import fit
from mlm_utils.scaling import (
    multilevel_from_statistics,
    rotate,
    statistics_from_arrays,
    statistics_from_table,
)
from mlm_utils.terms import Prior, ScalePrior, Term

# Ibis 12 asks DuckDB 2 for its answer by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")
KEY = jax.random.key(1)
INTEGRATED = {"key": KEY, "integrate": True, "pointwise": False, "draws": 2000}
CLOSE = 0.16  # posterior sds: five standard errors of draws worth 1,000 independent ones
FEW = {"key": KEY, "chains": 1, "draws": 4}  # where the moments alone are looked at
PREDICTORS = ("a", "b", "c")
# Name -> which coefficients vary, and how.
FORMS = {
    "intercepts": (("intercept",), {}),
    "intercepts, centred": (("intercept",), {"centred": True}),
    "slopes": (("b", "intercept", "c"), {}),
    "correlated": (("intercept", "a"), {"correlated": True}),
    "correlated, centred": (("c", "intercept"), {"correlated": True, "centred": True}),
}


def made_up(form="intercepts", n=200, n_groups=30, level=0.0):
    """Return the arguments of the rows' model: unequal groups, small ones, and one empty."""
    rng = np.random.default_rng(3)
    idx = np.minimum(rng.geometric(0.12, n) - 1, n_groups - 2).astype(np.int32)
    predictors = rng.normal(2, 1.5, (n, 3))
    X = np.column_stack([np.ones(n), predictors])
    y = level + predictors @ [1.0, -0.5, 0.2] + rng.normal(0, 2, n_groups)[idx] + rng.normal(size=n)
    varying, options = FORMS[form]
    columns = [("intercept", *PREDICTORS).index(name) for name in varying]
    term = Term("g", idx, n_groups, X[:, columns], **options)
    prior = Prior(
        np.array([level, 0.0, 0.0, 1.0]),
        np.array([10.0, 3.0, 2.0, 1.0]),
        ScalePrior("half-t", 4.0, 3.0),
        {"g": ScalePrior("half-normal", 3.0)},
    )
    return {"X": X, "terms": (term,), "y": y, "prior": prior}


def added_up(arguments):
    """Return the statistics of the rows."""
    (term,) = arguments["terms"]
    return statistics_from_arrays(
        arguments["X"][:, 1:],
        term.idx,
        arguments["y"],
        predictors=PREDICTORS,
        levels=range(term.n_groups),
        group="g",
    )


def rotated(form, arguments):
    """Return the arguments of the model of the statistics, for the same rows."""
    varying, options = FORMS[form]
    return rotate(added_up(arguments), prior=arguments["prior"], varying=varying, **options)[0]


def points(form, arguments, n=20):
    """Draw parameter values far and wide."""
    rng = np.random.default_rng(5)
    (term,) = arguments["terms"]
    q = term.W.shape[1]
    for _ in range(n):
        point = {
            "beta": arguments["prior"].beta_mean + rng.normal(0, 3, 4),
            "sigma": np.exp(rng.normal(0, 1)),
            "tau_g": np.exp(rng.normal(0, 1, q)),
            ("b_g" if term.centred else "z_g"): rng.normal(0, 2, (term.n_groups, q)),
        }
        if term.correlated:
            rho = rng.uniform(-0.9, 0.9)
            point["L_Omega_g"] = np.array([[1.0, 0.0], [rho, np.sqrt(1 - rho**2)]])
        yield point


def assert_same_answer(one, other):
    """Hold two exact posteriors against one another."""
    one, other = (posterior["moments"].dataset for posterior in (one, other))
    assert set(one) == set(other)
    for site, moments in one.items():
        assert moments.dims == other[site].dims
        sd = moments.to_numpy()[1]
        apart = abs(other[site].to_numpy() - moments.to_numpy())
        assert (apart <= 1e-5 * sd).all(), site


# --- The model


@pytest.mark.parametrize("level", [0.0, 1e6])
@pytest.mark.parametrize("form", FORMS)
def test_the_density_and_its_gradient_are_those_of_the_rows(form, level):
    arguments = made_up(form, level=level)

    def density(model, given):
        return jax.jit(jax.value_and_grad(lambda point: log_density(model, (), given, point)[0]))

    of_rows = density(multilevel, arguments)
    of_sums = density(multilevel_from_statistics, rotated(form, arguments))
    for point in points(form, arguments):
        (rows, rows_gradient), (sums, sums_gradient) = of_rows(point), of_sums(point)
        np.testing.assert_allclose(sums, rows, rtol=1e-10)
        for site, gradient in rows_gradient.items():
            size = np.max(np.abs(gradient))
            np.testing.assert_allclose(sums_gradient[site], gradient, rtol=1e-8, atol=1e-9 * size)


def test_a_group_of_dependent_columns_keeps_its_density():
    """Where a predictor does not vary in a group, its triangle has lines of zeros."""
    arguments = made_up()
    idx = arguments["terms"][0].idx
    arguments["X"][:, 1] = idx
    arguments["X"][:, 2] = np.where(idx == 0, 2 * arguments["X"][:, 3], arguments["X"][:, 2])
    given = rotated("intercepts", arguments)
    for point in points("intercepts", arguments, n=3):
        rows = log_density(multilevel, (), arguments, point)[0]
        sums = log_density(multilevel_from_statistics, (), given, point)[0]
        np.testing.assert_allclose(sums, rows, rtol=1e-10)


def test_the_cost_of_a_gradient_depends_on_groups_not_rows():
    def flops(model, given):
        point = next(points("slopes", made_up("slopes")))
        gradient = jax.jit(
            jax.grad(lambda point, given: log_density(model, (), given | fixed, point)[0])
        )
        moving = {name: value for name, value in given.items() if name in ("X", "R", "pooled", "y")}
        fixed = {name: value for name, value in given.items() if name not in moving}
        return gradient.lower(point, moving).cost_analysis()["flops"]

    few, many = made_up("slopes", n=200), made_up("slopes", n=20_000)
    assert flops(multilevel, many) > 20 * flops(multilevel, few)
    one, other = (
        flops(multilevel_from_statistics, rotated("slopes", rows)) for rows in (few, many)
    )
    assert one == other < flops(multilevel, many) / 20


def test_left_over_squares_are_those_of_normal_errors():
    left = scaling._SumOfSquares(1000, 3.0)
    errors = 3.0 * jax.random.normal(KEY, (1000,))
    written = jax.scipy.stats.norm.logpdf(errors, 0.0, 3.0).sum()
    np.testing.assert_allclose(left.log_prob((errors**2).sum()), written, rtol=1e-12)
    drawn = left.sample(KEY, (4000,))
    np.testing.assert_allclose(drawn.mean(), 9000, rtol=0.005)


# --- With its effects integrated out


@pytest.mark.parametrize("form", ["intercepts", "correlated, centred"])
def test_integrated_out_it_is_the_integrated_model_of_the_rows(form):
    arguments = made_up(form)
    point = next(points(form, arguments))
    scales = {k: jnp.asarray(v) for k, v in point.items() if k in ("sigma", "tau_g", "L_Omega_g")}
    given = rotated(form, arguments)
    of_rows, of_sums = (
        Integrated(multilevel, arguments),
        Integrated(multilevel_from_statistics, given),
    )
    density = [
        log_density(integrated.model, (), whose, scales)[0]
        for integrated, whose in ((of_rows, arguments), (of_sums, given))
    ]
    np.testing.assert_allclose(density[1], density[0], rtol=1e-10)
    one, other = (i.complete(KEY, scales) for i in (of_rows, of_sums))
    assert set(one) == set(other)
    means = [
        i._solve(scales, a)[1].draw(jnp.zeros(i.size))
        for i, a in ((of_rows, arguments), (of_sums, given))
    ]
    np.testing.assert_allclose(means[1], means[0], rtol=1e-7, atol=1e-8)


def test_a_posterior_has_the_names_and_numbers_of_that_of_the_rows():
    arguments = made_up()
    given, labels = rotate(added_up(arguments), prior=arguments["prior"])
    rows = exact(multilevel, arguments, labels=labels, **FEW)
    sums = exact(multilevel_from_statistics, given, labels=labels, **FEW)
    assert_same_answer(rows, sums)
    drawn = fit(multilevel_from_statistics, given, labels=labels, **INTEGRATED)["posterior"].dataset
    assert list(drawn["coefficient"].to_numpy()) == ["intercept", "a", "b", "c"]
    assert list(drawn["g"].to_numpy()) == list(range(30))
    for site, moments in sums["moments"].dataset.items():
        mean, sd = moments.to_numpy()
        assert drawn[site].dims[2:] == moments.dims[1:]
        assert (abs(drawn[site].mean(("chain", "draw")) - mean) < CLOSE * sd).all()


# --- Sums


def test_sums_are_those_of_a_loop_over_groups():
    arguments = made_up()
    found, idx = added_up(arguments), arguments["terms"][0].idx
    columns = np.column_stack([arguments["X"][:, 1:], arguments["y"]])
    assert (found.n == np.bincount(idx, minlength=30)).all()
    assert found.n[-1] == 0 < np.min(found.n[:5])
    for j in np.unique(idx):
        own = columns[idx == j]
        np.testing.assert_allclose(found.mean[j], own.mean(axis=0), rtol=1e-12)
        apart = own - own.mean(axis=0)
        np.testing.assert_allclose(found.S[j], apart.T @ apart, rtol=1e-10, atol=1e-12)
    assert not found.mean[-1].any()
    assert not found.S[-1].any()


def as_table(arguments):
    """Return the rows as a table, their groups labelled so that sorting changes their order."""
    idx = arguments["terms"][0].idx
    table = pd.DataFrame(arguments["X"][:, 1:], columns=list(PREDICTORS))
    return table.assign(y=arguments["y"], g=[f"group {j}" for j in idx])


def in_duckdb(table):
    return ibis.memtable(pa.Table.from_pandas(table))


def of_table(table, **options):
    return statistics_from_table(
        table, **({"outcome": "y", "predictors": PREDICTORS, "group": "g"} | options)
    )


def assert_same(one, other, rtol=1e-11):
    """Hold two statistics against one another, up to rounding."""
    names = ("outcome", "predictors", "group", "levels")
    assert [getattr(one, n) for n in names] == [getattr(other, n) for n in names]
    assert (one.n == other.n).all()
    np.testing.assert_allclose(one.mean, other.mean, rtol=rtol)
    size = np.sqrt(np.einsum("jaa->ja", other.S))
    apart = np.abs(one.S - other.S)
    assert (apart <= rtol * (1 + size[:, :, None] * size[:, None, :])).all()


def in_memory(table, levels):
    """Return the statistics of a table, from its arrays."""
    idx = pd.Categorical(table["g"], categories=levels).codes.astype(np.int32)
    return statistics_from_arrays(
        table[list(PREDICTORS)].to_numpy(),
        idx,
        table["y"].to_numpy(),
        predictors=PREDICTORS,
        levels=levels,
        group="g",
    )


@pytest.fixture
def parquet(tmp_path):
    """Three files of unequal length, and the table of all their rows."""
    table = as_table(made_up(n=600))
    paths = []
    for part, rows in enumerate((slice(0, 17), slice(17, 400), slice(400, 600))):
        paths.append(tmp_path / f"part-{part}.parquet")
        table[rows].to_parquet(paths[-1])
    return paths, table


def test_sums_of_a_table_are_those_of_its_arrays(parquet, tmp_path):
    paths, table = parquet
    levels = sorted(set(table["g"]))
    assert levels != sorted(levels, key=lambda label: int(label.split()[1]))
    expected = in_memory(table, levels)
    assert_same(of_table(paths), expected)
    assert_same(of_table(str(tmp_path / "*.parquet")), expected)
    assert_same(of_table(in_duckdb(table)), expected)
    mixed = ["none", *reversed(levels)]
    assert_same(of_table(in_duckdb(table), levels=mixed), in_memory(table, mixed))


def test_columns_of_whole_numbers_and_groups_of_integers_are_taken():
    table = pd.DataFrame({"a": [1, 2, 4, 7], "y": [2, 3, 5, 9], "g": [10, 9, 10, 9]})
    found = of_table(in_duckdb(table), predictors=["a"])
    assert found.levels == (9, 10)
    np.testing.assert_allclose(found.mean, [[4.5, 6.0], [2.5, 3.5]])
    np.testing.assert_allclose(found.S[0], [[12.5, 15.0], [15.0, 18.0]])


def test_parts_add_up_to_the_whole(parquet):
    paths, table = parquet
    levels = [*sorted(set(table["g"])), "empty"]
    parts = [of_table(path, levels=levels) for path in paths]
    assert parts[0].n.min() == 0
    whole = in_memory(table, levels)
    assert_same(functools.reduce(operator.add, parts), whole)
    assert_same(parts[2] + (parts[0] + parts[1]), whole)


def test_an_outcome_far_from_zero_costs_no_digits():
    table = as_table(made_up(n=2000))
    table["y"] = table["y"].round(3)
    near, far = (of_table(in_duckdb(table.assign(y=table["y"] + c))) for c in (0.0, 1e7))
    np.testing.assert_allclose(far.S, near.S, atol=1e-4)


# --- More rows than memory

LIMITED = """
    import json, resource, sys
    import ibis, numpy as np, pandas as pd, pyarrow.parquet
    from mlm_utils.scaling import statistics_from_table

    folder, memory = sys.argv[1], int(sys.argv[2])
    table = ibis.duckdb.connect(memory_limit="96MB", threads=1).read_parquet(f"{folder}/*.parquet")
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))
    try:
        pd.read_parquet(f"{folder}/rows.parquet")
        refused = None
    except MemoryError as error:
        refused = repr(error)
    found = statistics_from_table(table, outcome="y", predictors=["a", "b", "c"], group="g")
    np.savez(f"{folder}/found.npz", n=found.n, mean=found.mean, S=found.S)
    print(json.dumps({"refused": refused, "levels": found.levels}))
"""


def test_a_table_larger_than_memory_gives_the_same_sums_and_answer(tmp_path):
    memory, n = 160 << 20, 6_000_000
    ibis.duckdb.connect().raw_sql(
        f"""COPY (SELECT g, a, b, c, 100 + a - 0.5 * b + 0.1 * g + e AS y FROM (SELECT
        i % 1999 % 50 AS g, hash(i, 1) % 1024 / 256 AS a, hash(i, 2) % 1024 / 256 AS b,
        hash(i, 3) % 1024 / 256 AS c, hash(i, 4) % 1024 / 256 AS e FROM range({n}) t(i)))
        TO '{tmp_path / "rows.parquet"}'"""
    )
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), tmp_path, str(memory)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},  # the others reserve in advance
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["refused"] is not None
    table = pd.read_parquet(tmp_path / "rows.parquet")
    assert table.memory_usage().sum() > 1.4 * memory
    expected = in_memory(table, range(50))
    saved = np.load(tmp_path / "found.npz")
    found = scaling.GroupStatistics("y", PREDICTORS, "g", tuple(said["levels"]), **saved)
    assert_same(found, expected, rtol=1e-10)
    prior = made_up(level=100.0)["prior"]
    one, other = (
        fit(multilevel_from_statistics, arguments, labels=labels, warmup=500, **INTEGRATED)[
            "posterior"
        ]
        for arguments, labels in (rotate(part, prior=prior) for part in (found, expected))
    )
    for site in one:
        apart = abs(one[site].mean(("chain", "draw")) - other[site].mean(("chain", "draw")))
        assert (apart < CLOSE * one[site].std(("chain", "draw"))).all(), site


# --- What is refused


def test_columns_are_refused_before_any_row_is_read(parquet, refuses):
    paths, _ = parquet
    table = ibis.duckdb.connect().read_parquet(paths[0])
    paths[0].write_bytes(b"no table any more")
    with pytest.raises(Exception, match=r"part-0\.parquet"):
        of_table(table)
    with refuses(ValueError, "no column 'z'", "'a', 'b', 'c', 'y', 'g'"):
        of_table(table, predictors=["a", "z"])
    with refuses(TypeError, "column 'g' is of type", "must hold numbers"):
        of_table(table, predictors=["a", "g"], group="b")
    with refuses(TypeError, "column 'b' is of type float64", "labels"):
        of_table(table, predictors=["a"], group="b")


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("a", None, "column 'a' is missing in 2 of 600 rows"),
        ("y", None, "column 'y' is missing in 2 of 600 rows"),
        ("g", None, "column 'g' is missing in 2 of 600 rows"),
        ("a", np.nan, "column 'a' is not finite, or too large to be squared, in 2 of 29 groups"),
        ("c", np.inf, "column 'c' is not finite"),
        ("y", -np.inf, "column 'y' is not finite"),
        ("b", 1e300, "column 'b' is not finite, or too large"),
        ("g", "nobody", "'nobody' (2 rows of 1 such labels)"),
    ],
)
def test_no_row_is_dropped_in_silence(column, value, says, tmp_path, refuses):
    columns = {name: list(v) for name, v in as_table(made_up(n=600)).items()}
    levels = sorted(set(columns["g"]))
    columns[column][7] = columns[column][300] = value
    pq.write_table(pa.table(columns), tmp_path / "spoilt.parquet")
    with refuses(ValueError, says):
        of_table(tmp_path / "spoilt.parquet", levels=levels)


def test_a_table_without_rows_is_refused(refuses):
    table = in_duckdb(as_table(made_up())).limit(0)
    with refuses(ValueError, "no rows"):
        of_table(table, levels=["group 0", "group 1"])


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"predictors": "a"}, TypeError, "predictors must be a list"),
        ({"predictors": ["a", "y"]}, ValueError, "different columns"),
        ({"predictors": ["intercept"]}, ValueError, "'intercept'"),
        ({"predictors": [1]}, TypeError, "named by text"),
        ({"levels": "ab"}, TypeError, "levels must be a list"),
        ({"levels": ["a", "a"]}, ValueError, "no label twice"),
        ({"table": 3}, TypeError, "Ibis table or paths of Parquet files, got int"),
        ({"table": []}, TypeError, "Parquet files"),
    ],
)
def test_a_wrong_call_is_refused(options, error, says, refuses):
    table = options.pop("table", in_duckdb(as_table(made_up())))
    with refuses(error, says):
        of_table(table, **options)


def test_without_ibis_it_says_what_to_install(monkeypatch, refuses):
    monkeypatch.setitem(sys.modules, "ibis", None)
    with refuses(ImportError, "ibis-framework[duckdb]"):
        of_table("rows.parquet")


def test_parts_of_different_tables_are_not_added(parquet, refuses):
    paths, table = parquet
    levels = sorted(set(table["g"]))
    one = of_table(paths[1], levels=levels)
    with refuses(ValueError, "differ in outcome: 'y' and 'c'"):
        one + of_table(paths[2], levels=levels, predictors=("a", "b", "y"), outcome="c")
    with refuses(ValueError, "differ in levels", "levels="):
        one + of_table(paths[2], levels=[*levels[::-1], "more"])
    with refuses(ValueError, "differ in levels: 29 and 30"):
        one + of_table(paths[2], levels=[*levels, "more"])
    with pytest.raises(TypeError):
        one + 1


def test_arrays_and_columns_that_cannot_be_added_up_are_refused(refuses):
    arguments = made_up()
    X, y, idx = arguments["X"], arguments["y"], arguments["terms"][0].idx
    named = {"predictors": PREDICTORS, "levels": range(30)}
    with refuses(ValueError, "predictors names 3 columns and X has 4"):
        statistics_from_arrays(X, idx, y, **named)
    with refuses(ValueError, "idx[", "outside 0 .. 28"):
        statistics_from_arrays(X[:, 1:], idx + 1, y, **named | {"levels": range(29)})
    constant = statistics_from_arrays(X[:, :3], idx, y, **named)
    with refuses(ValueError, "column 'a' is constant (1 in all 200 rows)"):
        rotate(constant, prior=arguments["prior"])
    with refuses(ValueError, "of no rows"):
        rotate(scaling.replace(constant, n=0 * constant.n), prior=arguments["prior"])
    with refuses(TypeError, "must be GroupStatistics, got dict"):
        rotate({}, prior=arguments["prior"])
    statistics = added_up(arguments)
    for varying in ("intercept", (), ("z",)):
        with refuses(ValueError, "varying must list some of ['intercept', 'a', 'b', 'c']"):
            rotate(statistics, prior=arguments["prior"], varying=varying)
    with refuses(ValueError, "called 'a group'", "rename"):
        rotate(scaling.replace(statistics, group="a group"), prior=arguments["prior"])
    with refuses(ValueError, "twice"):
        rotate(statistics, prior=arguments["prior"], varying=("a", "a"))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"R": np.ones((9, 30))}, ValueError, "R has 9 lines"),
        ({"pooled": np.ones((3, 2))}, ValueError, "pooled must be square"),
        ({"y": np.ones(60)}, ValueError, "y must have shape (33,)"),
        ({"residual": -1.0}, ValueError, "a sum of squares is not negative"),
        ({"residual": np.nan}, ValueError, "residual must be finite"),
        ({"n": 2.5}, ValueError, "n must be the number of rows"),
        ({"varying": (0, 5)}, ValueError, "different numbers 0 .. 4"),
        ({"varying": (1, 1)}, ValueError, "different numbers 0 .. 4"),
        ({"group": "a group"}, ValueError, "'a group'"),
        ({"correlated": True}, ValueError, "W has one column"),
        ({"prior": None}, TypeError, "prior must be a Prior"),
    ],
)
def test_the_model_refuses_what_it_would_misread(change, error, says, refuses):
    given = rotated("intercepts", made_up()) | change
    with refuses(error, says):
        log_density(multilevel_from_statistics, (), given, {})
