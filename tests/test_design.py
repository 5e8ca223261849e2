"""From table to arrays: right codes under right labels, and bad inputs refused by name."""

from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mlm_utils.design import check_arrays, design, dummies, group_codes

CHEESE = {"outcome": "y", "predictor": "cheese", "group": "background"}

# --- A good table


def test_design_of_cheese_has_the_arrays_of_the_docstring(rows, cheese):
    assert (rows.X.shape, rows.X.dtype) == ((160, 4), np.float64)
    assert (rows.idx.shape, rows.idx.dtype) == ((160,), np.int32)
    assert (rows.y.shape, rows.y.dtype) == ((160,), np.float64)
    assert rows.n_groups == 2
    assert rows.y_mean == 70.84375
    assert rows.y_sd == pytest.approx(cheese["y"].std(), rel=1e-14)
    np.testing.assert_array_equal(rows.y, cheese["y"])


def test_labels_name_every_code_of_every_row(rows, cheese):
    dimension, levels = rows.labels["predictor"]
    assert (dimension, levels) == ("cheese", ("A", "B", "C", "D"))
    assert [levels[k] for k in rows.X.argmax(axis=1)] == cheese["cheese"].tolist()
    np.testing.assert_array_equal(rows.X.sum(axis=1), 1)
    assert set(np.unique(rows.X)) == {0.0, 1.0}
    dimension, groups = rows.labels["group"]
    assert (dimension, groups) == ("background", ("rural", "urban"))
    assert [groups[j] for j in rows.idx] == cheese["background"].tolist()
    assert rows.labels["row"] == ("row", tuple(range(160)))
    coefficients = ("intercept", "A", "B", "C", "D")
    assert rows.labels["coefficient"] == ("coefficient", coefficients)
    assert rows.labels["coefficient_2"] == ("coefficient_2", coefficients)
    assert set(rows.labels) == {"predictor", "coefficient", "coefficient_2", "group", "row"}


def test_arguments_are_what_a_model_takes(rows):
    assert set(rows.arguments) == {"X", "idx", "y", "n_groups", "y_mean", "y_sd"}
    assert rows.arguments["X"] is rows.X
    check_arrays(**rows.arguments)


def test_a_design_cannot_be_changed(rows):
    with pytest.raises(AttributeError):
        rows.n_groups = 3
    assert isinstance(rows.labels, MappingProxyType)


def test_another_table_in_any_order_with_any_index():
    table = pd.DataFrame(
        {"size": [3, 1, 2], "kind": ["z", "x", "z"], "site": [20, 10, 10]}, index=[9, 9, 4]
    )
    rows = design(table, outcome="size", predictor="kind", group="site")
    assert rows.y.tolist() == [3.0, 1.0, 2.0]
    assert rows.X.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert rows.idx.tolist() == [1, 0, 0]
    assert rows.labels["group"] == ("site", (10, 20))
    assert (rows.y_mean, rows.y_sd) == (2.0, 1.0)


def test_categories_keep_their_order_and_their_empty_levels():
    column = pd.Series(pd.Categorical(["b", "a"], categories=["b", "c", "a"]), name="g")
    idx, labels = group_codes(column)
    assert (idx.tolist(), labels) == ([0, 2], ("b", "c", "a"))
    X, labels = dummies(column)
    assert (X.tolist(), labels) == ([[1, 0, 0], [0, 0, 1]], ("b", "c", "a"))
    table = pd.DataFrame({"y": [1, 2], "x": ["u", "v"], "g": column})
    assert design(table, outcome="y", predictor="x", group="g").n_groups == 3


def test_other_labels_are_sorted_and_stated_levels_win():
    column = pd.Series(["b", "a", "b"], name="g")
    assert group_codes(column)[1] == ("a", "b")
    idx, labels = group_codes(column, ["c", "b", "a"])
    assert (idx.tolist(), idx.dtype, labels) == ([1, 2, 1], np.int32, ("c", "b", "a"))


def test_a_column_without_a_name_is_coded():
    assert group_codes(pd.Series(["b", "a"]))[0].tolist() == [1, 0]


# --- Bad tables


def spoil(table, column, values):
    return table.assign(**{column: values})


BAD_DESIGNS = {
    "not a table": (lambda t: t.to_dict(), CHEESE, TypeError, ["table", "DataFrame", "dict"]),
    "no row": (lambda t: t.iloc[:0], CHEESE, ValueError, ["empty", "(0, 4)", "at least one row"]),
    "no outcome": (
        lambda t: t,
        CHEESE | {"outcome": "rating"},
        ValueError,
        ["'rating' occurs 0", "rename or add"],
    ),
    "no group": (
        lambda t: t.drop(columns="background"),
        CHEESE,
        ValueError,
        ["'background' occurs 0", "rename or add"],
    ),
    "column twice": (
        lambda t: pd.concat([t, t["y"]], axis=1),
        CHEESE,
        ValueError,
        ["'y' occurs 2 times", "rename"],
    ),
    "one column for two": (
        lambda t: t,
        CHEESE | {"group": "cheese"},
        ValueError,
        ["predictor='cheese'", "group='cheese'", "different columns"],
    ),
    "outcome as group": (
        lambda t: t,
        CHEESE | {"group": "y"},
        ValueError,
        ["outcome='y'", "group='y'", "different columns"],
    ),
    "constant outcome": (
        lambda t: spoil(t, "y", 70),
        CHEESE,
        ValueError,
        ["'y' is constant", "70", "160 rows", "standard deviation"],
    ),
    "one row": (lambda t: t.iloc[:1], CHEESE, ValueError, ["'y' is constant", "67", "1 rows"]),
    "missing outcome": (
        lambda t: spoil(t, "y", t["y"].where(t.index != 7)),
        CHEESE,
        ValueError,
        ["'y' has no value in row 7", "drop or impute"],
    ),
    "missing group": (
        lambda t: spoil(t, "background", t["background"].where(t.index != 7)),
        CHEESE,
        ValueError,
        ["'background' has no value in row 7", "drop or impute"],
    ),
    "infinite outcome": (
        lambda t: spoil(t, "y", t["y"].where(t.index != 7, np.inf)),
        CHEESE,
        ValueError,
        ["'y' is inf in row 7", "finite"],
    ),
    "text outcome": (
        lambda t: spoil(t, "y", t["y"].astype(str)),
        CHEESE,
        TypeError,
        ["'y'", "numbers", "'67'", "to_numeric"],
    ),
    "truth outcome": (
        lambda t: spoil(t, "y", t["y"] > 70),
        CHEESE,
        TypeError,
        ["'y'", "numbers", "bool", "to_numeric"],
    ),
    "float group": (
        lambda t: spoil(t, "background", t["background"].cat.codes + 0.5),
        CHEESE,
        TypeError,
        ["'background'", "labels", "0.5", "astype"],
    ),
    "one group": (
        lambda t: spoil(t, "background", "rural"),
        CHEESE,
        ValueError,
        ["'background'", "one level ('rural')", "at least two"],
    ),
    "one predictor level": (
        lambda t: spoil(t, "cheese", "A"),
        CHEESE,
        ValueError,
        ["'cheese'", "one level ('A')", "at least two"],
    ),
}


@pytest.mark.parametrize("case", BAD_DESIGNS)
def test_a_bad_table_makes_no_design(case, cheese, refuses):
    change, columns, error, says = BAD_DESIGNS[case]
    with refuses(error, *says):
        design(change(cheese), **columns)


@pytest.mark.parametrize("code", [group_codes, dummies])
def test_a_label_outside_the_levels_is_refused(code, refuses):
    with refuses(ValueError, "column 'g' holds 'z' in row 1", "['a', 'b']", "add it"):
        code(pd.Series(["a", "z"], name="g"), ["a", "b"])


# --- Bad arrays


def replace_one(array, value):
    array = array.copy()
    array[3] = value
    return array


BAD_ARRAYS = {
    "X 1-d": ("X", lambda r: r.X[:, 0], ValueError, ["X", "(n, k)", "(160,)", "reshape"]),
    "X without columns": ("X", lambda r: r.X[:, :0], ValueError, ["X", "(160, 0)", "reshape"]),
    "X a list": ("X", lambda r: r.X.tolist(), TypeError, ["X", "list", "numpy.asarray"]),
    "X a table": ("X", lambda r: pd.DataFrame(r.X), TypeError, ["X", "DataFrame", "asarray"]),
    "X of truths": ("X", lambda r: r.X == 1, TypeError, ["X", "numbers", "bool", "convert"]),
    "X with NaN": (
        "X",
        lambda r: replace_one(r.X, np.nan),
        ValueError,
        ["X[3, 0] is nan", "drop or impute"],
    ),
    "idx too high": (
        "idx",
        lambda r: r.idx + 1,
        ValueError,
        ["idx[80] is 2", "0 .. 1", "n_groups=2", "number the groups from 0"],
    ),
    "idx negative": (
        "idx",
        lambda r: replace_one(r.idx, -1),
        ValueError,
        ["idx[3] is -1", "0 .. 1", "number the groups from 0"],
    ),
    "idx in JAX too high": (
        "idx",
        lambda r: jnp.asarray(r.idx + 1),
        ValueError,
        ["idx[80] is 2", "raise n_groups"],
    ),
    "idx of floats": (
        "idx",
        lambda r: r.idx.astype(float),
        TypeError,
        ["idx", "integers", "float64", "convert"],
    ),
    "idx of truths": (
        "idx",
        lambda r: r.idx == 1,
        TypeError,
        ["idx", "integers", "bool", "convert"],
    ),
    "idx a column": ("idx", lambda r: r.idx[:, None], ValueError, ["idx", "(160, 1)", "reshape"]),
    "idx too short": ("idx", lambda r: r.idx[:9], ValueError, ["idx", "(160,)", "(9,)"]),
    "idx a list": ("idx", lambda r: r.idx.tolist(), TypeError, ["idx", "list", "asarray"]),
    "y a column": ("y", lambda r: r.y[:, None], ValueError, ["y", "(160,)", "(160, 1)", "reshape"]),
    "y too short": ("y", lambda r: r.y[:-1], ValueError, ["y", "(160,)", "(159,)", "reshape"]),
    "y one number": ("y", lambda r: r.y[:1], ValueError, ["y", "(160,)", "(1,)", "reshape"]),
    "y a list": ("y", lambda r: r.y.tolist(), TypeError, ["y", "list", "numpy.asarray"]),
    "y of text": ("y", lambda r: r.y.astype(str), TypeError, ["y", "numbers", "67.0", "convert"]),
    "y of truths": ("y", lambda r: r.y > 70, TypeError, ["y", "numbers", "bool", "convert"]),
    "y with NaN": (
        "y",
        lambda r: replace_one(r.y, np.nan),
        ValueError,
        ["y[3] is nan", "drop or impute"],
    ),
    "y infinite": (
        "y",
        lambda r: replace_one(r.y, np.inf),
        ValueError,
        ["y[3] is inf", "finite"],
    ),
    "one group": ("n_groups", lambda r: 1, ValueError, ["n_groups", "at least 2", "got 1"]),
    "groups a float": ("n_groups", lambda r: 2.0, TypeError, ["n_groups", "2.0", "len(labels)"]),
    "groups a truth": ("n_groups", lambda r: True, TypeError, ["n_groups", "True", "len(labels)"]),
    "y_sd zero": ("y_sd", lambda r: 0.0, ValueError, ["y_sd", "positive", "0.0", "scale"]),
    "y_sd negative": ("y_sd", lambda r: -1.0, ValueError, ["y_sd", "positive", "-1.0", "scale"]),
    "y_sd NaN": ("y_sd", lambda r: np.nan, ValueError, ["y_sd", "finite", "nan", "check"]),
    "y_sd a truth": ("y_sd", lambda r: True, TypeError, ["y_sd", "number", "True", "float("]),
    "y_mean infinite": ("y_mean", lambda r: np.inf, ValueError, ["y_mean", "finite", "inf"]),
    "y_mean text": ("y_mean", lambda r: "70", TypeError, ["y_mean", "number", "'70'", "float("]),
    "y_mean missing": ("y_mean", lambda r: None, TypeError, ["y_mean", "number", "None"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_a_bad_array_is_refused(case, rows, refuses):
    name, spoiled, error, says = BAD_ARRAYS[case]
    with refuses(error, *says):
        check_arrays(**(rows.arguments | {name: spoiled(rows)}))


def test_jax_arrays_other_integers_and_no_outcome_are_accepted(rows):
    check_arrays(
        jnp.asarray(rows.X),
        rows.idx.astype(np.uint8),
        n_groups=np.int64(2),
        y_mean=np.float64(rows.y_mean),
        y_sd=jnp.asarray(rows.y_sd),
    )


def test_inside_a_compiled_function_shapes_and_types_are_checked(rows, refuses):
    @jax.jit
    def check(idx, y):
        check_arrays(rows.X, idx, y, n_groups=2, y_mean=70.0, y_sd=10.0)
        return 0

    assert check(rows.idx, rows.y) == 0
    with refuses(ValueError, "y", "(160,)", "(160, 1)"):
        check(rows.idx, rows.y[:, None])
    with refuses(TypeError, "idx", "integers", "float64"):
        check(rows.idx.astype(float), rows.y)
