"""From a table to the arrays of the general multilevel model: codings, grouping factors, labels.

:func:`multilevel_design` needs no formula language: columns are named, codings are spelled out.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from mlm_utils.data import check_table, to_categories
from mlm_utils.design import group_codes
from mlm_utils.terms import Prior, ScalePrior, Term

CODINGS = ("dummy", "all levels", "sum")


class Predictor(NamedTuple):
    """A predictor in a table: a column, or the product of several (an interaction).

    Attributes
    ----------
    columns : str or tuple of str
        Columns of numbers, taken as they are, and of labels, spread over columns by `coding`.
    coding : str
        ``"dummy"``: a 0/1 column a level but the first; a coefficient is a difference from the
        first level. ``"all levels"``: a 0/1 column a level, in place of the intercept.
        ``"sum"``: a column a level but the last, 1 in its level and -1 in the last; a
        coefficient is a difference from the mean of the levels.
    """

    columns: str | tuple[str, ...]
    coding: str = "dummy"


class Group(NamedTuple):
    """A grouping factor in a table.

    Attributes
    ----------
    columns : str or tuple of str
        A column of labels, or several whose combinations are the groups: ids that begin anew in
        each background are ``("background", "id")``; each rater with each cheese is
        ``("rater", "cheese")``.
    slopes : sequence of str or Predictor
        What varies over the groups beside the intercept.
    intercept : bool
        Whether an intercept varies; a predictor that keeps all levels replaces it.
    correlated, centred : bool
        As in :class:`Term`.
    nested_in : str, optional
        A column of which each group must have one value.
    name : str, optional
        Name of the term. Default: the columns, joined by underscores.
    """

    columns: str | tuple[str, ...]
    slopes: Sequence[str | Predictor] = ()
    intercept: bool = True
    correlated: bool = False
    centred: bool = False
    nested_in: str | None = None
    name: str | None = None


class _Recipe(NamedTuple):
    """What it takes to code other rows in the same way."""

    population: tuple[Predictor, ...]
    groups: tuple[Group, ...]
    numbers: tuple[str, ...]  # predictors that are columns of numbers
    levels: dict[str, tuple]  # levels of the other predictors
    members: dict[str, tuple]  # groups of each term


@dataclass(frozen=True)
class MultilevelDesign:
    """Arrays for the general multilevel model and the labels of their axes.

    Attributes
    ----------
    X : numpy.ndarray
        Population design, float64, shape ``(n, K)``.
    terms : tuple of Term
        The grouping factors.
    y : numpy.ndarray or None
        Outcome, float64, shape ``(n,)``; None for new rows.
    sources : tuple of str
        The predictor that each column of `X` comes from, or ``"intercept"``.
    labels : mapping
        For each dimension of the model, its name in the posterior and the labels along it.
    """

    X: np.ndarray
    terms: tuple[Term, ...]
    y: np.ndarray | None
    sources: tuple[str, ...]
    labels: Mapping[str, tuple[str, tuple]]
    _recipe: _Recipe = field(repr=False)

    @property
    def arguments(self) -> dict:
        """The keyword arguments of the model, all but ``prior``."""
        return {"X": self.X, "terms": self.terms, "y": self.y}

    def prior(self, *, beta, sigma, tau, eta=2.0) -> Prior:
        """State the priors by predictor and by term.

        Parameters
        ----------
        beta : mapping of str to (float, float)
            Mean and sd for each of `sources`: ``{"intercept": (70, 20), "cheese": (0, 15)}``.
        sigma : ScalePrior
            Prior of the residual sd.
        tau : ScalePrior or mapping of str to ScalePrior
            Prior of the sds of effects: one for all terms, or one a term.
        eta : float
            Concentration of the LKJ priors.

        Returns
        -------
        Prior
            With one mean and sd a column of `X`.

        Raises
        ------
        TypeError, ValueError
            If a predictor is left out or unknown, or has no mean and sd. The model checks the
            rest.
        """
        if not isinstance(beta, Mapping) or set(beta) != set(self.sources):
            raise ValueError(
                f"beta must map each of {sorted(set(self.sources))}, and nothing else, to "
                f"(mean, sd), got {beta!r}"
            )
        for source, pair in beta.items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TypeError(f"beta[{source!r}] must be (mean, sd), got {pair!r}: try (0, 10)")
        mean, sd = np.array([beta[source] for source in self.sources], dtype=np.float64).T
        if isinstance(tau, ScalePrior):
            tau = {term.name: tau for term in self.terms}
        return Prior(mean, sd, sigma, tau, eta)

    def new_rows(self, table: pd.DataFrame) -> "MultilevelDesign":
        """Code other rows by the levels and groups of this design, to predict their outcome.

        Parameters
        ----------
        table : pandas.DataFrame
            The columns of the predictors and groups.

        Returns
        -------
        MultilevelDesign
            The same but for its rows, with ``y`` None.

        Raises
        ------
        TypeError, ValueError
            If a column is absent or spoilt, or holds a level or group that is new.
        """
        X, terms, labels, _ = _code(table, self._recipe)
        return replace(self, X=X, terms=terms, y=None, labels=labels)


def multilevel_design(
    table: pd.DataFrame,
    *,
    outcome: str,
    population: Sequence[str | Predictor] = (),
    groups: Sequence[str | Group] = (),
) -> MultilevelDesign:
    """Turn columns of a table into a population design and any number of grouping factors.

    Parameters
    ----------
    table : pandas.DataFrame
        One row an observation.
    outcome : str
        Column of finite numbers that are not all equal.
    population : sequence of str or Predictor
        Predictors with a coefficient of the population; a bare name is coded ``"dummy"``. The
        intercept comes first, unless a predictor keeps all levels.
    groups : sequence of str or Group
        Grouping factors, nested or crossed; under a bare name the intercept alone varies.

    Returns
    -------
    MultilevelDesign
        Rows in the order of the table. Categories keep their order, other labels are sorted. A
        category without rows is a group too: a new one, drawn from the population. Of several
        columns, the combinations that occur are the groups.

    Raises
    ------
    TypeError, ValueError
        If a column is absent, of the wrong type, missing a value, infinite or constant; if a
        column of the design is a combination of others; if a grouping factor cannot be told
        from the residual or from another, or is not nested as stated.

    Examples
    --------
    >>> from mlm_utils.data import load_cheese
    >>> rows = multilevel_design(
    ...     load_cheese(),
    ...     outcome="y",
    ...     population=["background", Predictor("cheese", "sum")],
    ...     groups=[Group("rater", nested_in="background"), Group(("rater", "cheese"))],
    ... )
    >>> rows.labels["coefficient"][1][:3]
    ('intercept', 'background urban - rural', 'cheese A - mean')
    >>> [(term.name, term.n_groups) for term in rows.terms]
    [('rater', 20), ('rater_cheese', 80)]
    """
    population = _specify(Predictor, "population", population)
    groups = tuple(
        group._replace(
            slopes=_specify(Predictor, "slopes", group.slopes),
            name="_".join(_columns(group)) if group.name is None else group.name,
        )
        for group in _specify(Group, "groups", groups)
    )
    names = [group.name for group in groups]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two terms are named {twice[0]!r}: give one another name=")
    predictors = {
        column: None
        for predictor in itertools.chain(population, *(group.slopes for group in groups))
        for column in _columns(predictor)
    }
    grouping = [column for group in groups for column in _columns(group)]
    if outcome in [*predictors, *grouping]:
        raise ValueError(f"outcome {outcome!r} is a predictor or a group too: drop it there")
    check_table(table, numeric=[outcome], categorical=grouping)
    y = table[outcome].to_numpy(dtype=np.float64)
    if np.all(y == y[0]):
        raise ValueError(
            f"column {outcome!r} is constant ({y[0]:g} in all {len(y)} rows): there is nothing to "
            "explain, so choose another outcome"
        )
    numbers = tuple(column for column in predictors if _is_number(table, column))
    labelled = [column for column in predictors if column not in numbers]
    check_table(table, numeric=numbers, categorical=labelled)
    levels = {column: group_codes(table[column])[1] for column in labelled}
    for column in labelled:
        if empty := [level for level in levels[column] if not (table[column] == level).any()]:
            raise ValueError(
                f"column {column!r} has no row of level {empty[0]!r}, so nothing is learned of "
                "its coefficient: use cat.remove_unused_categories()"
            )
    members = {group.name: group_codes(_members(table, group))[1] for group in groups}
    recipe = _Recipe(population, groups, numbers, levels, members)
    X, terms, labels, sources = _code(table, recipe)
    _check_rank("the population", X, labels["coefficient"][1])
    for group, term in zip(groups, terms, strict=True):
        _check_group(table, group, term, X, labels)
    for one, other in itertools.combinations(terms, 2):
        _check_apart(one, other, labels)
    return MultilevelDesign(X, terms, y, sources, labels, recipe)


def _specify(kind, name, given) -> tuple:
    """Return a list of names and specifications as a tuple of specifications."""
    if isinstance(given, str | kind) or not isinstance(given, Sequence):
        raise TypeError(f"{name} must be a list, got {given!r}: write [...] around it")
    made = tuple(kind(one) if isinstance(one, str) else one for one in given)
    for one in made:
        columns = _columns(one) if isinstance(one, kind) else ()
        if not columns or not all(isinstance(column, str) for column in columns):
            raise TypeError(
                f"{name} must hold column names or {kind.__name__}(...), got {one!r}: of several "
                f"columns together, write {kind.__name__}(('a', 'b'))"
            )
        if kind is Predictor and one.coding not in CODINGS:
            raise ValueError(
                f"the coding of {one.columns!r} is {one.coding!r}: choose one of {CODINGS}"
            )
    return made


def _columns(one) -> tuple:
    """Return the columns of a predictor or a group."""
    return one.columns if isinstance(one.columns, tuple) else (one.columns,)


def _is_number(table, column) -> bool:
    """Whether a column holds numbers; one that is absent or there twice does not."""
    if list(table.columns).count(column) != 1:
        return False
    dtype = table[column].dtype
    return pd.api.types.is_integer_dtype(dtype) or pd.api.types.is_float_dtype(dtype)


def _code(table, recipe):
    """Return the arrays of some rows, the labels of their axes and the sources of `X`."""
    grouping = [column for group in recipe.groups for column in _columns(group)]
    check_table(table, numeric=recipe.numbers, categorical=[*recipe.levels, *grouping])
    X, coefficients, sources = _spread(table, recipe, recipe.population)
    terms, labels = [], {"coefficient": coefficients, "row": tuple(range(len(table)))}
    for group in recipe.groups:
        name, members = group.name, recipe.members[group.name]
        W, effects, _ = _spread(table, recipe, group.slopes, group.intercept)
        idx, _ = group_codes(_members(table, group), members)
        terms.append(Term(name, idx, len(members), W, group.correlated, group.centred))
        labels |= {name: members, f"{name}_effect": effects, f"{name}_effect_2": effects}
    labels = {dimension: (dimension, values) for dimension, values in labels.items()}
    return X, tuple(terms), MappingProxyType(labels), sources


def _members(table, group) -> pd.Series:
    """Return the group of each row as categories: of several columns, labels with colons."""
    columns = list(_columns(group))
    if len(columns) == 1:
        return table[columns[0]]
    joined, cells = (
        functools.reduce(lambda a, b: a + ":" + b, (rows[c].astype(str) for c in columns))
        for rows in (table, table[columns].drop_duplicates().sort_values(columns))
    )
    if cells.duplicated().any():
        raise ValueError(
            f"two combinations of {columns} are both labelled {cells[cells.duplicated()].iloc[0]!r}"
            ": rename their levels"
        )
    return to_categories(joined.rename(":".join(columns)), cells)


def _spread(table, recipe, predictors, intercept=True):
    """Return columns of numbers and, for each, its label and the predictor it comes from."""
    replaced = any(
        predictor.coding == "all levels" and not set(_columns(predictor)) & set(recipe.numbers)
        for predictor in predictors
    )
    first = ["intercept"] if intercept and not replaced else []
    blocks, labels, sources = [np.ones((len(table), len(first)))], list(first), list(first)
    for predictor in predictors:
        block, names = np.ones((len(table), 1)), [()]
        for column in _columns(predictor):
            if column in recipe.numbers:
                part, said = table[[column]].to_numpy(dtype=np.float64), [column]
            else:
                levels = recipe.levels[column]
                contrasts, said = _contrasts(column, levels, predictor.coding)
                part = contrasts[group_codes(table[column], levels)[0]]
            block = (block[:, :, None] * part[:, None, :]).reshape(len(table), -1)
            names = [(*name, one) for name in names for one in said]
        blocks.append(block)
        labels += [" : ".join(name) for name in names]
        sources += [":".join(_columns(predictor))] * len(names)
    return np.hstack(blocks), tuple(labels), tuple(sources)


def _contrasts(column, levels, coding):
    """Return a row of numbers for each level, and what the coefficient of each column is."""
    identity = np.eye(len(levels))
    if coding == "all levels":
        return identity, [f"{column} {level}" for level in levels]
    if coding == "dummy":
        return identity[:, 1:], [f"{column} {level} - {levels[0]}" for level in levels[1:]]
    return identity[:, :-1] - identity[:, -1:], [
        f"{column} {level} - mean" for level in levels[:-1]
    ]


def _check_rank(where, columns, labels):
    """Refuse a column that is a combination of those before it."""
    sizes = np.linalg.norm(columns, axis=0)
    sizes[sizes == 0] = 1.0
    R = np.linalg.qr(columns / sizes, mode="r")
    for k in range(1, len(labels)):
        weights = np.linalg.lstsq(R[:, :k], R[:, k])[0]
        if np.linalg.norm(R[:, k] - R[:, :k] @ weights) <= 1e-10:
            weights *= sizes[k] / sizes[:k]
            said = [
                f"{weight:.4g} x {label!r}"
                for weight, label in zip(weights, labels, strict=False)
                if abs(weight) > 1e-9
            ]
            raise ValueError(
                f"in {where}, column {labels[k]!r} is {' + '.join(said) or 'zero'} in every row, "
                "so its coefficient cannot be told from theirs: drop it, or code fewer levels"
            )


def _check_group(table, group, term, X, labels):
    """Refuse a grouping factor that is not nested as stated or cannot be told from the rest."""
    (_, members), (_, effects) = labels[term.name], labels[f"{term.name}_effect"]
    if group.nested_in is not None:
        check_table(table, categorical=[group.nested_in])
        homes = pd.Series(table[group.nested_in].to_numpy()).groupby(term.idx).unique()
        for j, values in homes.items():
            if len(values) > 1:
                raise ValueError(
                    f"{term.name!r} is to be nested in {group.nested_in!r}, but group "
                    f"{members[j]!r} occurs with {values[0]!r} and {values[1]!r}: if these are two "
                    f"groups with one label, write Group({(group.nested_in, *_columns(group))})"
                )
    if np.bincount(term.idx).max() == 1:
        raise ValueError(
            f"each row is a group of its own in {term.name!r}, whose scale cannot be told from "
            "sigma: drop the term, or group by what repeats"
        )
    _check_rank(f"the term {term.name!r}", term.W, effects)
    if effects[0] == "intercept":
        if term.n_groups <= X.shape[1]:
            dummies = np.eye(term.n_groups)[term.idx]
            if np.allclose(X @ np.linalg.lstsq(X, dummies)[0], dummies):
                raise ValueError(
                    f"the population has a coefficient for each group of {term.name!r} already, "
                    "from which its intercepts cannot be told: drop one of the two"
                )
        varies = pd.DataFrame(term.W[:, 1:]).groupby(term.idx).nunique().max() > 1
        for effect, is_varied in zip(effects[1:], varies, strict=True):
            if not is_varied:
                raise ValueError(
                    f"{effect!r} is the same in all rows of a group of {term.name!r}, so its slope "
                    "cannot vary over them apart from the intercept: keep it in the population"
                )


def _check_apart(one, other, labels):
    """Refuse two varying intercepts over the same groups."""
    pairs = one.idx.astype(np.int64) * other.n_groups + other.idx
    sizes = {len(np.unique(codes)) for codes in (pairs, one.idx, other.idx)}
    firsts = {labels[f"{term.name}_effect"][1][0] for term in (one, other)}
    if len(sizes) == 1 and firsts == {"intercept"}:
        raise ValueError(
            f"the terms {one.name!r} and {other.name!r} group the rows in the same way, so nothing "
            "tells their intercepts apart: drop one"
        )
