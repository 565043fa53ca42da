"""Faults 36, 38 and 41: the server's process is killed, and the run goes on to the same bits."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from .crashing import Fork, changes_of, die_at, finish, flat_of, outcome

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork here")

INSTANTS = 100
FEW_INSTANTS = 4
EVERY = 41  # of the changes of the file system, in `make test`


KEPT = {"replies-deleted": {}, "record": {"run__record": True}, "two-rounds-kept": {"run__keep_rounds": 2}}


@pytest.fixture(scope="module", params=KEPT)
def undisturbed(request, tiny_base, tmp_path_factory) -> dict[str, Any]:
    """A run that nobody disturbed: what it left, how long it took, how often it changed the file system."""
    place = tmp_path_factory.mktemp("undisturbed")

    def make(folder: Path) -> dict[str, Any]:
        return flat_of(folder, tiny_base, **KEPT[request.param])

    changes = changes_of(make(place / "counted"))
    began = time.monotonic()
    finish(make(place / "run"))
    seconds = time.monotonic() - began
    found = outcome(place / "run")
    assert found == outcome(place / "counted")
    return {"kept": request.param, "make": make, "outcome": found, "seconds": seconds, "changes": changes}


@pytest.mark.fault(36)
def test_the_run_is_worth_disturbing(undisturbed):
    found = undisturbed["outcome"]
    assert found["closed"] == [1, 2, 3, 4] and found["finished"] == 1
    assert [bool(line["rejected"]) for line in found["metrics"]] == [False, False, True, False]
    assert len({tuple(line["asked"]) for line in found["metrics"]}) > 1
    assert "rounds/0004/optimizer.safetensors" in found
    there = [number for number in range(5) if f"rounds/{number:04}/broadcast.safetensors" in found]
    # With two kept: rounds 3 and 4, the one that is good, or the best, for either of them, and the first.
    assert there == ([0, 1, 3, 4] if undisturbed["kept"] == "two-rounds-kept" else [0, 1, 2, 3, 4])
    assert "rounds/0002/state.json" in found
    assert "shadow/median() @ factors()" in found["result"]["candidates"]


def killed_at_instants(undisturbed, folder: Path, drawn: random.Random) -> int:
    """Kill a run at up to three random instants, finish it, and compare; how often it was killed in time."""
    flat, killed = undisturbed["make"](folder), 0
    for _ in range(drawn.randint(1, 3)):
        fork = Fork(flat)
        time.sleep(drawn.uniform(0, undisturbed["seconds"]))
        fork.kill()
        killed += not fork.wait()
    finish(flat)
    assert outcome(folder) == undisturbed["outcome"]
    return killed


@pytest.mark.fault(36, 41)
@pytest.mark.parametrize("number", range(FEW_INSTANTS))
def test_killed_at_a_random_instant(undisturbed, tmp_path, number):
    """Faults 36 and 41: killed wherever it is, also while it is resumed: the same bits."""
    killed_at_instants(undisturbed, tmp_path / "run", random.Random(number))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.fault(36, 41)
def test_killed_at_a_hundred_random_instants(undisturbed, tmp_path):
    """Faults 36 and 41: as above, a hundred times."""
    killed = [
        killed_at_instants(undisturbed, tmp_path / str(seed), random.Random(1000 + seed))
        for seed in range(INSTANTS)
    ]
    assert sum(killed) >= INSTANTS  # some come after the end


def killed_at_change(undisturbed, folder: Path, number: int) -> None:
    """Kill a run just before its `number`-th change of the file system, finish it, and compare."""
    flat = undisturbed["make"](folder)
    assert not Fork(flat, die_at(number, folder)).wait()
    finish(flat)
    assert outcome(folder) == undisturbed["outcome"], number


@pytest.mark.fault(36)
def test_killed_before_some_changes_of_the_file_system(undisturbed, tmp_path):
    """Fault 36: before, while and after the merge, between write and rename, in evaluation."""
    for number in range(1, undisturbed["changes"] + 1, EVERY):
        killed_at_change(undisturbed, tmp_path / str(number), number)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.fault(36)
def test_killed_before_every_change_of_the_file_system(undisturbed, tmp_path):
    """Fault 36: every write, rename, removal and flush of a run."""
    for number in range(1, undisturbed["changes"] + 1):
        killed_at_change(undisturbed, tmp_path / str(number), number)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.fault(36, 41)
def test_killed_again_and_again_a_little_later(undisturbed, tmp_path):
    """Fault 41: a run that gets no further than some changes of the file system at a time ends, too."""
    for step in (60, 90):
        flat, times = undisturbed["make"](tmp_path / str(step)), 0
        while not Fork(flat, die_at(step, tmp_path / str(step))).wait():
            times += 1
            assert times < undisturbed["changes"]
        assert times > 1
        assert outcome(tmp_path / str(step)) == undisturbed["outcome"]
