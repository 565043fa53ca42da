"""Faults 30 and 32 to 35 with real processes: one federation on loopback, faults one after the other."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from fedmerge.deployment.installed_only import CLIENT
from fedmerge.deployment.watching.flower import Flower
from fedmerge.errors import RoundFailed

from .live import Live, federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

WORKED_SECONDS = 0.6  # of CPU time: it has taken its message, and loads the base
A, B, C = "hospital-a", "hospital-b", "hospital-c"


def patience() -> float:
    """A deadline that a round without faults meets, however busy this machine is."""
    return 60.0 + 20.0 * os.getloadavg()[0] / (os.cpu_count() or 1)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with federation(tmp_path_factory.mktemp("live")) as running:
        yield running


@pytest.fixture(scope="module")
def whole(live: Live) -> Path:
    """The folder of a run that a straggler (round 2) and a crash (round 3) hit; rounds 1 and 4 are whole."""
    deadline = patience()
    run = live.submit(**settings(4, quorum=0.6, name="faults", **{"strategy.deadline-seconds": deadline}))
    folder = live.folder(run)
    with slowed(live, B, seen(live, folder, "round_started", 2), deadline):
        seen(live, folder, "round_closed", 2)
    working(live, C, seen(live, folder, "round_started", 3)).kill()
    assert ended(live, run) == "finished:completed", live.tails()
    return folder


def settings(rounds: int, quorum: float, name: str, **keys: object) -> dict:
    return {
        "run.rounds": rounds,
        "run.name": name,
        "run.keep": "last",
        "strategy.quorum": quorum,
        "strategy.gate": "off()",
        "strategy.deadline-seconds": patience(),
        "train.steps": 40,  # long enough to be found at work
        **keys,
    }


def reports(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def seen(live: Live, folder: Path, event: str, round: int, seconds: float = 900) -> float:
    """Wait until an event of a round stands in the run's folder; when it happened, by the clock."""
    times: list[float] = []

    def there() -> bool:
        path = folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        events = [json.loads(line) for line in lines]
        times.extend(
            each["time"]
            for each in events
            if each["event"] == event and each.get("report", each).get("round") == round
        )
        return bool(times)

    live.wait_for(there, f"{event} {round} of {folder.name}", seconds)
    return times[0]


def ended(live: Live, run: str, seconds: float = 1500) -> str:
    """Flower's status of a run, as soon as it has ended."""
    end, folder, asked = time.monotonic() + seconds, live.folder(run), time.monotonic()
    while time.monotonic() < end:
        told = any((folder / name).is_file() for name in ("result.json", "failed.json"))
        if time.monotonic() - asked > (3 if told else 20):
            with suppress(RoundFailed):  # a busy machine: `flwr` did not answer in time
                if (status := live.status(run)).startswith("finished"):
                    return status
            asked = time.monotonic()
        time.sleep(0.3)
    raise AssertionError(f"run {run} did not end\n{live.tails()}")


def client_of(live: Live, silo: str, since: float, worked: float = 0.0) -> psutil.Process:
    """The process of a silo's ClientApp that was started after `since`, when it has computed for so long."""
    state = next(each.state for each in live.made.silos if each.name == silo)
    found: list[psutil.Process] = []

    def there() -> bool:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() != CLIENT or process.create_time() < since:
                    continue
                ours = process.environ().get("FLWR_HOME", "").startswith(f"{state}/")
                if ours and process.cpu_times().user >= worked:
                    found.append(process)
        return bool(found)

    live.wait_for(there, f"a ClientApp of {silo} runs", 300)
    return found[0]


def working(live: Live, silo: str, since: float) -> psutil.Process:
    """The process of a silo's ClientApp when it works: Flower starts one that ends before that once more."""
    return client_of(live, silo, since, WORKED_SECONDS)


@contextmanager
def slowed(live: Live, silo: str, since: float, deadline: float) -> Iterator[None]:
    """Inside, whatever trains for a silo gets a hundredth of its time: it is alive, and far too slow.

    Close before the deadline (seconds after `since`) it stands still, so that its last steps, if they
    were to be that near, cannot come in time.
    """
    client, over = working(live, silo, since), threading.Event()
    standstill = since + deadline - 25.0

    def brake() -> None:
        with suppress(psutil.Error):
            while not over.is_set():
                client.suspend()
                over.wait(3.0 if time.time() < standstill else 27.0)
                client.resume()
                time.sleep(0.03)

    thread = threading.Thread(target=brake)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(psutil.Error):
            client.resume()


@contextmanager
def coming_back(live: Live, silo: str, first_seconds: float) -> Iterator[None]:
    """Inside, a SuperNode is started again as systemd would: RestartSec after each end; at first sooner."""
    text = (live.site(silo) / "systemd" / "fedmerge-supernode.service").read_text()
    restart_seconds = int(re.findall(r"^RestartSec=(\d+)$", text, re.MULTILINE)[0])
    role, over = f"supernode/{silo}", threading.Event()

    def unit() -> None:
        seconds = first_seconds
        while not over.wait(seconds):
            live.start(role)
            while live.alive(role) and not over.wait(0.2):
                pass
            seconds = restart_seconds

    thread = threading.Thread(target=unit)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.fault(30)
def test_a_straggler_costs_one_round(whole: Path) -> None:
    first, second, third, *_ = reports(whole)
    assert first["missing"] == [] and sorted(first["admitted"]) == [A, B, C]
    assert sorted(second["admitted"]) == [A, C]
    refused = {each["silo"] for each in second["refused"]}  # where it could still say that its time was over
    assert refused == {B} or second["missing_since"][B]["why"] == "no whole reply in time"
    assert B in third["admitted"]


@pytest.mark.fault(32)
def test_a_client_that_is_killed_costs_one_round(whole: Path) -> None:
    third, fourth = reports(whole)[2:]
    assert sorted(third["admitted"]) == [A, B]
    assert third["missing"] == [C] or [each["silo"] for each in third["refused"]] == [C]
    assert sorted(fourth["admitted"]) == [A, B, C]


@pytest.mark.fault(33)
def test_a_node_that_is_killed_comes_back_and_gives_the_same_bytes(live: Live, whole: Path) -> None:
    run = live.submit(**settings(2, quorum=1.0, name="killed", **{"strategy.deadline-seconds": 1200.0}))
    folder = live.folder(run)
    for round, first_seconds in ((1, 4.0), (2, 90.0)):
        client = working(live, C, seen(live, folder, "round_started", round))
        killed = time.time()
        live.kill(f"supernode/{C}")
        client.kill()
        with coming_back(live, C, first_seconds):
            seen(live, folder, "round_closed", round)
        report = reports(folder)[-1]
        assert sorted(report["admitted"]) == [A, B, C] and report["missing"] == []
        print(f"round {round}: killed, and closed whole {time.time() - killed:.0f} s later")
    assert ended(live, run) == "finished:completed"
    first = "rounds/0001/broadcast.safetensors"
    assert (folder / first).read_bytes() == (whole / first).read_bytes()


@pytest.mark.fault(34)
def test_all_fail_and_the_run_does_too(live: Live) -> None:
    run = live.submit(**settings(2, quorum=0.3, name="diverges", **{"train.learning-rate": 1e30}))
    assert ended(live, run) == "finished:failed"
    told = json.loads((live.folder(run) / "failed.json").read_text())
    assert "0 of 3 silos gave a usable reply" in told["sentence"] and told["rounds_closed"] == 0
    assert not (live.folder(run) / "adapter").exists()
    assert (live.folder(run) / "rounds" / "0000" / "broadcast.safetensors").is_file()


@pytest.mark.fault(35)
def test_below_the_quorum_the_run_ends(live: Live) -> None:
    live.kill(f"supernode/{A}", signal.SIGTERM)  # it says good-bye: Flower knows at once
    live.wait_for(lambda: live.online() == 2, "two nodes are left")
    run = live.submit(**settings(1, quorum=1.0, name="two", **{"strategy.wait-seconds": 20.0}))
    assert ended(live, run) == "finished:failed"
    told = Flower(live.server, live.made.name).find(run)
    assert told is not None and "2 of 3 silos can take part, the quorum of 1 wants 3" in told.details
    assert "'hospital-a': it did not answer" in told.details
    live.start(f"supernode/{A}")
    live.wait_for(lambda: live.online() == 3, "the third is back")
