"""Fault 37 with real processes: the SuperLink is killed and comes back, and the run is finished."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedmerge.server.storage import hash_of, to_toml

from .live import SMALL, Live, federation, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SILOS = ("hospital-a", "hospital-b")
ROUNDS = 2
PATIENT = SMALL | {"strategy.deadline-seconds": 900.0, "strategy.wait-seconds": 600.0, "run.rounds": ROUNDS}
DOWN_SECONDS = 75.0  # Flower gives a silent ServerApp up after 60


def watching(live: Live, recipe: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedmerge", "deploy", "watch", str(live.server), str(recipe), "--json"]
    command += ["--metrics", f"127.0.0.1:{port}", "--every", "5", "--linger", "600"]
    with (live.home / "watch.log").open("ab") as log:
        return subprocess.Popen(command, env=live.environment, stdout=subprocess.PIPE, stderr=log, text=True)


def events(live: Live) -> list[str]:
    lines = (live.home / "watch.log").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["event"] for line in lines if line.startswith("{")]


def page(port: int, path: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(port: int) -> dict[str, float]:
    families = text_string_to_metric_families(page(port, "/metrics")[1])
    return {sample.name: sample.value for family in families for sample in family.samples}


def hashes(folder: Path) -> dict[str, str]:
    files = ["adapter/adapter_model.safetensors"]
    files += [f"rounds/{number:04d}/broadcast.safetensors" for number in range(ROUNDS + 1)]
    return {name: hash_of(folder / name) for name in files}


@pytest.mark.fault(37)
def test_a_killed_superlink_costs_time_and_no_bit(tmp_path: Path) -> None:
    recipe = tmp_path / "run.toml"
    recipe.write_text(to_toml(PATIENT | {"run.name": "storm", "run.output": "storm"}))
    (port,) = free_ports(1)
    with federation(tmp_path / "fed", SILOS) as live:
        calm = live.submit(**PATIENT | {"run.output": "calm"})
        assert live.wait(calm, seconds=1500) == "finished:completed", live.tails()
        storm = live.folder(calm).with_name("storm")
        watcher = watching(live, recipe, port)
        try:
            live.wait_for((storm / "rounds/0001/state.json").is_file, "round 1 is closed", seconds=900)
            assert page(port, "/health")[0] == 200
            live.kill("superlink")
            killed = time.monotonic()
            live.wait_for(lambda: page(port, "/health")[0] == 503, "the outage is seen", seconds=90)
            assert "does not answer" in page(port, "/health")[1]
            live.wait_for(lambda: time.monotonic() - killed > DOWN_SECONDS, "the outage", seconds=120)
            live.start("superlink")
            live.wait_for(live.healthy, "the SuperLink answers again")
            live.wait_for(
                lambda: "run-resubmitted" in events(live), "the run is submitted again", seconds=300
            )
            live.wait_for(lambda: "run-completed" in events(live), "the run is finished", seconds=1500)
            found = samples(port)
            assert found["fedmerge_resubmissions_total"] == 1
            assert found["fedmerge_rounds_closed_total"] == ROUNDS
            assert page(port, "/health")[0] == 200
            watcher.send_signal(signal.SIGTERM)
            ending = json.loads(watcher.communicate(timeout=60)[0])
            assert watcher.returncode == 0
            assert ending["completed"]
            assert len(ending["runs"]) == 2
        finally:
            watcher.kill()
            watcher.communicate()
        assert hashes(storm) == hashes(live.folder(calm))
    said = events(live)
    assert said.count("superlink-silent") == said.count("run-lost") == 1
