"""What a round of a whole deployment takes on this machine, with and without a loaded process at the sites.

    python benchmarks/deployed_round.py [--rounds 5] [--json out.json]

Three institutions on the loopback interface, brought up as `fedmerge deploy init` writes them: SuperLink with
its database, TLS, process isolation, signatures; no nginx. Each round is three optimizer steps on the
built-in base. What a round takes beyond the silos' own seconds is Flower's: its wait for a message, the start
of a process, the way back. Run it alone: CPU seconds are those of the whole machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.deployment.live import SILOS, Live, federation

_ANSWERED = re.compile(r"(query|train|evaluate) answered in ([0-9.]+) s")


def measured(home: Path, rounds: int, *, preload: bool) -> dict[str, Any]:
    """One run of a federation of its own."""
    with federation(home, start=False) as live:
        for silo in SILOS:
            path = live.site(silo) / "site.toml"
            path.write_text(path.read_text().replace("preload = true", f"preload = {str(preload).lower()}"))
        live.start_server()
        live.register()
        for silo in SILOS:
            live.start_silo(silo)
        live.wait_for(lambda: live.online() == len(SILOS), "all nodes are there")
        time.sleep(30)  # what loads beforehand has loaded
        asked = time.time()
        run = live.submit(**{"run.rounds": rounds, "run.name": "measured"})
        cpu = psutil.cpu_times()
        status = live.wait(run)
        if status != "finished:completed":
            raise SystemExit(f"the run is {status}\n{live.tails()}")
        spent = psutil.cpu_times()
        return {
            "preload": preload,
            "submitted to done": time.time() - asked,
            "cpu": (spent.user - cpu.user) + (spent.system - cpu.system),
            "rounds": seconds_of_rounds(live.folder(run)),
            "answered": answered(live),
            "memory": loaded_bytes(live),
        }


def seconds_of_rounds(folder: Path) -> list[float]:
    """From a round's first message to its end."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    began = {each["round"]: each["time"] for each in events if each["event"] == "round_started"}
    ended = {each["report"]["round"]: each["time"] for each in events if each["event"] == "round_closed"}
    return [round(ended[number] - began[number], 2) for number in sorted(began)]


def answered(live: Live) -> dict[str, list[float]]:
    """What the silos say they took, by kind of message."""
    found = defaultdict(list)
    for silo in SILOS:
        for kind, seconds in _ANSWERED.findall(live.log(f"superexec/{silo}")):
            found[kind].append(float(seconds))
    return dict(found)


def loaded_bytes(live: Live) -> int:
    """What the process that is kept at one site has of its own, in bytes: pages that no other shares."""
    parent = psutil.Process(live.pid(f"superexec/{SILOS[0]}"))
    return sum(child.memory_full_info().uss for child in parent.children(recursive=True))


def main() -> None:
    """Measure and tell."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    reader.add_argument("--rounds", type=int, default=5)
    reader.add_argument("--json", type=Path)
    given = reader.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {len(SILOS)} silos, {given.rounds} rounds")
    rows = []
    for preload in (False, True):
        with tempfile.TemporaryDirectory() as home:
            row = measured(Path(home), given.rounds, preload=preload)
        rows.append(row)
        later = row["rounds"][1:] or row["rounds"]
        said = {kind: round(statistics.median(all), 2) for kind, all in row["answered"].items()}
        print(
            f"preload = {str(preload).lower():5}: a round {statistics.median(later):.1f} s "
            f"({min(later):.1f} to {max(later):.1f}), the run {row['submitted to done']:.0f} s and "
            f"{row['cpu']:.0f} CPU s; a silo's own seconds {said}; kept {row['memory'] / 1e6:.0f} MB",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
