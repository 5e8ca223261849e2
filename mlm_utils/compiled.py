"""A fit as a compiled program, kept for the next fit of the same model to data of the same shape.

Compiling NUTS around a model takes seconds, and drawing from a small model a tenth of one. So the
arrays and decimal numbers among a model's arguments are handed to the program when it runs, and
it can run again on other data: another fold, another simulated table.
"""

import contextlib
import functools
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, init_to_median, log_likelihood
from tqdm.auto import tqdm

from mlm_utils.design import _is_spread
from mlm_utils.integration import Integrated

FIELDS = ("num_steps", "accept_prob", "energy", "diverging")
MAX_TREE_DEPTH = 10
KEPT = 16  # programs
REPORTED = 50  # steps of a chain, after which a progress bar moves
_programs: OrderedDict = OrderedDict()


class Program(NamedTuple):
    """What NUTS samples, and what is computed from its draws.

    Attributes
    ----------
    sampled : callable
        The NumPyro model that NUTS is given.
    model : callable
        The model that was asked for, whose posterior is wanted.
    integrated : Integrated or None
        Completes the draws where `sampled` has the scales of `model` alone.
    kernel, length : tuple of pairs
        Options of NumPyro's ``NUTS`` and ``MCMC``.
    pointwise : bool
        Whether to compute the log likelihood of every row at every draw.
    """

    sampled: Callable
    model: Callable
    integrated: Integrated | None
    kernel: tuple
    length: tuple
    pointwise: bool


def draw(
    program: Program, arguments: Mapping, keys: jax.Array, *, progress: bool = False
) -> tuple[dict[str, dict], float]:
    """Draw chains, in parallel where there are devices for them.

    Parameters
    ----------
    program : Program
        What to draw.
    arguments : mapping
        The model's keyword arguments.
    keys : jax.Array
        A random key a chain, shape ``(chains,)``.
    progress : bool
        Show a progress bar, of all chains. Not where the rows of the data take all devices.

    Returns
    -------
    groups : dict
        Groups ``posterior``, ``sample_stats`` and, if wanted, ``log_likelihood``: site or figure ->
        array of shape ``(chains, draws, ...)``.
    seconds : float
        How long drawing took, without compiling.
    """
    leaves, rebuild = _split(arguments)
    try:
        digest = _digest(program, leaves, rebuild)
    except jax.errors.JAXTypeError:  # the model looks at its numbers: they are part of the program
        leaves, rebuild = [], lambda _: dict(arguments)
        digest = _digest(program, leaves, rebuild)
    spread = next((x.sharding.mesh for x in leaves if _is_spread(x)), None)
    progress = progress and spread is None
    devices = 1 if spread else jax.local_device_count()
    size = max(k for k in range(1, devices + 1) if len(keys) % k == 0)
    name = digest, size, spread, progress
    if name not in _programs:
        _programs[name] = _compile(program, rebuild, spread, keys[:size], leaves, progress)
    _programs.move_to_end(name)
    while len(_programs) > KEPT:
        _programs.popitem(last=False)
    sample, finish = _programs[name]
    rounds, steps = [], len(keys) * sum(dict(program.length).values())
    with drawing() as seconds, _bar(steps, len(keys), shown=progress):
        for first in range(0, len(keys), size):
            some = keys[first : first + size]
            draws, fields = sample(some, leaves)
            rounds.append(finish(some, draws, leaves) | {"sample_stats": fields})
        rounds = jax.device_get(rounds)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rounds)
    return joined | {"sample_stats": _stats(joined["sample_stats"])}, seconds[0]


drawn_seconds = [0.0]  # of this process, whatever drew


@contextlib.contextmanager
def drawing():
    """Take the seconds of the block without what JAX compiles in it, in a list of one."""
    seconds, start = [0.0], time.perf_counter()
    with compile_seconds() as compiling:
        yield seconds
    seconds[0] = time.perf_counter() - start - compiling[0]
    drawn_seconds[0] += seconds[0]


@contextlib.contextmanager
def compile_seconds():
    """Sum the seconds JAX spends compiling inside the block, in a list of one."""
    total, spans = [0.0], []

    def add(event, duration, **_):
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            start = end - duration
            while spans and spans[-1][1] > start:  # a step of this one, or beside it
                first, last = spans.pop()
                total[0] -= last - first
                start = min(start, first)
            spans.append((start, end))
            total[0] += end - start

    jax.monitoring.register_event_duration_secs_listener(add)
    try:
        yield total
    finally:
        jax.monitoring.unregister_event_duration_listener(add)


def _split(arguments):
    """Return what may change from run to run, and the function that puts it back."""
    leaves, structure = jax.tree.flatten(dict(arguments))
    leaves = [float(leaf) if isinstance(leaf, float) else leaf for leaf in leaves]  # one type
    moves = [isinstance(leaf, np.ndarray | jax.Array | float) for leaf in leaves]
    fixed = [None if moving else leaf for leaf, moving in zip(leaves, moves, strict=True)]

    def rebuild(moving: Sequence) -> dict:
        rest = iter(moving)
        both = [next(rest) if m else leaf for leaf, m in zip(fixed, moves, strict=True)]
        return jax.tree.unflatten(structure, both)

    return [leaf for leaf, moving in zip(leaves, moves, strict=True) if moving], rebuild


def _digest(program, leaves, rebuild) -> str:
    """Return a digest of what the models compute, not of their names: a global may have changed."""
    supports = []

    def look(key, leaves):
        values = []
        for model in (program.sampled, program.model):
            seeded = handlers.seed(model, key)
            for site in handlers.trace(seeded).get_trace(**rebuild(leaves)).values():
                if site["type"] in ("sample", "deterministic"):
                    values.append(site["value"])
                    supports.append((site["name"], site["type"]))
                if site["type"] == "sample":
                    values.append(site["fn"].log_prob(site["value"]))
                    supports.append((site["is_observed"], repr(site["fn"].support)))
        return values

    found = jax.make_jaxpr(look)(jax.random.key(0), leaves)
    told = f"{found.jaxpr} {supports} {program.kernel} {program.length} {program.pointwise}"
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", told).encode())
    for constant in found.consts:
        digest.update(np.asarray(constant).tobytes())
    return digest.hexdigest()


def _compile(program, rebuild, spread, keys, leaves, progress):
    """Compile the functions that sample and finish chains, side by side."""

    def sample(key, leaves):
        kernel = _kernel(program, _Reporting if progress else NUTS)
        mcmc = MCMC(kernel, num_chains=1, progress_bar=False, **dict(program.length))
        mcmc.run(key, extra_fields=FIELDS, **rebuild(leaves))
        return mcmc.get_samples(), mcmc.get_extra_fields()

    def finish(key, draws, leaves):
        arguments = rebuild(leaves)
        if program.integrated is not None:
            key = jax.random.fold_in(key, 1)
            draws = program.integrated.complete_all(key, draws, arguments)
        groups = {"posterior": draws}
        if program.pointwise:
            groups["log_likelihood"] = log_likelihood(program.model, draws, **arguments)
        return groups

    if spread:  # the rows take all devices: one chain at a time, its draws copied to all
        everywhere = NamedSharding(spread, PartitionSpec())
        jit = functools.partial(jax.jit, out_shardings=everywhere)
        return _one_chain(jit(sample)), _one_chain(jit(finish))
    sample, finish = jax.pmap(sample, in_axes=(0, None)), jax.pmap(finish, in_axes=(0, 0, None))
    sample = sample.lower(keys, leaves)
    finish = finish.lower(keys, sample.out_info[0], leaves)
    with ThreadPoolExecutor(2) as pool:
        return tuple(pool.map(lambda lowered: lowered.compile(), (sample, finish)))


def _one_chain(function):
    """Return a function of one chain as one of an axis of chains, of length 1."""

    def call(*chains_and_leaves):
        *chains, leaves = chains_and_leaves
        only = jax.tree.map(lambda x: x[0], chains)
        return jax.tree.map(lambda x: x[None], function(*only, leaves))

    return call


def _kernel(program, kind):
    return kind(
        program.sampled,
        init_strategy=init_to_median,
        max_tree_depth=MAX_TREE_DEPTH,
        **dict(program.kernel),
    )


class _Reporting(NUTS):
    """NUTS that moves the progress bar, from within a compiled program.

    With NumPyro's own bar, a program is compiled anew every time.
    """

    def sample(self, state, model_args, model_kwargs):
        """Take a step."""
        state = super().sample(state, model_args, model_kwargs)
        jax.lax.cond(state.i % REPORTED == 0, lambda: jax.debug.callback(_move), lambda: None)
        return state


_bars: list = []  # the one that is shown


def _move():
    for bar in _bars:
        bar.update(REPORTED)


@contextlib.contextmanager
def _bar(steps, chains, *, shown):
    """Show a progress bar while the context lasts."""
    with tqdm(total=steps, desc=f"{chains} chains", unit="step", disable=not shown) as bar:
        _bars[:] = [bar]
        try:
            yield
        finally:
            jax.effects_barrier()
            _bars.clear()
        bar.update(steps - bar.n)


def _stats(fields):
    """Name the figures of a sampler as ArviZ does."""
    depth = np.log2(fields["num_steps"]).astype(int) + 1
    return {
        "acceptance_rate": fields["accept_prob"],
        "diverging": fields["diverging"],
        "energy": fields["energy"],
        "n_steps": fields["num_steps"],
        "tree_depth": depth,
        "reached_max_tree_depth": depth >= MAX_TREE_DEPTH,
    }
