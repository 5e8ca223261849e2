"""Every engine on every problem: who draws the same posterior, and how fast (`make bench`).

    benchmarks/.venv/bin/python benchmarks/run.py [--quick] [--problems ...] [--engines ...]

Each engine fits each problem with each seed in a fresh process, with empty caches. Its seconds of
compiling and sampling are its own; the whole process is timed from outside, from start to end.
Diagnostics are computed here, for all alike. One exception: the first seed's compiled Stan program
is kept for the other seeds, to whose whole time its measured seconds are added.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import arviz as az
import numpy as np
import verdict
from machine import describe, refuse_if_busy, versions, write
from problems import HERE, PROBLEMS, digests, offset, plain_data, points

ENGINES = (*verdict.BOOK, *verdict.PEERS)
SEEDS = (1, 2, 3)
PACKAGES = ("numpyro", "jax", "jaxlib", "blackjax", "pymc", "pytensor", "nutpie", "numba")
PACKAGES += ("pystan", "httpstan", "bambi", "arviz", "numpy")


def main() -> int:
    """Run what is asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, 200 + 200")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--force", action="store_true", help="on a busy machine as well")
    options = parser.parse_args()
    refuse_if_busy(options.force)
    seeds, length = ((1,), 200) if options.quick else (SEEDS, 1000)
    results = {
        "quick": options.quick,
        "machine": describe(),
        "versions": versions(*PACKAGES),
        "digests": digests(),
        "settings": {
            "seeds": list(seeds),
            "warmup": length,
            "draws": length,
            "target_accept": {name: PROBLEMS[name].target_accept for name in options.problems},
        },
        "runs": [],
        "densities": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), length)
        for round_, seed in enumerate(seeds):
            for problem in options.problems:
                turn = round_ * len(options.engines) // len(seeds)  # no engine is always first
                for engine in options.engines[turn:] + options.engines[:turn]:
                    if engine == "exact" and not PROBLEMS[problem].exact:
                        continue
                    results["runs"].append(bench.sample(engine, problem, seed))
        for problem in options.problems:
            results["densities"] += bench.densities(problem, options.engines)
    results["crashes"] = bench.crashes
    results["agreement"] = verdict.agreement(results["runs"])
    results["ratios"] = verdict.ratios(results["runs"])
    results["machine"]["load_at_end"] = describe()["load"]
    everything = set(options.problems) == set(PROBLEMS) and set(options.engines) == set(ENGINES)
    path = write("engines", results, part=options.quick or not everything)
    report(results)
    print(f"written to {path.relative_to(HERE.parent)}")
    return 0


class Bench:
    """Starts engines in processes of their own and reads what they wrote.

    Parameters
    ----------
    folder : pathlib.Path
        An empty folder, for data, caches and draws.
    length : int
        Number of steps of warm-up, and of draws after it, a chain.
    """

    def __init__(self, folder: Path, length: int):
        self.folder, self.length = folder, length
        self.compiled = {}  # problem -> seconds that Stan took for its program
        self.crashes = []  # processes that a signal ended, and that were started again
        for name in PROBLEMS:
            (folder / f"{name}.data").write_text(json.dumps(plain_data(name)), encoding="utf-8")

    def sample(self, engine: str, problem: str, seed: int) -> dict:
        """Fit once and return the record of the run."""
        options = ["--seed", seed, "--warmup", self.length, "--draws", self.length]
        reused = engine == "stan" and problem in self.compiled
        whole = self._start("sample", engine, problem, *options)
        run = {"engine": engine, "problem": problem, "seed": seed, "compile_reused": reused}
        run |= json.loads((self.folder / "out.json").read_text(encoding="utf-8"))
        if engine == "stan":
            run["compile_seconds"] = self.compiled.setdefault(problem, run["compile_seconds"])
        run["whole_seconds"] = whole + (run["compile_seconds"] if reused else 0.0)
        with np.load(self.folder / "out.npz") as draws:
            run |= diagnose(draws)
        run["misses"] = verdict.misses(run)
        print(
            f"{problem:34} {engine:10} seed {seed}: compile {run['compile_seconds']:6.1f} s, "
            f"sampling {run['sampling_seconds']:6.2f} s, whole {run['whole_seconds']:6.1f} s, "
            f"ESS {run['min_ess_bulk']:6.0f}  {'; '.join(run['misses'])}",
            flush=True,
        )
        return run

    def densities(self, problem: str, engines) -> list[dict]:
        """Return each engine's log densities at the fixed points, and what they lack to ours."""
        languages = ["numpyro"]
        if {"pymc", "nutpie"} & set(engines):
            languages.append("pymc")
            if (HERE / "models" / f"{problem}_bambi.py").exists():
                languages.append("bambi")
        if "stan" in engines:
            languages.append("stan")
        found = []
        for language in languages:
            self._start("densities", language, problem)
            told = json.loads((self.folder / "out.json").read_text(encoding="utf-8"))
            lacks = [offset(language, problem, point) for point in points(problem)]
            found.append(
                {"problem": problem, "engine": language, "log_density": told, "offset": lacks}
            )
        return found

    def _start(self, task, engine, problem, *options) -> float:
        """Run an engine to its end and return the seconds this took, of the run that ended well."""
        caches = self.folder / ("stan" if engine == "stan" else "caches")
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JAX_", "MLM_", "NUMBA_", "PYTENSOR_"))
        }
        environment |= {
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": str(HERE.parent),
            "XDG_CACHE_HOME": str(caches),
            "NUMBA_CACHE_DIR": str(caches / "numba"),
            "PYTENSOR_FLAGS": f"base_compiledir={caches / 'pytensor'}",
        }
        data, out = self.folder / f"{problem}.data", self.folder / "out.json"
        command = [sys.executable, HERE / "engines.py", task, engine, problem, data, out, *options]
        for attempt in range(2):
            if engine != "stan":
                shutil.rmtree(caches, ignore_errors=True)
            start = time.perf_counter()
            done = subprocess.run(
                list(map(str, command)),
                cwd=self.folder,  # httpstan leaves files where it runs
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.perf_counter() - start
            if done.returncode == 0:
                return seconds
            said = f"{engine} on {problem} ended with {done.returncode}:\n{done.stderr[-3000:]}"
            if done.returncode > 0 or attempt:
                raise RuntimeError(said)
            print(said, flush=True)  # a signal: recorded, and tried once more
            self.crashes.append({"engine": engine, "problem": problem, "signal": -done.returncode})


def diagnose(draws) -> dict:
    """Return diagnostics of draws, name -> array of shape ``(chains, draws, ...)``.

    An entry that never moves, such as the corner of a Cholesky factor, is left out.
    """
    scalars = {}
    for site in draws:
        for place in np.ndindex(draws[site].shape[2:]):
            values = draws[site][(..., *place)]
            if np.ptp(values) > 1e-12:
                scalars[f"{site}{list(place) if place else ''}"] = values
    table = az.summary(az.from_dict({"posterior": scalars}), round_to="none")
    return {
        "max_rhat": float(table["r_hat"].max()),
        "min_ess_bulk": float(table["ess_bulk"].min()),
        "min_ess_tail": float(table["ess_tail"].min()),
        "quantities": {
            name: {"mean": row["mean"], "sd": row["sd"], "mcse": row["mcse_mean"]}
            for name, row in table.astype(float).to_dict("index").items()
        },
    }


def report(results: dict) -> None:
    """Print who disagrees and the ratios."""
    agreed = results["agreement"]
    print(f"\n{agreed['comparisons']} comparisons, bound {agreed['bound']:.2f} MCSE")
    for problem, engines in agreed["worst"].items():
        for engine, told in engines.items():
            if told["distance"] > agreed["bound"]:
                print(f"  {problem}: {engine} is {told['distance']:.1f} away, {told['quantity']}")
    for problem, clocks in results["ratios"].items():
        for clock, engines in clocks.items():
            told = [
                f"{peer} {ratio['median']:.1f} ({ratio['range'][0]:.1f} to {ratio['range'][1]:.1f})"
                for peer, ratio in engines["best"].items()
            ]
            print(f"{problem}, {clock}: times faster than " + ", ".join(told))


if __name__ == "__main__":
    sys.exit(main())
