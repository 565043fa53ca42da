"""Fault 39: the disk is full, or read-only, from any moment of a run on; fault 40: two runs on one folder."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmerge.errors import CheckpointError

from .crashing import Fork, changes_of, finish, flat_of, outcome, run, serve

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

EVERY = 47


@pytest.fixture(scope="module")
def undisturbed(tiny_base, tmp_path_factory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("undisturbed")
    changes = changes_of(flat_of(place / "run", tiny_base))
    return {"outcome": outcome(place / "run"), "changes": changes, "base": tiny_base}


def refuse_from(number: int, folder: Path, reason: int) -> Callable[[], None]:
    """What makes the disk refuse the `number`-th change below a folder, and all that follow.

    A full disk (ENOSPC) still removes files, a read-only one does not.
    """
    done = 0

    def check(counts: bool = True) -> None:
        nonlocal done
        done += counts
        if done >= number:
            raise OSError(reason, os.strerror(reason))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        removes = event in ("os.remove", "os.rmdir", "shutil.rmtree")
        if not (writes or removes or event in ("os.rename", "os.mkdir")):
            return
        place = os.fsdecode(arguments[0])
        if (
            f"{place}/".startswith(f"{folder}/")
            and not place.endswith(".lock")
            and not (removes and reason == errno.ENOSPC)
        ):
            check()

    real_write = os.write

    def write(descriptor: int, data: bytes) -> int:
        if done + 1 >= number:  # a full disk takes what fits
            real_write(descriptor, bytes(data)[: len(data) // 3])
        check()
        return real_write(descriptor, data)

    def fsync(descriptor: int) -> None:
        check()

    def prepare() -> None:
        os.write, os.fsync = write, fsync
        sys.addaudithook(hook)

    return prepare


def stops(flat: dict[str, Any], prepare: Callable[[], None]) -> str:
    """What a run says that the disk stops; it is a CheckpointError of one line."""
    with pytest.raises(AssertionError) as said:
        Fork(flat, prepare).wait()
    return str(said.value).strip().splitlines()[-1]


def refused_at(undisturbed: dict[str, Any], folder: Path, number: int, reason: int) -> None:
    flat = flat_of(folder, undisturbed["base"])
    sentence = stops(flat, refuse_from(number, folder, reason))
    assert sentence.startswith("fedmerge.errors.CheckpointError: "), (number, sentence)
    assert os.strerror(reason) in sentence and "what stood there is intact" in sentence
    finish(flat)
    assert outcome(folder) == undisturbed["outcome"], number


@pytest.mark.fault(39)
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_the_disk_refuses_from_some_change_on(undisturbed, tmp_path, reason):
    """Fault 39: a clear stop; once there is room again, the run goes on to the same bits."""
    for number in range(1, undisturbed["changes"] // 2, EVERY):
        refused_at(undisturbed, tmp_path / str(number), number, reason)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.fault(39)
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_the_disk_refuses_from_any_change_on(undisturbed, tmp_path, reason):
    """Fault 39: at every kind of write, in every place."""
    for number in range(1, undisturbed["changes"] // 2):
        refused_at(undisturbed, tmp_path / str(number), number, reason)


@pytest.mark.fault(40)
def test_two_runs_on_one_folder_the_second_refuses(undisturbed, tmp_path):
    """Fault 40: in another process, while the first is between two replies."""
    folder, ready = tmp_path / "run", tmp_path / "ready"

    def answer(message):
        if message.metadata.message_type == "train":
            ready.touch()
            time.sleep(60)
        return serve(message)

    flat = flat_of(folder, undisturbed["base"])
    first = Fork(flat, answer=answer)
    try:
        while not ready.exists():
            time.sleep(0.01)
        with pytest.raises(CheckpointError, match="run is in use by another run"):
            run(flat)
    finally:
        first.kill()
    assert not first.wait()
    finish(flat)
    assert outcome(folder) == undisturbed["outcome"]
