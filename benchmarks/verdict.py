"""What the recorded runs of all engines say: who agrees, who passed the gate, who is faster.

Pure functions of the records in ``data/benchmarks/engines.json``, without an engine behind them.
"""

import itertools
import statistics
from collections import defaultdict

import numpy as np
from scipy import stats

from mlm_utils.sampling import MAX_RHAT, MIN_ESS

BOOK = ("numpyro", "integrated", "exact")
PEERS = ("blackjax", "pymc", "nutpie", "stan")
FALSE_ALARM = 0.01  # chance that engines which agree are said to disagree, in all comparisons
CLOCKS = ("sampling", "whole")


def misses(run: dict) -> list[str]:
    """Return what a run missed of the gate, in words."""
    found = []
    if not run["max_rhat"] <= MAX_RHAT:
        found.append(f"R-hat {run['max_rhat']:.3f}")
    for kind in ("bulk", "tail"):
        if not run[f"min_ess_{kind}"] >= MIN_ESS:
            found.append(f"{kind} ESS {run[f'min_ess_{kind}']:.0f}")
    if run["divergences"]:
        found.append(f"{run['divergences']} divergences")
    return found


def agreement(runs: list[dict]) -> dict:
    """Compare each engine's means with those of the other engines together.

    Parameters
    ----------
    runs : list of dict
        Records of runs, each with ``problem``, ``engine``, ``seed`` and ``quantities``: name ->
        ``mean``, ``mcse``.

    Returns
    -------
    dict
        ``comparisons``, their number; ``bound``, which none of so many standard normals exceeds
        with probability ``1 - FALSE_ALARM``; ``worst``, for each problem and engine the largest
        distance in combined Monte Carlo standard errors, and the quantity where it is.

    Notes
    -----
    Runs that missed the gate are compared with the rest but are no part of it: their standard
    errors are not to be trusted. An engine's seeds are averaged with equal weights, and so are
    the engines beside it.
    """
    pooled = defaultdict(dict)
    for (problem, engine), group in _grouped(runs, "problem", "engine"):
        passed = [run for run in group if not misses(run)]
        pooled[problem][engine] = _pool([run["quantities"] for run in passed or group]), passed
    worst = {problem: {} for problem in pooled}
    comparisons = 0
    for problem, engines in pooled.items():
        for engine, (own, _) in engines.items():
            others = [told for name, (told, passed) in engines.items() if name != engine and passed]
            if not others:
                continue
            rest = _pool(others)
            distances = {
                quantity: abs(own[quantity]["mean"] - rest[quantity]["mean"])
                / np.hypot(own[quantity]["mcse"], rest[quantity]["mcse"])
                for quantity in own
            }
            comparisons += len(distances)
            quantity = max(distances, key=distances.get)
            worst[problem][engine] = {
                "distance": float(distances[quantity]),
                "quantity": quantity,
            }
    bound = float(stats.norm.isf(FALSE_ALARM / 2 / max(comparisons, 1)))
    return {"comparisons": comparisons, "bound": bound, "worst": worst}


def speed(run: dict, clock: str) -> float:
    """Return the least bulk ESS of a run per second of ``"sampling"`` or of the ``"whole"``."""
    return run["min_ess_bulk"] / run[f"{clock}_seconds"]


def ratios(runs: list[dict]) -> dict:
    """Return how many times faster the book's fits are than each peer, by problem and clock.

    Parameters
    ----------
    runs : list of dict
        Records of runs.

    Returns
    -------
    dict
        Problem -> clock -> book's engine (or ``"best"``, of them) -> peer ->
        ``{"by_seed": list, "median": float, "range": [least, most]}``.
    """
    found = {}
    for (problem,), group in _grouped(runs, "problem"):
        found[problem] = {}
        for clock in CLOCKS:
            speeds = {(run["engine"], run["seed"]): speed(run, clock) for run in group}
            seeds = sorted({seed for _, seed in speeds})
            for seed in seeds:
                ours = [speeds[engine, seed] for engine in BOOK if (engine, seed) in speeds]
                if ours:
                    speeds["best", seed] = max(ours)
            found[problem][clock] = {
                engine: {
                    peer: _spread([speeds[engine, s] / speeds[peer, s] for s in seeds])
                    for peer in PEERS
                    if all((name, s) in speeds for name in (engine, peer) for s in seeds)
                }
                for engine in (*BOOK, "best")
            }
    return found


def _spread(values):
    if not values:
        return None
    low, high = min(values), max(values)
    return {"by_seed": values, "median": statistics.median(values), "range": [low, high]}


def _pool(parts):
    """Average independent estimates with equal weights."""
    pooled = {}
    for quantity in parts[0]:
        errors = [part[quantity]["mcse"] for part in parts]
        pooled[quantity] = {
            "mean": statistics.fmean(part[quantity]["mean"] for part in parts),
            "mcse": float(np.linalg.norm(errors)) / len(parts),
        }
    return pooled


def _grouped(runs, *names):
    def key(run):
        return tuple(run[name] for name in names)

    return [(name, list(group)) for name, group in itertools.groupby(sorted(runs, key=key), key)]
