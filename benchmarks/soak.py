"""Whether anything grows that should not, in a run of many rounds: memory, descriptors, threads, disk.

    python benchmarks/soak.py [--rounds 500] [--json out.json]        (make soak)

Server, guard, gate, merge, server optimizer, run folder, client app and Flower's own round loop are those of
every run; the silos answer at once, with a score and a delta that they drew before (engine.py). After each
round this process is looked at: its resident memory, its open descriptors, its threads, the bytes of the
run's folder. The first fifth is warm-up. After it

- memory may grow by no more than `LIMITS["memory"]` bytes a round, as a straight line through all of them
  says: reports of the rounds, which the run sums up at its end, are some kilobytes each;
- descriptors and threads may not grow at all;
- the folder grows by what is kept of each round for good, its report in state.json and its lines in the logs:
  the same for each, and nothing beside it. Adapters stay of the last two rounds (`run.keep-rounds`). What a
  round keeps is printed, so that a disk can be sized by it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmerge.config import defaults, read_config
from fedmerge.engine.local import run_local
from fedmerge.server.observer import Silent
from fedmerge.silo import worker

LIMITS = {"memory": 64_000.0, "descriptors": 0.01, "threads": 0.01}
"""Growth in a round: bytes, and counts."""

UNEVEN = 0.02
"""Share by which what one round adds to the folder may differ from the mean of all."""

CONFIG: dict[str, Any] = {
    "run.name": "soak", "run.baselines": "", "run.keep-rounds": 2,
    "data.partition": "iid(silos=4)", "data.silos": "", "engine.workers": 1,
    "lora.rank": 2, "lora.layers": "top 1", "lora.target-modules": "q_proj, v_proj",
    "train.device": "cpu",
    "strategy.rule": "ties(density=0.5)", "strategy.space": "factors()", "strategy.shadows": "",
    "strategy.guard": "clip(times=10)", "strategy.server-optimizer": "momentum()",
}  # fmt: skip


class Lookout(Silent):
    """Looks at the process after each round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[dict[str, float]] = []

    def round_closed(self, report: Mapping[str, Any]) -> None:
        """Note what the process holds."""
        files = [path.stat().st_size for path in self.folder.rglob("*") if path.is_file()]
        self.seen.append(
            {
                "memory": resident(),
                "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 (the count, this one included)
                "threads": threading.active_count(),
                "disk": sum(files),
                "files": len(files),
            }
        )


def resident() -> int:
    """Bytes of this process that lie in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def slope(values: Sequence[float]) -> float:
    """Growth in a round, as the straight line through all of them says."""
    return float(np.polyfit(np.arange(len(values)), np.asarray(values), 1)[0])


def judge(seen: Sequence[Mapping[str, float]]) -> tuple[list[str], list[str]]:
    """What was measured after the warm-up, in lines, and what of it is more than it may be."""
    steady = seen[len(seen) // 5 :]
    lines, wrong = [], []
    for what, limit in LIMITS.items():
        values = [look[what] for look in steady]
        growth = slope(values)
        unit, scale = (" MB", 1e6) if what == "memory" else ("", 1.0)
        lines.append(
            f"{what:12} {values[0] / scale:8.1f} to {values[-1] / scale:8.1f}{unit}, {growth:+.3g} a round"
        )
        if growth > limit:
            wrong.append(f"{what} grows by {growth:.3g} a round, at most {limit:g} are taken")
    added = np.diff([look["disk"] for look in steady])
    lines.append(f"{'disk':12} {added.mean() / 1e3:8.1f} kB a round, {added.min()} to {added.max()} bytes")
    if np.abs(added - added.mean()).max() > UNEVEN * added.mean():
        wrong.append(f"what a round adds to the folder is from {added.min()} to {added.max()} bytes")
    if slope(added) * len(added) > UNEVEN * added.mean():
        wrong.append(f"what a round adds to the folder grows by {slope(added):.3g} bytes with each")
    return lines, wrong


def soak(rounds: int, folder: Path, **changes: Any) -> list[dict[str, float]]:
    """Run, and what was seen after each round."""
    lookout = Lookout(folder)
    flat = defaults() | CONFIG | {"run.rounds": rounds, "run.output": str(folder)} | changes
    run_local(read_config(flat), lookout)
    return lookout.seen


def main() -> int:
    """Soak; 1 where something grew."""
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--rounds", type=int, default=500)
    reader.add_argument("--json", type=Path, help="where to write what was seen after each round")
    given = reader.parse_args()
    from engine import IdleWorker

    worker.Worker = IdleWorker  # type: ignore[misc]
    place, began = Path(tempfile.mkdtemp(prefix="fedmerge-soak-")), time.perf_counter()
    try:
        seen = soak(given.rounds, place / "run")
    finally:
        shutil.rmtree(place)
    lines, wrong = judge(seen)
    print(f"{given.rounds} rounds in {time.perf_counter() - began:.0f} s")
    print("\n".join(lines))
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    if given.json:
        given.json.write_text(json.dumps(seen) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
