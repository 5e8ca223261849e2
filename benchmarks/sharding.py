"""Time a gradient whose rows are spread over devices and processes, and the all-reduce in it.

    python benchmarks/sharding.py

On paper, a gradient over N rows on d machines takes N c / d + a seconds: c a row on one of them, a
for the all-reduce, which is a latency plus what travels over the bandwidth. Spreading pays once
N c (1 - 1/d) > a: `on_paper` works this out from c and a as measured here. There, a is what a
gradient over few rows takes longer in two processes than in one; the sum alone, in a loop of its
own, is beside it and is cheaper, as nobody waits for the other. Devices of one machine share its
cores and its memory: what they gain is in `gradient`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
from machine import describe, refuse_if_busy, versions, write

LAYOUTS = [(1, 1), (1, 2), (1, 4), (2, 1)]  # processes, devices of each
FEW = 1_000
ROWS = (FEW, 100_000, 1_000_000, 10_000_000)
GROUPS, PREDICTORS = 1_000, 4
PARAMETERS = GROUPS + PREDICTORS + 3
LENGTHS = (PARAMETERS, 1_000_000)  # of the vectors that are added up across devices
SECONDS = 2.0  # that a timing is repeated for


def main() -> int:
    """Measure every layout in processes of its own and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of rows")
    parser.add_argument("--force", action="store_true", help="on a busy machine as well")
    for hidden in ("--devices", "--processes", "--process", "--port"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process is not None:
        print(json.dumps(measure(options)))
        return 0
    refuse_if_busy(options.force)
    layouts = [run(*layout, options.rows) for layout in LAYOUTS]
    results = {
        "machine": describe(),
        "versions": versions("jax", "jaxlib", "numpyro", "numpy"),
        "model": "varying_intercept",
        "groups": GROUPS,
        "predictors": PREDICTORS,
        "layouts": layouts,
        "on_paper": on_paper(layouts[0], layouts[-1]),
    }
    path = write("sharding", results)
    print(table(layouts))
    print(json.dumps(results["on_paper"], indent=1))
    print(f"written to {path}")
    return 0


def run(processes: int, devices: int, rows) -> dict:
    """Measure one layout."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    given = [f"--processes={processes}", f"--devices={devices}", f"--port={port}", "--rows"]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *given, *map(str, rows), f"--process={process}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"{processes} processes of {devices} devices failed: see above")
    measured = json.loads(said[0].splitlines()[-1])
    return {"processes": processes, "devices": devices} | measured


def measure(options) -> dict:
    """Time gradients and all-reduces in one of the processes of a layout."""
    import jax

    from mlm_utils.sharding import connect

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", options.devices)
    if options.processes > 1:
        connect(f"localhost:{options.port}", options.processes, options.process)
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(jax.devices(), ("row",))
    everywhere, by_row = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("row",)))

    def gradient(n):
        return time_gradient(n // options.processes, options.process, mesh, everywhere)

    def add_up(length):
        local = np.ones((options.devices, length))
        parts = jax.make_array_from_process_local_data(by_row, local)
        total = jax.jit(lambda x: x.sum(axis=0), out_shardings=everywhere)
        return time_call(total, parts)

    return {
        "gradient": {str(n): gradient(n) for n in sorted({FEW, *options.rows})},
        "all_reduce": {str(length): add_up(length) for length in LENGTHS},
    }


def time_gradient(n, process, mesh, everywhere):
    """Return the seconds of a gradient over rows of which each process makes `n`."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer.util import potential_energy

    from mlm_utils.models import varying_intercept
    from mlm_utils.sharding import shard

    rng = np.random.default_rng([1, process])
    arguments = {
        "X": rng.normal(size=(n, PREDICTORS)),
        "idx": rng.integers(0, GROUPS, n, dtype=np.int32),
        "y": rng.normal(size=n),
    }
    fixed = {"n_groups": GROUPS, "y_mean": 0.0, "y_sd": 1.0}
    model, spread = shard(varying_intercept, arguments | fixed, mesh)
    spread = {name: value for name, value in spread.items() if name not in fixed}
    point = {
        "alpha": jnp.array(0.1),
        "sigma": jnp.array(0.2),
        "tau": jnp.array(0.3),
        "beta": jnp.full(PREDICTORS, 0.1),
        "alpha_j": jnp.zeros(GROUPS),
    }

    def potential(point, spread):
        return potential_energy(model, (), spread | fixed, point)

    return time_call(jax.jit(jax.grad(potential), out_shardings=everywhere), point, spread)


def time_call(function, *arguments) -> float:
    """Return the median seconds of a call, all processes making as many."""
    import jax

    from mlm_utils.sharding import gather

    def once():
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        return time.perf_counter() - start

    once()
    count = int(np.clip(SECONDS / once(), 5, 500))
    count = gather(count)[0]
    return float(np.median([once() for _ in range(count)]))


def on_paper(alone: dict, together: dict) -> dict:
    """Work out from how many rows it pays to spread them over machines such as this one."""
    n, seconds = list(alone["gradient"].items())[-1]
    a_row = seconds / int(n)
    spread = together["gradient"][str(FEW)] - alone["gradient"][str(FEW)]
    few, many = (together["all_reduce"][str(length)] for length in LENGTHS)
    return {
        "seconds_a_row": a_row,
        "seconds_to_be_spread": spread,
        "seconds_of_the_sum_alone": few,
        "bytes_a_second": 8 * (LENGTHS[1] - LENGTHS[0]) / (many - few),
        "pays_from_rows": {d: round(spread / a_row / (1 - 1 / d)) for d in (2, 4, 8)},
    }


def table(layouts: list[dict]) -> str:
    """Return the timings in milliseconds, a line a layout."""
    columns = [*(f"{int(n):,} rows" for n in layouts[0]["gradient"])]
    columns += [f"sum of {length:,}" for length in LENGTHS]
    lines = ["processes x devices  " + "  ".join(f"{name:>16}" for name in columns)]
    for one in layouts:
        timings = [*one["gradient"].values(), *one["all_reduce"].values()]
        said = "  ".join(f"{1e3 * seconds:13.3f} ms" for seconds in timings)
        lines.append(f"{one['processes']} x {one['devices']:<17}{said}")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.exit(main())
