r"""A million rows as a few sums: a Gaussian multilevel model fitted from statistics of its groups.

With one grouping factor, the rows of a group enter a Gaussian likelihood through their number,
their means and their centred sums of squares and products alone. These are gathered once, where
the rows are: from arrays, or by one Ibis expression from a table larger than memory, part by part
if need be. What a gradient costs afterwards depends on the number of groups, not on that of rows.

The sums of a group become rows again, at most :math:`k` of them for :math:`k` coefficients. Where
:math:`V_j` holds the rows' columns (constant, predictors) and :math:`y_j` their outcomes, let
:math:`R_j` be the triangular factor with

.. math::

    \begin{pmatrix} R_j & r_j \\ 0 & e_j \end{pmatrix}^\top
    \begin{pmatrix} R_j & r_j \\ 0 & e_j \end{pmatrix}
    = \begin{pmatrix} V_j & y_j \end{pmatrix}^\top \begin{pmatrix} V_j & y_j \end{pmatrix},
    \qquad \text{so that} \qquad
    \lVert y_j - V_j c \rVert^2 = \lVert r_j - R_j c \rVert^2 + e_j^2

for all coefficients :math:`c`. :math:`(R_j, r_j)` are rows like any other: rotated ones. With the
coefficients that vary over groups first, say :math:`q` of them, only the first :math:`q` rows tell
one group from another. The others involve what all groups share, so those of all groups are rotated
once more, into :math:`k - q` pooled rows. The sum of squares :math:`e^2` that is left tells of the
residual sd alone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from mlm_utils.design import _check_array, _is_known, check_arrays, check_number
from mlm_utils.models import group_effects, scale_distribution
from mlm_utils.terms import Prior, Term, check_multilevel


@dataclass(frozen=True)
class GroupStatistics:
    """Means and centred sums of squares and products of the rows of each group.

    Statistics of two parts of a table, of the same columns and levels, are added with ``+``, and
    are those of the whole up to rounding.

    Attributes
    ----------
    outcome : str
        Column of the outcome.
    predictors : tuple of str
        Columns of the ``p`` predictors.
    group : str
        Column of the groups.
    levels : tuple
        Label of each group; groups without rows are among them.
    n : numpy.ndarray
        Rows of each group, int64, shape ``(n_groups,)``.
    mean : numpy.ndarray
        Mean of each predictor and, last, of the outcome, shape ``(n_groups, p + 1)``; 0 without
        rows.
    S : numpy.ndarray
        Sums of products of deviations from these means, shape ``(n_groups, p + 1, p + 1)``.
    """

    outcome: str
    predictors: tuple[str, ...]
    group: str
    levels: tuple
    n: np.ndarray
    mean: np.ndarray
    S: np.ndarray

    def __add__(self, other: "GroupStatistics") -> "GroupStatistics":
        """Add the statistics of other rows (Chan, Golub and LeVeque 1983)."""
        if not isinstance(other, GroupStatistics):
            return NotImplemented
        for name in ("outcome", "predictors", "group", "levels"):
            one, two = getattr(self, name), getattr(other, name)
            if one != two:
                raise ValueError(
                    f"the parts differ in {name}: {_differ(one, two)}; give the same columns and "
                    "levels= to each part"
                )
        n = self.n + other.n
        share = (other.n / np.maximum(n, 1))[:, None]
        apart = other.mean - self.mean
        between = (self.n[:, None] * share * apart)[:, :, None] * apart[:, None, :]
        return replace(self, n=n, mean=self.mean + share * apart, S=self.S + other.S + between)


def statistics_from_arrays(
    X,
    idx,
    y,
    *,
    predictors: Sequence[str],
    levels: Sequence,
    outcome: str = "y",
    group: str = "group",
) -> GroupStatistics:
    """Gather the statistics of rows that are in memory.

    Parameters
    ----------
    X : array
        Predictors without a constant column, numbers, shape ``(n, p)``, finite.
    idx : array
        Group of each row, integers ``0 .. len(levels) - 1``, shape ``(n,)``.
    y : array
        Outcome, numbers, shape ``(n,)``, finite.
    predictors : sequence of str
        Names of the columns of `X`.
    levels : sequence
        Labels of the groups, at least two, empty ones included.
    outcome, group : str
        What outcome and groups are called.

    Returns
    -------
    GroupStatistics

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range.
    """
    names = _check_names(outcome, predictors, group)
    levels = _check_levels(levels)
    check_arrays(X, idx, y, n_groups=len(levels), y_mean=0.0, y_sd=1.0)
    if len(names) != X.shape[1] + 1:
        raise ValueError(f"predictors names {len(names) - 1} columns and X has {X.shape[1]}")
    columns = np.column_stack([X, y]).astype(np.float64)

    def add_up(values):
        return np.bincount(idx, values, minlength=len(levels))

    n = np.bincount(idx, minlength=len(levels))
    mean = np.stack([add_up(c) for c in columns.T], axis=1) / np.maximum(n, 1)[:, None]
    deviations = (columns - mean[idx]).T
    S = np.stack([[add_up(a * b) for b in deviations] for a in deviations])
    return GroupStatistics(outcome, names[:-1], group, levels, n, mean, np.moveaxis(S, 2, 0))


def statistics_from_table(
    table: Any,
    *,
    outcome: str,
    predictors: Sequence[str],
    group: str,
    levels: Sequence | None = None,
) -> GroupStatistics:
    """Gather the statistics of a table where it is, in one scan, whatever its size.

    Parameters
    ----------
    table : ibis.Table, str, path or list of these
        A table of any Ibis backend that has covariances; or Parquet files (a pattern will do),
        which DuckDB reads without holding them in memory.
    outcome : str
        Column of numbers.
    predictors : sequence of str
        Columns of numbers. Compute products, powers and dummies in `table`.
    group : str
        Column of labels: text or integers.
    levels : sequence, optional
        The groups in order, empty ones included. Needed for one part of a larger table. Default:
        those that occur, sorted.

    Returns
    -------
    GroupStatistics

    Raises
    ------
    ImportError
        If Ibis is not installed.
    TypeError, ValueError
        Before any row is read, if a column is absent or of the wrong type. After the scan, if a
        value is missing or not finite, or a label is not among `levels`: no row is dropped.

    Notes
    -----
    Variances and covariances are computed group by group by the backend, around the group's own
    means; so an outcome far from zero costs no digits.
    """
    names = _check_names(outcome, predictors, group)
    levels = None if levels is None else _check_levels(levels)
    table = _open(table)
    _check_schema(table, names, group)
    found = _expression(table, names, group).to_pyarrow()
    labels = found["label"].to_pylist()
    found = {name: found[name].to_numpy() for name in found.column_names if name != "label"}
    _check_found(labels, found, names, group)
    levels = _check_levels(sorted(labels)) if levels is None else levels
    place = {label: j for j, label in enumerate(levels)}
    if unknown := [k for k, label in enumerate(labels) if label not in place]:
        raise ValueError(
            f"column {group!r} holds {labels[unknown[0]]!r} ({found['n'][unknown].sum()} rows of "
            f"{len(unknown)} such labels), which is not among the {len(levels)} of levels=, the "
            f"first being {levels[0]!r}: name it, or drop these rows in the table"
        )
    where = [place[label] for label in labels]
    size = len(names)
    n, mean, S = (np.zeros((len(levels), *shape)) for shape in ((), (size,), (size, size)))
    n[where] = found["n"]
    for a in range(size):
        mean[where, a] = found[f"mean_{a}"]
        for b in range(a, size):
            S[where, a, b] = S[where, b, a] = found[f"cov_{a}_{b}"] * found["n"]
    return GroupStatistics(outcome, names[:-1], group, levels, n.astype(np.int64), mean, S)


def rotate(
    statistics: GroupStatistics,
    *,
    prior: Prior,
    varying: Sequence[str] = ("intercept",),
    correlated: bool = False,
    centred: bool = False,
) -> tuple[dict, dict]:
    """Turn statistics into the arguments of :func:`multilevel_from_statistics` and its labels.

    Parameters
    ----------
    statistics : GroupStatistics
        Of all rows.
    prior : Prior
        Priors of the intercept and the predictors, in this order, of the term named after the
        column of groups, and of the residual sd.
    varying : sequence of str
        Whose coefficients vary over groups: ``"intercept"`` or predictors.
    correlated, centred : bool
        As in :class:`mlm_utils.terms.Term`.

    Returns
    -------
    arguments, labels : dict
        For :func:`mlm_utils.sampling.fit`.

    Raises
    ------
    TypeError, ValueError
        If there are no rows, a column is constant, or an argument has the wrong type or range.
    """
    if not isinstance(statistics, GroupStatistics):
        raise TypeError(f"statistics must be GroupStatistics, got {type(statistics).__name__}")
    coefficients = ("intercept", *statistics.predictors)
    if isinstance(varying, str) or not varying or not set(varying) <= set(coefficients):
        raise ValueError(f"varying must list some of {list(coefficients)}, got {varying!r}")
    if len(set(varying)) != len(varying):
        raise ValueError(f"varying names a coefficient twice: {varying!r}")
    if not statistics.group.isidentifier():
        raise ValueError(
            f"the groups are called {statistics.group!r}, and sites are named after them: rename "
            "the column, to letters, digits and underscores"
        )
    _check_spread(statistics)
    n, size = statistics.n, len(coefficients)
    place = tuple(coefficients.index(name) for name in varying)
    # First the row of the means, then those of the deviations: together a triangular factor.
    factor = np.zeros((len(n), size + 1, size + 1))
    factor[:, 0, 0] = np.sqrt(n)
    factor[:, 0, 1:] = np.sqrt(n)[:, None] * statistics.mean
    factor[:, 1:, 1:] = _root(statistics.S)
    q = len(place)
    factor = np.linalg.qr(factor[:, :, [*_varying_first(place, size), size]], mode="r")
    pooled = np.linalg.qr(factor[:, q:, q:].reshape(-1, size + 1 - q), mode="r")
    pooled = np.pad(pooled, [(0, size + 1 - q - len(pooled)), (0, 0)])
    arguments = {
        "R": np.ascontiguousarray(factor[:, *np.triu_indices(q, m=size)].T),
        "pooled": pooled[:-1, :-1],
        "y": np.append(factor[:, :q, size].T, pooled[:-1, -1]),
        "residual": float(pooled[-1, -1] ** 2),
        "n": int(n.sum()),
        "group": statistics.group,
        "varying": place,
        "correlated": correlated,
        "centred": centred,
        "prior": prior,
    }
    group, effects = statistics.group, tuple(varying)
    labels = {"coefficient": coefficients, group: statistics.levels}
    labels |= {f"{group}_effect": effects, f"{group}_effect_2": effects}
    return arguments, {name: (name, values) for name, values in labels.items()}


def multilevel_from_statistics(
    R, pooled, y=None, *, residual, n, group, varying, prior, correlated=False, centred=False
):
    r"""State the general multilevel model with one term, for rows that were added up.

    .. math::

        \beta, \sigma, \tau, \Omega, z, b &\sim \text{as in } \texttt{multilevel} \\
        c_j &= \beta + \text{the effects } b_j \text{ of the coefficients that vary} \\
        r_j &\sim \text{Normal}(R_j c_j, \sigma) \\
        r &\sim \text{Normal}(R \beta, \sigma) \\
        e^2 &\text{ is the sum of the other } n - q J - (k - q)
            \text{ squares of Normal}(0, \sigma)

    Its density is that of :func:`mlm_utils.models.multilevel` at the rows themselves.

    Parameters
    ----------
    R : array
        The first ``q`` rows of the upper triangles :math:`R_j`, whose columns are the ``q``
        coefficients that vary and then the others, row after row without what is zero; shape
        ``(q k - q (q - 1) / 2, n_groups)``.
    pooled : array
        Upper triangle :math:`R` of the ``k - q`` coefficients that do not vary, shape
        ``(k - q, k - q)``.
    y : array, optional
        The rotated outcome, :math:`r_{mj}` at place ``m * n_groups + j``, and then the pooled rows,
        shape ``(q * n_groups + k - q,)``; None to draw it.
    residual : float
        Sum of the other squares :math:`e^2`, not negative.
    n : int
        Number of rows that were added up.
    group : str
        Name of the term.
    varying : tuple of int
        Which of the ``k`` coefficients vary.
    prior : Prior
        As in ``multilevel``.
    correlated, centred : bool
        As in :class:`mlm_utils.terms.Term`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range.

    Notes
    -----
    Sample sites: those of ``multilevel``; ``y`` (rotated row) and ``residual`` (scalar) are
    observed. Fit it with ``pointwise=False``: rotated rows are no observations to be left out.
    """
    term = _check_rotated(R, pooled, y, residual, n, group, varying, prior, correlated, centred)
    q, n_groups = len(varying), R.shape[1]
    k = q + len(pooled)
    with numpyro.plate("coefficient", k):
        beta = numpyro.sample("beta", dist.Normal(prior.beta_mean, prior.beta_sd))
    sigma = numpyro.sample("sigma", scale_distribution(prior.sigma))
    b = group_effects(term, prior.tau[group], prior.eta)
    # Arrays with the groups along them and products of matrices: what a processor does fastest.
    order = np.array(_varying_first(varying, k))
    effects = [b[:, varying.index(m)] for m in order[:q]]
    mean, line = [], 0
    for m in range(q):
        triangle = R[line : line + k - m]
        line += k - m
        own = zip(triangle, effects[m:], strict=False)
        mean.append(beta[order[m:]] @ triangle + sum(R_m * b_m for R_m, b_m in own))
    rows = _Rows(jnp.concatenate([*mean, pooled @ beta[order[q:]]]), sigma)
    numpyro.sample("y", rows, obs=y, infer={"event_dims": ["rotated_row"]})
    n_other = n - q * n_groups - (k - q)
    numpyro.sample("residual", _SumOfSquares(n_other, sigma), obs=residual)


def _varying_first(varying, k):
    """Return the numbers of the coefficients, those that vary first: the order of a triangle."""
    return [*sorted(varying), *sorted(set(range(k)) - set(varying))]


class _Rows(dist.Independent):
    """Normal rows of one sd, whose log density is that of all of them, from one sum of squares.

    Parameters
    ----------
    loc : array
        Means, shape ``(n,)``.
    sigma : float
        The sd.
    """

    def __init__(self, loc, sigma, *, validate_args=None):
        super().__init__(dist.Normal(loc, sigma), 1, validate_args=validate_args)

    def log_prob(self, value):
        """Return the log density of all rows."""
        loc, sigma = self.base_dist.loc, self.base_dist.scale
        return _log_density(jnp.size(value), jnp.sum((value - loc) ** 2), sigma[0])


def _log_density(n, squares, sigma):
    """Return the log density of `n` normal errors from the sum of their squares."""
    return -0.5 * (n * jnp.log(2 * jnp.pi * sigma**2) + squares / sigma**2)


class _SumOfSquares(dist.Distribution):
    """What is left of normal errors: how many, and the sum of their squares.

    Its density is that of the errors themselves, not of the sum. There may be fewer than none:
    where a group has fewer rows than coefficients, its rotated rows are filled up with zeros.

    Parameters
    ----------
    n : int
        Number of errors.
    sigma : float
        Their sd.
    """

    arg_constraints = {"sigma": constraints.positive}  # noqa: RUF012
    support = constraints.nonnegative
    pytree_aux_fields = ("n",)

    def __init__(self, n, sigma, *, validate_args=None):
        self.n, self.sigma = n, sigma
        super().__init__(batch_shape=jnp.shape(sigma), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        """Draw sums of squares."""
        return self.sigma**2 * dist.Chi2(max(self.n, 1)).sample(key, sample_shape)

    def log_prob(self, value):
        """Return the log density of the errors."""
        return _log_density(self.n, value, self.sigma)


def _check_rotated(R, pooled, y, residual, n, group, varying, prior, correlated, centred):
    """Check the arguments of the model; return its term."""
    _check_array("R", R, ndim=2)
    if getattr(pooled, "shape", None) != (0, 0):  # all vary
        _check_array("pooled", pooled, ndim=2)
    if pooled.shape[0] != pooled.shape[1]:
        raise ValueError(f"pooled must be square, got shape {pooled.shape}: rotate() lays it out")
    if not isinstance(varying, tuple) or not varying:
        raise ValueError(f"varying must be a tuple of numbers of coefficients, got {varying!r}")
    q = len(varying)
    k = q + len(pooled)
    if len(set(varying)) != q or not set(varying) <= set(range(k)):
        raise ValueError(f"varying must hold different numbers 0 .. {k - 1}, got {varying!r}")
    if (lines := q * k - q * (q - 1) // 2) != R.shape[0]:
        raise ValueError(
            f"R has {R.shape[0]} lines, and {k} coefficients of which {q} vary take {lines}: "
            "rotate() lays it out"
        )
    if y is not None:
        _check_array("y", y, ndim=1, n=q * R.shape[1] + k - q)
    check_number("residual", residual)
    if _is_known(residual) and residual < 0:
        raise ValueError(f"residual is {residual}: a sum of squares is not negative")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be the number of rows, a positive integer, got {n!r}")
    # Coefficients as the rows of a design in which each has a column.
    X, none = np.eye(k), np.zeros(k, np.int32)
    term = Term(group, none, R.shape[1], X[:, list(varying)], correlated, centred)
    check_multilevel(X, (term,), prior=prior)
    return term


def _check_spread(statistics):
    """Refuse statistics of no rows, and columns that do not vary."""
    n, total = statistics.n, statistics.n.sum()
    if not total:
        raise ValueError("the statistics are of no rows: give some")
    centre = n @ statistics.mean / total
    variance = np.einsum("jaa->a", statistics.S) + n @ (statistics.mean - centre) ** 2
    for k, name in enumerate((*statistics.predictors, statistics.outcome)):
        if np.sqrt(variance[k] / total) <= 1e-12 * abs(centre[k]):
            raise ValueError(
                f"column {name!r} is constant ({centre[k]:g} in all {total} rows): drop it; the "
                "intercept is there already"
            )


def _root(S):
    """Return upper triangles T with T' T = S, also where columns depend on one another."""
    size = np.sqrt(np.maximum(np.einsum("jaa->ja", S), 0.0))
    size[size == 0] = 1.0
    values, vectors = np.linalg.eigh(S / size[:, :, None] / size[:, None, :])
    half = np.sqrt(np.maximum(values, 0.0))[:, :, None] * vectors.swapaxes(1, 2)
    return np.linalg.qr(half, mode="r") * size[:, None, :]


def _differ(one, two):
    """Say where two names or two tuples of labels differ."""
    if isinstance(one, tuple):
        first = next((pair for pair in zip(one, two, strict=False) if pair[0] != pair[1]), None)
        return f"{len(one)} and {len(two)}" if first is None else f"{first[0]!r} and {first[1]!r}"
    return f"{one!r} and {two!r}"


# --- A table, where it is


def _open(table):
    """Return an Ibis table; files are read by DuckDB."""
    try:
        import ibis
    except ImportError:
        raise ImportError(
            "statistics_from_table needs Ibis: pip install 'ibis-framework[duckdb]'"
        ) from None
    if isinstance(table, ibis.Table):
        return table
    paths = table if isinstance(table, list) else [table]
    if not paths or not all(isinstance(path, str | Path) for path in paths):
        raise TypeError(
            f"table must be an Ibis table or paths of Parquet files, got {type(table).__name__}: "
            "a pandas table becomes one by ibis.memtable"
        )
    return ibis.duckdb.connect().read_parquet([str(path) for path in paths])


def _expression(table, names, group):
    """Return a line a group: its rows, and of each column the values there, means, covariances."""
    columns = [table[name].cast("float64") for name in names]
    pairs = itertools.combinations_with_replacement(range(len(names)), 2)
    return table.group_by(label=table[group]).aggregate(
        n=table.count(),
        **{f"there_{a}": column.count() for a, column in enumerate(columns)},
        **{f"mean_{a}": column.mean() for a, column in enumerate(columns)},
        **{f"cov_{a}_{b}": columns[a].cov(columns[b], how="pop") for a, b in pairs},
    )


def _check_names(outcome, predictors, group):
    """Check the names of columns; return predictors and outcome."""
    if isinstance(predictors, str) or not isinstance(predictors, Sequence) or not predictors:
        raise TypeError(f"predictors must be a list of columns, got {predictors!r}: write [...]")
    names = (*predictors, outcome)
    if not all(isinstance(name, str) for name in (*names, group)):
        raise TypeError(f"columns must be named by text, got {[*names, group]!r}")
    if len({*names, group}) <= len(names) or "intercept" in names:
        raise ValueError(
            f"outcome, predictors and group must be different columns, none of them called "
            f"'intercept', got {[*names, group]!r}"
        )
    return names


def _check_levels(levels):
    """Check the labels of groups; return them as a tuple."""
    if isinstance(levels, str) or not isinstance(levels, Sequence):
        raise TypeError(f"levels must be a list of labels, got {levels!r}: write [...]")
    levels = tuple(levels)
    if len(levels) < 2 or len(set(levels)) < len(levels):
        raise ValueError(
            f"there must be at least two groups and no label twice, got {levels[:3]!r} "
            f"({len(levels)} labels, {len(set(levels))} different ones)"
        )
    return levels


def _check_schema(table, names, group):
    """Refuse columns that are absent or of the wrong type, by the schema alone."""
    schema = table.schema()
    if absent := [name for name in (*names, group) if name not in schema]:
        raise ValueError(f"the table has no column {absent[0]!r}: it has {list(schema)}")
    for name in names:
        if not schema[name].is_numeric() or schema[name].is_boolean():
            raise TypeError(
                f"column {name!r} is of type {schema[name]}, and must hold numbers: convert it in "
                "the table"
            )
    if not (schema[group].is_string() or schema[group].is_integer()):
        raise TypeError(
            f"column {group!r} is of type {schema[group]}, and must hold labels, text or integers"
        )


def _check_found(labels, found, names, group):
    """Refuse missing labels, missing values, and numbers that are not finite."""
    n = found["n"]
    if not n.sum():
        raise ValueError("the table has no rows: give some")
    missing = {group: n[[label is None for label in labels]].sum()}
    missing |= {name: (n - found[f"there_{a}"]).sum() for a, name in enumerate(names)}
    for name, count in missing.items():
        if count:
            raise ValueError(
                f"column {name!r} is missing in {count} of {n.sum()} rows: drop or impute them in "
                "the table, knowing why they are so"
            )
    # Not by asking whether a number is NaN: DuckDB answers that from the least and the greatest
    # value that a Parquet file states, and these leave NaN out.
    for a, name in enumerate(names):
        spoilt = np.flatnonzero(~np.isfinite(found[f"mean_{a}"] + found[f"cov_{a}_{a}"]))
        if len(spoilt):
            raise ValueError(
                f"column {name!r} is not finite, or too large to be squared, in {len(spoilt)} of "
                f"{len(n)} groups, the first being {labels[spoilt[0]]!r}: drop or impute these rows"
            )
