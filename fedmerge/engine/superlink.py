"""One simulation through Flower itself: a private SuperLink, `flwr run`, the true status, and a clean stop.

`flwr run . local` would leave its SuperLink behind, with the environment of whoever came first; and
`flwr run --stream` exits with 0 when the run failed. This is the same SuperLink, but ours: on a free port,
with its own FLWR_HOME, gone at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedmerge.config import Config, EngineSettings, Flat
from fedmerge.engine.bundle import write_bundle
from fedmerge.engine.processes import end_family, terminate_as_interrupt
from fedmerge.engine.tail import Tail
from fedmerge.errors import RoundFailed
from fedmerge.server.observer import Observer, Silent
from fedmerge.server_app.trackers import trackers
from fedmerge.server_app.verdict import verdict_of

CONNECTION = "fedmerge"
LOG = "superlink.log"
_HEALTH_SECONDS = 60.0
_TAIL_SECONDS = 0.2
# `flwr list` is a Python of its own: asked rarely, and when the run says that it has ended.
_STATUS_SECONDS = 10.0


def run_flower(config: Config, observer: Observer | None = None) -> Path:
    """Run a simulation on Flower's own runtime.

    The SuperLink has this process's environment and folder, so relative paths in the configuration mean what
    they mean here. Nothing is installed or downloaded, and no process is left behind, Ctrl-C and SIGTERM
    included.

    Args:
        config: what to run.
        observer: told what the run's folder tells.

    Returns:
        The run's folder.

    Raises:
        ConfigError: `run.trackers` can't be used.
        RoundFailed: Flower's status is not "finished:completed"; with its sentence, and where the log is.
    """
    folder = config.folder
    flat = config.flat | {"run.output": str(folder)}
    trackers(config)  # what is wrong with them is said here; the server makes its own
    watcher = observer or Silent()
    watcher.phase("starting a SuperLink")
    with terminate_as_interrupt(), private_superlink() as superlink:
        tail = Tail(folder / "events.jsonl", watcher)
        watcher.phase("submitting the run")
        run_id = superlink.submit(flat, config.engine)
        watcher.phase("waiting for nodes")
        superlink.follow(run_id, tail)
    return folder


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink.

    Args:
        process: `flower-superlink`.
        home: its folder; holds all that it writes.
        environment: of everything that it and the `flwr` commands start.
    """

    process: subprocess.Popen[bytes]
    home: Path
    environment: Mapping[str, str]

    def submit(self, flat: Flat, engine: EngineSettings) -> str:
        """Submit a run; returns its id."""
        (self.home / "run.toml").write_text(tomli_w.dumps(flat), encoding="utf-8")
        bundle = write_bundle(self.home / "bundle")
        answer = self._flwr(
            "run", str(bundle), CONNECTION, "--run-config", str(self.home / "run.toml"),
            "--federation-config", federation_config(engine),
        )  # fmt: skip
        return str(answer["run-id"])

    def follow(self, run_id: str, tail: Tail) -> None:
        """Pass events on until the run has ended.

        Raises:
            RoundFailed: it did not complete.
        """
        asked, ending = time.monotonic(), False
        while True:
            ending = tail.read() or ending or self.process.poll() is not None
            if ending or time.monotonic() - asked > _STATUS_SECONDS:
                status, details = self._status(run_id)
                asked = time.monotonic()
                if status.startswith("finished"):
                    tail.read()
                    self._check(status, details)
                    return
            time.sleep(_TAIL_SECONDS)

    def _status(self, run_id: str) -> tuple[str, str]:
        if self.process.poll() is not None:
            return "finished:lost", f"flower-superlink ended with status {self.process.returncode}"
        run = self._flwr("list", CONNECTION, "--run-id", run_id)["runs"][0]
        return str(run["status"]), str(run["status-details"])

    def _check(self, status: str, details: str) -> None:
        if status != "finished:completed":
            verdict = verdict_of(details)
            sentence = verdict.sentence if verdict else details
            raise RoundFailed(f"the Flower run is {status}: {sentence} (log: {self.keep_log()})")

    def keep_log(self) -> Path:
        """Copy the log to where it stays; the SuperLink's own folder does not."""
        kept = self.home.with_name(f"{self.home.name}.log")
        shutil.copy(self.home / LOG, kept)
        return kept

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """The JSON answer of a `flwr` command."""
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success"):
            said = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
            raise RoundFailed(f"`flwr {arguments[0]}` failed: {said} (log: {self.keep_log()})")
        return dict(answer)


@contextmanager
def private_superlink() -> Iterator[SuperLink]:
    """A SuperLink of our own on a free port, healthy; ended with all that it started, its files removed."""
    home = Path(tempfile.mkdtemp(prefix="fm-"))  # short: Ray's sockets lie in it, and 107 characters is all
    port = _free_port()
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    (home / "config.toml").write_text(
        tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}}), encoding="utf-8"
    )
    environment = private_environment(home)
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (home / LOG).open("wb") as log:
        # A session of its own: Ctrl-C reaches us, and we end it.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    superlink = SuperLink(process, home, environment)
    try:
        _wait_healthy(superlink, port)
        yield superlink
    finally:
        end_family(process.pid, ("FLWR_HOME", str(home)))
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def private_environment(home: Path) -> dict[str, str]:
    """This process's environment, with Flower's commands on the path, its own home, and nothing fetched."""
    here = str(Path(__file__).parent.parent.parent)
    # The clients run the fedmerge that this process runs, also from a clone that was never installed.
    clone = () if here in sysconfig.get_paths().values() else (here,)
    bypass = ",".join(filter(None, (os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost")))
    return os.environ | {
        # Flower starts its parts by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, (*clone, os.environ.get("PYTHONPATH")))),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_TMPDIR": str(home),  # Ray's session goes with the rest
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": bypass,
        "no_proxy": bypass,
    }


def federation_config(engine: EngineSettings) -> str:
    """The nodes and what each client's actor takes, as `flwr run --federation-config` reads it.

    Example:
        >>> federation_config(EngineSettings(workers=0, nodes=2, client_cpus=1, client_gpus=0.25))
        'num-supernodes=2 client-resources-num-cpus=1 client-resources-num-gpus=0.25'
    """
    # A client that wants more CPUs than there are gets none at all: "ActorPool is empty".
    cpus = min(engine.client_cpus, os.cpu_count() or 1)
    return (
        f"num-supernodes={engine.nodes} client-resources-num-cpus={cpus} "
        f"client-resources-num-gpus={float(engine.client_gpus)}"
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_healthy(superlink: SuperLink, port: int) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _HEALTH_SECONDS
    while time.monotonic() < end and superlink.process.poll() is None:
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RoundFailed(f"flower-superlink did not start on port {port} (log: {superlink.keep_log()})")
