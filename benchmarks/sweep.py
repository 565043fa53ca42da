"""What a sweep costs: seconds of wall clock and of all processes' CPU, candidates per second.

    python benchmarks/sweep.py RUN [--rows 12] [--candidates TEXT] [--json out.json]

RUN is the folder of a run with `run.record = true`; the sweep is made in a copy of it, so that nothing is
known from before. Counted is the whole command, in a process of its own: imports, loading, every merge, every
scoring, and the test rows at the end. CPU seconds are of the command and all its workers; half of them is
what two idle cores take at best, and says more than the wall clock where other work keeps the machine busy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--candidates", action="append", default=[])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = measured(asked.run, asked.rows, asked.candidates)
    for name, value in found.items():
        print(f"{name:24s} {value}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measured(run: Path, rows: int, candidates: list[str]) -> dict[str, Any]:
    """One sweep of a copy of a run."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "run"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("sweep"))
        command = [sys.executable, "-m", "fedmerge", "sweep", str(copy), "--rows", str(rows), "--json"]
        command += [word for text in candidates for word in ("--candidates", text)]
        load, began, before = os.getloadavg()[0], time.monotonic(), cpu_seconds()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        wall, cpu = time.monotonic() - began, cpu_seconds() - before
        lines = (copy / "sweep" / "leaderboard.jsonl").read_text(encoding="utf-8").splitlines()
    result = json.loads(done.stdout)
    return {
        "candidates": len(lines),
        "failed": len(result["failed"]),
        "rows of each silo": rows,
        "wall seconds": round(wall, 1),
        "CPU seconds": round(cpu, 1),
        "candidates per second": round(len(lines) / wall, 2),
        "candidates per CPU second": round(len(lines) / cpu, 2),
        "load": f"{load:.1f} before, {os.getloadavg()[0]:.1f} after",
        "cores": len(os.sched_getaffinity(0)),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}",
        "best": result["best"]["candidate"],
    }


def cpu_seconds() -> float:
    """Of all children that have ended, their workers included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
