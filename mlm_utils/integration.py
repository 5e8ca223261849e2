"""The Gaussian part of a model integrated out: its scales are sampled, its effects drawn exactly.

In a Gaussian multilevel model everything but scales and correlations is normal, and enters the
mean of the outcome linearly. With the scales known, ``y`` is normal with the effects integrated
out, and the effects given ``y`` are normal too: linear algebra instead of a walk through a funnel.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.scipy.special import erfinv, ndtr, ndtri
from numpyro import handlers
from numpyro.distributions import (
    ExpandedDistribution,
    Exponential,
    HalfCauchy,
    HalfNormal,
    Independent,
    MultivariateNormal,
    Normal,
)
from numpyro.infer.reparam import Reparam
from numpyro.primitives import Messenger

from mlm_utils.arrow import Arrow

INTEGRATED = "integrated"  # the type of a normal site that is set
PROBES = 64  # normal numbers that are moved at once, to see which rows they move
ROUNDING = 1e-8  # a smaller relative departure from a straight line is rounding


class Integrated:
    r"""A model with its normal sites integrated out.

    Given the other sites :math:`s` (scales, correlations), the normal ones are
    :math:`\text{loc} + \text{scale} \times u` with :math:`u \sim \text{Normal}(0, I)`, and

    .. math::

        y \mid u, s &\sim \text{Normal}(m_s + A_s u, \sigma_s) \\
        y \mid s &\sim \text{MvNormal}(m_s, \sigma_s^2 I + A_s A_s^\top) \\
        u \mid y, s &\sim \text{MvNormal}(P^{-1} A_s^\top (y - m_s) / \sigma_s^2, P^{-1}),
            \quad P = I + A_s^\top A_s / \sigma_s^2

    with a :math:`\sigma_s` of each row where the model has one.

    Parameters
    ----------
    model : callable
        A NumPyro model whose outcome ``y`` is normal.
    arguments : mapping
        Its keyword arguments, the outcome among them.

    Attributes
    ----------
    normal, scales : tuple of str
        The sites that are integrated out, and the others, in the order of the model.
    coordinates : dict of str to numpyro.infer.reparam.Reparam
        The scales that NUTS had better draw as quantiles of their priors.
    size : int
        The length of ``u``: how many numbers a sampler need not move.

    Raises
    ------
    ValueError
        If ``y`` is not normal, no other site is, all are, its mean is not linear in the normal
        sites for given scales, or anything else that is observed depends on them.

    Notes
    -----
    Where no row involves two groups, as in all models with one grouping factor, a gradient costs
    about as much as one of the model itself; in general, :mod:`mlm_utils.arrow` looks for blocks in
    ``P``. The identities are those of Lindley and Smith (1972).
    """

    def __init__(self, model: Callable, arguments: Mapping):
        self._program, self._arguments = model, dict(arguments)
        sites = {site["name"]: site for site in _trace(model, arguments)}
        latent = {name: site for name, site in sites.items() if not site["is_observed"]}
        shapes = {name: jnp.shape(s["value"]) for name, s in latent.items() if _is_normal(s["fn"])}
        said = getattr(model, "__name__", type(model).__name__)
        observed = [name for name, site in sites.items() if site["is_observed"]]
        if "y" not in observed or type(_base(sites["y"]["fn"])) is not Normal:
            raise ValueError(f"{said} observes {observed}: to integrate takes a normal y")
        self._beside = [name for name in observed if name != "y"]
        if weighted := [name for name, site in sites.items() if site["scale"] is not None]:
            raise ValueError(f"{said} weights the density of {weighted}: sample its effects")
        if not shapes or len(shapes) == len(latent):
            raise ValueError(
                f"of the sites {list(latent)} of {said}, {list(shapes)} are normal: to integrate "
                "takes some that are and some that are not"
            )
        self.normal, self._shapes = tuple(shapes), shapes
        self.size = sum(int(np.prod(shape)) for shape in shapes.values())
        scales = {name: latent[name]["value"] for name in latent if name not in shapes}
        self.scales = tuple(scales)
        self.coordinates = {
            name: NormalQuantile()
            for name in scales
            if _base(latent[name]["fn"]).__class__ in QUANTILES
        }
        self._check_linear(said, scales)
        self._structure = self._find_structure(scales)

    def model(self, **arguments):
        """Run the model of the scales alone; for NUTS, which hands it the arguments."""
        computed = handlers.block(
            hide_fn=lambda site: site["type"] == "deterministic" or site["name"] == "y"
        )
        with computed, _Standardised(self._split(jnp.zeros(self.size))):
            trace = handlers.trace(self._program).get_trace(**arguments)
        scales = {name: trace[name]["value"] for name in self.scales}
        numpyro.factor("y_integrated", self._solve(scales, arguments)[0])

    def complete(self, key: jax.Array, scales: Mapping, arguments: Mapping | None = None) -> dict:
        """Draw the normal sites given one draw of the scales.

        Parameters
        ----------
        key : jax.Array
            Random key.
        scales : mapping
            Site name -> value, for every site that is not normal.
        arguments : mapping, optional
            Keyword arguments of the model, of the same shapes. Default: its own.

        Returns
        -------
        dict
            Site name -> value, for every site of the model but the outcome, computed ones too.
        """
        arguments = self._arguments if arguments is None else arguments
        _, factored = self._solve(scales, arguments)
        u = factored.draw(jax.random.normal(key, (self.size,)))
        return self._run(u, scales, arguments)[0]

    def complete_all(
        self, key: jax.Array, scales: Mapping, arguments: Mapping | None = None, batch: int = 64
    ) -> dict:
        """Draw the normal sites for every draw of the scales.

        Parameters
        ----------
        key, arguments
            As in :meth:`complete`.
        scales : mapping
            Site name -> draws, along the first axis.
        batch : int
            Draws that are completed at once; memory grows with it.

        Returns
        -------
        dict
            As :meth:`complete`, with the axis of draws in front.
        """
        keys = jax.random.split(key, len(next(iter(scales.values()))))
        return jax.lax.map(
            lambda draw: self.complete(*draw, arguments), (keys, scales), batch_size=batch
        )

    def _run(self, u, scales, arguments):
        """Return the values of all sites but the outcome, and the outcome's distribution."""
        trace = self._trace_at(u, scales, arguments)
        kept = ("sample", "deterministic", INTEGRATED)
        values = {name: s["value"] for name, s in trace.items() if s["type"] in kept}
        for name in ("y", *self._beside):
            del values[name]
        return values, _base(trace["y"]["fn"])

    def _trace_at(self, u, scales, arguments):
        with handlers.block(), handlers.substitute(data=scales), _Standardised(self._split(u)):
            return handlers.trace(self._program).get_trace(**arguments)

    def _solve(self, scales, arguments):
        """Return the log density of y given scales, and the factored density of u given y."""
        y = jnp.ravel(arguments["y"])

        def outcome(u):
            y_given_u = self._run(u, scales, arguments)[1]
            return jnp.broadcast_to(y_given_u.loc, y.shape), y_given_u.scale

        centre, spread, sd = jax.linearize(outcome, jnp.zeros(self.size), has_aux=True)
        sd = jnp.broadcast_to(sd, y.shape)
        columns = jax.vmap(spread)(self._structure.directions).T / sd[:, None]
        residual = (y - centre) / sd
        factored = self._structure.factor(columns, residual)
        log_density = -0.5 * (factored.quadratic + y.size * jnp.log(2 * jnp.pi))
        log_density -= jnp.log(sd).sum() + factored.log_root
        return log_density, factored

    def _split(self, u):
        """Return the standardised value of each normal site."""
        parts, start = {}, 0
        for name, shape in self._shapes.items():
            stop = start + int(np.prod(shape))
            parts[name], start = u[start:stop].reshape(shape), stop
        return parts

    def _check_linear(self, said, scales):
        """Refuse a model that is not normal, with all normal sites at once, given its scales."""
        one, other = jax.random.normal(jax.random.key(1), (2, self.size))

        @jax.jit
        @jax.vmap
        def at(u):
            trace = self._trace_at(u, scales, self._arguments)
            outcome = _base(trace["y"]["fn"])
            beside = [trace[name] for name in (*scales, *self._beside)]
            prior = sum(site["fn"].log_prob(site["value"]).sum() for site in beside)
            mean = jnp.broadcast_to(outcome.loc, jnp.shape(self._arguments["y"]))
            return mean, jnp.append(jnp.ravel(outcome.scale), prior)

        mean, (fixed, moved, *_) = at(jnp.stack([jnp.zeros(self.size), one, other, one + other]))
        start, a, b, both = mean
        straight = abs(both - a - b + start) <= ROUNDING * (abs(a) + abs(b) + abs(start))
        if not straight.all() or not np.allclose(fixed, moved, rtol=ROUNDING):
            raise ValueError(
                f"with its scales given, the mean of y in {said} is not linear in "
                f"{list(self.normal)}, or its sd or the density of {[*scales, *self._beside]} "
                "moves with them: sample them"
            )

    def _find_structure(self, scales):
        """Find which normal numbers each row involves, at scales of no special value.

        Most often a row involves one number of each line along a site's longest axis: one group's.
        Moving a line by ones and by 1, 2, 3, ... tells which; moving it at random, whether.
        """
        n = jnp.size(self._arguments["y"])

        @jax.jit
        def spreads(directions):
            def mean(u):
                loc = self._run(u, scales, self._arguments)[1].loc
                return jnp.broadcast_to(loc, (n,))

            return jax.vmap(jax.linearize(mean, jnp.zeros(self.size))[1])(directions)

        def move(line, amounts):
            directions = np.zeros((len(amounts), self.size))
            directions[:, line] = amounts
            return np.asarray(spreads(directions))

        rng, rows, columns, start = np.random.default_rng(1), [], [], 0
        for shape in self._shapes.values():
            own = np.atleast_1d(start + np.arange(int(np.prod(shape))).reshape(shape))
            start += own.size
            for line in np.moveaxis(own, np.argmax(own.shape), -1).reshape(-1, max(own.shape)):
                ramp, random = np.arange(len(line)), rng.normal(size=len(line))
                weight, place, moved = move(line, [np.ones(len(line)), ramp, random])
                which = np.rint(place / np.where(weight == 0, 1.0, weight))
                which = which.clip(0, len(line) - 1).astype(int)
                size = abs(weight) + abs(moved)
                if (abs(moved - weight * random[which]) <= ROUNDING * size).all():
                    rows.append(np.flatnonzero(size))
                    columns.append(line[which[rows[-1]]])
                    continue
                for first in range(0, len(line), PROBES):  # one by one
                    some = first + np.arange(PROBES)[:, None] == np.arange(len(line))
                    entry = np.nonzero(move(line, some))
                    rows.append(entry[1])
                    columns.append(line[first + entry[0]])
        return Arrow(np.concatenate(rows), np.concatenate(columns), (n, self.size))


class NormalQuantile(Reparam):
    """Draw a scale as the quantile of its prior at a standard normal number, ``<site>_normal``.

    Where a scale may well be zero, the density of its logarithm has a long tail to the left, in
    which a sampler dwells. That of the normal number has none.
    """

    def __call__(self, name, fn, obs):
        """Return the site's value, computed from the normal number."""
        base = _base(fn)
        standard = Normal().expand(fn.shape()).to_event(fn.event_dim)
        z = numpyro.sample(f"{name}_normal", standard)
        upper = z > 0
        return None, QUANTILES[type(base)](base, ndtr(jnp.where(upper, -z, z)), upper)


def _half_normal(prior, tail, upper):
    from_zero = jnp.sqrt(2.0) * erfinv(tail)
    return prior.scale * jnp.where(upper, -ndtri(tail / 2), from_zero)


def _half_cauchy(prior, tail, upper):
    tangent = jnp.tan(jnp.pi / 2 * tail)
    return prior.scale * jnp.where(upper, 1 / tangent, tangent)


def _exponential(prior, tail, upper):
    return -jnp.where(upper, jnp.log(tail), jnp.log1p(-tail)) / prior.rate


# Distribution -> its quantile, from the smaller tail's probability and whether it is the upper.
QUANTILES = {HalfNormal: _half_normal, HalfCauchy: _half_cauchy, Exponential: _exponential}


class _Standardised(Messenger):
    """Set normal sites to loc + scale * u, and hide them from what is outside."""

    def __init__(self, standardised):
        self.standardised = standardised
        super().__init__()

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["name"] in self.standardised:
            u, base = self.standardised[msg["name"]], _base(msg["fn"])
            if isinstance(base, Normal):
                msg["value"] = base.loc + base.scale * u
            else:
                msg["value"] = base.loc + (base.scale_tril @ u[..., None])[..., 0]
            msg["stop"] = True
            msg["type"] = INTEGRATED


def _is_normal(distribution):
    return isinstance(_base(distribution), Normal | MultivariateNormal)


def _base(distribution):
    """Return the distribution that a site repeats."""
    while isinstance(distribution, Independent | ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution


def _trace(model, arguments):
    """Return the sample sites of a model as it runs with these arguments."""
    seeded = handlers.seed(model, jax.random.key(0))
    trace = handlers.trace(seeded).get_trace(**arguments)
    return [site for site in trace.values() if site["type"] == "sample"]
