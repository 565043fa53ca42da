"""A whole federation on the loopback interface, brought up from the folder that `deploy init` writes.

Every process is started by its party's own command, in a session of its own:

    with federation(tmp_path) as live:          # SuperLink, its SuperExec, three SuperNodes with theirs
        run = live.submit(**{"run.rounds": 2})  # registered already; returns Flower's number of the run
        live.kill("supernode/hospital-b")       # SIGKILL that process alone; family=True: its children too
        live.start("supernode/hospital-b")
        assert live.wait(run) == "finished:completed"
        live.folder(run), live.log("superlink"), live.pid("superexec/hospital-a")

Roles: superlink, server-superexec, supernode/<silo>, superexec/<silo>; with proxies=True also server-proxy
and proxy/<silo>. At the end nothing that was started here is left, whoever its parent was.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from fedmerge.config import defaults
from fedmerge.deployment.federation import Federation, parse_federation
from fedmerge.deployment.founding import found
from fedmerge.deployment.submission import deployed, flwr, submit
from fedmerge.engine.processes import end_family, family

SILOS = ("hospital-a", "hospital-b", "hospital-c")
MARK = "FEDMERGE_LIVE"
PROJECT = Path(__file__).parents[2]
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

# Three small texts that every Python has; each silo takes one.
MODULES = ("asyncio.base_events", "unittest.mock", "xml.dom.minidom", "argparse", "decimal", "typing")

SMALL: dict[str, Any] = {
    "run.name": "live",
    "run.rounds": 1,
    "run.keep": "last",
    "strategy.gate": "off()",
    "strategy.shadows": "",
    "strategy.wait-seconds": 900.0,
    "strategy.deadline-seconds": 900.0,
    "lora.rank": 2,
    "lora.alpha": 4.0,
    "train.steps": 3,
    "train.batch-size": 2,
    "train.max-length": 64,
    "train.autocast": "none",
    "train.device": "cpu",
    "data.max-rows": 24,
}
"""A run of seconds beside what Flower takes: the built-in base, three steps a round."""


def write_rows(path: Path, module: str, count: int = 40) -> Path:
    """A module's own source as rows, a paragraph each."""
    source = Path(importlib.import_module(module).__file__ or "").read_text(encoding="utf-8")
    rows = [text for text in source.split("\n\n") if len(text) > 80][:count]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    return path


def free_ports(count: int) -> list[int]:
    """Ports that were free together a moment ago."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in taken]


def federation_table(
    home: Path, silos: Sequence[str] = SILOS, policy: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A federation.toml of parties that are all on this machine, below `home`, on free ports."""
    ports = iter(free_ports(2 + 2 * len(silos)))
    commands = str(Path(sys.executable).parent)
    table: dict[str, Any] = {
        "name": "heart-study",
        "server": {
            "hosts": ["localhost", "127.0.0.1"],
            "port": next(ports),
            "superlink-port": next(ports),
            "folder": str(home / "out" / "server"),
            "state": str(home / "state" / "server"),
            "bin": commands,
        },
        "silos": {},
    }
    for number, silo in enumerate(silos):
        rows = write_rows(home / f"{silo}.jsonl", MODULES[number % len(MODULES)])
        table["silos"][silo] = {
            "data": str(rows),
            "folder": str(home / "out" / "silos" / silo),
            "state": str(home / "state" / silo),
            "log": str(home / "state" / silo / "left.jsonl"),
            "bin": commands,
            "proxy-port": next(ports),
            "runtime-port": next(ports),
            "policy": dict(policy or {}),
        }
    return table


@dataclass
class Live:
    """A federation whose processes run.

    Args:
        home: everything lies below it: `out` (the parties' folders), `state`, `logs`, the rows.
        made: the federation.
        proxies: whether nginx stands between the sites and the server.
        extra: environment variables that every process gets.
    """

    home: Path
    made: Federation
    proxies: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    runs: dict[str, Path] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """What `deploy init` wrote."""
        return self.home / "out"

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.out / "server"

    @property
    def silos(self) -> tuple[str, ...]:
        """The silos' names."""
        return tuple(silo.name for silo in self.made.silos)

    def site(self, silo: str) -> Path:
        """A silo's folder."""
        return self.out / "silos" / silo

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the federation gets; without a proxy, nodes reach the SuperLink itself."""
        paths = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        direct = {} if self.proxies else {"FEDMERGE_LINK": f"127.0.0.1:{self.made.server.superlink_port}"}
        quiet = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **quiet, "PYTHONPATH": paths, MARK: str(self.home), **direct, **self.extra}

    def command(self, role: str) -> Path:
        """The party's own command that starts a role."""
        kind, _, silo = role.partition("/")
        if silo:
            return self.site(silo) / "bin" / f"{kind}.sh"
        return self.server / "bin" / f"{kind.removeprefix('server-')}.sh"

    def start(self, role: str) -> int:
        """Start a role, again if it has ended; returns its process id."""
        log = self.home / "logs" / f"{role.replace('/', '-')}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as handle:
            self.processes[role] = subprocess.Popen(
                [str(self.command(role))],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle,
                start_new_session=True,
            )  # fmt: skip
        return self.pid(role)

    def pid(self, role: str) -> int:
        """The process id of a role."""
        return self.processes[role].pid

    def kill(self, role: str, number: int = signal.SIGKILL, *, family: bool = False) -> None:
        """Send a signal to a role and wait for its end; with `family` to its whole session."""
        process = self.processes[role]
        with suppress(ProcessLookupError):
            (os.killpg if family else os.kill)(process.pid, number)
        process.wait(timeout=30)

    def revive(self) -> list[str]:
        """Start again what has ended by itself, as the units do; returns the roles.

        Where a machine is far too busy, Flower's database is locked for longer than its 5 s, and a SuperExec
        that was answered with 500 ends, with the run.
        """
        ended = [role for role, process in self.processes.items() if process.returncode != -signal.SIGKILL]
        ended = [role for role in ended if not self.alive(role)]
        for role in ended:
            self.start(role)
        return ended

    def alive(self, role: str) -> bool:
        """Whether a role's process runs."""
        return role in self.processes and self.processes[role].poll() is None

    def log(self, role: str) -> str:
        """What a role and its children have printed."""
        path = self.home / "logs" / f"{role.replace('/', '-')}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def start_server(self) -> None:
        """SuperLink, healthy, then its SuperExec, and its proxy."""
        self.start("superlink")
        self.wait_for(self.healthy, "the SuperLink answers")
        self.start("server-superexec")
        if self.proxies:
            self.start("server-proxy")

    def start_silo(self, silo: str) -> None:
        """A silo's proxy, SuperNode and SuperExec."""
        if self.proxies:
            self.start(f"proxy/{silo}")
        self.start(f"supernode/{silo}")
        self.start(f"superexec/{silo}")

    def call(self, name: str, *arguments: str) -> str:
        """Run one of the server's commands to its end, and give what it printed."""
        done = subprocess.run(
            [str(self.server / "bin" / f"{name}.sh"), *arguments],
            env=self.environment, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}.sh: {done.stdout}\n{done.stderr}"
        return done.stdout

    def register(self, *silos: str) -> None:
        """Tell Flower the nodes' public keys."""
        self.call("register", *silos)

    def flat(self, **keys: Any) -> dict[str, Any]:
        """A small run's whole run-config as this federation runs it, with these keys changed."""
        return deployed(defaults() | SMALL | keys, self.server).flat

    def submit(self, **keys: Any) -> str:
        """Submit a small run with these run-config keys changed; returns Flower's number of it."""
        flat = self.flat(**keys)
        number = submit(self.server, flat)
        self.runs[number] = Path(flat["run.output"])
        return number

    def folder(self, run: str) -> Path:
        """The folder of a submitted run."""
        return self.runs[run]

    def status(self, run: str) -> str:
        """Flower's status of a run, "finished:completed" say."""
        return str(flwr(self.server, "list", self.made.name, "--run-id", run)["runs"][0]["status"])

    def wait(self, run: str, seconds: float = 1500.0) -> str:
        """Wait for the end of a run; returns its status.

        Flower is asked when the run's folder says that it has ended, and else rarely: each answer takes a
        Python of its own, which a small machine would rather give to the silos.
        """
        end = time.monotonic() + seconds
        asked = time.monotonic()
        while time.monotonic() < end:
            ended = (self.folder(run) / "result.json").is_file() or not self.alive("superlink")
            if time.monotonic() - asked > (3 if ended else 90):
                status = self.status(run)
                if status.startswith("finished"):
                    return status
                asked = time.monotonic()
            time.sleep(0.3)
        raise AssertionError(f"run {run} did not end within {seconds:g} s\n{self.tails()}")

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 300.0) -> None:
        """Wait until something is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds:g} s: {what}\n{self.tails()}")

    def healthy(self) -> bool:
        """Whether the SuperLink answers, under its certificate."""
        trust = ssl.create_default_context(cafile=str(self.server / "ca.crt"))
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
        opener = urllib.request.build_opener(*handlers)
        try:
            with opener.open(f"https://127.0.0.1:{self.made.server.superlink_port}/health", timeout=3):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def online(self) -> int:
        """How many nodes Flower sees."""
        nodes = flwr(self.server, "supernode", "list", self.made.name)["nodes"]
        return sum(node["status"] == "online" for node in nodes)

    def tails(self, lines: int = 25) -> str:
        """The ends of all logs, for the sentence of a failure."""
        return "\n".join(
            f"--- {role}\n" + "\n".join(self.log(role).splitlines()[-lines:])
            for role in sorted(self.processes)
        )

    def end(self) -> None:
        """End every process that was started here, and all that they started."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            end_family(process.pid, (MARK, str(self.home)), grace_seconds=1.0)
            process.wait()

    def left(self) -> list[int]:
        """Process ids of what still runs of this federation."""
        return [process.pid for process in family(2**22 + 1, (MARK, str(self.home)))]


@contextmanager
def federation(
    home: Path,
    silos: Sequence[str] = SILOS,
    *,
    policy: Mapping[str, Any] | None = None,
    proxies: bool = False,
    start: bool = True,
    extra: Mapping[str, str] | None = None,
) -> Iterator[Live]:
    """A federation below `home`; with `start`, all of it runs and every node is registered."""
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    made = parse_federation(tomli_w.dumps(federation_table(home, silos, policy)))
    found(made, home / "out")
    live = Live(home, made, proxies, extra or {})
    try:
        if start:
            live.start_server()
            live.register()
            for silo in live.silos:
                live.start_silo(silo)
        yield live
    finally:
        live.end()
