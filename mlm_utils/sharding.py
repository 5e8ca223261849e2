r"""The rows of a model spread over devices and machines, and its parameters copied to all of them.

A log likelihood is a sum over rows. Each device adds up its own rows, one all-reduce adds up the
devices, and NUTS takes the same step everywhere, from the same key:

.. math::

    \nabla \log p(\theta, y) = \nabla \log p(\theta)
        + \sum_{\text{devices } d} \; \sum_{i \in d} \nabla \log p(y_i \mid \theta)

A row never leaves the machine that read it. :func:`shard` spreads the rows of one process over
its devices, or the rows that each of several processes holds over the devices of all of them;
:func:`connect` makes several processes one computation. JAX writes the all-reduce.

A Gaussian model does not need this. Its rows enter through sums and products that are added up
once, after which one process fits it. Sharding is for likelihoods without such statistics.
"""

import contextlib
import hashlib
import json
import pickle
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.primitives import Messenger

from mlm_utils.compiled import _split
from mlm_utils.data import check_table
from mlm_utils.design import check_number, group_codes
from mlm_utils.integration import _trace
from mlm_utils.multilevel_design import (
    Group,
    MultilevelDesign,
    Predictor,
    _check_rank,
    _code,
    _columns,
    _is_number,
    _members,
    _Recipe,
    _specify,
)

AXIS = "row"
WAIT = 30  # seconds for all processes to come, and for a silent one to be given up


def shard(model: Callable, arguments: Mapping, mesh: Mesh | None = None) -> tuple[Callable, dict]:
    """Spread the rows of a model over devices, each process handing in its own.

    Parameters
    ----------
    model : callable
        A NumPyro model whose parameters do not depend on the number of rows, and which observes
        one value a row.
    arguments : mapping
        Its keyword arguments, the outcome ``y`` among them, of the rows of this process. An array
        as long as ``y`` holds a value (or a line) a row, and is spread; everything else must be
        the same in every process. Group codes are those of the whole table: see
        :func:`design_of_parts`.
    mesh : jax.sharding.Mesh, optional
        The devices, along one axis, each process with as many. Default: all devices of all
        processes; of several processes on CPUs, one device each, as it has threads of its own.

    Returns
    -------
    model : callable
        The model to fit. It is the one given, or where the rows do not divide evenly the same with
        its filling rows, copies of the first, at weight zero.
    arguments : dict
        Its arguments, for :func:`mlm_utils.sampling.fit`.

    Raises
    ------
    TypeError, ValueError
        In every process alike: if the model refuses the rows of one of them, if two processes
        differ in what must be the same, or if a parameter belongs to a row.
    """
    mesh = _all_devices() if mesh is None else mesh
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) != 1:
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh of one axis, got {mesh!r}: try "
            'Mesh(jax.devices(), ("row",))'
        )
    parts = _everywhere(_examine, model, arguments)
    _check_same("argument", [shared for _, _, shared in parts])
    n, local = len(arguments["y"]), mesh.local_mesh.size
    counts = [(rows, devices) for (_, rows, _), devices in zip(parts, gather(local), strict=True)]
    a_device = max(-(-rows // devices) for rows, devices in counts)
    length = a_device * local
    sharding = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))

    def spread(leaf):
        if not _is_rows(leaf, n):
            return leaf
        rows = np.asarray(leaf)
        filling = np.broadcast_to(rows[:1], (length - n, *rows.shape[1:]))
        return jax.make_array_from_process_local_data(sharding, np.concatenate([rows, filling]))

    spread_arguments = jax.tree.map(spread, dict(arguments))
    if all(rows == a_device * devices for rows, devices in counts):
        return model, spread_arguments
    is_row = jax.make_array_from_process_local_data(sharding, np.arange(length) < n)
    return _Filled(model, parts[0][0]), spread_arguments | {"is_row": is_row}


def _all_devices():
    devices = jax.devices()
    if jax.process_count() > 1 and devices[0].platform == "cpu":
        devices = {device.process_index: device for device in reversed(devices)}
        devices = [devices[process] for process in sorted(devices)]
    return Mesh(devices, (AXIS,))


class _Filled:
    """A model some of whose rows only fill up: they add nothing to its density."""

    def __init__(self, model, observed):
        self.model, self.observed = model, observed
        self.__name__ = getattr(model, "__name__", type(model).__name__)

    def __call__(self, *, is_row, **arguments):
        with _Weighted(is_row, self.observed):
            self.model(**arguments)


class _Weighted(Messenger):
    """Keep the density of what is observed where a row is one.

    NUTS adds observed sites of its own, the log determinants of its coordinates: not these.
    """

    def __init__(self, is_row, observed):
        self.is_row, self.observed = is_row, observed
        super().__init__()

    def process_message(self, msg):
        if msg["name"] in self.observed:
            msg["fn"] = msg["fn"].mask(self.is_row)


def _examine(model, arguments):
    """Return what is observed, the number of rows and, by name, what must be the same."""
    y = arguments.get("y") if isinstance(arguments, Mapping) else None
    if not np.ndim(y) or not len(y):
        raise ValueError(
            f"arguments must be a mapping with the outcome y, an array of a value a row, got "
            f"{type(y).__name__} for y: the rows are counted by it"
        )
    n, said = len(y), getattr(model, "__name__", type(model).__name__)
    sites = _trace(model, arguments)  # the model's own door, which sees the numbers here
    for site in sites:
        if site["is_observed"] and site["fn"].batch_shape != (n,):
            raise ValueError(
                f"{said} observes {site['name']!r} of shape {site['fn'].batch_shape}, and there "
                f"are {n} rows: to spread them takes one observed value a row"
            )
    leaves, rebuild = _split(arguments)

    def parameters(leaves):
        found = _trace(model, rebuild(leaves))
        return {site["name"]: site["value"] for site in found if not site["is_observed"]}

    longer = [
        jax.ShapeDtypeStruct((n + 1, *leaf.shape[1:]), leaf.dtype) if _is_rows(leaf, n) else leaf
        for leaf in leaves
    ]
    shapes = jax.tree.map(np.shape, jax.eval_shape(parameters, longer))
    for site in sites:
        if not site["is_observed"] and np.shape(site["value"]) != shapes[site["name"]]:
            raise ValueError(
                f"{said} has a value of {site['name']!r} for each row, and parameters are copied, "
                "not spread: fit it in one process"
            )
    shared = {}
    for path, leaf in jax.tree.leaves_with_path(dict(arguments)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if _is_rows(leaf, n):
            shared[name] = f"rows of shape {leaf.shape[1:]}, {leaf.dtype}"
        elif isinstance(leaf, np.ndarray | jax.Array):
            digest = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()[:8]
            shared[name] = f"an array {leaf.dtype}{leaf.shape} with digest {digest}"
        else:
            shared[name] = repr(leaf)
    return [site["name"] for site in sites if site["is_observed"]], n, shared


def _check_same(what, shared):
    """Refuse what differs between processes, given by each as name -> description."""
    first = shared[0]
    for process, other in enumerate(shared):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"{what} {name} is {first.get(name)} in process 0 and {other.get(name)} in "
                    f"process {process}: all but the rows must be the same everywhere"
                )


def _is_rows(leaf, n):
    return isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim > 0 and leaf.shape[0] == n


# --- Several processes


def connect(coordinator: str, processes: int, process: int, *, wait: float = WAIT) -> None:
    """Make this process one of several that compute together.

    Call it before anything else uses JAX; :func:`mlm_utils.setup` comes afterwards.

    Parameters
    ----------
    coordinator : str
        ``host:port`` at which process 0 is reached by all; the port must be free there.
    processes, process : int
        How many processes there are, and which of ``0 .. processes - 1`` this is.
    wait : float
        Seconds, at least 1, within which all must come. A process that is silent for as long
        later on is given up, and the others end.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    TimeoutError
        If a process does not come; it names those that are missing.
    RuntimeError
        If two processes give the same number, or another count of them.

    Notes
    -----
    The processes trust each other and whoever reaches the coordinator: use a private network. A
    process that is alive but never arrives at the next sum is waited for; JAX does not notice it.
    """
    host, port = _address(coordinator)
    for name, value, least, limit in (
        ("processes", processes, 1, np.inf),
        ("process", process, 0, processes),
    ):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an integer, got {value!r}: try {name}={least}")
        if not least <= value < limit:
            raise ValueError(
                f"{name} must lie in {least} .. {limit - 1:g}, got {value}: processes are "
                "numbered from 0"
            )
    check_number("wait", wait, positive=True)
    if wait < 1:
        raise ValueError(f"wait must be at least 1 second, got {wait}: try wait=30")
    _call_the_roll(host, port, processes, process, wait)
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        cluster_detection_method="deactivate",
        initialization_timeout=int(wait),
        heartbeat_timeout_seconds=int(wait),
        shutdown_timeout_seconds=int(wait),
    )


def _address(coordinator):
    host, _, port = coordinator.rpartition(":") if isinstance(coordinator, str) else ("", "", "")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"coordinator must be 'host:port', got {coordinator!r}: for example 'node1:9876'"
        )
    return host.strip("[]"), int(port)


def _call_the_roll(host, port, processes, process, wait):
    """Wait until all processes have come, or say which have not.

    JAX itself ends a process that waits in vain, by a signal and without naming the missing one.
    """
    deadline = time.monotonic() + wait
    if process == 0:
        answer = _collect(port, processes, deadline)
    else:
        answer = _report(host, port, {"process": process, "processes": processes}, deadline)
    if answer is None:
        raise TimeoutError(
            f"process {process} did not reach process 0 at {host}:{port} within {wait:g} s: start "
            "process 0, and see that this machine may connect to that port"
        )
    if "wrong" in answer:
        raise RuntimeError(f"{answer['wrong']}: start each of 0 .. {processes - 1} once")
    if missing := answer["missing"]:
        raise TimeoutError(
            f"of {processes} processes, {missing} did not come to {host}:{port} within {wait:g} s: "
            "see what they said, start them with the same coordinator, or wait longer"
        )


def _collect(port, processes, deadline):
    """Take the reports of the other processes and answer all of them."""
    came, lines, answer = {0}, [], {}
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    dual = family == socket.AF_INET6
    with (
        contextlib.ExitStack() as open_lines,
        socket.create_server(("", port), family=family, dualstack_ipv6=dual) as server,
    ):
        while len(came) < processes and "wrong" not in answer:
            if (left := deadline - time.monotonic()) <= 0:
                break
            server.settimeout(left)
            try:
                lines.append(open_lines.enter_context(server.accept()[0]))
                lines[-1].settimeout(1)
                report = json.loads(lines[-1].makefile().readline())
                number, count = report["process"], report["processes"]
            except (OSError, ValueError, TypeError, KeyError):  # nobody came, or a stranger
                continue
            if count != processes:
                answer["wrong"] = f"process {number} counts {count} processes, 0 counts {processes}"
            elif number in came:
                answer["wrong"] = f"there are two processes {number}"
            came.add(number)
        answer["missing"] = sorted(set(range(processes)) - came)
        for line in lines:
            with contextlib.suppress(OSError):
                line.sendall(json.dumps(answer).encode() + b"\n")
    return answer


def _report(host, port, report, deadline):
    """Report to process 0 until it answers; None if it does not."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as line:
                line.sendall(json.dumps(report).encode() + b"\n")
                line.settimeout(left + 1)  # process 0 may have started to wait a little later
                return json.loads(line.makefile().readline())
        except (OSError, ValueError):
            time.sleep(0.1)
    return None


def gather(value: Any) -> list:
    """Return what each process hands in, in their order; all must call this.

    Parameters
    ----------
    value : object
        Something small that can be pickled: counts, levels, a checksum. Not rows.

    Returns
    -------
    list
        One value a process.
    """
    if jax.process_count() == 1:
        return [value]
    sent = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
    sizes = multihost_utils.process_allgather(np.array(sent.size)).ravel()
    padded = np.pad(sent, (0, sizes.max() - sent.size))
    received = multihost_utils.process_allgather(padded)
    return [pickle.loads(one[:size].tobytes()) for one, size in zip(received, sizes, strict=True)]


def _everywhere(function, *arguments) -> list:
    """Return what a function returns in each process; raise in all what it raises in one."""
    try:
        result, error = function(*arguments), None
    except Exception as caught:
        if jax.process_count() == 1:
            raise
        kind = type(caught) if type(caught) in (TypeError, ValueError) else RuntimeError
        result, error = None, kind(f"process {jax.process_index()}: {caught}")
    outcomes = gather((result, error))
    for _, other in outcomes:
        if other is not None:
            raise other
    return [result for result, _ in outcomes]


# --- A table in parts


def design_of_parts(
    table: pd.DataFrame,
    *,
    outcome: str,
    population: Sequence[str | Predictor] = (),
    groups: Sequence[str | Group] = (),
) -> tuple[MultilevelDesign, float, float]:
    """Code the rows that this process holds by the levels and groups of the whole table.

    Parameters
    ----------
    table : pandas.DataFrame
        The rows of this process.
    outcome, population, groups
        As in :func:`mlm_utils.multilevel_design.multilevel_design`, but without `nested_in`.

    Returns
    -------
    design : MultilevelDesign
        Rows of this process; levels, groups and their order are those of all rows together.
    y_mean, y_sd : float
        Mean and standard deviation (divisor ``n - 1``) of the outcome over all rows.

    Raises
    ------
    TypeError, ValueError
        In every process alike: if a column of one part is absent or spoilt, if it holds numbers
        in one part and labels in another, if the outcome is constant, if a column of the design
        is a combination of others, or if each row is a group of its own.
    """
    population = _specify(Predictor, "population", population)
    if nested := [g.columns for g in groups if isinstance(g, Group) and g.nested_in is not None]:
        raise ValueError(
            f"nested_in of {nested[0]!r} cannot be checked in parts: leave it out, and where ids "
            "begin anew in each, group by both columns"
        )
    groups = tuple(
        group._replace(
            slopes=_specify(Predictor, "slopes", group.slopes),
            name="_".join(_columns(group)) if group.name is None else group.name,
        )
        for group in _specify(Group, "groups", groups)
    )
    spread_over = [*population, *(slope for group in groups for slope in group.slopes)]
    predictors = list(dict.fromkeys(c for one in spread_over for c in _columns(one)))
    grouping = [column for group in groups for column in _columns(group)]

    def look():
        """Check the part and return what the others must know of it."""
        if outcome in [*predictors, *grouping]:
            raise ValueError(f"outcome {outcome!r} is a predictor or a group too: drop it there")
        numbers = tuple(column for column in predictors if _is_number(table, column))
        labelled = [column for column in predictors if column not in numbers]
        check_table(table, numeric=[outcome, *numbers], categorical=[*labelled, *grouping])
        y = table[outcome].to_numpy(dtype=np.float64)
        kinds = {c: "numbers" if c in numbers else "labels" for c in predictors}
        cells = [
            table[list(columns)].drop_duplicates()
            for columns in [*((c,) for c in labelled), *(_columns(group) for group in groups)]
        ]
        return kinds, (len(y), y.mean(), ((y - y.mean()) ** 2).sum()), cells

    parts = _everywhere(look)
    _check_same("column", [kinds for kinds, _, _ in parts])
    sizes, means, squares = np.array([moments for _, moments, _ in parts]).T
    y_mean = float(sizes @ means / sizes.sum())
    between = sizes @ (means - y_mean) ** 2
    y_sd = float(np.sqrt((squares.sum() + between) / (sizes.sum() - 1)))
    if y_sd == 0:
        raise ValueError(f"column {outcome!r} is constant ({y_mean:g} in all rows): choose another")
    kinds = parts[0][0]
    cells = [pd.concat(some) for some in zip(*(c for _, _, c in parts), strict=True)]
    labelled = [column for column, kind in kinds.items() if kind == "labels"]
    recipe = _Recipe(
        population,
        groups,
        tuple(column for column, kind in kinds.items() if kind == "numbers"),
        {
            column: group_codes(cell[column])[1]
            for column, cell in zip(labelled, cells[: len(labelled)], strict=True)
        },
        {
            group.name: group_codes(_members(cell, group))[1]
            for group, cell in zip(groups, cells[len(labelled) :], strict=True)
        },
    )
    X, terms, labels, sources = _code(table, recipe)
    _check_parts(X, terms, labels)
    y = table[outcome].to_numpy(dtype=np.float64)
    return MultilevelDesign(X, terms, y, sources, labels, recipe), y_mean, y_sd


def _check_parts(X, terms, labels):
    """Refuse what the rows of all parts together cannot tell apart."""
    roots = gather([np.linalg.qr(W, mode="r") for W in (X, *(term.W for term in terms))])
    names = ["the population", *(f"the term {term.name!r}" for term in terms)]
    dimensions = ["coefficient", *(f"{term.name}_effect" for term in terms)]
    for name, dimension, root in zip(names, dimensions, zip(*roots, strict=True), strict=True):
        _check_rank(name, np.vstack(root), labels[dimension][1])
    sizes = gather([np.bincount(term.idx, minlength=term.n_groups) for term in terms])
    for term, size in zip(terms, zip(*sizes, strict=True), strict=True):
        if sum(size).max() == 1:
            raise ValueError(
                f"each row is a group of its own in {term.name!r}, whose scale cannot be told "
                "from sigma: drop the term, or group by what repeats"
            )
