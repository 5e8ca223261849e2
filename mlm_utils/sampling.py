"""Fitting: one call from a model to labelled draws that passed the gate.

The gate: max R-hat <= 1.01, min bulk and tail ESS >= 400, no divergence. A fit that misses
it raises :class:`ConvergenceError`; a fit shown as an exhibit of failure must miss it.
"""

import atexit
import contextlib
import hashlib
import inspect
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

import arviz as az
import jax
import numpy as np
import numpyro
from arviz_base.io_numpyro import infer_dims
from numpyro.distributions import constraints
from numpyro.infer import Predictive
from numpyro.infer.reparam import LocScaleReparam
from xarray import DataArray, Dataset, DataTree

from mlm_utils.compiled import Program, compile_seconds, draw, drawn_seconds
from mlm_utils.design import _is_spread
from mlm_utils.integration import Integrated, _base, _trace

MAX_RHAT = 1.01
MIN_ESS = 400

# While the book builds, this variable names the folder of the ledger (`_build/fits`).
LEDGER_VARIABLE = "MLM_LEDGER"
_chapter = None  # the chapter that called `mlm_utils.setup`, for the ledger alone


class ConvergenceError(RuntimeError):
    """A fit missed the convergence gate, or an exhibit of failure passed it."""


def fit(
    model: Callable,
    arguments: Mapping,
    *,
    key: jax.Array,
    labels: Mapping | None = None,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    target_accept: float = 0.8,
    dense_mass: bool = False,
    centred: Mapping[str, float] | None = None,
    integrate: bool = False,
    pointwise: bool = True,
    name: str | None = None,
    exhibit: bool = False,
    progress: bool | None = None,
) -> DataTree:
    """Draw from a model's posterior with NUTS and refuse draws that did not converge.

    Parameters
    ----------
    model : callable
        A NumPyro model.
    arguments : mapping
        The model's keyword arguments, the outcome among them. Where its rows are spread over
        devices (:func:`mlm_utils.sharding.shard`), a chain takes all devices, and what there is
        a row of is not returned: it stays where the rows are.
    key : jax.Array
        Random key, for example ``jax.random.key(1)``. The same key gives the same draws.
    labels : mapping, optional
        Plate name -> ``(dimension name, labels)``; see :class:`mlm_utils.design.Design`.
    chains, warmup, draws : int
        Number of chains, and of steps a chain before and after adaptation. On a CPU the chains
        run in parallel where :func:`mlm_utils.setup` made enough devices.
    target_accept : float
        NUTS adapts its step size to this mean acceptance probability, in (0, 1).
    dense_mass : bool
        Adapt a full mass matrix (posterior correlations) rather than a diagonal one.
    centred : mapping, optional
        Sample site -> how far it is centred, in [0, 1]: 1 draws the site as the model writes it,
        0 draws its standardised form, and numbers between draw a mixture. The model and its
        posterior stay the same; only the sampler's coordinates change. The site must follow
        a distribution with a location and a scale.
    integrate : bool
        Sample the scales and correlations alone, with the normal sites integrated out, and draw
        these exactly for each draw of the scales; see :mod:`mlm_utils.integration`. The posterior
        stays the same. For models that are Gaussian once their scales are known.
    pointwise : bool
        Return the log likelihood of every row at every draw. Leave out where they are too many.
    name : str, optional
        Name of the fit in the ledger. Default: the model's name.
    exhibit : bool
        The fit is shown because it fails: it must miss the gate, and is returned.
    progress : bool, optional
        Show a progress bar. Default: at a terminal or in a live notebook, never in the book.

    Returns
    -------
    xarray.DataTree
        Groups ``posterior``, ``sample_stats``, ``log_likelihood`` (if `pointwise`) and
        ``observed_data``, with the dimensions of `labels`.

    Raises
    ------
    ConvergenceError
        If max R-hat > 1.01, min bulk or tail ESS < 400 or there is any divergence; for an
        exhibit, if none of these holds.
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    RuntimeError
        If float64 is off: call :func:`mlm_utils.setup` first.
    """
    labels = {} if labels is None else labels
    spread = any(map(_is_spread, jax.tree.leaves(arguments)))
    if spread:
        pointwise, progress = False, False
        labels = {dimension: labels[dimension] for dimension in labels if dimension != "row"}
    if spread and integrate:
        raise ValueError(
            "integrate is True and the rows are spread over devices: a Gaussian model does not "
            "need them, so fit it from sums over its rows, or leave one of the two out"
        )
    dims, coords = _check_call(model, arguments, key, labels)
    observed = {s["name"]: s["value"] for s in _trace(model, arguments) if s["is_observed"]}
    if not observed:
        raise ValueError(
            f"{_name(model)} observes nothing with these arguments: pass y (y=None draws it)"
        )
    for option, value, least in (("chains", chains, 2), ("warmup", warmup, 1), ("draws", draws, 4)):
        _check_count(option, value, least)
    _check_probability("target_accept", target_accept)
    ledger = _ledger_path(_name(model) if name is None else name)
    if integrate and centred:
        raise ValueError(
            f"centred names {sorted(centred)}, but with integrate=True no effect is moved by the "
            "sampler: leave one of the two out"
        )
    integrated = Integrated(model, arguments) if integrate else None
    sampled = (
        numpyro.handlers.reparam(integrated.model, config=integrated.coordinates)
        if integrate
        else _recentre(model, arguments, centred or {})
    )
    program = Program(
        sampled,
        model,
        integrated,
        (("target_accept_prob", target_accept), ("dense_mass", dense_mass)),
        (("num_warmup", warmup), ("num_samples", draws)),
        pointwise,
    )
    watched = _someone_watches() if progress is None else progress
    with compile_seconds() as compiling:
        groups, seconds = draw(program, arguments, jax.random.split(key, chains), progress=watched)
    for site in centred or {}:
        groups["posterior"].pop(f"{site}_decentered", None)
    if not spread:
        groups["observed_data"] = {site: np.asarray(value) for site, value in observed.items()}
    posterior = az.from_dict(groups, dims=dims, coords=coords)
    posterior.attrs["arguments"] = _rows_digest(arguments)
    record = _record(posterior)
    record |= {
        "model": _name(model),
        "name": _name(model) if name is None else name,
        "data": _describe(arguments),
        "chains": chains,
        "warmup": warmup,
        "draws": draws,
        "exhibit": exhibit,
        "seconds_compile": round(compiling[0], 3),
        "seconds_sample": round(seconds, 3),
    }
    if ledger is not None:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        record = {"chapter": _chapter} | record
        ledger.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if record["misses"] and not exhibit:
        raise ConvergenceError(
            f"the fit {record['name']!r} did not converge: {'; '.join(record['misses'])}. Draw "
            "longer, raise target_accept, or write the model in another form"
        )
    if exhibit and not record["misses"]:
        raise ConvergenceError(
            f"the fit {record['name']!r} is marked an exhibit of failure but passed the gate "
            f"(max R-hat {record['max_rhat']:.4f}, min bulk ESS {record['min_ess_bulk']:.0f}, "
            f"min tail ESS {record['min_ess_tail']:.0f}, no divergence): remove exhibit=True"
        )
    return posterior


def prior_predictive(
    model: Callable,
    arguments: Mapping,
    *,
    key: jax.Array,
    labels: Mapping | None = None,
    draws: int = 1000,
) -> DataTree:
    """Draw parameters from the prior and the outcome they imply.

    Parameters
    ----------
    model, arguments, key, labels
        As in :func:`fit`; the outcome ``y`` is ignored.
    draws : int
        Number of draws.

    Returns
    -------
    xarray.DataTree
        Groups ``prior`` and ``prior_predictive``, one chain of `draws` draws.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`fit`.
    """
    arguments = dict(arguments) | {"y": None}
    dims, coords = _check_call(model, arguments, key, {} if labels is None else labels)
    _check_count("draws", draws, 1)
    drawn = Predictive(model, num_samples=draws)(key, **arguments)
    drawn = {name: np.asarray(value)[None] for name, value in drawn.items()}
    groups = {"prior_predictive": {"y": drawn.pop("y")}, "prior": drawn}
    return az.from_dict(groups, dims=dims, coords=coords)


def posterior_predictive(
    model: Callable,
    arguments: Mapping,
    posterior: DataTree,
    *,
    key: jax.Array,
    labels: Mapping | None = None,
) -> DataTree:
    """Draw a new outcome for every posterior draw.

    Parameters
    ----------
    model, arguments, key, labels
        As in :func:`fit`; the outcome ``y`` is ignored. `arguments` may describe new rows.
    posterior : xarray.DataTree
        What :func:`fit` returned for `model`.

    Returns
    -------
    xarray.DataTree
        Group ``posterior_predictive``, with the chains and draws of `posterior`; where the
        fit's own rows are predicted, its ``observed_data`` as well.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in :func:`fit`, and if `posterior` lacks a parameter of the model.
    """
    arguments = dict(arguments) | {"y": None}
    dims, coords = _check_call(model, arguments, key, {} if labels is None else labels)
    if not isinstance(posterior, DataTree) or "posterior" not in posterior.children:
        raise TypeError(
            f"posterior must be the DataTree that fit() returned, got {type(posterior).__name__}"
        )
    own_rows = posterior.attrs.get("arguments") == _rows_digest(arguments)
    parameters = {name: np.asarray(draws) for name, draws in posterior["posterior"].items()}
    shapes = {site["name"]: np.shape(site["value"]) for site in _trace(model, arguments)}
    del shapes["y"]
    if absent := sorted(set(shapes) - set(parameters)):
        raise ValueError(
            f"posterior has no draws of {absent}: it was fitted with another model than "
            f"{_name(model)}"
        )
    for name, shape in shapes.items():
        if parameters[name].shape[2:] != shape:
            raise ValueError(
                f"posterior holds {name!r} of shape {parameters[name].shape[2:]}, but with these "
                f"arguments {_name(model)} takes shape {shape}: keep the levels of the fit"
            )
    drawn = Predictive(model, parameters, batch_ndims=2, return_sites=["y"])(key, **arguments)
    groups = {"posterior_predictive": {"y": np.asarray(drawn["y"])}}
    if own_rows:
        groups["observed_data"] = {"y": posterior["observed_data"]["y"].to_numpy()}
    return az.from_dict(groups, dims=dims, coords=coords)


def summary(posterior: DataTree, var_names: Sequence[str] | None = None, **options):
    """Summarise draws in a table, one row an entry of a parameter, under its right name.

    Parameters
    ----------
    posterior : xarray.DataTree
        What :func:`fit` returned.
    var_names : sequence of str, optional
        The parameters, in the order wanted. Default: all.
    **options
        Passed to ``arviz.summary``, for example ``round_to="none"``.

    Returns
    -------
    pandas.DataFrame
        Mean, sd, 90 % interval and diagnostics.

    Raises
    ------
    KeyError
        If a name is not a parameter of `posterior`.

    Notes
    -----
    Arrays of several dimensions are laid out in one before ``arviz.summary`` sees them: where
    two arrays hold the same dimensions in different orders, ArviZ 1.3 writes figures beside the
    wrong names.
    """
    draws = posterior["posterior"].dataset
    names = list(draws.data_vars) if var_names is None else list(var_names)
    if absent := [name for name in names if name not in draws.data_vars]:
        raise KeyError(f"var_names {absent} are not in the posterior: {list(draws.data_vars)}")
    with np.errstate(divide="ignore", invalid="ignore"):  # an entry that never moves has no R-hat
        return az.summary(Dataset({name: _flatten(draws[name]) for name in names}), **options)


def _flatten(array):
    """Lay the dimensions of an array beyond chain and draw out in one, labelled ``a, b``."""
    dims = array.dims[2:]
    if len(dims) < 2:
        return array
    labels = itertools.product(*(array.coords[dim].to_numpy() for dim in dims))
    entry = f"{array.name}_entry"
    return DataArray(
        array.to_numpy().reshape(*array.shape[:2], -1),
        dims=("chain", "draw", entry),
        coords={entry: [", ".join(map(str, label)) for label in labels]},
    )


def open_ledger(chapter: str) -> None:
    """Name the chapter whose fits follow and, while the book builds, clear its old records.

    A build is told as well, when the process ends, how long the page compiled in all.

    Parameters
    ----------
    chapter : str
        Slug of the chapter: lower-case letters, digits and underscores.

    Raises
    ------
    ValueError
        If `chapter` is not a slug.
    """
    global _chapter
    if not isinstance(chapter, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", chapter):
        raise ValueError(
            f"chapter must be a slug such as 'random_intercept', got {chapter!r}: use the name of "
            "the chapter's file without its ending"
        )
    _chapter = chapter
    folder = os.environ.get(LEDGER_VARIABLE)
    if folder:
        for old in Path(folder).glob(f"{chapter}.*"):
            old.unlink()
        page, path = contextlib.ExitStack(), Path(folder, f"{chapter}.seconds")
        compiling = page.enter_context(compile_seconds())  # outside of fits as well

        @page.callback
        def tell():
            if path.parent.is_dir():
                path.write_text(f"{compiling[0]:.3f} {drawn_seconds[0]:.3f}\n")

        atexit.register(page.close)


def _check_call(model, arguments, key, labels):
    """Check what every entry point takes; return the dimensions and coordinates."""
    if not callable(model):
        raise TypeError(
            f"model must be a NumPyro model function, got {model!r}: pass the function itself"
        )
    if not isinstance(arguments, Mapping):
        raise TypeError(
            f"arguments must be a mapping of {_name(model)}'s keyword arguments, got "
            f"{type(arguments).__name__}: a Design holds one as design.arguments"
        )
    if not jax.config.jax_enable_x64:
        raise RuntimeError("float64 is off: call mlm_utils.setup() before anything uses JAX")
    if not isinstance(key, jax.Array) or not (
        jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    ):
        raise TypeError(f"key must be a random key, got {key!r}: use jax.random.key(1)")
    try:
        inspect.signature(model).bind(**arguments)
    except TypeError as error:
        raise TypeError(f"arguments do not fit {_name(model)}: {error}") from None
    sizes = {}
    for site in _trace(model, arguments):
        sizes |= {plate.name: plate.size for plate in site["cond_indep_stack"]}
        event_dims = site["infer"].get("event_dims", [])
        sizes |= dict(zip(event_dims, site["fn"].event_shape, strict=True)) if event_dims else {}
    coords = {}
    for dim, size in sizes.items():
        entry = labels.get(dim, (dim, tuple(range(size))))
        if not isinstance(entry, tuple) or len(entry) != 2 or isinstance(entry[1], str):
            raise TypeError(
                f"labels[{dim!r}] must be (name, labels), got {entry!r}: for example "
                "('school', ('A', 'B'))"
            )
        name, values = entry
        if len(values) != size:
            raise ValueError(
                f"labels[{dim!r}] names {len(values)} values of {name!r}, but the model has "
                f"size {size}: give one label a position, in order"
            )
        coords[name] = list(values)
    rename = {dim: labels[dim][0] for dim in sizes if dim in labels}
    dims = {
        site: [rename.get(dim, dim) for dim in dims]
        for site, dims in infer_dims(model, None, arguments).items()
    }
    return dims, coords


def _recentre(model, arguments, centred):
    """Return the model in the sampler's coordinates: the same density, moved by `centred`."""
    if not isinstance(centred, Mapping):
        raise TypeError(
            f"centred must be a mapping of sites, got {centred!r}: try {{'alpha_j': 0.5}}"
        )
    sites = {site["name"]: site for site in _trace(model, arguments) if not site["is_observed"]}
    movable = sorted(name for name, site in sites.items() if _has_location(site["fn"]))
    config = {}
    for name, degree in centred.items():
        if name not in movable:
            what = "has no location and scale" if name in sites else "is not a parameter"
            raise ValueError(
                f"centred names {name!r}, which {what} in {_name(model)}: choose from {movable}"
            )
        if isinstance(degree, bool) or not isinstance(degree, Real) or not 0 <= degree <= 1:
            raise ValueError(f"centred[{name!r}] must lie in [0, 1], got {degree!r}: try 0.5")
        config[name] = LocScaleReparam(degree)
    return numpyro.handlers.reparam(model, config=config) if config else model


def _has_location(distribution):
    """Whether a site can be recentred: a distribution on the reals with a location and a scale."""
    base = _base(distribution)
    return base.support is constraints.real and {"loc", "scale"} <= set(base.arg_constraints)


def _check_count(name, value, least):
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}: try {name}=1000")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}: raise it")


def _check_probability(name, value):
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}: try 0.9")
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value}: try 0.9")


def _name(model) -> str:
    return getattr(model, "__name__", type(model).__name__)


def _someone_watches() -> bool:
    """Whether a person sees a progress bar: a terminal or a live notebook, not a build."""
    if os.environ.get(LEDGER_VARIABLE):
        return False
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _record(posterior) -> dict:
    """Return the figures of the ledger: diagnostics of the fit and of each parameter."""
    table = _without_constants(summary(posterior, round_to="none"))
    divergences = int(posterior["sample_stats"]["diverging"].sum())
    misses = []
    for column, bad, limit in (
        ("r_hat", ~(table["r_hat"] <= MAX_RHAT), f"> {MAX_RHAT}"),
        ("ess_bulk", ~(table["ess_bulk"] >= MIN_ESS), f"< {MIN_ESS}"),
        ("ess_tail", ~(table["ess_tail"] >= MIN_ESS), f"< {MIN_ESS}"),
    ):
        if bad.any():
            figures = table.loc[bad, column]
            worst = (
                figures.isna().idxmax()
                if figures.isna().any()
                else (figures.idxmax() if column == "r_hat" else figures.idxmin())
            )
            misses.append(f"{column} of {worst} is {figures[worst]:.4g} ({limit})")
    if divergences:
        misses.append(f"{divergences} divergent transitions after warm-up (> 0)")
    return {
        "max_rhat": float(table["r_hat"].fillna(np.inf).max()),
        "min_ess_bulk": float(table["ess_bulk"].fillna(0.0).min()),
        "min_ess_tail": float(table["ess_tail"].fillna(0.0).min()),
        "divergences": divergences,
        "misses": misses,
        "parameters": {
            name: {
                "mean": float(row["mean"]),
                "sd": float(row["sd"]),
                "mcse": float(row["mcse_mean"]),
            }
            for name, row in table.iterrows()
        },
    }


def _without_constants(table):
    """Drop entries that never move while others of their array do, as in a Cholesky factor.

    An array that does not move at all stays: its R-hat is not a number, and the fit fails.
    """
    array = table.index.str.split("[").str[0]
    moves = table["sd"] > 0
    return table[moves | ~moves.groupby(array).transform("any")]


def _describe(arguments) -> dict:
    """Return the shapes of the arrays and a digest of all arguments, for the ledger."""
    digest = hashlib.sha256()
    shapes = {}
    for path, leaf in jax.tree.leaves_with_path(dict(arguments)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        shards = leaf.addressable_shards if _is_spread(leaf) else ()
        value = np.concatenate([shard.data for shard in shards]) if shards else np.asarray(leaf)
        if value.dtype.hasobject:
            raise TypeError(
                f"argument {name} holds a {type(leaf).__name__}, which has no digest: use arrays, "
                "numbers and text, in tuples or dicts"
            )
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
        if value.ndim:
            shapes[name] = list(value.shape)
    return {"shapes": shapes, "sha256": digest.hexdigest()}


def _rows_digest(arguments) -> str:
    """Return a digest of all arguments but the outcome, to know the rows of a fit again."""
    return _describe({name: arguments[name] for name in arguments if name != "y"})["sha256"]


def _ledger_path(name) -> Path | None:
    """Return where the ledger records a fit of this name, or None outside a build of the book."""
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise ValueError(f"name must be letters, digits and underscores, got {name!r}")
    folder = os.environ.get(LEDGER_VARIABLE)
    if not folder:
        return None
    if _chapter is None:
        raise RuntimeError(
            "the book is building but no chapter is named: call mlm_utils.setup(chapter=...) with "
            "the name of the chapter's file in the first cell"
        )
    path = Path(folder) / f"{_chapter}.{name}.json"
    if path.exists():
        raise RuntimeError(
            f"chapter {_chapter!r} has two fits named {name!r}: give one another name="
        )
    return path
