"""Price the approximations of a posterior: what they cost, and by how much they are wrong.

    python benchmarks/approximation.py

Many groups of 2 to 10 rows, each with an intercept and a slope of its own, and all four guides,
from all groups at each step or from some. The exact answer comes from sums over the rows of a
group: the effects are integrated out by hand, and draws of the five numbers of the population,
from a Student t around the peak, are weighted by what they should be. Then the eight schools,
against quadrature.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats
from machine import describe, refuse_if_busy, versions, write
from scipy.optimize import minimize

import mlm_utils
from mlm_utils.approximation import GUIDES, approximate
from mlm_utils.compiled import compile_seconds
from mlm_utils.data import load_eight_schools
from mlm_utils.models import eight_schools, varying_intercept_slope
from mlm_utils.quadrature import exact
from mlm_utils.sampling import ConvergenceError

GROUPS, BATCH = 100_000, 1_000
TRUTH = {"alpha": 1.0, "beta": -0.5, "tau_alpha": 0.8, "tau_beta": 0.4, "sigma": 1.0}
EFFECTS = ("alpha_j", "beta_j")
DRAWS = 400  # of an approximation
POINTS, DF = 2_000, 10  # draws of the population for the exact answer, and the tails they have
# Guide, whether by batches, steps, learning rate.
RUNS = (
    ("mean-field", False, 1_500, 0.05),
    ("mean-field", True, 3_000, 0.05),
    ("low-rank", False, 1_500, 0.05),
    ("structured", False, 1_200, 0.05),
    ("structured", True, 6_000, 0.02),
)


def main() -> int:
    """Run every approximation against the exact answers and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=GROUPS)
    parser.add_argument("--batch", type=int, default=BATCH, help="groups of a batch")
    parser.add_argument("--force", action="store_true", help="on a busy machine as well")
    options = parser.parse_args()
    refuse_if_busy(options.force)
    mlm_utils.setup(cache=False)
    arguments = simulate(options.groups)
    answer, seconds = timed(lambda: exact_answer(arguments))
    print(f"exact: {seconds}, {answer['efficiency']:.2f} of the draws' worth", flush=True)
    results = {
        "machine": describe(),
        "versions": versions("jax", "jaxlib", "numpyro", "numpy"),
        "model": "varying_intercept_slope",
        "groups": options.groups,
        "rows": len(arguments["y"]),
        "batch": options.batch,
        "draws": DRAWS,
        "truth": TRUTH,
        "exact": {
            "mean": answer["mean"],
            "sd": answer["sd"],
            "efficiency": answer["efficiency"],
            **seconds,
        },
        "runs": [],
    }
    for guide, by_batch, steps, rate in RUNS:
        batch = options.batch if by_batch else None
        run = price(arguments, answer, guide, batch, steps, rate)
        results["runs"].append(run)
        print(run, flush=True)
    results["eight_schools"] = price_eight_schools()
    print(results["eight_schools"])
    print(f"written to {write('approximation', results)}")
    return 0


def simulate(n_groups: int) -> dict:
    """Return the arguments of the model for groups of 2 to 10 rows, drawn from the truth."""
    rng = np.random.default_rng(1)
    idx = np.repeat(np.arange(n_groups, dtype=np.int32), rng.integers(2, 11, n_groups))
    x = rng.normal(size=len(idx))
    alpha_j = rng.normal(0, TRUTH["tau_alpha"], n_groups)
    beta_j = rng.normal(0, TRUTH["tau_beta"], n_groups)
    y = TRUTH["alpha"] + alpha_j[idx] + (TRUTH["beta"] + beta_j[idx]) * x
    y += rng.normal(0, TRUTH["sigma"], len(idx))
    centre = {"y_mean": float(y.mean()), "y_sd": float(y.std())}
    return {"X": x[:, None], "idx": idx, "y": y, "n_groups": n_groups} | centre


def exact_answer(arguments: dict) -> dict:
    """Return mean and sd of the population and of every effect, by weighted draws."""
    at, effects = marginal(arguments)
    start = np.array([TRUTH[name] for name in TRUTH])
    start[2:] = np.log(start[2:])
    value = jax.jit(jax.value_and_grad(lambda theta: -at(theta)))
    size = len(arguments["y"])
    found = minimize(
        lambda theta: tuple(np.asarray(v) / size for v in value(theta)), start, jac=True, tol=1e-9
    )
    root = np.linalg.cholesky(np.linalg.inv(jax.jit(jax.hessian(lambda t: -at(t)))(found.x)))
    rng = np.random.default_rng(2)
    z = rng.normal(size=(POINTS, len(start))) / np.sqrt(rng.chisquare(DF, (POINTS, 1)) / DF)
    log_q = -0.5 * (DF + len(start)) * np.log1p((z**2).sum(axis=1) / DF)
    theta = found.x + z @ root.T
    log_weight = np.asarray(jax.jit(lambda t: jax.lax.map(at, t))(theta)) - log_q
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    population = np.column_stack([theta[:, :2], np.exp(theta[:, 2:])])
    mean = weight @ population
    sd = np.sqrt(weight @ (population - mean) ** 2)

    @jax.jit
    def moments(theta, weight):
        def add(total, one):
            mean, variance = effects(one[0])
            return (
                total[0] + one[1] * mean,
                total[1] + one[1] * (mean**2 + variance),
            ), None

        zero = jnp.zeros((arguments["n_groups"], 2))
        return jax.lax.scan(add, (zero, zero), (theta, weight))[0]

    first, second = (np.asarray(m) for m in moments(theta, weight))
    spread = np.sqrt(second - first**2)
    return {
        "mean": dict(zip(TRUTH, mean.tolist(), strict=True)),
        "sd": dict(zip(TRUTH, sd.tolist(), strict=True)),
        "effects": {name: (first[:, k], spread[:, k]) for k, name in enumerate(EFFECTS)},
        "efficiency": float(1 / (weight**2).sum() / POINTS),
    }


def marginal(arguments: dict):
    """Return the log density of the population, scales as logs, and the effects given it."""
    idx, y, n_groups = arguments["idx"], arguments["y"], arguments["n_groups"]
    y = y - arguments["y_mean"]
    W = np.column_stack([np.ones(len(y)), arguments["X"]])

    def add_up(values):
        return np.bincount(idx, values, minlength=n_groups)

    A = np.stack([add_up(W[:, a] * W[:, b]) for a in (0, 1) for b in (0, 1)]).reshape(2, 2, -1)
    A, Wy, yy, n = A.T, np.stack([add_up(w * y) for w in W.T], axis=1), add_up(y * y), A[0, 0]

    def solve(theta):
        coefficients = theta[:2] - jnp.array([arguments["y_mean"], 0.0])
        tau, sigma = jnp.exp(theta[2:4]), jnp.exp(theta[4])
        c = Wy - A @ coefficients
        square = yy - 2 * Wy @ coefficients + (A @ coefficients) @ coefficients
        P = A / sigma**2 + jnp.diag(tau**-2)
        determinant = P[:, 0, 0] * P[:, 1, 1] - P[:, 0, 1] ** 2
        swapped = jnp.stack([P[:, 1, 1], P[:, 0, 0]], axis=1)
        mean = swapped * c - P[:, 0, 1, None] * c[:, ::-1]
        mean /= sigma**2 * determinant[:, None]
        return tau, sigma, c, square, determinant, mean, swapped / determinant[:, None]

    def at(theta):
        tau, sigma, c, square, determinant, mean, _ = solve(theta)
        height = -n * jnp.log(2 * jnp.pi) / 2 - n * theta[4] - jnp.log(tau).sum()
        height += -jnp.log(determinant) / 2 - square / sigma**2 / 2
        height += (c * mean).sum(axis=1) / sigma**2 / 2
        prior = stats.norm.logpdf(theta[0], arguments["y_mean"], 2.5 * arguments["y_sd"])
        prior += stats.norm.logpdf(theta[1], 0.0, 2.0)
        prior += stats.norm.logpdf(tau, 0.0, 5.0).sum() - sigma / arguments["y_sd"]
        return height.sum() + prior + theta[2:].sum()

    def effects(theta):
        return solve(theta)[5:]

    return at, effects


def price(arguments, answer, guide, batch, steps, rate) -> dict:
    """Run one approximation and compare it with the exact answer."""
    run = {"guide": guide, "batch": batch, "steps": steps, "learning_rate": rate}
    try:
        tree, seconds = timed(
            lambda: approximate(
                varying_intercept_slope,
                arguments,
                key=jax.random.key(3),
                guide=guide,
                batch=batch,
                steps=steps,
                learning_rate=rate,
                draws=DRAWS,
            )
        )
    except ConvergenceError as refusal:
        return run | {"refused": str(refusal)}
    posterior = tree["posterior"]
    run |= seconds | {"seconds_steps": tree["optimisation"].attrs["seconds_run"], "population": {}}
    for name in TRUTH:
        draws = posterior[name].to_numpy().ravel()
        run["population"][name] = compare(draws, answer["mean"][name], answer["sd"][name])
    run["effects"] = {}
    for name, (mean, sd) in answer["effects"].items():
        draws = posterior[name].to_numpy().reshape(DRAWS, -1)
        off = abs(draws.mean(axis=0) - mean) / sd
        ratio = draws.std(axis=0, ddof=1) / sd
        noise = np.sqrt(2 / np.pi / DRAWS) * ratio.mean()  # what an exact mean would be off by
        run["effects"][name] = {
            "off_in_sds": float(off.mean()),
            "off_by_noise": float(noise),
            "sd_ratio": float(np.median(ratio)),
        }
    return run


def price_eight_schools() -> dict:
    """Return mean and sd of mu and tau by quadrature, and what every guide makes of them."""
    table = load_eight_schools()
    arguments = {"se": table["se"].to_numpy(), "y": table["effect"].to_numpy()}
    moments = exact(eight_schools, arguments, key=jax.random.key(1), draws=100)["moments"]
    answer = {name: moments[name].to_numpy().tolist() for name in ("mu", "tau")}
    found = {"exact": answer}
    for guide in GUIDES:
        tree = approximate(
            eight_schools, arguments, key=jax.random.key(2), guide=guide, draws=20_000
        )
        found[guide] = {
            name: compare(tree["posterior"][name].to_numpy().ravel(), *answer[name])
            for name in answer
        }
        found[guide]["pareto_k"] = tree["optimisation"].attrs["pareto_k"]
    return found


def compare(draws, mean, sd) -> dict:
    """Return mean and sd of draws, and how far they are from the right ones."""
    bias = draws.mean() - mean
    return {
        "mean": float(draws.mean()),
        "sd": float(draws.std(ddof=1)),
        "bias_in_sds": float(bias / sd),
        "bias_relative": float(bias / abs(mean)),
        "sd_ratio": float(draws.std(ddof=1) / sd),
    }


def timed(function):
    """Return what a function returns, and the seconds it compiled and ran."""
    start = time.perf_counter()
    with compile_seconds() as compiling:
        found = jax.block_until_ready(function())
    seconds = time.perf_counter() - start - compiling[0]
    return found, {"seconds_compile": round(compiling[0], 2), "seconds_run": round(seconds, 2)}


if __name__ == "__main__":
    sys.exit(main())
