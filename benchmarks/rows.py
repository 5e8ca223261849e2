"""Time the gradient of a multilevel model as its rows grow: three forms, two models, two widths.

    python benchmarks/rows.py

The model is `mlm_utils.models.multilevel` with four predictors and one grouping factor, whose
intercepts vary, or intercepts and slopes. Its forms, which are one density:

- ``gather``: the model of the rows, which looks up the effects of each row's group;
- ``segments``: the same with the rows sorted by group, so that a gradient sums over neighbours;
- ``statistics``: `mlm_utils.scaling.multilevel_from_statistics`, its rows added up by group.

A gradient is timed where a sampler needs it: as one of many steps within one program, which is
started, and finds its memory, once. Each is held against moving its bytes once, data and parameters
in and the gradient out, at speeds measured in the same run: copying them, on one core, and merely
reading them, on all.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from machine import describe, refuse_if_busy, versions, write
from numpyro.infer.util import log_density

from mlm_utils.compiled import _split
from mlm_utils.models import group_effects, multilevel, scale_distribution
from mlm_utils.scaling import multilevel_from_statistics, rotate, statistics_from_arrays
from mlm_utils.terms import Prior, ScalePrior, Term

ROWS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
LARGE = 100_000  # rows from which a slope is no longer that of starting a program
ROWS_A_GROUP, FEW_GROUPS = 50, 20
COEFFICIENTS = ("intercept", "a", "b", "c", "d")
VARYING = {"intercepts": COEFFICIENTS[:1], "intercepts and slopes": COEFFICIENTS}
WIDTHS = ("float64", "float32")  # the first is the reference
SECONDS, REPEATS = 0.5, 5  # that a timing is repeated for, at least; the first, also of many steps
BYTES = 1 << 28  # that bandwidth is measured with: more than a cache holds
TARGET_ROWS, TARGET_SPEEDUP, TARGET_BYTES = 1_000_000, 20, 3


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of rows")
    parser.add_argument("--force", action="store_true", help="on a busy machine as well")
    options = parser.parse_args()
    refuse_if_busy(options.force)
    machine, speed = describe(), bandwidth()
    cases = []
    for model in VARYING:
        for n in options.rows:
            cases += measure(model, n, max(n // ROWS_A_GROUP, 2), speed)
            cases += measure(model, n, FEW_GROUPS, speed, only="statistics")
    results = {
        "machine": machine,
        "versions": versions("jax", "jaxlib", "numpyro", "numpy"),
        "predictors": len(COEFFICIENTS) - 1,
        "bandwidth_gb_per_s": speed,
        "cases": cases,
        "slopes": slopes(cases),
        "at_a_million": compare(cases),
    }
    print_table(results)
    print(f"written to {write('rows', results)}")


def bandwidth() -> dict[str, float]:
    """Measure how many gigabytes a second this machine reads and copies, each counted once."""
    source = np.ones(BYTES // 8)
    target, held = np.empty_like(source), jnp.asarray(source)
    read = clock(jax.jit(jnp.sum), held)
    copy = clock(np.copyto, target, source)
    return {"read": BYTES / read / 1e9, "copy": BYTES / copy / 1e9}


def measure(model: str, n: int, n_groups: int, speed: dict, only: str | None = None) -> list[dict]:
    """Time the forms of a model and hold their gradients against one another."""
    cases, reference = [], None
    given, point, seconds = make_up(model, n, n_groups)
    for width in WIDTHS:
        with jax.enable_x64(width == "float64"):
            for form, (function, arguments) in given.items():
                if only in (None, form):
                    moving, rebuild = _split(arguments)
                    data, at = cast((moving, point), width)
                    gradient = jax.value_and_grad(
                        lambda at, data, function=function, rebuild=rebuild: log_density(
                            function, (), rebuild(data), at
                        )[0]
                    )
                    time_taken = clock_steps(gradient, at, data)
                    found = jax.tree.map(np.float64, jax.jit(gradient)(at, data))
                    reference = found if reference is None else reference
                    moved = size(data) + 2 * size(at)
                    cases.append(
                        {
                            "model": model,
                            "form": form,
                            "width": width,
                            "rows": n,
                            "groups": n_groups,
                            "groups_grow": only is None,
                            "milliseconds": 1e3 * time_taken,
                            "megabytes": moved / 1e6,
                            "times_copying": time_taken * speed["copy"] * 1e9 / moved,
                            "times_reading": time_taken * speed["read"] * 1e9 / moved,
                            "density_off": abs(found[0] / reference[0] - 1),
                            "gradient_off": apart(found[1], reference[1]),
                        }
                        | ({"seconds_to_add_up": seconds} if form == "statistics" else {})
                    )
    return cases


def make_up(model: str, n: int, n_groups: int) -> tuple[dict, dict, float]:
    """Make rows, and a point near their posterior.

    Returns
    -------
    forms : dict
        Name -> the model's function and its arguments.
    point : dict
        Site -> value.
    seconds : float
        What adding the rows up took.
    """
    rng = np.random.default_rng(1)
    idx = np.r_[np.arange(n_groups), rng.integers(n_groups, size=n - n_groups)].astype(np.int32)
    varying, k = VARYING[model], len(COEFFICIENTS)
    X = np.column_stack([np.ones(n), rng.normal(size=(n, k - 1))])
    beta, z = np.linspace(1, -1, k), rng.normal(size=(n_groups, len(varying)))
    y = X @ beta + (X[:, : len(varying)] * z[idx]).sum(axis=1) + rng.normal(size=n)
    point = {"beta": beta, "sigma": np.array(1.1), "tau_g": np.full(len(varying), 0.9), "z_g": z}
    prior = Prior(
        np.zeros(k),
        np.full(k, 5.0),
        ScalePrior("half-normal", 5.0),
        {"g": ScalePrior("half-normal", 5.0)},
    )

    def rows(order):
        term = Term("g", idx[order], n_groups, X[order, : len(varying)])
        return {"X": X[order], "terms": (term,), "y": y[order], "prior": prior}

    start = time.perf_counter()
    added = statistics_from_arrays(
        X[:, 1:], idx, y, predictors=COEFFICIENTS[1:], levels=range(n_groups), group="g"
    )
    rotated, _ = rotate(added, prior=prior, varying=varying)
    seconds = time.perf_counter() - start
    forms = {
        "gather": (multilevel, rows(rng.permutation(n))),
        "segments": (multilevel_sorted, rows(np.argsort(idx, kind="stable"))),
        "statistics": (multilevel_from_statistics, rotated),
    }
    return forms, point, seconds


def multilevel_sorted(X, terms, y, *, prior):
    """State `multilevel` with one term, whose group codes do not decrease."""
    (term,) = terms
    with numpyro.plate("coefficient", X.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(prior.beta_mean, prior.beta_sd))
    sigma = numpyro.sample("sigma", scale_distribution(prior.sigma))
    b = group_effects(term, prior.tau[term.name], prior.eta)
    b_of_row = b.at[term.idx].get(indices_are_sorted=True, mode="promise_in_bounds")
    mu = X @ beta + jnp.sum(term.W * b_of_row, axis=1)
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def cast(tree, width: str):
    """Put arrays on the device, decimal ones in this width."""

    def put(leaf):
        leaf = np.asarray(leaf)
        return jnp.asarray(leaf, width if leaf.dtype.kind == "f" else leaf.dtype)

    return jax.tree.map(put, tree)


def size(tree) -> int:
    """Return the bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def clock(function, *arguments) -> float:
    """Return the median time of a call in seconds, after a first one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    while sum(times) < SECONDS or len(times) < REPEATS:
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def clock_steps(gradient, at, data) -> float:
    """Return the median time of a step along the gradient, one of many within one program."""

    @jax.jit
    def walk(at, data, steps):
        def step(_, at):
            return jax.tree.map(lambda a, g: a + 1e-12 * g, at, gradient(at, data)[1])

        return jax.lax.fori_loop(0, steps, step, at)

    steps = max(1, round(SECONDS / clock(walk, at, data, 1)))
    return clock(walk, at, data, steps) / steps


def apart(gradient: dict, reference: dict) -> float:
    """Return the largest difference of two gradients, relative to the largest entry of a site."""
    return max(
        float(np.max(abs(gradient[site] - known)) / np.max(abs(known)))
        for site, known in reference.items()
    )


def slopes(cases: list[dict]) -> list[dict]:
    """Return slopes of log time on log rows, by least squares."""
    lines = {}
    for case in cases:
        line = tuple(case[name] for name in ("model", "form", "width", "groups_grow"))
        lines.setdefault(line, []).append((case["rows"], case["milliseconds"]))
    found = []
    for (model, form, width, grow), points in lines.items():
        line = {"model": model, "form": form, "width": width, "groups_grow": grow}
        for name, least in (("slope", 0), ("slope_large", LARGE)):
            x, y = np.log([point for point in points if point[0] >= least] or [(1, 1)]).T
            line[name] = float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else None
        found.append(line)
    return found


def compare(cases: list[dict]) -> list[dict]:
    """Hold the statistics against the two aims, where there are a million rows."""
    found = []
    for case in cases:
        if case["rows"] == TARGET_ROWS and case["groups_grow"] and case["form"] == "statistics":
            (gather,) = (
                other["milliseconds"]
                for other in cases
                if other["form"] == "gather"
                and all(other[name] == case[name] for name in ("model", "width", "rows"))
            )
            speedup = gather / case["milliseconds"]
            found.append(
                {
                    "model": case["model"],
                    "width": case["width"],
                    "gather_over_statistics": speedup,
                    "times_copying": case["times_copying"],
                    "times_reading": case["times_reading"],
                    "met": speedup >= TARGET_SPEEDUP and case["times_copying"] <= TARGET_BYTES,
                }
            )
    return found


def print_table(results: dict) -> None:
    """Print what was measured."""
    speed = results["bandwidth_gb_per_s"]
    print(f"{speed['read']:.1f} GB/s read, {speed['copy']:.1f} GB/s copied")
    columns = ("model", "form", "width", "rows", "groups", "milliseconds")
    columns += ("times_copying", "times_reading", "density_off", "gradient_off")
    print(*columns, sep="\t")
    for case in results["cases"]:
        print(*(f"{v:.3g}" if isinstance(v := case[c], float) else v for c in columns), sep="\t")
    for line in (*results["slopes"], *results["at_a_million"]):
        print(line)


if __name__ == "__main__":
    main()
