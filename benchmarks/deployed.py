"""What one message costs a deployed node beside the training: a process is started for each, in parts.

    python benchmarks/deployed.py

Each line is the median over processes, in seconds on the wall and on the CPU: on a busy machine the second
says more. Flower's own part (SuperLink, polls, transfer) is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WORDS = [
    "heron",
    "slate",
    "brig",
    "wren",
    "basalt",
    "sloop",
    "gull",
    "flint",
    "ketch",
    "swift",
    "moss",
    "quay",
]
ROWS = 400
Parts = dict[str, tuple[float, float]]


def flat(base: str) -> dict[str, Any]:
    """The run-config: the built-in base reads text, the other one tells classes apart."""
    changes: dict[str, Any] = {"train.steps": 1, "train.device": "cpu"}
    if base != "builtin":
        changes |= {"task.kind": "classification", "base.model": base, "data.label": "label"}
    return changes


def serve(kind: str, base: str, folder: Path) -> Parts:
    """Do what the ClientApp does for a message, part by part, in this fresh process."""
    parts: Parts = {"python": (time.monotonic() - float(os.environ["BEGAN"]), time.process_time())}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        wall, cpu = time.monotonic(), time.process_time()
        yield
        parts[name] = time.monotonic() - wall, time.process_time() - cpu

    with part("flwr"):
        import flwr.supernode.runtime.run_clientapp  # noqa: F401
    with part("client_app, site.toml"):
        import fedmerge.client_app  # noqa: F401
        from fedmerge.silo.site import read_site

        site = read_site(folder / "site.toml")
    with part("torch, settings"):
        from fedmerge import station
        from fedmerge.config import read_config
        from fedmerge.silo.lateness import Lifetime

        config = read_config(flat(base))
    with part("fingerprint, rows"):
        here = station.opened(config, site)
    lifetime = Lifetime(time.time(), 3600.0, time.time())
    if kind == "query":
        with part("answer"):
            content = station.describe(here, None, lifetime)  # type: ignore[arg-type]
    else:
        with part("transformers, peft"):
            worker = here.worker
        with part("base"):
            worker.load()
        content = answer(kind, here, part)
    with part("site's log"):
        log(site, kind, content)
    return parts


def answer(kind: str, here: Any, part: Any) -> Any:
    """Score 128 rows of the split, or those and one step of training."""
    from fedmerge.silo.data import labels_of
    from fedmerge.silo.lora import initial_adapter
    from fedmerge.wire.protocol import Instruction, instruction_content
    from fedmerge.wire.records import to_record

    label = here.config.silo.data.label
    labels = tuple(labels_of(next(iter(here.silos.values())).train, label)) if label else ()
    initial = initial_adapter(here.config.silo, labels or None)
    order = Instruction(round=1, steps=int(kind == "train"), labels=labels, splits=("validation",), rows=32)
    message = instruction_content(to_record(initial.tensors), order)
    from fedmerge import station
    from fedmerge.silo.lateness import Lifetime

    with part("answer"):
        return getattr(station, kind)(here, message, Lifetime(time.time(), 3600.0, time.time()))


def log(site: Any, kind: str, content: Any) -> None:
    """Write what left."""
    from flwr.app import Message, RecordDict

    from fedmerge.engine.identity import server_identity, stamp
    from fedmerge.silo.departures import Departure, write

    with server_identity(run_id=1):
        message = Message(RecordDict(), dst_node_id=2, message_type=kind)
    stamp(message, "1")
    write(site.log, Departure(site.silo, "", message, content))


def prepare(folder: Path, base: str) -> None:
    """A site of so many rows."""
    rows = [
        {"text": f"the {WORDS[n % 12]} and the {WORDS[n % 7]}", "label": WORDS[n % 5]} for n in range(ROWS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "state").mkdir()
    keys = {
        "silo": "a",
        "data": folder / "rows.jsonl",
        "state": folder / "state",
        "log": folder / "left.jsonl",
    }
    (folder / "site.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in keys.items()))


def measured(kind: str, base: str, folder: Path) -> Parts:
    """The parts of one process."""
    command = [sys.executable, __file__, "--serve", kind, "--base", base, "--folder", str(folder)]
    environment = os.environ | {"BEGAN": str(time.monotonic()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", default="builtin", help='"builtin", or the folder of an encoder')
    parser.add_argument("--kinds", default="query,train,evaluate", help="of messages")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        print(json.dumps(serve(asked.serve, asked.base, Path(asked.folder))))
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), asked.base)
        measured("train", asked.base, Path(name))  # files come from the cache then, and hashes are known
        for kind in asked.kinds.split(","):
            runs = [measured(kind, asked.base, Path(name)) for _ in range(asked.repeats)]
            print(f"\n{kind}, {asked.base}, load {os.getloadavg()[0]:.1f}")
            for part in runs[0]:
                wall, cpu = (statistics.median(run[part][place] for run in runs) for place in (0, 1))
                print(f"  {part:24} {wall:6.2f} s wall {cpu:6.2f} s CPU")
            total = [
                statistics.median(sum(p[place] for p in run.values()) for run in runs) for place in (0, 1)
            ]
            print(f"  {'in all':24} {total[0]:6.2f} s wall {total[1]:6.2f} s CPU")


if __name__ == "__main__":
    main()
