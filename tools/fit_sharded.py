"""Fit a multilevel model to a table in parts, each read by a process of its own.

On one machine this starts all processes:

    python tools/fit_sharded.py part-*.csv --processes 2 --outcome y --population x --groups school

On several, it is started once on each, with a number of its own:

    python tools/fit_sharded.py ... --processes 8 --process 3 --coordinator node1:9876

Process k reads parts k, k + processes, ... (of a single CSV file: every such row). Rows stay in
their process; counts, levels, group names and gradients are what travels. The model is
`mlm_utils.models.multilevel` with an intercept for each group, fitted by `mlm_utils.sampling.fit`.

A process that does not come, or dies, ends all of them within `--wait` seconds, and the error
says which it was. So does a process that stops; one that computes on without an end does not.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

NOISE = re.compile(r".*\[Gloo\]|\s+@|\*\*\*|===|external/|\s*$")  # of C++, about itself
GRACE = 3  # seconds for the others to say what they saw, once a process has failed
POLL = 0.05
REMEDY = (
    "error: nothing was fitted. Put right what the first to end says, and start all again; where "
    "it was killed, memory may have run out, and more processes hold fewer rows each"
)


def main() -> int:
    """Start processes and watch over them, or be one."""
    parser = make_parser()
    options = parser.parse_args()
    if options.worker:
        return work(options)
    if options.processes < 1:
        parser.error(f"--processes must be at least 1, got {options.processes}")
    if options.output and options.output.suffix not in (".csv", ".npz"):
        parser.error(f"--output must end with .csv or .npz, got {options.output}")
    if (options.process is None) != (options.coordinator is None):
        parser.error("--process and --coordinator belong together: give both, or none")
    parts = options.parts
    if len(parts) < options.processes and (len(parts) > 1 or parts[0].suffix != ".csv"):
        parser.error(
            f"{len(options.parts)} parts for {options.processes} processes: split the table"
        )
    if absent := [str(part) for part in options.parts if not part.exists()]:
        parser.error(f"no such file: {', '.join(absent)}")
    numbers = range(options.processes) if options.process is None else [options.process]
    coordinator = options.coordinator or f"localhost:{free_port()}"
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", "--coordinator", coordinator]
    return watch({number: [*command, "--process", str(number)] for number in numbers})


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", type=Path, help="CSV or Parquet files of one table")
    parser.add_argument("--outcome", required=True, help="column of the outcome")
    parser.add_argument("--population", nargs="*", default=[], help="columns with a coefficient")
    parser.add_argument("--groups", nargs="*", default=[], help="columns whose intercepts vary")
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--process", type=int, help="which of 0 .. processes - 1 this is")
    parser.add_argument("--coordinator", help="host:port of process 0, the same for all")
    parser.add_argument(
        "--wait", type=float, default=30, help="seconds for a process (default: 30)"
    )
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--key", type=int, default=1, help="seed of the random key")
    parser.add_argument("--exhibit", action="store_true", help="a fit too short to converge")
    parser.add_argument("--output", type=Path, help="a .csv of the summary or an .npz of the draws")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def free_port() -> int:
    """Return a port that is free on this machine."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


# --- Above: a process that watches


def watch(commands: dict[int, list[str]]) -> int:
    """Run a command a process; when one fails, end the others and say what was seen.

    A process ends when the pipe to it closes, so none survives this one.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        logs = {number: Path(folder, f"{number}.log") for number in commands}
        running, ended = {}, []
        for number, command in commands.items():
            with logs[number].open("w") as log:
                out = None if number == min(commands) else log
                running[number] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=log
                )
        deadline = None
        try:
            while running and (deadline is None or time.monotonic() < deadline):
                time.sleep(POLL)
                # Of those that end together, one that was killed (status below 0) is the cause.
                for number, process in sorted(running.items(), key=lambda one: one[1].poll() or 0):
                    if process.poll() is not None:
                        ended.append((number, process.returncode, time.monotonic() - start))
                        del running[number]
                        if process.returncode and deadline is None:
                            deadline = time.monotonic() + GRACE
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        if deadline is None:
            return 0
        for number, status, seconds in ended:
            if status:
                print(explain(number, status, seconds, logs[number]), file=sys.stderr)
        if running:
            print(f"error: stopped {sorted(running)}, still there then", file=sys.stderr)
        print(REMEDY, file=sys.stderr)
    return 1


def explain(number: int, status: int, seconds: float, log: Path) -> str:
    """Return how a process ended and the last that it said."""
    how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if not NOISE.match(line)]
    said = [line for line in lines if line.startswith("error: ")] or lines[-5:]
    text = f"error: process {number} ended {how} after {seconds:.1f} s"
    return "\n  ".join([text, *said])


# --- Below: a process that computes


def work(options) -> int:
    """Fit with the other processes; say in one line what went wrong."""
    threading.Thread(target=end_with_the_watcher, daemon=True).start()
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print goes to the log
    status = 0
    try:
        fit_parts(options, report)
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "Gloo" in said or "NCCL" in said:
            said = (
                f"lost another process while computing together: see what that one said, and start "
                f"all again ({said})"
            )
        print(f"error: {said}", file=sys.stderr)
        status = 1
    sys.stderr.flush()
    if status:
        os._exit(status)  # JAX would first wait for processes that are no more
    return 0


def end_with_the_watcher():
    """End this process once the pipe from the one that watches closes."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def fit_parts(options, report) -> None:
    """Fit the model to the rows of all processes, and report from process 0."""
    import mlm_utils
    from mlm_utils.sharding import connect, design_of_parts, gather, shard

    connect(options.coordinator, options.processes, options.process, wait=options.wait)
    mlm_utils.setup()

    import jax
    import numpy as np

    from mlm_utils.models import multilevel
    from mlm_utils.sampling import fit, summary
    from mlm_utils.terms import ScalePrior

    design, y_mean, y_sd = design_of_parts(
        read(options.parts, options.process, options.processes),
        outcome=options.outcome,
        population=options.population,
        groups=options.groups,
    )
    prior = design.prior(
        beta={source: (0.0, 2.5 * y_sd) for source in design.sources}
        | {"intercept": (y_mean, 2.5 * y_sd)},
        sigma=ScalePrior("exponential", y_sd),
        tau=ScalePrior("half-normal", y_sd),
    )
    rows = gather(len(design.y))
    if options.process == 0:
        print(
            f"{sum(rows):,} rows in {len(rows)} processes ({', '.join(f'{n:,}' for n in rows)}); "
            f"{sum(term.n_groups for term in design.terms):,} groups",
            file=report,
            flush=True,
        )
    model, arguments = shard(multilevel, design.arguments | {"prior": prior})
    posterior = fit(
        model,
        arguments,
        key=jax.random.key(options.key),
        labels=design.labels,
        chains=options.chains,
        warmup=options.warmup,
        draws=options.draws,
        exhibit=options.exhibit,
    )
    if options.process == 0:
        table = summary(posterior)
        print(table.to_string(), file=report, flush=True)
        if options.output and options.output.suffix == ".npz":
            np.savez(options.output, **posterior["posterior"].dataset)
        elif options.output:
            table.to_csv(options.output)


def read(parts, process, processes):
    """Return the rows of a process as a table."""
    import pandas as pd

    if len(parts) < processes:  # a single CSV file, in pieces that fit memory
        pieces = pd.read_csv(parts[0], chunksize=100_000)
        return pd.concat(piece[piece.index % processes == process] for piece in pieces)
    own = parts[process::processes]
    return pd.concat(
        [pd.read_csv(part) if part.suffix == ".csv" else pd.read_parquet(part) for part in own],
        ignore_index=True,
    )


if __name__ == "__main__":
    sys.exit(main())
