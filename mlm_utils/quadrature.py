"""The exact posterior of a Gaussian multilevel model with at most three scales, without MCMC.

With the effects integrated out (:mod:`mlm_utils.integration`) the posterior is a surface over the
scales alone. A sum over a lattice that covers it gives moments and evidence to many digits, and
draws from it are independent.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer import log_likelihood
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn
from scipy.optimize import minimize
from xarray import Dataset, DataTree

from mlm_utils.compiled import drawing
from mlm_utils.integration import ROUNDING, Integrated
from mlm_utils.sampling import _check_call, _check_count, _name, _rows_digest

MAX_SCALES = 3
STEP = 0.4  # of the lattice, in sds along an axis at the peak
WIDEST = 0.3  # step at most: scales lie on the axis of their logarithm
NEGLIGIBLE = 25.0  # log ratio to the largest, of the density and of its second moment
STARTS = 8  # draws from the prior from which peaks are sought
BATCH = 1024  # points that are worked out at once
MAX_POINTS = 3_000_000
MAX_ERROR = 0.05  # of a lattice of twice the step, in posterior sds; ours is far better


def exact(
    model: Callable,
    arguments: Mapping,
    *,
    key: jax.Array,
    labels: Mapping | None = None,
    chains: int = 4,
    draws: int = 1000,
) -> DataTree:
    """Work out a posterior by quadrature, and draw independently from it.

    Parameters
    ----------
    model : callable
        A NumPyro model that is Gaussian once its one to three scales are known.
    arguments, key, labels
        As in :func:`mlm_utils.sampling.fit`.
    chains, draws : int
        How many draws, in the form of chains; all are independent.

    Returns
    -------
    xarray.DataTree
        Groups ``posterior``, ``log_likelihood`` and ``observed_data`` as from ``fit``, and
        ``moments``: the mean and sd of each parameter without Monte Carlo error, along a dimension
        ``moment``. Attributes of ``moments``: ``log_evidence`` (log density of ``y`` under the
        model), ``points`` (of the lattice) and ``error`` (of a lattice of twice the step, in
        posterior sds; that of the lattice itself is far smaller).

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As from ``fit`` and :class:`mlm_utils.integration.Integrated`; where there are more than
        three scales, a computed site is not linear in the normal ones, or no lattice of affordable
        size holds the posterior.

    Notes
    -----
    The trapezoidal rule converges faster than any power of its step for a smooth density that dies
    out on both sides (Trefethen and Weideman 2014), as that of the logarithm of a scale does. Draws
    come from the linear interpolation of the lattice, by rejection.
    """
    dims, coords = _check_call(model, arguments, key, {} if labels is None else labels)
    _check_count("chains", chains, 1)
    _check_count("draws", draws, 1)
    surface = _Surface(model, arguments)
    with drawing():
        lattice = surface.cover()
        moments, coarse = surface.moments(lattice)
    error = max(
        float(np.max(abs(coarse[site] - value) / np.where(value[1] > 0, value[1], np.inf)))
        for site, value in moments.items()
    )
    if not error < MAX_ERROR:
        raise RuntimeError(
            f"the posterior of {_name(model)} is too rough for a lattice: one of twice the step is "
            f"off by {error:.2g} posterior sds; use fit(..., integrate=True)"
        )
    scales_key, effects_key = jax.random.split(key)
    with drawing():
        scales = surface.draw(scales_key, lattice, chains * draws)
        posterior, pointwise = jax.device_get(surface.complete(effects_key, scales))
    groups = {"posterior": posterior, "log_likelihood": pointwise}
    groups = jax.tree.map(lambda x: x.reshape(chains, draws, *x.shape[1:]), groups)
    groups["observed_data"] = {"y": np.asarray(arguments["y"])}
    tree = az.from_dict(groups, dims=dims, coords=coords)
    tree.attrs["arguments"] = _rows_digest(arguments)
    sites = tree["posterior"].dataset
    figures = {site: (("moment", *sites[site].dims[2:]), moments[site]) for site in sites}
    tree["moments"] = DataTree(
        Dataset(figures, coords=sites.coords | {"moment": ["mean", "sd"]})
        .drop_vars(["chain", "draw"])
        .assign_attrs(
            log_evidence=float(
                np.logaddexp.reduce(lattice.log_density) + np.log(surface.step).sum()
            ),
            points=len(lattice.places),
            error=error,
        )
    )
    return tree


class _Lattice(NamedTuple):
    """Points of a lattice in whole steps from its origin, and the log density there."""

    places: np.ndarray
    log_density: np.ndarray

    def interpolate(self, where):
        """Return the linear interpolation of the density over its largest, zero outside."""
        codes = _code(self.places)
        order = np.argsort(codes)
        relative = np.exp(self.log_density - self.log_density.max())[order]
        below = np.floor(where).astype(int)
        total = np.zeros(len(where))
        for corner in itertools.product((0, 1), repeat=where.shape[1]):
            place = below + corner
            position = np.searchsorted(codes[order], _code(place)).clip(max=len(codes) - 1)
            there = codes[order][position] == _code(place)
            total += (1 - abs(where - place)).prod(axis=1) * there * relative[position]
        return total


class _Surface:
    """The posterior of a model's scales, each on a real line; for a standard deviation, its log."""

    def __init__(self, model, arguments):
        self.model, self.arguments = model, dict(arguments)
        self.integrated = Integrated(model, arguments)
        starts = self._unconstrained_draws()
        _, self._unravel = ravel_pytree(jax.tree.map(lambda draws: draws[0], starts))
        starts = np.array(jax.vmap(lambda draw: ravel_pytree(draw)[0])(starts))
        if starts.shape[1] > MAX_SCALES:
            raise ValueError(
                f"{_name(model)} has {starts.shape[1]} scales and correlations with these "
                f"arguments, and a lattice can cover {MAX_SCALES}: use fit(..., integrate=True)"
            )
        peaks = self._find_peaks(starts)
        curvature = -np.diag(jax.jit(jax.hessian(self._log_density))(peaks[0]))
        if not (curvature > 0).all():
            raise RuntimeError(
                f"the posterior of the scales of {_name(model)} has no peak: check its priors"
            )
        self.origin = peaks[0]
        self.step = np.minimum(STEP / np.sqrt(curvature), WIDEST)
        self._starts = np.unique(np.rint((peaks - self.origin) / self.step).astype(int), axis=0)

    def _log_density(self, x):
        return -potential_energy(self.integrated.model, (), self.arguments, self._unravel(x))

    def _constrain(self, x):
        return constrain_fn(self.integrated.model, (), self.arguments, self._unravel(x))

    def _unconstrained_draws(self):
        """Return draws of the scales from their prior, on their real lines."""

        @jax.jit
        @jax.vmap
        def draw(key):
            seeded = handlers.seed(self.integrated.model, key)
            trace = handlers.trace(seeded).get_trace(**self.arguments)
            scales = {
                name: site["value"]
                for name, site in trace.items()
                if site["type"] == "sample" and not site["is_observed"]
            }
            return unconstrain_fn(self.integrated.model, (), self.arguments, scales)

        return draw(jax.random.split(jax.random.key(1), STARTS))

    def _find_peaks(self, starts):
        """Return where the density is largest from each start, the highest first."""
        downhill = jax.jit(jax.value_and_grad(lambda x: -self._log_density(x)))
        found = [minimize(downhill, start, jac=True, method="BFGS") for start in starts]
        return np.array([peak.x for peak in sorted(found, key=lambda peak: peak.fun)])

    def _batches(self, function, places, *columns) -> Iterator:
        """Yield a function of points, and of numbers beside them, for one batch after another."""
        for first in range(0, len(places), BATCH):
            parts = [array[first : first + BATCH] for array in (places, *columns)]
            size = len(parts[0])
            x, *rest = (np.concatenate([a, a[-1:].repeat(BATCH - size, axis=0)]) for a in parts)
            done = function(self.origin + x * self.step, *rest)
            yield jax.tree.map(lambda value, size=size: np.asarray(value)[:size], done)

    def cover(self) -> _Lattice:
        """Find the points that matter, from the peaks outwards."""

        @_batched
        def height(x):
            scales, _ = ravel_pytree(self._constrain(x))
            return self._log_density(x), jnp.log(abs(scales))

        places, heights, wave, last = [], [], self._starts, self._starts[:0]
        largest = -np.inf
        while len(wave):
            parts = list(self._batches(height, wave))
            log_density = np.concatenate([part[0] for part in parts])
            log_scales = np.concatenate([part[1] for part in parts])
            if not places:
                reference = log_scales[np.argmax(log_density)]
            second = log_density + 2 * (log_scales - reference).clip(min=0).max(axis=1)
            largest = max(largest, second.max())
            places.append(wave)
            heights.append(log_density)
            if sum(map(len, places)) > MAX_POINTS:
                raise RuntimeError(
                    f"more than {MAX_POINTS} points would be needed to cover the posterior of "
                    f"{_name(self.model)}: use fit(..., integrate=True)"
                )
            rising = wave[second > largest - NEGLIGIBLE]
            steps = np.concatenate([sign * np.eye(wave.shape[1], dtype=int) for sign in (-1, 1)])
            around = np.unique((rising[:, None] + steps).reshape(-1, wave.shape[1]), axis=0)
            seen = np.isin(_code(around), _code(np.concatenate([wave, last])))
            wave, last = around[~seen], wave
        places, heights = np.concatenate(places), np.concatenate(heights)
        _, first = np.unique(_code(places), return_index=True)
        return _Lattice(places[first], heights[first])

    def _given(self, x):
        """Return mean and variance of every site, given the scales at a point."""
        scales = self._constrain(x)
        _, factored = self.integrated._solve(scales, self.arguments)

        def sites(z):
            return self.integrated._run(factored.draw(z), scales, self.arguments)[0]

        none = jnp.zeros(self.integrated.size)
        spread = jax.jacfwd(sites)(none)
        return sites(none), {name: (s**2).sum(axis=-1) for name, s in spread.items()}

    def _check_linear(self):
        """Refuse a computed site whose mean is not that at the mean of the effects."""
        one, other = jax.random.normal(jax.random.key(2), (2, self.integrated.size))

        @jax.jit
        @jax.vmap
        def sites(u):
            return self.integrated._run(u, self._constrain(self.origin), self.arguments)[0]

        found = sites(jnp.stack([0 * one, one, other, one + other]))
        start, a, b, both = ({site: v[k] for site, v in found.items()} for k in range(4))
        for site, value in start.items():
            bent = abs(both[site] - a[site] - b[site] + value)
            if (bent > ROUNDING * (abs(a[site]) + abs(b[site]) + abs(value))).any():
                raise ValueError(
                    f"{site} in {_name(self.model)} is not linear in "
                    f"{list(self.integrated.normal)}: compute it from draws instead"
                )

    def moments(self, lattice) -> tuple[dict, dict]:
        """Return mean and sd of every site, by this lattice and by one of twice its step."""
        self._check_linear()
        mass = np.exp(lattice.log_density - lattice.log_density.max())
        even = mass * (lattice.places % 2 == 0).all(axis=1)
        weights = np.column_stack([mass / mass.sum(), even / even.sum()])

        @_batched
        def weighted(x, weight):
            mean, variance = self._given(x)
            return {
                site: jnp.multiply.outer(weight, jnp.stack([m, m**2 + variance[site]]))
                for site, m in mean.items()
            }

        parts = [
            jax.tree.map(lambda value: value.sum(axis=0), part)
            for part in self._batches(weighted, lattice.places, weights)
        ]
        total = jax.tree.map(lambda *values: sum(values), *parts)
        found = {}
        for site, value in total.items():
            mean, square = value[:, 0], value[:, 1]
            found[site] = np.stack([mean, np.sqrt((square - mean**2).clip(min=0))], axis=1)
        return tuple({site: value[k] for site, value in found.items()} for k in (0, 1))

    def draw(self, key, lattice, count) -> dict:
        """Draw the scales independently: from the interpolated lattice, by rejection."""
        rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), np.uint32)))
        mass = np.exp(lattice.log_density - lattice.log_density.max())
        size = 2 * count + BATCH
        chosen = lattice.places[rng.choice(len(mass), size, p=mass / mass.sum())]
        where = chosen + rng.uniform(size=chosen.shape) - rng.uniform(size=chosen.shape)
        heights = np.concatenate(list(self._batches(_batched(self._log_density), where)))
        ratio = np.exp(heights - lattice.log_density.max()) / lattice.interpolate(where)
        kept = where[rng.uniform(size=size) * ratio.max() < ratio]
        if len(kept) < count:
            raise RuntimeError(
                "the lattice is too coarse to draw from: use fit(..., integrate=True)"
            )
        parts = list(self._batches(_batched(self._constrain), kept[:count]))
        return jax.tree.map(lambda *values: np.concatenate(values), *parts)

    def complete(self, key, scales) -> tuple[dict, dict]:
        """Return all sites but the outcome, and its log likelihood, for draws of the scales."""

        @jax.jit
        def run(key, scales):
            drawn = self.integrated.complete_all(key, scales)
            return drawn, log_likelihood(self.model, drawn, **self.arguments)

        return run(key, scales)


def _batched(function):
    return jax.jit(jax.vmap(function))


def _code(places):
    """Return one whole number for each point of a lattice."""
    return ((places + 2**19) << np.arange(places.shape[1]) * 20).sum(axis=1)
