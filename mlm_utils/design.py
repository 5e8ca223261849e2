"""From a table to the arrays and labels a model takes.

A :class:`Design` keeps the two together: the arrays go to the model, the labels to the
posterior, so that a summary says ``alpha_j[rural]`` and not ``alpha_j[0]``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType

import jax
import numpy as np
import pandas as pd

from mlm_utils.data import check_table, to_categories


@dataclass(frozen=True)
class Design:
    """Arrays for a model and the labels of their axes.

    Attributes
    ----------
    X : numpy.ndarray
        Dummies of the predictor, float64, shape ``(n, k)``: a column a level, none left out.
    idx : numpy.ndarray
        Group of each row, int32 codes from 0, shape ``(n,)``.
    y : numpy.ndarray
        Outcome, float64, shape ``(n,)``.
    n_groups : int
        Number of groups, empty ones included.
    y_mean, y_sd : float
        Mean and standard deviation (divisor ``n - 1``) of the outcome; the published priors
        are scaled by them.
    labels : mapping
        For each dimension of the models (``"predictor"``, ``"coefficient"``,
        ``"coefficient_2"``, ``"group"``, ``"row"``): its name in the posterior and the labels
        along it.
    """

    X: np.ndarray
    idx: np.ndarray
    y: np.ndarray
    n_groups: int
    y_mean: float
    y_sd: float
    labels: Mapping[str, tuple[str, tuple]]

    @property
    def arguments(self) -> dict:
        """The keyword arguments a model takes."""
        names = ("X", "idx", "y", "n_groups", "y_mean", "y_sd")
        return {name: getattr(self, name) for name in names}


def design(table: pd.DataFrame, *, outcome: str, predictor: str, group: str) -> Design:
    """Turn three columns of a table into a :class:`Design`.

    Parameters
    ----------
    table : pandas.DataFrame
        One row an observation; any table of that form will do.
    outcome : str
        Column of finite numbers that are not all equal.
    predictor : str
        Column of labels; each level becomes a dummy.
    group : str
        Column of labels; each level becomes a group.

    Returns
    -------
    Design
        Rows in the order of the table. Categories keep their order and their empty levels;
        other labels are sorted.

    Raises
    ------
    TypeError, ValueError
        If a column is absent, of the wrong type, missing a value, infinite or constant, or
        if two of the three names are the same.

    Examples
    --------
    >>> from mlm_utils.data import load_cheese
    >>> rows = design(load_cheese(), outcome="y", predictor="cheese", group="background")
    >>> rows.X.shape, rows.n_groups, rows.labels["group"]
    ((160, 4), 2, ('background', ('rural', 'urban')))
    """
    if len({outcome, predictor, group}) < 3:
        raise ValueError(
            f"outcome={outcome!r}, predictor={predictor!r} and group={group!r} must be three "
            "different columns"
        )
    check_table(table, numeric=[outcome], categorical=[predictor, group])
    y = table[outcome].to_numpy(dtype=np.float64)
    if np.all(y == y[0]):
        raise ValueError(
            f"column {outcome!r} is constant ({y[0]:g} in all {len(y)} rows): there is nothing to "
            "explain, and the priors, scaled by its standard deviation, would collapse"
        )
    X, predictor_levels = dummies(table[predictor])
    idx, group_levels = group_codes(table[group])
    return Design(
        X=X,
        idx=idx,
        y=y,
        n_groups=len(group_levels),
        y_mean=float(y.mean()),
        y_sd=float(y.std(ddof=1)),
        labels=MappingProxyType(
            {
                "predictor": (predictor, predictor_levels),
                "coefficient": ("coefficient", ("intercept", *predictor_levels)),
                "coefficient_2": ("coefficient_2", ("intercept", *predictor_levels)),
                "group": (group, group_levels),
                "row": ("row", tuple(range(len(y)))),
            }
        ),
    )


def group_codes(column: pd.Series, levels: Sequence | None = None) -> tuple[np.ndarray, tuple]:
    """Code the groups of a column as integers from 0.

    Parameters
    ----------
    column : pandas.Series
        Labels without missing values.
    levels : sequence, optional
        The groups in order. Default: the categories of the column, else its sorted values.

    Returns
    -------
    idx : numpy.ndarray
        int32 codes, shape ``(n,)``.
    labels : tuple
        The groups, so that ``labels[idx[i]]`` is the label of row ``i``.

    Raises
    ------
    ValueError
        If a value is missing or outside `levels`, or there are fewer than two groups.
    """
    check_table(column.to_frame(column.name), categorical=[column.name])
    if levels is not None:
        column = to_categories(column, levels)
    column = column.astype("category")
    labels = tuple(column.cat.categories)
    if len(labels) < 2:
        raise ValueError(
            f"column {column.name!r} has one level ({labels[0]!r}): groups can be compared only "
            "where there are at least two"
        )
    return column.cat.codes.to_numpy(dtype=np.int32), labels


def dummies(column: pd.Series, levels: Sequence | None = None) -> tuple[np.ndarray, tuple]:
    """Spread a column of labels over one 0/1 column a level, leaving no level out.

    Parameters
    ----------
    column : pandas.Series
        Labels without missing values.
    levels : sequence, optional
        The levels in order. Default: the categories of the column, else its sorted values.

    Returns
    -------
    X : numpy.ndarray
        float64, shape ``(n, k)``; each row holds one 1.
    labels : tuple
        The ``k`` levels, in the order of the columns.

    Raises
    ------
    ValueError
        As :func:`group_codes`.
    """
    codes, labels = group_codes(column, levels)
    return np.eye(len(labels))[codes], labels


def check_arrays(X, idx, y=None, *, n_groups, y_mean, y_sd) -> None:
    """Refuse arrays that JAX would clamp, broadcast or cast in silence.

    Every model with predictors calls this first. Inside a compiled function the values are not
    known, so there only shapes and types are checked.

    Parameters
    ----------
    X : array
        Predictors, numbers, shape ``(n, k)`` with ``n, k >= 1``, finite.
    idx : array
        Group of each row, integers in ``0 .. n_groups - 1``, shape ``(n,)``.
    y : array, optional
        Outcome, numbers, shape ``(n,)``, finite; None to draw it from the model.
    n_groups : int
        Number of groups, at least 2.
    y_mean, y_sd : float
        Centre and scale of the priors, finite; ``y_sd > 0``.

    Raises
    ------
    TypeError
        If an array or number has the wrong type.
    ValueError
        If a shape or a value is out of bounds.
    """
    check_number("y_mean", y_mean)
    check_number("y_sd", y_sd, positive=True)
    _check_array("X", X, ndim=2)
    check_groups(idx, y, n_groups=n_groups, n=X.shape[0])


def check_groups(idx, y=None, *, n_groups, n=None) -> None:
    """Refuse group codes, or an outcome beside them, that JAX would clamp or broadcast.

    Parameters
    ----------
    idx : array
        Group of each row, integers in ``0 .. n_groups - 1``, shape ``(n,)``.
    y : array, optional
        Outcome, numbers, shape ``(n,)``, finite.
    n_groups : int
        Number of groups, at least 2.
    n : int, optional
        Number of rows. Default: the length of `idx`.

    Raises
    ------
    TypeError, ValueError
        As :func:`check_arrays`.
    """
    if isinstance(n_groups, bool) or not isinstance(n_groups, Integral):
        raise TypeError(f"n_groups must be an integer, got {n_groups!r}: use len(labels)")
    if n_groups < 2:
        raise ValueError(
            f"n_groups must be at least 2, got {n_groups}: one group leaves its scale unlearned"
        )
    _check_array("idx", idx, ndim=1, n=n, kind="integers")
    if _is_known(idx) and (np.min(idx) < 0 or np.max(idx) >= n_groups):
        row = int(np.argmax((np.asarray(idx) < 0) | (np.asarray(idx) >= n_groups)))
        raise ValueError(
            f"idx[{row}] is {int(idx[row])}, outside 0 .. {n_groups - 1} (n_groups={n_groups}): "
            "number the groups from 0, or raise n_groups"
        )
    if y is not None:
        _check_array("y", y, ndim=1, n=idx.shape[0])


def check_errors(se, y=None) -> None:
    """Refuse known standard errors, or estimates beside them, that a model would misread.

    Parameters
    ----------
    se : array
        Standard errors, positive finite numbers, shape ``(n,)`` with ``n >= 2``.
    y : array, optional
        Estimates, numbers, shape ``(n,)``, finite.

    Raises
    ------
    TypeError, ValueError
        As :func:`check_arrays`.
    """
    _check_array("se", se, ndim=1)
    if se.shape[0] < 2:
        raise ValueError(f"se must hold at least two standard errors, got shape {se.shape}")
    if _is_known(se) and np.min(se) <= 0:
        row = int(np.argmin(se))
        raise ValueError(f"se[{row}] is {se[row]}: a standard error must be positive")
    if y is not None:
        _check_array("y", y, ndim=1, n=se.shape[0])


def check_number(name, value, *, positive=False) -> None:
    """Refuse a scalar that is not a finite (positive) number.

    Parameters
    ----------
    name : str
        What the caller calls it.
    value : float
        The number.
    positive : bool
        Whether zero and negative numbers are refused as well.

    Raises
    ------
    TypeError, ValueError
        If it is not a number, not finite or not positive.
    """
    if isinstance(value, bool) or not isinstance(value, Real | jax.Array) or np.ndim(value):
        raise TypeError(f"{name} must be a number, got {value!r}: use float(...)")
    if _is_known(value) and not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}: check where it was computed")
    if positive and _is_known(value) and value <= 0:
        raise ValueError(f"{name} must be positive, got {value}: it is a scale, in units of y")


def _check_array(name, value, *, ndim, n=None, kind="numbers"):
    shape = "(n, k)" if ndim == 2 else "(n,)" if n is None else f"({n},)"
    if not isinstance(value, np.ndarray | jax.Array):
        raise TypeError(
            f"{name} must be an array of shape {shape}, got {type(value).__name__}: "
            "convert it with numpy.asarray"
        )
    allowed = "iu" if kind == "integers" else "iuf"
    if value.dtype.kind not in allowed:
        raise TypeError(
            f"{name} must hold {kind}, got dtype {value.dtype} (first value "
            f"{value.ravel()[:1]}): convert it before calling the model"
        )
    if value.ndim != ndim or 0 in value.shape or (n is not None and value.shape[0] != n):
        raise ValueError(
            f"{name} must have shape {shape} and at least one entry, got shape {value.shape}: "
            "JAX would broadcast it in silence, so reshape it first"
        )
    if _is_known(value) and not np.all(np.isfinite(value)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(np.asarray(value)))[0])
        raise ValueError(
            f"{name}{list(where)} is {value[where]}: drop or impute missing rows, "
            "and make every number finite"
        )


def _is_known(value) -> bool:
    """Whether the numbers can be looked at: JAX is not tracing, and they are in one place."""
    return not isinstance(value, jax.core.Tracer) and not _is_spread(value)


def _is_spread(value) -> bool:
    """Whether an array lies on several devices; `mlm_utils.sharding` looked at its numbers."""
    return isinstance(value, jax.Array) and len(value.sharding.device_set) > 1
