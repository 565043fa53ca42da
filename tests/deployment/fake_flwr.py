"""A `flwr` that plays a SuperLink from files in FLWR_HOME: what it lists, what it takes, how it fails."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SCRIPT = f"""#!{sys.executable} -S
import json, os, pathlib, sys, time
home = pathlib.Path(os.environ["FLWR_HOME"])
words = sys.argv[1:]
mode = (home / "mode").read_text()
with (home / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
runs = json.loads((home / "runs.json").read_text())
def answer(value):
    print("Loading project configuration...")
    print(json.dumps(value))
    sys.exit(0)
if mode == "down":
    answer({{"success": False, "error-message": "Using SuperLink: x\\n\\nThe SuperLink is unavailable."}})
if mode == "garbage":
    print("{{ <html> 502"); sys.exit(0)
if mode == "broken":
    print("Traceback: boom", file=sys.stderr); sys.exit(1)
if mode == "slow":
    time.sleep(60)
if words[0] == "run":
    if mode == "refuses":
        answer({{"success": False, "error-message": "invalid FAB"}})
    number = str(1000 + len(runs))
    config = pathlib.Path(words[words.index("--run-config") + 1])
    (home / f"{{number}}.toml").write_text(config.read_text())
    bundle = sorted(path.name for path in pathlib.Path(words[1]).iterdir())
    (home / f"{{number}}.bundle").write_text(" ".join(bundle))
    runs.insert(0, {{"run-id": number, "status": "running", "status-details": "N/A"}})
    (home / "taken.json").write_text(json.dumps(runs))
    (home / "taken.json").replace(home / "runs.json")
    if mode == "swallows":
        print("{{ <html> 504"); sys.exit(0)
    answer({{"success": True, "run-id": number}})
if "--run-id" in words:
    wanted = words[words.index("--run-id") + 1]
    runs = [run for run in runs if run["run-id"] == wanted]
    if not runs:
        answer({{"success": False, "error-message": "[code: 16] Run ID not found."}})
answer({{"success": True, "runs": runs}})
"""


class FakeFlower:
    """The SuperLink behind the fake command.

    Args:
        folder: of the executable.
        home: FLWR_HOME of the watcher.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "flwr").write_text(SCRIPT)
        (folder / "flwr").chmod(0o755)
        self.path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        self.mode("up")
        self.list([])

    def mode(self, name: str) -> None:
        (self.home / "mode").write_text(name)

    def list(self, runs: list[dict[str, Any]]) -> None:
        file = self.home / "runs.json"
        file.with_suffix(".new").write_text(json.dumps(runs))
        file.with_suffix(".new").replace(file)

    @property
    def runs(self) -> list[dict[str, Any]]:
        return json.loads((self.home / "runs.json").read_text())

    def add(self, number: str, status: str = "running", details: str = "N/A") -> None:
        self.list([{"run-id": number, "status": status, "status-details": details}, *self.runs])

    def becomes(self, status: str, details: str = "N/A", number: str = "") -> None:
        """The newest run, or the one of that number, gets a status."""
        runs = self.runs
        run = next(run for run in runs if number in ("", run["run-id"]))
        run |= {"status": status, "status-details": details}
        self.list(runs)

    @property
    def calls(self) -> list[list[str]]:
        file = self.home / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def submissions(self) -> list[list[str]]:
        return [call for call in self.calls if call[0] == "run"]


def server_folder(folder: Path, *, metrics: str = "") -> Path:
    """What a watcher reads of a server's folder, over a connection without TLS that nobody answers."""
    (folder / "flwr").mkdir(parents=True)
    (folder / "server.toml").write_text(
        f'federation = "study"\nsigning-key = "signing.key"\nroster = "roster.toml"\n'
        f'runs = "{folder}/runs"\nmetrics = "{metrics}"\n'
    )
    (folder / "roster.toml").write_text('[silos.a]\nkey = ""\n[silos.b]\nkey = ""\nrevoked = true\n')
    (folder / "flwr" / "config.toml").write_text(
        '[superlink.study]\naddress = "127.0.0.1:9"\ninsecure = true\n'
    )
    return folder
