"""Simulation-based calibration: whether fits find what the model drew.

Draw parameters from the prior, data from the parameters, and fit the data. If the fit is right,
the parameters that made the data are one more draw from the posterior, so that their rank among
the posterior's draws takes every value equally often (Talts et al. 2018). Thousands of short fits
run as one compiled program.

Short chains have not forgotten where they began, and their ranks are uneven even if the fit is
right. So each chain begins at the truth and runs from it both ways: as the sampler is reversible,
the truth then stands at an even place among the draws however slowly the chain moves (Besag and
Clifford 1989). Whether chains move fast enough is for the convergence gate of each fit to say.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpyro import handlers
from numpyro.infer import Predictive, init_to_median
from numpyro.infer.hmc import hmc
from numpyro.infer.util import initialize_model, unconstrain_fn
from scipy import stats
from tqdm.auto import tqdm

from mlm_utils import sampling
from mlm_utils.compiled import drawing

BATCH = 32  # fits that run in step with one another, on each device


class Calibration(NamedTuple):
    """What :func:`calibrate` returns.

    Attributes
    ----------
    ranks : pandas.DataFrame
        A row a simulation and a column a quantity (``tau``, ``alpha_j[rural]``, and
        ``log_likelihood``): how many of the posterior's draws lie below the value that made the
        data, integers ``0 .. draws``.
    draws : int
        Draws kept of each fit.
    diverging : numpy.ndarray
        Divergent transitions of each fit, shape ``(simulations,)``.
    """

    ranks: pd.DataFrame
    draws: int
    diverging: np.ndarray


def calibrate(
    model: Callable,
    arguments: Mapping,
    *,
    key: jax.Array,
    simulator: Callable | None = None,
    labels: Mapping | None = None,
    simulations: int = 1000,
    warmup: int = 150,
    draws: int = 63,
    thin: int = 2,
    target_accept: float = 0.9,
    dense_mass: bool = False,
    centred: Mapping[str, float] | None = None,
    max_tree_depth: int = 8,
    progress: bool | None = None,
) -> Calibration:
    """Rank the parameters that made data among the draws of fits to these data.

    Parameters
    ----------
    model : callable
        The NumPyro model that is fitted.
    arguments, key, labels
        As in :func:`mlm_utils.sampling.fit`; the outcome ``y`` is ignored. What scales the
        priors (``y_mean``, ``y_sd``) stays as given.
    simulator : callable, optional
        The NumPyro model that draws parameters and data, with the sites of `model`. Default:
        `model` itself. Another one shows what the ranks look like when the model is wrong.
    simulations : int
        Number of data sets, at least 32.
    warmup, draws, thin : int
        Steps of adaptation of each fit, draws kept, and steps from one kept draw to the next. The
        further the draws reach, the smaller an error they notice.
    target_accept, dense_mass, centred
        As in :func:`mlm_utils.sampling.fit`.
    max_tree_depth : int
        A trajectory ends after ``2 ** max_tree_depth`` steps. Fits in a batch wait for the longest.
    progress : bool, optional
        Show a progress bar. Default: as in :func:`mlm_utils.sampling.fit`.

    Returns
    -------
    Calibration
        Entries that no simulation moves (the upper triangle of a Cholesky factor) are left out.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`mlm_utils.sampling.fit`, and if `simulator` has other sites than `model`.

    Notes
    -----
    One chain a data set. It adapts from a start that does not know the truth, then runs with fixed
    settings from the truth, a random share of the draws one way and the rest the other. The rank
    of the log likelihood notices errors that every single parameter hides (Modrak et al. 2023).
    """
    arguments = dict(arguments) | {"y": None}
    simulator = model if simulator is None else simulator
    dims, coords = sampling._check_call(model, arguments, key, {} if labels is None else labels)
    for name, value, least in (
        ("simulations", simulations, 32),
        ("warmup", warmup, 1),
        ("draws", draws, 1),
        ("thin", thin, 1),
        ("max_tree_depth", max_tree_depth, 1),
    ):
        sampling._check_count(name, value, least)
    sampling._check_probability("target_accept", target_accept)
    key_truth, key_start, key_way, key_fits = jax.random.split(key, 4)
    truth = Predictive(simulator, num_samples=simulations)(key_truth, **arguments)
    own = jax.eval_shape(
        lambda key: Predictive(model, num_samples=simulations)(key, **arguments), key_truth
    )
    if jax.tree.map(jnp.shape, truth) != jax.tree.map(jnp.shape, own):
        raise ValueError(
            f"simulator {sampling._name(simulator)!r} draws {sorted(truth)}, which are not the "
            f"sites {sorted(own)} of {sampling._name(model)!r} or have other shapes: give both "
            "models the same sites"
        )
    y = truth.pop("y")
    centred = {} if centred is None else centred
    recentred = sampling._recentre(model, arguments, centred)
    start, potential_of, sites_of, _ = initialize_model(
        key_start,
        recentred,
        init_strategy=init_to_median,
        dynamic_args=True,
        model_kwargs=arguments | {"y": np.asarray(y[0])},
    )

    def trace_at(values, data):
        return handlers.trace(handlers.substitute(model, values)).get_trace(**data)

    def quantities(values, data):
        log_likelihood = trace_at(values, data)["y"]["fn"].log_prob(data["y"]).sum()
        return {name: values[name] for name in truth} | {"log_likelihood": log_likelihood}

    def state_at(state, truth, data):
        """Put a chain at the truth, in the sampler's coordinates."""
        sites, point = trace_at(truth, data), {}
        for name in start.z:
            site = name.removesuffix("_decentered")
            point[name] = truth[site]
            if name != site:
                base, degree = sampling._base(sites[site]["fn"]), centred[site]
                point[name] = (truth[site] - base.loc) * base.scale ** (degree - 1) + (
                    degree * base.loc
                )
        z = unconstrain_fn(recentred, (), data, point)
        energy, gradient = jax.value_and_grad(potential_of(**data))(z)
        return state._replace(z=z, potential_energy=energy, z_grad=gradient)

    def rank(key, start, turn, truth, y):
        data = arguments | {"y": y}
        at = quantities(truth, data)
        initialize, sample = hmc(potential_fn_gen=potential_of, algo="NUTS")
        key_chain, key_ties = jax.random.split(key)

        def step(carry, i):
            state, below, ties, diverging = carry
            back = (i == warmup) | (i == warmup + thin * turn)
            state = jax.tree.map(
                lambda there, here: jnp.where(back, there, here),
                state_at(state, truth, data),
                state,
            )
            state = sample(state, model_kwargs=data)
            values = quantities(sites_of(**data)(state.z), data)
            kept = (i >= warmup) & ((i - warmup) % thin == thin - 1)
            # A chain that did not move is still at the truth, but for rounding.
            tied = jax.tree.map(lambda v, true: abs(v - true) <= 1e-9 * abs(true), values, at)
            lower = jax.tree.map(lambda v, true, tie: (v < true) & ~tie, values, at, tied)
            below = jax.tree.map(lambda n, more: n + kept * more, below, lower)
            ties = jax.tree.map(lambda n, more: n + kept * more, ties, tied)
            return (state, below, ties, diverging + (i >= warmup) * state.diverging), None

        state = initialize(
            start,
            warmup,
            target_accept_prob=target_accept,
            dense_mass=dense_mass,
            max_tree_depth=max_tree_depth,
            model_kwargs=data,
            rng_key=key_chain,
        )
        none = jax.tree.map(lambda value: jnp.zeros(jnp.shape(value), int), at)
        steps = jnp.arange(warmup + thin * draws)
        (_, below, ties, diverging), _ = jax.lax.scan(step, (state, none, none, 0), steps)
        # Draws that tie with the truth lie below it or not by lot, all quantities by the same.
        lot = jax.random.uniform(key_ties)
        ranks = jax.tree.map(lambda n, tie: n + (lot * (tie + 1)).astype(int), below, ties)
        return ranks, diverging

    starts = jax.tree.map(lambda z: jnp.broadcast_to(z, (simulations, *z.shape)), start.z)
    turns = jax.random.randint(key_way, (simulations,), 0, draws + 1)
    tasks = (jax.random.split(key_fits, simulations), starts, turns, truth, y)
    below, diverging = _run_in_batches(rank, tasks, simulations, progress)
    ranks = _columns(below, dims, coords)
    moves = _columns(truth, dims, coords).std() > 0
    return Calibration(
        ranks.loc[:, moves.reindex(ranks.columns, fill_value=True)], draws, diverging
    )


def uniformity(calibration: Calibration) -> pd.DataFrame:
    """Test whether the ranks of each quantity are uniform.

    Parameters
    ----------
    calibration : Calibration
        What :func:`calibrate` returned.

    Returns
    -------
    pandas.DataFrame
        A row a quantity, with columns ``deviation`` (the largest distance between the share of
        ranks below a value and its expectation) and ``p_value``: how often an exact fit would
        stray as far from its expectation, at the point of the ranks where that is least likely.

    Notes
    -----
    If every fit is exact, then with ``m`` quantities the chance that the least p-value is below
    ``a / m`` is at most ``a``: that is the rate of false alarms. The statistic is that of the
    simultaneous bands of Sailynoja, Burkner and Vehtari (2022), its distribution simulated.
    """
    simulations, draws = len(calibration.ranks), calibration.draws
    counts = np.stack(
        [np.bincount(column, minlength=draws + 1) for column in calibration.ranks.to_numpy().T]
    )
    least = _least_tail(counts, simulations)
    null = _null(simulations, draws)
    share = np.cumsum(counts, axis=1)[:, :-1] / simulations
    return pd.DataFrame(
        {
            "deviation": np.abs(share - _expected(draws)).max(axis=1),
            "p_value": (1 + np.searchsorted(null, least * (1 + 1e-12))) / (1 + len(null)),
        },
        index=calibration.ranks.columns,
    )


def uniform_band(simulations: int, draws: int, probability: float) -> pd.DataFrame:
    """Return the band that the ranks of an exact fit leave nowhere, with a given probability.

    Parameters
    ----------
    simulations, draws : int
        Number of data sets, and of draws kept of each fit.
    probability : float
        That the share of ranks stays within the band at every point, in (0, 1).

    Returns
    -------
    pandas.DataFrame
        A row a possible rank but the last, with columns ``expected``, ``lower`` and ``upper``:
        the share of ranks up to it.

    Raises
    ------
    TypeError, ValueError
        If a number is of the wrong type or out of range.
    """
    sampling._check_count("simulations", simulations, 1)
    sampling._check_count("draws", draws, 1)
    sampling._check_probability("probability", probability)
    tail = np.quantile(_null(simulations, draws), 1 - probability) / 2
    expected = _expected(draws)
    return pd.DataFrame(
        {
            "expected": expected,
            "lower": stats.binom.ppf(tail, simulations, expected) / simulations,
            "upper": stats.binom.isf(tail, simulations, expected) / simulations,
        }
    )


def _expected(draws):
    """Return the expected share of ranks up to 0, 1, ... draws - 1."""
    return np.arange(1, draws + 1) / (draws + 1)


def _least_tail(counts, simulations):
    """Return twice the least tail probability along each histogram of ranks."""
    cumulative = np.cumsum(counts, axis=-1)[..., :-1]
    n, expected = np.arange(simulations + 1)[:, None], _expected(cumulative.shape[-1])
    tails = np.minimum(
        stats.binom.cdf(n, simulations, expected), stats.binom.sf(n - 1, simulations, expected)
    )
    return 2 * tails[cumulative, np.arange(len(expected))].min(axis=-1)


@functools.cache
def _null(simulations, draws):
    """Return the statistic of uniform ranks in many simulated calibrations, sorted."""
    rng = np.random.default_rng(20221)
    shares = np.full(draws + 1, 1 / (draws + 1))
    parts = (
        _least_tail(rng.multinomial(simulations, shares, size=10_000), simulations)
        for _ in range(10)
    )
    return np.sort(np.concatenate(list(parts)))


def _run_in_batches(function, tasks, n, progress):
    """Map a function over the leading axis of its arguments, a batch on each device at a time."""
    mesh = jax.make_mesh((jax.local_device_count(),), ("device",))
    across = jax.NamedSharding(mesh, jax.P("device"))
    mapped = jax.jit(
        jax.shard_map(
            jax.vmap(function),
            mesh=mesh,
            in_specs=jax.P("device"),
            out_specs=jax.P("device"),
            check_vma=False,
        )
    )
    size = mesh.size * BATCH
    watched = sampling._someone_watches() if progress is None else progress
    parts = []
    with drawing():
        for first in tqdm(range(0, n, size), disable=not watched, desc="calibrate"):
            rows = np.arange(first, first + size) % n  # the last batch is filled up
            batch = jax.device_put(jax.tree.map(lambda a, rows=rows: a[rows], tasks), across)
            parts.append(jax.device_get(mapped(*batch)))
    return jax.tree.map(lambda *a: np.concatenate(a)[:n], *parts)


def _columns(values, dims, coords):
    """Lay arrays with a leading axis of simulations out as the labelled columns of a table."""
    columns = {}
    for name, array in values.items():
        array = np.asarray(array)
        labels = itertools.product(*(coords[dim] for dim in dims.get(name, [])))
        flat = array.reshape(len(array), -1)
        for column, label in zip(flat.T, labels, strict=True):
            columns[f"{name}[{', '.join(map(str, label))}]" if label else name] = column
    return pd.DataFrame(columns)
