r"""A posterior approximated by a normal one that is fitted to it: stochastic variational inference.

On the real lines of its parameters a posterior is replaced by the member :math:`q` of a family of
normal distributions, its *guide*, for which the evidence lower bound (ELBO) is highest:

.. math::

    \text{ELBO}(q) = \text{E}_q[\log p(y, g, u) - \log q(g, u)]
        = \log p(y) - \text{KL}\big(q \,\big\|\, p(\cdot \mid y)\big)

with the population :math:`g` (means, scales, correlations) and the effects :math:`u_j` of groups.
The families differ in the dependence they keep:

- *mean-field*: none; every number is independent of every other.
- *low-rank*: a diagonal and a few directions in which numbers move together.
- *structured*: that of the model. The population is jointly normal. The effects of a group follow
  :math:`q(u_j \mid g)`, the normal density at the mode of :math:`p(u_j \mid g, y)` and as curved
  as this, which one Newton step finds exactly where the effects are normal given the population.

A step climbs along a noisy gradient, from one draw of :math:`q`. It may look at a batch of
groups, with all their rows, and multiply what they add by ``n_groups / batch``: the mean over
batches is the gradient of all.
"""

import functools
import itertools
from collections.abc import Callable, Mapping

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from arviz_stats.base import array_stats
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.util import sum_rightmost
from numpyro.infer import SVI, Trace_ELBO, init_to_median
from numpyro.infer.util import initialize_model, log_density
from numpyro.optim import Adam
from numpyro.primitives import Messenger
from xarray import Dataset, DataTree

from mlm_utils.arrow import table_of_groups
from mlm_utils.compiled import _split, compile_seconds, drawing
from mlm_utils.design import check_number
from mlm_utils.integration import _trace
from mlm_utils.sampling import (
    ConvergenceError,
    _check_call,
    _check_count,
    _name,
    _rows_digest,
)

GUIDES = ("mean-field", "low-rank", "structured")
RANK = 10  # directions of a low-rank guide
INIT_SCALE = 0.001  # sd of every number at the first step: sds grow faster than they shrink
FINAL_RATE = 0.001  # learning rate of the last step, relative to that of the first
FLAT = 1.0  # nats: by how much the loss may still fall and count as flat
ROUNDING = 1e-8  # a smaller relative departure is rounding
MAX_ERRORS = 3.0  # standard errors of a fall that may be noise


def approximate(
    model: Callable,
    arguments: Mapping,
    *,
    key: jax.Array,
    guide: str = "mean-field",
    steps: int = 4000,
    learning_rate: float = 0.02,
    labels: Mapping | None = None,
    draws: int = 1000,
    batch: int | None = None,
    plate: str = "group",
    newton: int = 1,
) -> DataTree:
    """Approximate a model's posterior by variational inference and draw from the approximation.

    Parameters
    ----------
    model : callable
        A NumPyro model without discrete parameters.
    arguments, key, labels
        As in :func:`mlm_utils.sampling.fit`.
    guide : str
        ``"mean-field"``, ``"low-rank"`` or ``"structured"``.
    plate : str
        Name of the plate of the groups: of those whose effects a structured guide draws given
        the population, and of which a batch is made.
    batch : int, optional
        Number of groups a step looks at. The model must take the group of each row as its only
        ``idx``, with ``n_groups`` beside it, and observe one value a row. Default: all groups.
        Not for ``"low-rank"``.
    steps : int
        Number of steps, at least 80.
    learning_rate : float
        Adam's, for the first half of the steps; it then falls to a thousandth.
    newton : int
        Newton steps from zero to the mode of a group's effects, in a structured guide. One is
        exact where the effects are normal given the population.
    draws : int
        Number of draws from the approximation.

    Returns
    -------
    xarray.DataTree
        Groups ``posterior`` (one chain of independent draws), ``observed_data`` as from ``fit``;
        ``sample_stats`` with ``log_weight`` (log p(y, draw) - log q(draw)); and ``optimisation``
        with ``loss`` (the negative ELBO, noisy, at each ``step``). Attributes of ``optimisation``:
        ``guide``, ``batch``, ``elbo`` and ``elbo_se`` (from all rows, at the draws), ``pareto_k``
        and ``seconds_compile``, ``seconds_run``, ``seconds_draw``.

    Raises
    ------
    ConvergenceError
        If the loss is not finite, or was still falling at the constant learning rate: the last
        quarter of those steps lies below the quarter before by more than a nat and more than three
        standard errors.
    TypeError, ValueError
        If an argument is of the wrong type or out of range, or the model does not fit the guide.
    RuntimeError
        If float64 is off: call :func:`mlm_utils.setup` first.

    Notes
    -----
    A flat loss says that no better member of the family was found, not that the family is good.
    ``pareto_k`` speaks of that: the index of the tail of the importance ratios of the draws, small
    where the approximation can be trusted and above 0.7 where it cannot (Yao, Vehtari, Simpson
    and Gelman 2018). It asks for the whole joint distribution, and so is always large where a
    guide neglects something in each of very many groups.

    Sources: Hoffman, Blei, Wang and Paisley (2013) for the batches; Kucukelbir, Tran, Ranganath,
    Gelman and Blei (2017) for normal guides on real lines.
    """
    labels = {} if labels is None else labels
    dims, coords = _check_call(model, arguments, key, labels)
    if guide not in GUIDES:
        raise ValueError(f"guide must be one of {list(GUIDES)}, got {guide!r}")
    for option, value, least in (
        ("steps", steps, 80),
        ("newton", newton, 1),
        ("draws", draws, 100),
    ):
        _check_count(option, value, least)
    check_number("learning_rate", learning_rate, positive=True)
    observed = [site for site in _trace(model, arguments) if site["is_observed"]]
    if not observed:
        raise ValueError(
            f"{_name(model)} observes nothing with these arguments: pass y (y=None draws it)"
        )
    run_key, draw_key = jax.random.split(key)
    problem = Problem(model, arguments, guide=guide, plate=plate, batch=batch, newton=newton)

    @jax.jit
    def run(key, data):
        model, guide = problem.of(data)
        svi = SVI(model, guide, Adam(_rate(learning_rate, steps)), Trace_ELBO())
        found = svi.run(key, steps, progress_bar=False)
        return found.params, found.losses

    @jax.jit
    def draw(keys, params, data):
        return jax.lax.map(lambda key: problem.draw(key, params, data), keys)

    spent = {}
    with compile_seconds() as compiling:
        with drawing() as seconds:
            params, losses = jax.block_until_ready(run(run_key, problem.data))
        spent["run"] = seconds[0]
        _check_flat(np.asarray(losses)[: steps // 2], f"{guide} guide of {_name(model)}")
        with drawing() as seconds:
            keys = jax.random.split(draw_key, draws)
            drawn, log_weight = jax.device_get(draw(keys, params, problem.data))
        spent["draw"] = seconds[0]
    spent["compile"] = compiling[0]
    groups = {
        "posterior": {name: value[None] for name, value in drawn.items()},
        "sample_stats": {"log_weight": log_weight[None]},
        "observed_data": {site["name"]: np.asarray(site["value"]) for site in observed},
    }
    tree = az.from_dict(groups, dims=dims, coords=coords)
    tree.attrs["arguments"] = _rows_digest(arguments)
    tree["optimisation"] = DataTree(
        Dataset({"loss": ("step", np.asarray(losses))}).assign_attrs(
            guide=guide,
            batch=0 if batch is None else batch,
            elbo=float(log_weight.mean()),
            elbo_se=float(log_weight.std(ddof=1) / np.sqrt(draws)),
            pareto_k=float(array_stats.psislw(log_weight)[1]),
            **{f"seconds_{what}": round(seconds, 3) for what, seconds in spent.items()},
        )
    )
    return tree


class Problem:
    """What SVI is given: a model and a guide, of all groups or of a batch.

    Parameters
    ----------
    model, arguments, guide, plate, batch, newton
        As in :func:`approximate`.

    Attributes
    ----------
    data : tuple
        The arrays and decimal numbers among the arguments, and the rows of each group.
    """

    def __init__(self, model, arguments, *, guide, plate="group", batch=None, newton=1):
        self._program, self._kind = model, guide
        self._batch, self._newton = batch, newton
        sites = _trace(model, arguments)
        if weighted := [site["name"] for site in sites if site["scale"] is not None]:
            raise ValueError(f"{_name(model)} weights the density of {weighted}: leave weights out")
        self._densities = {s["name"]: s["fn"] for s in sites if not s["is_observed"]}
        self._by_group = guide == "structured" or batch is not None
        self._find_groups(sites, plate)
        rows = None if batch is None else self._lay_out(arguments, sites)
        leaves, self._rebuild = _split(arguments)
        self.data = leaves, rows
        self._find_start()
        if guide == "structured":
            self._check_apart()

    def of(self, data):
        """Return the model and the guide, functions without arguments, for these data."""

        def choose():
            """Choose groups without replacement; the model sees those that the guide chose."""
            if self._batch is None:
                return None
            with numpyro.plate("_batch", self._n_groups, subsample_size=self._batch) as j:
                return j

        return (lambda: self._run(data, choose())), (lambda: self._guide(data, choose()))

    def draw(self, key, params, data):
        """Draw all sites from the guide; return them and log p(y, draw) - log q(draw)."""
        seeded = handlers.seed(lambda: self._guide(data, None), key)
        log_q, trace = log_density(seeded, (), {}, params)
        values = {name: trace[name]["value"] for name in self._densities}
        log_p, trace = log_density(self._run, (data,), {}, values)
        kept = [n for n, s in trace.items() if n in values or s["type"] == "deterministic"]
        return {name: trace[name]["value"] for name in kept}, log_p - log_q

    def _guide(self, data, j):
        """Draw the population, then the effects of all groups or of some, which count for all."""
        auxiliary = {"is_auxiliary": True}
        drawn = numpyro.sample("_population", self._population(), infer=auxiliary)
        population = self._emit(self._unravel(drawn))
        if not self._by_group:
            return
        given = self._independent if self._kind == "mean-field" else self._given
        move, log_scale = given(population, data, j)
        with handlers.scale(scale=self._n_groups / len(log_scale)):
            standard = dist.Normal().expand((len(log_scale), self._width)).to_event(1)
            z = numpyro.sample("_z", standard, infer=auxiliary)
            moved = dist.Delta(move(z), -log_scale, event_dim=1)
            self._emit(self._by_site(numpyro.sample("_lines", moved, infer=auxiliary)))

    def _population(self):
        """Return the normal of all numbers that are not drawn group by group."""
        size = len(self._start)
        loc = numpyro.param("loc", self._start)
        positive = constraints.softplus_positive
        scale = numpyro.param("scale", jnp.full(size, INIT_SCALE), constraint=positive)
        if self._kind == "mean-field":
            return dist.Normal(loc, scale).to_event(1)
        if self._kind == "low-rank":
            factor = numpyro.param("factor", jnp.zeros((size, min(RANK, size))))
            return dist.LowRankMultivariateNormal(loc, scale[:, None] * factor, scale**2)
        below = numpyro.param("below", jnp.zeros((size, size)))
        root = scale[:, None] * (jnp.tril(below, -1) + jnp.eye(size))
        return dist.MultivariateNormal(loc, scale_tril=root)

    def _emit(self, unconstrained):
        """Sample each site where its real numbers put it; return its value."""
        values, stretch = self._constrain(unconstrained)
        for name, value in values.items():
            inside = self._densities[name].event_dim
            numpyro.sample(name, dist.Delta(value, -stretch[name], event_dim=inside))
        return values

    def _constrain(self, unconstrained):
        """Return the values of sites, and the log of how much they stretch real numbers."""
        values, stretch = {}, {}
        for name, u in unconstrained.items():
            transform = biject_to(self._densities[name].support)
            values[name] = transform(u)
            log_det = transform.log_abs_det_jacobian(u, values[name])
            batch_dim = jnp.ndim(values[name]) - self._densities[name].event_dim
            stretch[name] = sum_rightmost(log_det, jnp.ndim(log_det) - batch_dim)
        return values, stretch

    def _by_site(self, lines):
        """Return real numbers, a line a group, as those of each site."""
        sites, start = {}, 0
        for name, (axis, shape) in self._local.items():
            stop = start + int(np.prod(shape))
            sites[name] = jnp.moveaxis(lines[:, start:stop].reshape(-1, *shape), 0, axis)
            start = stop
        return sites

    def _find_start(self):
        """Set where the population starts: at medians of draws from the prior."""

        @jax.jit
        def start(key, data):
            model = functools.partial(self._run, data)
            return initialize_model(key, model, init_strategy=init_to_median).param_info.z

        values = start(jax.random.key(0), self.data)
        apart = self._local if self._by_group else ()
        population = {name: value for name, value in values.items() if name not in apart}
        self._start, self._unravel = ravel_pytree(population)

    def _find_groups(self, sites, plate):
        """Find the effects of the groups, and how they lie in arrays."""
        frames = [(site, frame) for site in sites for frame in site["cond_indep_stack"]]
        sizes = {frame.name: frame.size for _, frame in frames}
        local = [
            (site, frame.dim)
            for site, frame in frames
            if frame.name == plate and not site["is_observed"]
        ]
        if self._by_group and not 0 < len(local) < len(self._densities):
            raise ValueError(
                f"plate is {plate!r} and {_name(self._program)} has the plates {sorted(sizes)}: "
                "name the one of the groups, in which some parameters lie, but not all"
            )
        self._n_groups = sizes.get(plate)
        self._local = {}
        for site, dim in local:
            transform = biject_to(site["fn"].support)
            axis = dim - transform.domain.event_dim  # of the groups, on the real lines
            shape = np.delete(np.shape(transform.inv(site["value"])), axis)
            self._local[site["name"]] = axis, tuple(int(size) for size in shape)
        self._width = sum(int(np.prod(shape)) for _, shape in self._local.values())

    def _lay_out(self, arguments, sites):
        """Return the numbers of the rows of each group, -1 where it has fewer than the largest."""
        said = _name(self._program)
        if self._kind == "low-rank":
            raise ValueError("batch is given and guide is 'low-rank', which takes all groups")
        _check_count("batch", self._batch, 2)
        if self._batch >= self._n_groups:
            raise ValueError(f"batch must be below {self._n_groups} groups, got {self._batch}")
        found = {"idx": [], "n_groups": []}
        for path, leaf in jax.tree.leaves_with_path(dict(arguments)):
            found.get(_last(path), []).append(leaf)
        if len(found["idx"]) != 1 or found["n_groups"] != [self._n_groups]:
            raise ValueError(
                f"batch is given: {said} must take one idx, and n_groups of {self._n_groups} as in "
                f"its plate, but takes {len(found['idx'])} idx and n_groups of {found['n_groups']}"
            )
        idx = np.asarray(found["idx"][0])
        for site in sites:
            if site["is_observed"] and np.shape(site["value"]) != idx.shape:
                raise ValueError(
                    f"batch is given: {said} must observe one value a row, and {site['name']} has "
                    f"shape {np.shape(site['value'])} beside idx of shape {idx.shape}"
                )
        self._n = len(idx)
        return table_of_groups(np.arange(self._n), idx, self._n_groups, -1)

    def _run(self, data, j=None):
        """Run the model with all groups, or with the rows of these alone."""
        leaves, rows = data
        arguments = self._rebuild(leaves)
        if j is None:
            return self._program(**arguments)
        rows = jnp.asarray(rows)
        flat = rows[j].ravel()  # -1, the last row, stands where there is none: it is not counted

        def of_batch(path, leaf):
            if _last(path) == "idx":
                return np.repeat(np.arange(len(j)), rows.shape[1])
            if _last(path) == "n_groups":
                return len(j)
            return jnp.asarray(leaf)[flat] if np.shape(leaf)[:1] == (self._n,) else leaf

        with _CountFor(self._n_groups / len(j), self._local, flat >= 0):
            return self._program(**jax.tree.map_with_path(of_batch, arguments))

    def _independent(self, population, data, j):
        """Return how standard normals become effects whose means and sds are a group's own."""
        zeros = jnp.zeros((self._n_groups, self._width))
        loc = numpyro.param("effects_loc", zeros)
        positive = constraints.softplus_positive
        scale = numpyro.param("effects_scale", zeros + INIT_SCALE, constraint=positive)
        loc, scale = (x if j is None else x[j] for x in (loc, scale))
        return (lambda z: loc + scale * z), jnp.log(scale).sum(axis=1)

    def _given(self, population, data, j):
        """Return how they become effects at the mode given the population, and as curved there."""
        slope = self._slope(population, data, j)
        mode = jnp.zeros((self._n_groups if j is None else len(j), self._width))
        for _ in range(self._newton):
            mode, root, _ = self._newton_step(slope, mode)
        return (lambda z: mode + _backward(root, z)), -sum(
            jnp.log(root[a][a]) for a in range(self._width)
        )

    def _slope(self, population, data, j):
        """Return the gradient of the log density of the effects of groups and of their rows."""

        def height(lines):
            effects, stretch = self._constrain(self._by_site(lines))
            known = handlers.substitute(lambda: self._run(data, j), population | effects)
            with handlers.block():
                trace = handlers.trace(known).get_trace()
            wanted = [s for n, s in trace.items() if n in effects or s.get("is_observed")]
            height = sum(site["fn"].log_prob(site["value"]).sum() for site in wanted)
            return height + sum(log_det.sum() for log_det in stretch.values())

        return jax.grad(height)

    def _newton_step(self, slope, at):
        """Return where a step leads, the root of each group's precision, and how slopes move."""
        gradient, along = jax.linearize(slope, at)
        probes = [jnp.zeros_like(at).at[:, k].set(1.0) for k in range(self._width)]
        root = _root([-along(probe) for probe in probes])
        return at + _backward(root, _forward(root, gradient)), root, along

    def _check_apart(self):
        """Refuse effects that are not independent between groups given the population."""
        trace = handlers.trace(handlers.seed(self._run, 0)).get_trace(self.data)
        population = {n: trace[n]["value"] for n in self._densities if n not in self._local}
        v = jax.random.normal(jax.random.key(0), (self._n_groups, self._width))

        @jax.jit
        def along(population, data):
            slope = self._slope(population, data, None)
            _, root, moved = self._newton_step(slope, jnp.zeros_like(v))
            return _backward(root, _forward(root, -moved(v)))

        if not np.allclose(along(population, self.data), v, rtol=ROUNDING, atol=ROUNDING):
            raise ValueError(
                f"given the rest, {list(self._local)} of {_name(self._program)} depend on one "
                "another between groups, or their density has no peak: take another guide"
            )


# Many matrices, a few entries each: arithmetic on arrays of groups is many times as fast as a call
# of LAPACK a group.


def _root(columns):
    """Return the lower triangles L with L L' the symmetric matrices of these columns."""
    root = [[] for _ in columns]
    for a, b in itertools.product(range(len(columns)), repeat=2):
        if b <= a:
            rest = columns[b][:, a] - sum(root[a][k] * root[b][k] for k in range(b))
            root[a].append(jnp.sqrt(rest) if a == b else rest / root[b][b])
    return root


def _forward(root, x):
    """Return the solutions w of L w = x."""
    w = []
    for a, row in enumerate(root):
        w.append((x[:, a] - sum(row[k] * w[k] for k in range(a))) / row[a])
    return jnp.stack(w, axis=1)


def _backward(root, x):
    """Return the solutions w of L' w = x."""
    w = {}
    for a in reversed(range(len(root))):
        w[a] = (x[:, a] - sum(root[k][a] * w[k] for k in w)) / root[a][a]
    return jnp.stack([w[a] for a in range(len(root))], axis=1)


class _CountFor(Messenger):
    """Let the effects and the rows of some groups count for those of all, and no filling row."""

    def __init__(self, weight, local, is_row):
        self.weight, self.local, self.is_row = weight, local, is_row
        super().__init__()

    def process_message(self, msg):
        if msg["type"] != "sample":
            return
        if msg["is_observed"]:
            msg["fn"] = msg["fn"].mask(self.is_row)
        elif msg["name"] not in self.local:
            return
        msg["scale"] = self.weight


def _rate(learning_rate, steps):
    """Return the learning rate at each step: constant for half of them, then falling."""

    def rate(step):
        done = jnp.clip(2 * step / steps - 1, 0.0, 1.0)
        return learning_rate * FINAL_RATE**done

    return rate


def _check_flat(losses, said):
    """Refuse losses, at a constant learning rate, that still fall or are not finite."""
    if not np.isfinite(losses).all():
        step = int(np.argmin(np.isfinite(losses)))
        raise ConvergenceError(
            f"the loss of the {said} is {losses[step]} at step {step}: lower learning_rate"
        )
    quarter = len(losses) // 4
    before, last = losses[-2 * quarter : -quarter], losses[-quarter:]
    fall = before.mean() - last.mean()
    error = np.sqrt((before.var(ddof=1) + last.var(ddof=1)) / quarter)
    if fall > max(FLAT, MAX_ERRORS * error):
        raise ConvergenceError(
            f"the loss of the {said} still fell by {fall:.3g} nats (standard error {error:.2g}) "
            f"over the last {quarter} steps at the full learning rate: take more steps, or raise "
            "learning_rate"
        )


def _last(path):
    """Return the last name on the way to a leaf: of an argument, or of a field of a Term."""
    return getattr(path[-1], "key", getattr(path[-1], "name", None))
