"""The parties' READMEs worked off on machines of their own, under a systemd of their own: minutes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedmerge import load_adapter
from fedmerge.deployment.federation import parse_federation
from fedmerge.deployment.founding import found

from .live import NGINX, SMALL, federation_table
from .machine import Machine, machine, missing, steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx-light)"),
]

A, B = "hospital-a", "hospital-b"
NAME = "fed.example.org"
FOLDER, STATE = "/etc/fedmerge", "/var/lib/fedmerge"
ROWS, LOG = "/srv/fedmerge/rows.jsonl", "/var/log/fedmerge/left.jsonl"
SERVICES = {
    "server": ("fedmerge-superlink", "fedmerge-superexec", "fedmerge-proxy"),
    "silo": ("fedmerge-supernode", "fedmerge-superexec", "fedmerge-proxy"),
}

Machines = dict[str, Machine]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """The server and two hospitals, each set up by the commands of its own README."""
    home = tmp_path_factory.mktemp("machines")
    table = federation_table(home, (A, B))
    table["server"]["hosts"] = [NAME]
    for party in (table["server"], *table["silos"].values()):
        party |= {"folder": FOLDER, "state": STATE}
    rows = {}
    for name, silo in table["silos"].items():
        rows[name] = Path(silo["data"]).read_text()
        silo |= {"data": ROWS, "log": LOG}
    out = found(parse_federation(tomli_w.dumps(table)), home / "out")
    with ExitStack() as stack:
        machines = {name: stack.enter_context(machine(home / "machines", name)) for name in ("server", A, B)}
        for name, there in machines.items():
            folder = out / "server" if name == "server" else out / "silos" / name
            there.install(folder, FOLDER)
            there.run(f"echo '127.0.0.1 {NAME}' >>/etc/hosts")
            if name in rows:
                there.file(ROWS).parent.mkdir()
                there.file(ROWS).write_text(rows[name])
            for command in steps((folder / "README.md").read_text()):
                there.run(command)
            if name in rows:
                there.run(f"chown fedmerge: {ROWS} && chmod 0600 {ROWS}")
        yield machines


def until(condition: Callable[[], object], what: str, machines: Machines, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(1.0)
    journals = "\n".join(
        f"--- {name}\n{there.run('journalctl --no-pager -n 60')}" for name, there in machines.items()
    )
    raise AssertionError(f"not within {seconds:g} s: {what}\n{journals}")


def services(name: str) -> tuple[str, ...]:
    return SERVICES["server" if name == "server" else "silo"]


def all_active(machines: Machines) -> bool:
    return all(
        there.show(service, "ActiveState") == "active"
        for name, there in machines.items()
        for service in services(name)
    )


def online(machines: Machines) -> int:
    status = machines["server"].run(f"runuser -u fedmerge -- {FOLDER}/bin/status.sh")
    return status.count("online")


def submit(machines: Machines, **keys: Any) -> Path:
    """Write run.toml and start the watch, as the server's README says; the run's folder."""
    flat = SMALL | {"strategy.quorum": 1.0} | keys
    table: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        table.setdefault(section, {})[name] = value
    server = machines["server"]
    server.file(f"{FOLDER}/run.toml").write_text(tomli_w.dumps(table))
    server.run("systemctl restart fedmerge-watch")
    runs = server.file(f"{STATE}/runs")
    until(lambda: list(runs.glob(f"{flat['run.name']}-*")), "the run has a folder", machines)
    return next(runs.glob(f"{flat['run.name']}-*"))


def ended(machines: Machines, seconds: float = 900.0) -> None:
    """Wait until the watch has ended by itself, content."""
    server = machines["server"]
    until(
        lambda: server.show("fedmerge-watch", "ActiveState") in ("inactive", "failed"),
        "the watch has ended", machines, seconds,
    )  # fmt: skip
    assert server.show("fedmerge-watch", "Result") == "success", server.journal("fedmerge-watch")


def test_the_services_run_and_none_as_root(machines: Machines) -> None:
    until(lambda: all_active(machines), "all services are active", machines)
    until(lambda: online(machines) == 2, "both nodes are online", machines)
    for name, there in machines.items():
        user = there.user("fedmerge")
        assert user != 0
        for service in services(name):
            pid = there.show(service, "MainPID")
            assert there.run(f"stat -c %u /proc/{pid}").strip() == str(user), (name, service)


def test_a_run_of_the_watch_s_service_leaves_an_adapter_of_both(machines: Machines) -> None:
    folder = submit(machines, **{"run.rounds": 1, "run.name": "first"})
    ended(machines)
    adapter = load_adapter(folder / "adapter")
    assert any(bool(tensor.abs().sum() > 0) for name, tensor in adapter.tensors.items() if "lora_B" in name)
    assert json.loads((folder / "result.json").read_text())["silos"] == [A, B]
    for silo in (A, B):
        left = machines[silo].file(LOG)
        assert left.read_text().count("\n") >= 2 and left.stat().st_mode & 0o007 == 0


def test_the_doctor_finds_no_open_door_and_nothing_that_runs_as_root(machines: Machines) -> None:
    bin = Path(sys.executable).parent
    for name, there in machines.items():
        told = there.run(f"runuser -u fedmerge -- {bin}/fedmerge deploy doctor --json {FOLDER} || true")
        assert "findings" in told, told
        findings = json.loads(told)["findings"]
        assert [each for each in findings if each["state"] == "open"] == [], name
        assert any(each["state"] == "closed" for each in findings), name


def test_what_is_killed_comes_back_without_hands_and_the_run_ends_whole(machines: Machines) -> None:
    server, hospital = machines["server"], machines[B]
    folder = submit(machines, **{"run.rounds": 3, "run.name": "second", "strategy.deadline-seconds": 600.0})
    until((folder / "metrics.jsonl").is_file, "a round is closed", machines, 600)
    node, executor = (hospital.show(name, "MainPID") for name in SERVICES["silo"][:2])
    hospital.run(f"kill -KILL {node}")
    until(
        lambda: hospital.show("fedmerge-superexec", "MainPID") != executor, "it ends with its node", machines
    )
    link = server.show("fedmerge-superlink", "MainPID")
    server.run(f"kill -KILL {link}")
    until(lambda: all_active(machines), "all services are active again", machines)
    assert hospital.show("fedmerge-supernode", "MainPID") not in ("0", node)
    assert server.show("fedmerge-superlink", "MainPID") not in ("0", link)
    ended(machines)
    reports = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(report["admitted"]) for report in reports] == [[A, B]] * 3


def test_a_service_that_is_stopped_leaves_no_process(machines: Machines) -> None:
    for name, there in machines.items():
        user = there.user("fedmerge")
        assert there.processes(user)
        there.run(f"systemctl stop {' '.join(services(name))}")
        assert there.processes(user) == []
