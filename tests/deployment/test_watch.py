"""`fedmerge deploy watch` against a `flwr` that is played, with a clock that the tests move."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fedmerge.cli.deploy.watch import RUN_ENDED_BADLY, watch
from fedmerge.cli.manner import Outcome
from fedmerge.config import Flat, overlay, read_toml
from fedmerge.deployment.flwr import NoAnswer
from fedmerge.deployment.submission import deployed
from fedmerge.deployment.watching import memory as memories
from fedmerge.deployment.watching.fate import Fate, fate_of
from fedmerge.deployment.watching.flower import Flower
from fedmerge.deployment.watching.place import Place, read_place
from fedmerge.deployment.watching.supervise import Ending, Window, supervise
from fedmerge.deployment.watching.watch import Habits, backoff_seconds
from fedmerge.errors import CheckpointError, ConfigError
from fedmerge.server.folder import RunFolder
from fedmerge.server.report import RoundReport

from .fake_flwr import FakeFlower, server_folder

NO_HEARTBEAT = "No heartbeat received from the task"
TURN_SECONDS = 10.0
Act = Callable[[], object]


@pytest.fixture
def server(tmp_path: Path) -> Path:
    return server_folder(tmp_path / "server")


@pytest.fixture
def place(server: Path) -> Place:
    return read_place(server)


@pytest.fixture
def flower(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> FakeFlower:
    fake = FakeFlower(tmp_path / "bin", place.server / "flwr")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    base = f'[base]\nfingerprint = "{"ab" * 32}"\n'
    file.write_text('[run]\nname = "trial"\nrounds = 3\noutput = "trial"\n' + base)
    return file


def wanted(place: Place, recipe: Path) -> Flat:
    return deployed(overlay(recipe), place.server).flat


class Desk:
    """A watch whose time passes turn by turn.

    Args:
        place: the server.
        recipe: of the run; None goes on with the last one.
        acts: what happens after the turn of that number, from 1.
        turns: after which somebody ends the watch.
        attempts: in a row.
    """

    def __init__(
        self,
        place: Place,
        recipe: Path | None,
        acts: Mapping[int, Act],
        *,
        turns: int = 12,
        attempts: int = 6,
    ) -> None:
        self.now, self.turn, self.turns, self.acts = 1000.0, 0, turns, dict(acts)
        self.place, self.lines = place, []
        self.flat = None if recipe is None else wanted(place, recipe)
        self.habits = Habits(TURN_SECONDS, attempts, self.rest, lambda: self.now)

    def rest(self, seconds: float) -> bool:
        self.turn += 1
        self.now += TURN_SECONDS
        self.acts.pop(self.turn, lambda: None)()
        return self.turn >= self.turns

    def watch(self) -> Ending:
        return supervise(
            self.place, self.flat, self.habits, Window(), lambda line: self.lines.append(json.loads(line))
        )

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]


def close_round(folder: Path, number: int) -> None:
    """What a ServerApp writes when a round is closed, an earlier one's lines kept."""
    folder.mkdir(parents=True, exist_ok=True)
    report = RoundReport(number, ("a", "b")).to_dict()
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "round_closed", "time": 1.0, "report": report}) + "\n")


def hold(folder: Path) -> Callable[[], None]:
    """Work in a run's folder, as a ServerApp's process does; the call lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / ".lock").open("a")
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle.close


def test_a_run_is_submitted_and_completes(place, flower, recipe):
    desk = Desk(place, recipe, {2: lambda: flower.becomes("finished:completed")})
    ending = desk.watch()
    assert ending.ended
    assert ending.memory.completed
    assert len(flower.submissions) == 1
    sent = read_toml(flower.home / "1000.toml")
    assert sent["run.output"] == str(place.runs / "trial")
    assert (sent["run.resume"], sent["data.silos"]) == ("auto", "a")
    assert (flower.home / "1000.bundle").read_text().split() == ["LICENSE", "README.md", "pyproject.toml"]
    assert desk.events == ["superlink-answers", "run-submitted", "run-running", "run-completed"]


def test_a_lost_run_is_submitted_again_on_the_same_folder(place, flower, recipe):
    lost = lambda: flower.becomes("finished:failed", NO_HEARTBEAT)  # noqa: E731
    desk = Desk(place, recipe, {2: lost, 8: lambda: flower.becomes("finished:completed")})
    ending = desk.watch()
    assert ending.memory.completed
    assert ending.memory.runs == ("1000", "1001")
    assert ending.memory.resubmissions == 1
    assert read_toml(flower.home / "1001.toml") == read_toml(flower.home / "1000.toml")
    assert desk.events.count("run-lost") == 1
    assert desk.events.count("run-resubmitted") == 1


@pytest.mark.parametrize(
    ("status", "details"),
    [
        ("finished:failed", "ServerApp failed with exception: RoundFailed: round 2: 1 of 3 silos answered"),
        ("finished:failed", "ServerApp failed with exception: ConfigError: train.steps = -1"),
        ("finished:stopped", "N/A"),
    ],
)
def test_a_run_that_gave_its_own_verdict_is_not_submitted_again(place, flower, recipe, status, details):
    ending = Desk(place, recipe, {2: lambda: flower.becomes(status, details)}).watch()
    assert ending.ended
    assert not ending.memory.completed
    assert status in ending.memory.ended
    assert len(flower.submissions) == 1


def test_a_superlink_that_is_down_is_waited_for_and_said_once(place, flower, recipe):
    acts = {
        2: lambda: flower.mode("down"),
        5: lambda: flower.mode("up"),
        6: lambda: flower.becomes("finished:completed"),
    }
    desk = Desk(place, recipe, acts)
    assert desk.watch().memory.completed
    assert desk.events.count("superlink-silent") == 1
    assert desk.events.count("superlink-answers") == 2
    assert len(flower.submissions) == 1


@pytest.mark.parametrize("mode", ["garbage", "broken", "down"])
def test_no_usable_answer_changes_nothing(place, flower, recipe, mode):
    flower.mode(mode)
    desk = Desk(place, recipe, {}, turns=3)
    ending = desk.watch()
    assert not ending.ended
    assert desk.events == ["superlink-silent"]
    assert not flower.submissions


def test_a_command_that_does_not_end_is_killed(place, flower):
    flower.mode("slow")
    with pytest.raises(NoAnswer, match=r"did not end within 0\.3 seconds"):
        Flower(place.server, "study", timeout_seconds=0.3).runs()


def test_a_run_that_the_superlink_forgot_is_lost(place, flower, recipe):
    desk = Desk(place, recipe, {2: lambda: flower.list([])}, turns=6)
    desk.watch()
    assert len(flower.submissions) == 2
    assert (
        "database is another" in next(each for each in desk.lines if each["event"] == "run-lost")["sentence"]
    )


def test_attempts_wait_longer_and_longer_and_end(place, flower, recipe):
    submitted: list[float] = []

    def lose() -> None:
        if len(flower.submissions) > len(submitted):
            submitted.append(desk.now)
            flower.becomes("finished:failed", NO_HEARTBEAT)

    desk = Desk(place, recipe, dict.fromkeys(range(1, 40), lose), turns=40, attempts=4)
    ending = desk.watch()
    assert ending.ended
    assert not ending.memory.completed
    assert "4 attempts in a row closed no round" in ending.memory.ended
    pauses = [after - before for before, after in itertools.pairwise(submitted)]
    assert len(submitted) == 4
    assert all(pause >= backoff_seconds(number) for number, pause in enumerate(pauses, 1))
    assert pauses == sorted(pauses)


def test_a_closed_round_gives_all_attempts_back(place, flower, recipe):
    seen = []

    def lose_after_a_round() -> None:
        if len(flower.submissions) > len(seen):
            seen.append(1)
            close_round(place.runs / "trial", len(seen))
            flower.becomes("finished:failed", NO_HEARTBEAT)

    desk = Desk(place, recipe, dict.fromkeys(range(1, 8), lose_after_a_round), attempts=2, turns=8)
    ending = desk.watch()
    assert not ending.ended
    assert len(flower.submissions) > 2


def test_a_bundle_that_is_refused_ends_too(place, flower, recipe):
    flower.mode("refuses")
    desk = Desk(place, recipe, {}, attempts=3)
    ending = desk.watch()
    assert ending.ended
    assert "not taken" in ending.memory.ended
    assert len(flower.submissions) == 3


def test_another_run_that_is_alive_is_waited_for(place, flower, recipe):
    flower.add("7")
    desk = Desk(place, recipe, {5: lambda: flower.becomes("finished:completed", number="7")}, turns=8)
    desk.watch()
    assert len(flower.submissions) == 1
    assert desk.events[:3] == ["superlink-answers", "run-waiting", "run-submitted"]
    assert "run 7 is alive" in desk.lines[1]["sentence"]


def test_a_process_that_flower_forgot_is_waited_for(place, flower, recipe):
    let_go = hold(place.runs / "trial")
    desk = Desk(place, recipe, {5: let_go}, turns=8)
    desk.watch()
    waited = next(line for line in desk.lines if line["event"] == "run-waiting")
    assert str(place.runs / "trial") in waited["sentence"]
    assert flower.calls.index(flower.submissions[0]) >= 5
    assert len(flower.submissions) == 1


def test_the_run_that_is_there_is_found(place, flower, recipe):
    flower.add("7")
    let_go = hold(place.runs / "trial")
    ending = Desk(place, recipe, {2: lambda: flower.becomes("finished:completed")}).watch()
    let_go()
    assert ending.memory.runs == ("7",)
    assert ending.memory.completed
    assert not flower.submissions


def test_a_submission_without_an_answer_is_not_made_twice(place, flower, recipe):
    flower.mode("swallows")
    acts = {1: lambda: flower.mode("up"), 6: lambda: flower.becomes("finished:completed")}
    desk = Desk(place, recipe, acts)
    ending = desk.watch()
    assert ending.memory.runs == ("1000",)
    assert ending.memory.completed
    assert len(flower.submissions) == 1
    assert "submission-unclear" in desk.events


def test_a_watcher_that_died_while_it_submitted_finds_its_run(place, flower, recipe):
    flower.add("3", "finished:completed")
    flat = wanted(place, recipe)
    place.runs.mkdir()
    memories.write(place.runs, memories.Memory(flat, submitting=("3",), in_a_row=1))
    late = {3: lambda: flower.add("4"), 4: lambda: flower.becomes("finished:completed")}
    ending = Desk(place, recipe, late).watch()
    assert ending.memory.runs == ("4",)
    assert not flower.submissions


def test_a_watcher_goes_on_where_the_last_one_ended(place, flower, recipe):
    first = Desk(place, recipe, {}, turns=3).watch()
    assert not first.ended
    assert flower.runs[0]["status"] == "running"
    second = Desk(place, None, {2: lambda: flower.becomes("finished:completed")}).watch()
    assert second.memory.runs == first.memory.runs
    assert second.memory.completed
    assert len(flower.submissions) == 1
    assert Desk(place, None, {}).watch().memory == second.memory


def test_a_run_that_ended_is_submitted_anew_when_asked_for(place, flower, recipe):
    failed = "ServerApp failed with exception: RoundFailed: round 1: nobody"
    Desk(place, recipe, {2: lambda: flower.becomes("finished:failed", failed)}).watch()
    Desk(place, recipe, {}, turns=3).watch()
    assert len(flower.submissions) == 2


def test_nothing_to_watch(place, flower):
    with pytest.raises(ConfigError, match="give the run's TOML file"):
        Desk(place, None, {}).watch()


def test_of_two_watchers_the_second_refuses(place, flower, recipe):
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(CheckpointError) as error:
            Desk(place, recipe, {}, turns=3).watch()
        refused.append(str(error.value))

    Desk(place, recipe, {1: second}, turns=3).watch()
    assert f"another watcher (process {os.getpid()})" in refused[0]
    assert len(flower.submissions) == 1


def test_a_damaged_memory_is_refused_by_name(place, flower):
    place.runs.mkdir()
    (place.runs / memories.FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"watch\.json is not what a watcher writes"):
        Desk(place, None, {}).watch()


def watched(server: Path, recipe: Path, flower: FakeFlower, then: Act) -> Outcome:
    """The command itself; once its run is submitted, something happens."""

    def wait() -> None:
        while not flower.runs:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        return watch(server, str(recipe), metrics="", every=0.2, attempts=6, margin=120, linger=0)
    finally:
        thread.join()


def test_sigterm_ends_the_watch_and_leaves_the_run(server, flower, recipe):
    outcome = watched(server, recipe, flower, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert outcome.status == 128 + signal.SIGTERM
    assert "run 1000 goes on" in outcome.payload["sentence"]
    assert flower.runs[0]["status"] == "running"
    assert {call[0] for call in flower.calls} == {"run", "list"}


def test_exit_statuses(server, flower, recipe):
    def status_of(flower_status: str) -> int:
        flower.list([])
        return watched(server, recipe, flower, lambda: flower.becomes(flower_status)).status

    assert status_of("finished:completed") == 0
    assert status_of("finished:stopped") == RUN_ENDED_BADLY


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "federation = None"),
        ('federation = "study"', "runs = None"),
        ('federation = "other"\nruns = "runs"', r"no \[superlink\.other\]"),
        ('federation = "study"\nruns = "runs"\nmetrics = 9464', "metrics = 9464"),
        ("federation", "not valid TOML"),
    ],
)
def test_a_servers_folder_that_is_wrong(server, text, sentence):
    (server / "server.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_place(server)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="deploy init"):
        read_place(tmp_path)


def test_flower_still_says_what_we_read():
    """The words of Flower 1.41 by which a lost run is known; a new Flower shall fail here, not at night."""
    import flwr

    source = Path(flwr.__file__).parent
    state = (source / "supercore/corestate/sql_corestate.py").read_text(encoding="utf-8")
    serverapp = (source / "superlink/runtime/run_serverapp.py").read_text(encoding="utf-8")
    assert f'details="{NO_HEARTBEAT}"' in state
    assert 'f"ServerApp failed with exception: {str(ex)}"' in serverapp
    unknown = 'details = "Task failed with unknown error."'
    assert unknown in serverapp
    assert fate_of("finished:failed", "Task failed with unknown error.") is Fate.LOST


def test_a_folder_in_use_is_no_verdict(tmp_path):
    with RunFolder(tmp_path / "run", {"run.seed": 0}), pytest.raises(CheckpointError) as error:
        RunFolder(tmp_path / "run", {"run.seed": 0})
    details = f"ServerApp failed with exception: CheckpointError: {error.value}"
    assert fate_of("finished:failed", details) is Fate.LOST
    assert fate_of("finished:failed", details + " or so") is Fate.FAILED


@pytest.mark.slow
def test_two_watchers_started_at_the_same_time(server, flower, recipe):
    command = [sys.executable, "-m", "fedmerge", "deploy", "watch", str(server), str(recipe), "--metrics", ""]
    both = [
        subprocess.Popen(
            [*command, "--every", "0.5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    while all(each.poll() is None for each in both):
        pass
    second, first = sorted(both, key=lambda each: each.poll() is None)
    assert second.returncode == 1
    assert f"another watcher (process {first.pid})" in second.communicate()[1]
    while not flower.submissions:
        assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM
    assert len(flower.submissions) == 1
