"""The tables are the published ones, changed files are refused, and a wheel carries them."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlm_utils import data
from mlm_utils.data import (
    check_table,
    load_benchmark,
    load_cheese,
    load_published_tables,
    to_categories,
)

ROOT = Path(__file__).parent.parent


def run_python(code, *, cwd, path=None):
    """Run Python code in a process of its own and return what it prints."""
    environment = os.environ | ({} if path is None else {"PYTHONPATH": str(path)})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def other_tables(tmp_path, monkeypatch):
    """Return a function that edits a copy of the cheese file and makes the package read it."""
    (tmp_path / "mlm_utils").mkdir()
    shutil.copytree(ROOT / "data", tmp_path / "data")
    monkeypatch.setattr(data, "__file__", str(tmp_path / "mlm_utils" / "data.py"))

    def edit(old, new, *, expected):
        path = tmp_path / "data" / "cheese.csv"
        text = path.read_bytes()
        assert text.count(old) >= 1
        path.write_bytes(text.replace(old, new, 1))
        if expected:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            monkeypatch.setitem(data.SHA256, "cheese", digest)

    return edit


# --- The cheese table


def test_cheese_has_the_published_rows_in_the_published_order(cheese):
    assert list(cheese.columns) == ["cheese", "rater", "background", "y"]
    assert cheese.shape == (160, 4)
    assert cheese.head(5).values.tolist() == [
        ["A", "rural 1", "rural", 67],
        ["A", "rural 1", "rural", 66],
        ["B", "rural 1", "rural", 51],
        ["B", "rural 1", "rural", 53],
        ["C", "rural 1", "rural", 75],
    ]
    assert cheese.tail(1).values.tolist() == [["D", "urban 10", "urban", 83]]
    assert (cheese["background"].iloc[:80] == "rural").all()
    assert (cheese["background"].iloc[80:] == "urban").all()


def test_cheese_columns_are_ordered_categories_and_integer_ratings(cheese):
    assert list(cheese["cheese"].cat.categories) == ["A", "B", "C", "D"]
    assert list(cheese["background"].cat.categories) == ["rural", "urban"]
    raters = [f"{background} {i}" for background in ("rural", "urban") for i in range(1, 11)]
    assert list(cheese["rater"].cat.categories) == raters
    assert cheese["y"].dtype == np.int64
    assert (cheese["y"].min(), cheese["y"].max()) == (33, 91)


def test_every_rater_scored_every_cheese_twice(cheese):
    tasted = cheese.groupby(["rater", "cheese"], observed=False).size()
    assert len(tasted) == 80
    assert (tasted == 2).all()
    nested = cheese.groupby("rater", observed=False)["background"].nunique()
    assert (nested == 1).all()


def test_cheese_has_the_check_values(cheese):
    assert cheese["y"].mean() == 70.84375
    assert cheese["y"].std() == pytest.approx(11.684827, abs=5e-7)
    by_cheese = cheese.groupby("cheese", observed=False)["y"].mean()
    assert by_cheese.to_dict() == {"A": 74.8, "B": 56.625, "C": 79.625, "D": 72.325}
    by_background = cheese.groupby("background", observed=False)["y"].mean()
    assert by_background.to_dict() == {"rural": 67.15, "urban": 74.5375}


def test_loading_twice_gives_two_tables():
    first = load_cheese()
    first.loc[0, "y"] = 0
    assert load_cheese().loc[0, "y"] == 67


def test_a_changed_file_is_refused(other_tables, refuses):
    other_tables(b"A,1,rural,67", b"A,1,rural,68", expected=False)
    with refuses(ValueError, "cheese.csv was changed", "sha256", "restore it"):
        load_cheese()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"A,1,rural,66", b"A,2,rural,66", ["rater 'rural 1'", "cheese 'A'", "1 times"]),
        (b"A,1,rural,66", b"A,1,rural,66.5", ["column 'y'", "integer", "float64"]),
        (b"A,1,rural,66", b"A,1,rural,", ["column 'y' has no value in row 1", "drop or impute"]),
        (b"A,1,rural,66", b"E,1,rural,66", ["column 'cheese' holds 'E' in row 1", "correct"]),
        (b"A,1,rural,66", b"A,11,rural,66", ["'rural 11' in row 1", "correct"]),
        (b"A,1,rural,66", b"A,1,Rural,66", ["'Rural", "in row 1", "correct"]),
    ],
    ids=["unbalanced", "fraction", "missing", "fifth cheese", "eleventh rater", "capital"],
)
def test_another_design_is_refused(old, new, says, other_tables, refuses):
    other_tables(old, new, expected=True)
    with refuses(ValueError, *says):
        load_cheese()


def test_a_new_rater_is_refused_by_column(other_tables, refuses):
    other_tables(b"A,1,rural,66", b"A,11,rural,66", expected=True)
    with refuses(ValueError, "column 'rater' holds", "in row 1", "correct"):
        load_cheese()


# --- The published tables


def test_published_tables_hold_three_fits():
    table = load_published_tables()
    assert table.shape == (36, 10)
    assert list(table.columns) == [
        *("model", "parameter", "published_as", "mean", "std"),
        *("naive_se", "mcse", "ess", "rhat", "ess_per_sec"),
    ]
    assert table["model"].value_counts(sort=False).to_dict() == {
        "varying_intercept": 9,
        "varying_slope": 12,
        "varying_intercept_slope": 15,
    }
    assert not table.duplicated(["model", "parameter"]).any()
    row = table.set_index(["model", "parameter"]).loc[("varying_intercept", "beta[A]")]
    assert (row["published_as"], row["mean"]) == ("β[1]", 2.92058)


# --- Checks


def table_with(**columns):
    return pd.DataFrame({"y": [1.0, 2.0], "g": ["a", "b"]} | columns)


TWICE = pd.DataFrame([[1.0, 2.0, "a"]], columns=["y", "y", "g"])

BAD_TABLES = {
    "a list": ([1, 2], TypeError, ["table", "DataFrame", "list"]),
    "a dict": ({"y": [1.0]}, TypeError, ["table", "DataFrame", "dict"]),
    "no row": (table_with().iloc[:0], ValueError, ["empty", "(0, 2)", "at least one row"]),
    "no column": (table_with().drop(columns="y"), ValueError, ["'y' occurs 0", "['g']", "add"]),
    "column twice": (TWICE, ValueError, ["'y' occurs 2 times", "rename"]),
    "NaN": (table_with(y=[1.0, np.nan]), ValueError, ["'y' has no value in row 1", "impute"]),
    "None": (table_with(g=["a", None]), ValueError, ["'g' has no value in row 1", "impute"]),
    "NA": (
        table_with(y=pd.array([1, pd.NA], dtype="Int64")),
        ValueError,
        ["'y' has no value in row 1", "drop"],
    ),
    "infinity": (table_with(y=[1.0, np.inf]), ValueError, ["'y' is inf in row 1", "finite"]),
    "-infinity": (table_with(y=[-np.inf, 1.0]), ValueError, ["'y' is -inf in row 0", "finite"]),
    "text": (table_with(y=["1", "2"]), TypeError, ["'y'", "numbers", "'1'", "to_numeric"]),
    "truth": (table_with(y=[True, False]), TypeError, ["'y'", "numbers", "bool", "to_numeric"]),
    "category": (
        table_with(y=pd.Categorical([1, 2])),
        TypeError,
        ["'y'", "numbers", "category", "to_numeric"],
    ),
    "float labels": (table_with(g=[1.0, 2.0]), TypeError, ["'g'", "labels", "1.0", "astype"]),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_refused(case, refuses):
    table, error, says = BAD_TABLES[case]
    with refuses(error, *says):
        check_table(table, numeric=["y"], categorical=["g"])


@pytest.mark.parametrize("labels", [["a", "b"], [1, 2], pd.Categorical(["a", "b"]), [True, False]])
def test_a_good_table_is_accepted(labels):
    check_table(table_with(g=labels), numeric=["y"], categorical=["g"])


def test_columns_not_named_are_not_checked():
    check_table(table_with(z=[np.nan, np.inf]), numeric=["y"], categorical=["g"])


def test_a_benchmark_is_read_and_another_refused(monkeypatch, tmp_path, refuses):
    monkeypatch.setattr("mlm_utils.data._tables", lambda: tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "rows.json").write_text('{"machine": {"cores": 2}}')
    assert load_benchmark("rows") == {"machine": {"cores": 2}}
    with refuses(ValueError, "'columns'", "['rows']"):
        load_benchmark("columns")


def test_to_categories_keeps_rows_and_the_stated_order():
    column = pd.Series(["b", "a", "b"], index=[5, 3, 1], name="g")
    coded = to_categories(column, ["b", "c", "a"])
    assert list(coded.cat.categories) == ["b", "c", "a"]
    assert list(coded.cat.codes) == [0, 2, 0]
    assert list(coded.index) == [5, 3, 1]
    assert column.tolist() == ["b", "a", "b"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["a", "z"], ["column 'g' holds 'z' in row 'second'", "['a', 'b']", "add it"]),
        (["a", None], ["column 'g' holds", "in row 'second'", "['a', 'b']", "correct"]),
        (["a", "A"], ["column 'g' holds 'A' in row 'second'", "correct"]),
    ],
    ids=["unknown", "missing", "capital"],
)
def test_to_categories_refuses_other_values(values, says, refuses):
    column = pd.Series(values, index=["first", "second"], name="g")
    with refuses(ValueError, *says):
        to_categories(column, ["a", "b"])


def test_a_repeated_row_label_does_not_blur_the_message(refuses):
    column = pd.Series(["a", "z"], index=[7, 7], name="g")
    with refuses(ValueError, "column 'g' holds 'z' in row 7,"):
        to_categories(column, ["a", "b"])
    table = pd.DataFrame({"y": [1.0, np.inf]}, index=[7, 7])
    with refuses(ValueError, "column 'y' is inf in row 7:"):
        check_table(table, numeric=["y"])


# --- The package around the tables


def test_reading_tables_does_not_start_jax(tmp_path):
    printed = run_python(
        "import sys, mlm_utils.data as d; d.load_cheese(); print('jax' in sys.modules)",
        cwd=tmp_path,
    )
    assert printed == "False"


def test_a_wheel_carries_the_tables(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # all that installing a pure wheel does
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    printed = run_python(
        "import mlm_utils, mlm_utils.data as d; print(mlm_utils.__file__); "
        "print(len(d.load_cheese()), len(d.load_published_tables()))",
        cwd=elsewhere,
        path=site,
    )
    assert printed.splitlines() == [str(site / "mlm_utils" / "__init__.py"), "160 36"]
