"""One engine on one problem, in a process of its own; `run.py` starts it.

    python benchmarks/engines.py sample ENGINE PROBLEM DATA OUT --seed 1
    python benchmarks/engines.py densities ENGINE PROBLEM DATA OUT

An engine imports what it needs and nothing else. Chains, warm-up, draws, target acceptance and
the depth of trees are the same for all; everything else is an engine's default.
"""

import argparse
import importlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from problems import MODELS, PROBLEMS, book, points, read_data, stan_data

CHAINS = 4
CORES = len(os.sched_getaffinity(0))


class Drawn(NamedTuple):
    """Draws of shape ``(CHAINS, draws, ...)`` under their names, and what they took.

    Compiling is all that an engine does with a model but sampling: build it, translate it, and
    put its draws in order.
    """

    draws: dict
    divergences: int
    compile_seconds: float
    sampling_seconds: float


def sample_numpyro(name, data, options, target_accept=None, **how) -> Drawn:
    """Draw with the book's `fit`, as the chapters do, without its cache on disk."""
    import jax

    import mlm_utils
    from mlm_utils import sampling

    mlm_utils.setup(cache=False)
    judge, draw, took = sampling._record, sampling.draw, []

    def timed_draw(*args, **kwargs):
        groups, seconds = draw(*args, **kwargs)
        took.append(seconds)
        return groups, seconds

    # All engines are judged alike, by verdict.py: here a missed gate must not raise.
    sampling._record = lambda posterior: judge(posterior) | {"misses": []}
    sampling.draw = timed_draw
    model, arguments, labels = book(name)
    start = time.perf_counter()
    found = sampling.fit(
        model,
        arguments,
        labels=labels,
        key=jax.random.key(options.seed),
        chains=CHAINS,
        warmup=options.warmup,
        draws=options.draws,
        target_accept=target_accept or PROBLEMS[name].target_accept,
        pointwise=False,
        **how,
    )
    seconds = time.perf_counter() - start
    return _from_tree(found, seconds - took[0], took[0])


def sample_integrated(name, data, options) -> Drawn:
    """Draw as `sample_numpyro`, the normal sites integrated out and drawn exactly afterwards.

    Without a funnel to walk, `fit`'s own target acceptance will do.
    """
    return sample_numpyro(name, data, options, target_accept=0.8, integrate=True)


def sample_exact(name, data, options) -> Drawn:
    """Draw independently by quadrature, as many as the other engines. All its work is sampling."""
    import jax

    import mlm_utils
    from mlm_utils.compiled import compile_seconds
    from mlm_utils.quadrature import exact

    mlm_utils.setup(cache=False)
    model, arguments, labels = book(name)
    key, start = jax.random.key(options.seed), time.perf_counter()
    with compile_seconds() as compiling:
        found = exact(model, arguments, key=key, labels=labels, chains=CHAINS, draws=options.draws)
    seconds = time.perf_counter() - start
    draws = {site: values.to_numpy() for site, values in found["posterior"].items()}
    return Drawn(draws, 0, compiling[0], seconds - compiling[0])


def sample_blackjax(name, data, options) -> Drawn:
    """Draw with blackjax's NUTS and window adaptation from NumPyro's potential of the model."""
    import jax
    import numpyro

    jax.config.update("jax_enable_x64", True)
    numpyro.set_host_device_count(CHAINS)  # before blackjax, which starts JAX
    import blackjax
    from blackjax.adaptation.base import get_filter_adapt_info_fn
    from numpyro.infer.util import initialize_model

    from mlm_utils.compiled import compile_seconds

    model, arguments, _ = book(name)
    begin = time.perf_counter()
    first, then = jax.random.split(jax.random.key(options.seed))
    info = initialize_model(jax.random.split(first, CHAINS), model, model_kwargs=arguments)

    def log_density(z):
        return -info.potential_fn(z)

    def chain(key, z):
        warm, run = jax.random.split(key)
        adapt = blackjax.window_adaptation(
            blackjax.nuts,
            log_density,
            target_acceptance_rate=PROBLEMS[name].target_accept,
            adaptation_info_fn=get_filter_adapt_info_fn(),
        )
        (state, tuned), _ = adapt.run(warm, z, num_steps=options.warmup)
        step = blackjax.nuts(log_density, **tuned).step

        def one(state, key):
            state, told = step(key, state)
            return state, (state.position, told.is_divergent)

        _, (positions, diverging) = jax.lax.scan(one, state, jax.random.split(run, options.draws))
        return jax.vmap(info.postprocess_fn)(positions), diverging

    keys = jax.random.split(then, CHAINS)
    program = jax.pmap(chain).lower(keys, info.param_info.z).compile()
    start = time.perf_counter()
    with compile_seconds() as compiling:  # of what lays the chains out
        draws, diverging = jax.device_get(program(keys, info.param_info.z))
    sampling_seconds = time.perf_counter() - start - compiling[0]
    seconds = start - begin + compiling[0]
    return Drawn(draws, int(diverging.sum()), seconds, sampling_seconds)


def sample_pymc(name, data, options) -> Drawn:
    """Draw with PyMC's own sampler."""
    import pymc as pm

    start = time.perf_counter()
    with _program(name, "pymc")(**data):
        found = pm.sample(
            options.draws,
            tune=options.warmup,
            chains=CHAINS,
            cores=CORES,
            random_seed=options.seed,
            target_accept=PROBLEMS[name].target_accept,
            nuts_sampler="pymc",
            progressbar=False,
            compute_convergence_checks=False,
        )
    seconds = time.perf_counter() - start
    sampling_seconds = float(found["posterior"].attrs["sampling_time"])
    return _from_tree(found, seconds - sampling_seconds, sampling_seconds)


def sample_nutpie(name, data, options) -> Drawn:
    """Draw with nutpie from the PyMC model."""
    import nutpie

    start = time.perf_counter()
    compiled = nutpie.compile_pymc_model(_program(name, "pymc")(**data))
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    found = nutpie.sample(
        compiled,
        draws=options.draws,
        tune=options.warmup,
        chains=CHAINS,
        cores=CORES,
        seed=options.seed,
        target_accept=PROBLEMS[name].target_accept,
        save_warmup=False,
        progress_bar=False,
    )
    return _from_tree(found, compile_seconds, time.perf_counter() - start)


def sample_stan(name, data, options) -> Drawn:
    """Draw with Stan, through pystan."""
    start = time.perf_counter()
    program = _stan(name, data, options.seed)
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    found = program.sample(
        num_chains=CHAINS,
        num_samples=options.draws,
        num_warmup=options.warmup,
        delta=PROBLEMS[name].target_accept,
    )
    sampling_seconds = time.perf_counter() - start
    draws = {}
    for site, shape in zip(program.param_names, program.dims, strict=True):
        values = found[site].reshape(*shape, options.draws, CHAINS)
        draws[site] = np.moveaxis(values, (-1, -2), (0, 1))
    return Drawn(draws, int(found["divergent__"].sum()), compile_seconds, sampling_seconds)


def densities_numpyro(name, data) -> list[float]:
    """Return NumPyro's log joint density at the fixed points, of the parameters as named."""
    import jax
    from numpyro.infer.util import log_density

    jax.config.update("jax_enable_x64", True)
    model, arguments, _ = book(name)
    return [float(log_density(model, (), arguments, point)[0]) for point in points(name)]


def densities_pymc(name, data) -> list[float]:
    """Return PyMC's log density at the fixed points, of the parameters that it draws."""
    with _in_double():
        model = _program(name, "pymc")(**data)
        return _pymc_densities(model, map(_with_covariance, points(name)))


def densities_bambi(name, data) -> list[float]:
    """Return the log density of Bambi's model at the fixed points."""
    renamed = []
    for point in points(name):
        own = dict(zip("ABCD", point["beta"], strict=True))
        own |= {"Intercept": point["alpha"], "sigma": point["sigma"]}
        own |= {"1|background": point["alpha_j"], "1|background_sigma": point["tau"]}
        renamed.append(own)
    with _in_double():
        return _pymc_densities(_program(name, "bambi")(**data).backend.model, renamed)


def densities_stan(name, data) -> list[float]:
    """Return Stan's log density at the fixed points, without the Jacobian of its transforms."""
    program, values = _stan(name, data, 1), []
    for point in points(name):
        given = {site: np.asarray(value).tolist() for site, value in point.items()}
        free = program.unconstrain_pars(given)
        values.append(program.log_prob(free, adjust_transform=False))
    return values


def _in_double():
    """Compute constants in double precision, where PyTensor would store ``10.0`` in single.

    Without this, PyMC's densities are off by some 1e-8, the same at every point.
    """
    import pytensor

    return pytensor.config.change_flags(cast_policy="numpy+floatX")


def _pymc_densities(model, named_points):
    from pytensor.tensor import as_tensor

    density = model.compile_logp(jacobian=False)
    values = []
    for point in named_points:
        free = {}
        for variable in model.free_RVs:
            transform = model.rvs_to_transforms[variable]
            value = np.asarray(point[variable.name], dtype=float)
            if transform is not None:
                value = transform.forward(as_tensor(value), *variable.owner.inputs).eval()
            free[model.rvs_to_values[variable].name] = value
        values.append(float(density(free)))
    return values


def _with_covariance(point):
    """Add to a point of `raters` the packed Cholesky factor that PyMC draws."""
    if "L_Omega_rater" not in point:
        return point
    factor = point["tau_rater"][:, None] * point["L_Omega_rater"]
    return point | {"L_Sigma": factor[np.tril_indices(len(factor))]}


def _program(name, language):
    """Return the function that builds a model, from its file in ``models``."""
    return importlib.import_module(f"models.{name}_{language}").build


def _stan(name, data, seed):
    import stan

    code = (MODELS / f"{name}.stan").read_text(encoding="utf-8")
    return stan.build(code, data=stan_data(data), random_seed=seed)


def _from_tree(found, compile_seconds, sampling_seconds):
    draws = {site: values.to_numpy() for site, values in found["posterior"].items()}
    diverging = int(found["sample_stats"]["diverging"].sum())
    return Drawn(draws, diverging, compile_seconds, sampling_seconds)


def main() -> None:
    """Do one piece of work and write it down: draws as ``OUT.npz``, figures as ``OUT.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("sample", "densities"))
    parser.add_argument("engine")
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    for option, default in (("--seed", 1), ("--warmup", 1000), ("--draws", 1000)):
        parser.add_argument(option, type=int, default=default)
    options = parser.parse_args()
    work = globals()[f"{options.task}_{options.engine}"]
    data = read_data(options.data)
    if options.task == "densities":
        figures = work(options.problem, data)
    else:
        draws, *took = work(options.problem, data, options)
        if work not in (sample_numpyro, sample_integrated):  # `fit` has judged its draws
            import arviz

            arviz.summary(arviz.from_dict({"posterior": draws}))
        compared = {site: draws[site] for site in PROBLEMS[options.problem].compared}
        np.savez(options.out.with_suffix(".npz"), **compared)
        figures = dict(zip(Drawn._fields[1:], took, strict=True))
    options.out.with_suffix(".json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
