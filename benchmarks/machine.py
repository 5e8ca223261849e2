"""What the benchmarks share: the machine they ran on, and their results as JSON."""

import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "data" / "benchmarks"
BUSY = 0.25  # share of the processor in use, above which timings are not to be trusted


def describe() -> dict:
    """Describe the machine, as far as timings depend on it.

    Returns
    -------
    dict
        ``cpu``, ``cores`` (that this process may use), ``memory_gib``, ``system``, ``python``,
        ``date`` (UTC) and ``load`` (share of the processor in use at the moment).
    """
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "load": round(_load(), 2),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package."""
    return {package: version(package) for package in packages}


def refuse_if_busy(force: bool = False) -> None:
    """Refuse to time anything while other programs keep the processor busy.

    Parameters
    ----------
    force : bool
        Go on all the same; `describe` keeps the load beside the timings.

    Raises
    ------
    RuntimeError
        If the processor is busy for more than a quarter of the time, watched for two seconds.
    """
    if not force and (load := _load()) > BUSY:
        raise RuntimeError(
            f"other programs use {load:.0%} of the processor, more than {BUSY:.0%}: timings would "
            "be of them too. Wait until the machine is idle, or say --force"
        )


def write(name: str, results: dict, *, part: bool = False) -> Path:
    """Write results to ``data/benchmarks/<name>.json``, where the pages read them.

    Parameters
    ----------
    name : str
        Name of the benchmark.
    results : dict
        What JSON can hold; no number may be infinite or NaN.
    part : bool
        They are those of a trial: write them to ``_build/benchmarks``, where no page reads them.

    Returns
    -------
    pathlib.Path
        The file.
    """
    folder = ROOT / "_build" / "benchmarks" if part else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps(results, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _load(seconds: float = 2.0) -> float:
    """Return the share of the time for which the processor is busy, over some seconds."""

    def look():
        line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
        times = list(map(int, line.split()[1:9]))
        return sum(times), times[3] + times[4]  # all, idle and waiting for a disk

    total, idle = look()
    time.sleep(seconds)
    later, idle_later = look()
    return 1 - (idle_later - idle) / (later - total)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
