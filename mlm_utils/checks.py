"""Checks of a model before its answer is believed: a table each, a verdict a row, and no fit.

A check asks what a model must answer rightly whatever the data: does the index matter, does a row
hear its own group alone, is an sd an sd. A verdict is "ok" or says what was found. Parameters are
drawn from the prior, with the same key before and after a change, so that a difference is the
model's and not chance's.
"""

import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpyro import handlers
from numpyro.infer.util import compute_log_probs

from mlm_utils import sampling

ROUNDING = 1e-9  # a smaller relative change is rounding
FAR = 10.0  # a prior that many times off the data's scale is not about these data
RARE = 0.01  # a figure of the data with a smaller tail probability surprises the prior


def check_model(
    model: Callable,
    arguments: Mapping,
    *,
    key: jax.Array,
    groups: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Run every check of this module that applies.

    Parameters
    ----------
    model, arguments, key
        As in :func:`mlm_utils.sampling.fit`.
    groups : mapping, optional
        Index -> plate, for :func:`group_links`: ``{"terms.0.idx": "rater"}``. Default:
        ``{"idx": "group"}`` if there is an argument ``idx``, else none.

    Returns
    -------
    pandas.DataFrame
        A row a question, with index ``(check, about)`` and the column ``verdict``. Where the
        outcome's row of :func:`shapes` is not "ok", the others are not run.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As the single checks do.
    """
    _check(model, arguments, key)
    keys = jax.random.split(key, 5)
    tables = {"shapes": shapes(model, arguments)}
    observed = [name for name, site in _sites(model, arguments).items() if site["is_observed"]]
    if (tables["shapes"].loc[observed, "verdict"] == "ok").all():
        if groups is None:
            groups = {"idx": "group"} if "idx" in arguments else {}
        tables["inputs"] = unused_inputs(model, arguments, key=keys[0])
        for index, plate in groups.items():
            tables[f"links of {index}"] = group_links(model, arguments, index, plate, key=keys[1])
        tables["labels"] = exchangeable_labels(model, arguments, key=keys[2])
        tables["scales"] = scale_exponents(model, arguments, key=keys[3])
        tables["prior"] = prior_against_data(model, arguments, key=keys[4])
    verdicts = {name: table[["verdict"]] for name, table in tables.items() if len(table)}
    return pd.concat(verdicts, names=["check", "about"])


def index_sensitivity(
    model: Callable, arguments: Mapping, index: str = "idx", *, key: jax.Array, draws: int = 20
) -> pd.DataFrame:
    """Permute a group index and see whether the log density moves.

    Parameters
    ----------
    model, arguments, key
        As in :func:`mlm_utils.sampling.fit`.
    index : str
        The index among the arguments; with dots inside a tuple or record: ``"terms.0.idx"``.
    draws : int
        Number of prior draws at which to look.

    Returns
    -------
    pandas.DataFrame
        One row: ``change``, the largest of the log density, and ``verdict``. It is "ok" where
        the index is used anywhere; for each parameter apart, see :func:`group_links`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`mlm_utils.sampling.fit`, and if `index` holds no integers, or one group.
    """
    _check(model, arguments, key, draws)
    _read_index(arguments, index)
    changed = [(index, _with_permuted(arguments, index, key))]
    return _moves(model, arguments, changed, key, draws)


def group_links(
    model: Callable,
    arguments: Mapping,
    index: str = "idx",
    plate: str = "group",
    *,
    key: jax.Array,
    draws: int = 20,
) -> pd.DataFrame:
    """Tell, for each parameter that groups have, whether a row hears its own group alone.

    Parameters
    ----------
    model, arguments, index, key, draws
        As in :func:`index_sensitivity`; the outcome is ``y``, and drawn with ``y=None``.
    plate : str
        The plate over the groups that `index` numbers.

    Returns
    -------
    pandas.DataFrame
        A row a sample site in the plate, with the shares of rows whose outcome, drawn with one
        key, changes when the entries of their ``own`` group or of any ``other`` are drawn anew,
        and ``verdict``.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`index_sensitivity`, and if no parameter is in the plate, or the plate has
        not the groups of the index.

    Notes
    -----
    Simulates ``draws`` outcomes for each group at once: for a table that fills the memory, take
    fewer draws, or a part of the rows.
    """
    _check(model, arguments, key, draws)
    idx = _read_index(arguments, index)
    _, arguments = _outcome(model, arguments)
    sites = _sites(model, arguments)
    axes = {name: _axis(site, plate) for name, site in sites.items() if name != "y"}
    axes = {name: axis for name, axis in axes.items() if axis is not None}
    plates = {frame.name: frame.size for s in sites.values() for frame in s["cond_indep_stack"]}
    if not axes or plates[plate] <= idx.max() or len(idx) != len(sites["y"]["value"]):
        raise ValueError(
            f"no parameter in a plate {plate!r} has the {idx.max() + 1} groups that {index!r} "
            f"numbers, or y not its {len(idx)} rows: choose from the plates {plates}"
        )

    def hears(key, site):
        """Return whether a row's outcome changes with a group's entries, shape (groups, rows)."""
        key, key_anew = jax.random.split(key)
        old, new = (_simulate(model, arguments, k)[site] for k in (key, key_anew))
        place = jnp.expand_dims(jnp.arange(plates[plate]), tuple(range(1, -axes[site])))

        def outcome(j):
            mixed = jnp.where(place == j, new, old)
            return _simulate(model, arguments, key, {site: mixed})["y"].reshape(len(idx), -1)

        return _differ(outcome(-1), jax.vmap(outcome)(jnp.arange(plates[plate]))).any(axis=-1)

    table, keys = {}, jax.random.split(key, draws)
    is_own = np.arange(plates[plate])[:, None] == idx
    for site in axes:
        heard = np.asarray(jax.vmap(lambda k, s=site: hears(k, s))(keys).any(axis=0))
        own, other = (heard & is_own).any(axis=0).mean(), (heard & ~is_own).any(axis=0).mean()
        verdict = "hears other groups" if other else "ok" if own else "heard by no row"
        table[site] = own, other, verdict
    return pd.DataFrame.from_dict(table, "index", columns=["own", "other", "verdict"])


def exchangeable_labels(
    model: Callable, arguments: Mapping, *, key: jax.Array, draws: int = 20
) -> pd.DataFrame:
    """Find parameters whose labels mean nothing: rename groups in them and not in the data.

    Parameters
    ----------
    model, arguments, key, draws
        As in :func:`index_sensitivity`.

    Returns
    -------
    pandas.DataFrame
        A row a plate over parameters: ``free``, the smallest sets of sites in which each group
        can be given the next group's entries without moving the log density, and ``verdict``.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`mlm_utils.sampling.fit`.

    Notes
    -----
    Where labels are free, the groups have one posterior, and their names are ours. In a mixture
    they are so by design. For `s` sites in a plate, all ``2 ** s - 1`` sets are tried.
    """
    _check(model, arguments, key, draws)
    points = _points(model, arguments, key, draws)
    before = _log_densities(model, arguments, points)
    sites = {name: site for name, site in _sites(model, arguments).items() if name in points}
    plates = {frame.name: frame.size for s in sites.values() for frame in s["cond_indep_stack"]}
    table = {}
    for plate in [name for name, size in plates.items() if size > 1]:
        axes = {name: _axis(site, plate) for name, site in sites.items()}
        inside = [name for name, axis in axes.items() if axis is not None]
        free = []
        for size in range(1, len(inside) + 1):
            for chosen in itertools.combinations(inside, size):
                if any(set(one) <= set(chosen) for one in free):
                    continue
                moved = {name: jnp.roll(points[name], 1, axes[name]) for name in chosen}
                after = _log_densities(model, arguments, points | moved)
                if not _differ(before, after).any():
                    free.append(chosen)
        names = ", ".join(" with ".join(one) for one in free)
        table[plate] = names, "labels mean nothing" if free else "ok"
    return pd.DataFrame.from_dict(table, "index", columns=["free", "verdict"])


def scale_exponents(
    model: Callable, arguments: Mapping, *, key: jax.Array, draws: int = 20
) -> pd.DataFrame:
    """Double each scale twice and see with which power of it the outcome moves.

    Parameters
    ----------
    model, arguments, key, draws
        As in :func:`group_links`.

    Returns
    -------
    pandas.DataFrame
        A row a positive parameter, with ``exponent`` (1 for an sd, 2 where it is squared on the
        way, 1/2 for a variance, -1/2 for a precision) and ``verdict``.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`mlm_utils.sampling.fit`, and if ``y=None`` draws no outcome.

    Notes
    -----
    For outcomes that add effects up. With one key, an effect of sd ``tau`` is ``tau`` times the
    same number, so that ``y`` at 4 ``tau`` less ``y`` at 2 ``tau`` is twice ``y`` at 2 ``tau``
    less ``y`` at ``tau``. A positive parameter that is no scale shows another exponent, rightly.
    """
    _check(model, arguments, key, draws)
    _, arguments = _outcome(model, arguments)

    def growth(key, site):
        value = _simulate(model, arguments, key)[site]
        one, two, four = (
            _simulate(model, arguments, key, {site: factor * value})["y"] for factor in (1, 2, 4)
        )
        return jnp.linalg.norm(four - two) / jnp.linalg.norm(two - one)

    table, keys = {}, jax.random.split(key, draws)
    for site in _scales(model, arguments):
        ratios = jax.vmap(lambda k, s=site: growth(k, s))(keys)
        exponent = float(np.median(np.log2(ratios)))
        verdict = f"acts as its power {exponent:.2g}" if np.isfinite(exponent) else "moves nothing"
        table[site] = exponent, "ok" if abs(exponent - 1) < 0.05 else verdict
    return pd.DataFrame.from_dict(table, "index", columns=["exponent", "verdict"])


def prior_against_data(
    model: Callable, arguments: Mapping, *, key: jax.Array, draws: int = 1000
) -> pd.DataFrame:
    """Set what the prior expects beside the data: scales, outcomes, the effect of each column.

    Parameters
    ----------
    model, arguments, key, draws
        As in :func:`group_links`.

    Returns
    -------
    pandas.DataFrame
        Prior quantiles ``5 %``, ``50 %``, ``95 %``, the figure of the ``data`` and ``verdict``:

        - for a positive parameter, beside the sd of ``y``: "far too small" if 95 % of the prior
          lie below a tenth of it, "too large" if 95 % lie above it;
        - for ``y``, beside its median: "off centre" if that is outside the quantiles, "far too
          wide" or "far too narrow" if they span ten times the range of the data, or a tenth;
        - for the least-squares slope of ``y`` on each column of ``X`` taken alone (of a dummy,
          the mean of its rows less that of the others): "surprised" if the prior predictive
          probability of a slope as far out, doubled for the other side, is below 1 %.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`scale_exponents`.

    Notes
    -----
    Rules of thumb, for parameters in units of ``y``. A figure of the data is compared with its
    prior predictive distribution as in Box (1980) and Evans and Moshonov (2006).
    """
    _check(model, arguments, key, draws)
    y, arguments = _outcome(model, arguments)
    drawn = jax.vmap(lambda k: _simulate(model, arguments, k))(jax.random.split(key, draws))
    drawn = {name: np.asarray(values) for name, values in drawn.items()}
    table, sd = {}, y.std(ddof=1)
    for site in _scales(model, arguments):
        low, _, high = quantiles = np.quantile(drawn[site], [0.05, 0.5, 0.95])
        verdict = "far too small" if high < sd / FAR else "too large" if low > sd else "ok"
        table[site] = *quantiles, sd, verdict
    low, _, high = quantiles = np.quantile(drawn["y"], [0.05, 0.5, 0.95])
    spans = (high - low) / np.ptp(y)
    verdict = "ok" if low <= np.median(y) <= high else "off centre"
    verdict = "far too wide" if spans > FAR else "far too narrow" if spans < 1 / FAR else verdict
    table["y"] = *quantiles, np.median(y), verdict
    X = np.asarray(arguments.get("X", []))
    for k in np.flatnonzero(np.ptp(X, axis=0)) if X.ndim == 2 and y.ndim == 1 else []:
        weights = X[:, k] - X[:, k].mean()
        weights /= weights @ weights
        slopes, slope = drawn["y"] @ weights, y @ weights
        tail = (1 + min(np.sum(slopes <= slope), np.sum(slopes >= slope))) / (1 + draws)
        quantiles = np.quantile(slopes, [0.05, 0.5, 0.95])
        table[f"slope on X[:, {k}]"] = *quantiles, slope, "surprised" if 2 * tail < RARE else "ok"
    columns = ["5 %", "50 %", "95 %", "data", "verdict"]
    return pd.DataFrame.from_dict(table, "index", columns=columns)


def shapes(model: Callable, arguments: Mapping) -> pd.DataFrame:
    """Compare each sample site with its plates, and count the terms of the likelihood.

    Parameters
    ----------
    model, arguments
        As in :func:`mlm_utils.sampling.fit`.

    Returns
    -------
    pandas.DataFrame
        A row a sample site, with its ``shape``, what its ``plates`` say (the dimensions of a
        single draw, such as a matrix, aside), how many ``terms`` its log density has, and
        ``verdict``.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`mlm_utils.sampling.fit`, and what the model itself refuses.
    """
    _check(model, arguments, jax.random.key(0))
    table = {}
    for name, site in _sites(model, arguments).items():
        plates = [1] * max((-frame.dim for frame in site["cond_indep_stack"]), default=0)
        for frame in site["cond_indep_stack"]:
            plates[frame.dim] = frame.size
        shape = jnp.shape(site["value"])
        batch = shape[: len(shape) - site["fn"].event_dim]
        terms = jnp.shape(site["fn"].log_prob(site["value"]))
        if site["is_observed"]:
            right = terms == batch == (tuple(plates) or batch)
            verdict = f"{np.prod(terms, dtype=int)} terms for {batch[0] if batch else 1} rows"
        else:
            right, verdict = batch == tuple(plates), "not the shape of its plates"
        table[name] = shape, tuple(plates), np.prod(terms, dtype=int), "ok" if right else verdict
    return pd.DataFrame.from_dict(table, "index", columns=["shape", "plates", "terms", "verdict"])


def unused_inputs(
    model: Callable, arguments: Mapping, *, key: jax.Array, draws: int = 20
) -> pd.DataFrame:
    """Change one input after the other and see whether the log density moves.

    Parameters
    ----------
    model, arguments, key, draws
        As in :func:`index_sensitivity`.

    Returns
    -------
    pandas.DataFrame
        A row an array, a column of a matrix (``X[:, 1]``) or a float among the arguments:
        ``change``, the largest of the log density, and ``verdict``.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`mlm_utils.sampling.fit`, and what the model itself refuses.

    Notes
    -----
    Entries are permuted; what is constant is multiplied by 1.5 and raised by 1. Counts, truth
    values and constant integers are left alone.
    """
    _check(model, arguments, key, draws)
    changed = []
    for name, leaf in _leaves(arguments):
        for column in range(np.shape(leaf)[1]) if np.ndim(leaf) == 2 else [None]:
            other = _with_permuted(arguments, name, key, column)
            if other is not None:
                changed.append((name if column is None else f"{name}[:, {column}]", other))
    return _moves(model, arguments, changed, key, draws)


def _check(model, arguments, key, draws=1):
    """Refuse what no check can use."""
    sampling._check_call(model, arguments, key, {})
    sampling._check_count("draws", draws, 1)
    if not any(site["is_observed"] for site in _sites(model, arguments).values()):
        raise ValueError(
            f"{sampling._name(model)} observes nothing with these arguments: pass the outcome"
        )


def _outcome(model, arguments):
    """Return the observed outcome, and the arguments with which the model draws one like it."""
    y, arguments = np.asarray(arguments.get("y")), dict(arguments) | {"y": None}
    drawn = _sites(model, arguments).get("y")
    if drawn is None or drawn["is_observed"] or jnp.shape(drawn["value"]) != y.shape:
        said = "nothing" if drawn is None else f"shape {jnp.shape(drawn['value'])}"
        raise ValueError(
            f"{sampling._name(model)} draws as y {said} with y=None, for an outcome y of shape "
            f"{y.shape}: write obs=y and let y default to None, and look at shapes()"
        )
    return y, arguments


def _read_index(arguments, index):
    """Return the group index of a dotted name, or refuse it."""
    arrays = {name: np.asarray(leaf) for name, leaf in _leaves(arguments) if np.ndim(leaf) == 1}
    integers = [name for name, array in arrays.items() if array.dtype.kind in "iu"]
    if index not in integers:
        raise ValueError(f"index {index!r} is no array of integers: choose from {integers}")
    if np.ptp(arrays[index]) == 0:
        raise ValueError(f"index {index!r} puts all rows in one group: there is nothing to permute")
    return arrays[index]


def _leaves(arguments):
    """Return (dotted name, value) of each argument and of what is inside tuples and records."""
    paths = jax.tree.leaves_with_path(dict(arguments))
    return [(jax.tree_util.keystr(p, simple=True, separator="."), leaf) for p, leaf in paths]


def _with_permuted(arguments, name, key, column=None):
    """Return the arguments with one array permuted, or None where there is nothing to change."""
    names, values = map(list, zip(*_leaves(arguments), strict=True))
    place = names.index(name)
    array = np.array(values[place])
    where = ... if column is None else (slice(None), column)
    moved = part = array[where]
    if array.dtype.kind in "iuf" and part.ndim:
        moved = np.asarray(jax.random.permutation(key, part))
        moved = np.roll(part, 1) if np.array_equal(moved, part) else moved
    if np.array_equal(moved, part):
        if array.dtype.kind != "f":
            return None
        moved = 1.5 * part + 1
    array[where] = moved
    values[place] = array[()]
    return jax.tree.unflatten(jax.tree.structure(dict(arguments)), values)


def _moves(model, arguments, changed, key, draws):
    """Return how far the log density moves with each of the changed arguments."""
    points = _points(model, arguments, jax.random.fold_in(key, 1), draws)
    before, table = _log_densities(model, arguments, points), {}
    for name, others in changed:
        after = _log_densities(model, others, points)
        change = float(np.abs((after - before).sum(axis=1)).max())
        table[name] = change, "ok" if _differ(before, after).any() else "never used"
    return pd.DataFrame.from_dict(table, "index", columns=["change", "verdict"])


def _sites(model, arguments):
    """Return the sample sites of a model by name."""
    return {site["name"]: site for site in sampling._trace(model, arguments)}


def _scales(model, arguments):
    """Return the names of the parameters that live on the positive numbers."""
    names = []
    for name, site in _sites(model, arguments).items():
        support = getattr(site["fn"].support, "base_constraint", site["fn"].support)
        positive = np.all(getattr(support, "lower_bound", None) == 0)
        if positive and not hasattr(support, "upper_bound") and name != "y":
            names.append(name)
    return names


def _axis(site, plate):
    """Return the axis of a site's value along a plate, counted from the right, or None."""
    dims = [frame.dim for frame in site["cond_indep_stack"] if frame.name == plate]
    return dims[0] - site["fn"].event_dim if dims else None


def _simulate(model, arguments, key, fixed=None):
    """Return the value of every sample site as a key draws it, with some sites fixed."""
    settled = handlers.seed(handlers.substitute(model, data=fixed or {}), key)
    trace = handlers.trace(settled).get_trace(**arguments)
    return {name: site["value"] for name, site in trace.items() if site["type"] == "sample"}


def _points(model, arguments, key, draws):
    """Return prior draws of the parameters, stacked."""
    parameters = [
        name for name, site in _sites(model, arguments).items() if not site["is_observed"]
    ]
    drawn = jax.vmap(lambda k: _simulate(model, arguments, k))(jax.random.split(key, draws))
    return {name: drawn[name] for name in parameters}


def _log_densities(model, arguments, points):
    """Return the log density of each site at stacked points, shape ``(draws, sites)``."""
    if points:
        by_site = jax.vmap(lambda at: compute_log_probs(model, (), arguments, at)[0])(points)
    else:  # a model without parameters has one density
        by_site = compute_log_probs(model, (), arguments, {})[0]
    return np.stack([np.atleast_1d(by_site[name]) for name in sorted(by_site)], axis=-1)


def _differ(before, after):
    """Whether numbers differ by more than rounding; what is not a number differs."""
    return ~(abs(after - before) <= ROUNDING * (1 + abs(before)))
