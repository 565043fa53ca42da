"""Going on with an interrupted run: its folder is taken up, then the rounds that are left are run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from fedmerge.server import logbook, storage
from fedmerge.server.chain import STATE, Damage, numbers
from fedmerge.server.folder import RunFolder
from fedmerge.server.saved import Saved
from fedmerge.server.strategy import MergeStrategy

logger = logging.getLogger(__name__)


def take_up(folder: RunFolder, saved: Saved) -> None:
    """Go on in the folder: what is damaged is set aside, what is unfinished is removed, the logs fit again.

    Raises:
        CheckpointError: the disk refuses.
    """
    with storage.writing(folder.path):
        reports = [report.to_dict() for report in saved.reports]
        logbook.take_back(folder.path, reports, saved.round + bool(saved.gathered))
        for number in numbers(folder.path / "rounds"):
            if number > saved.round:
                _clear(folder.round_folder(number), number, saved)
    for link in saved.links:
        if saved.closed is None or link is not saved.links[-1]:
            recorded = any(name.startswith("deltas/") for name in link.state["sha256"])
            folder.forget_replies(link.round, recorded=recorded)
    folder.go_on(saved.links[-1].digest, saved.begun["environment"])


def go_on(strategy: MergeStrategy, grid: Grid, saved: Saved, rounds: int, timeout: float) -> None:
    """Run the rounds that are left, as Flower's own loop does, which can only begin with the first.

    Args:
        strategy: as it was made for the run.
        grid: reaches the silos.
        saved: where the run stands.
        rounds: of the whole run.
        timeout: seconds that a round waits for replies.
    """
    strategy.restore(saved)
    for number in range(saved.round + 1, rounds + 1):
        if saved.gathered is not None and number == saved.round + 1:
            logger.info("round %d: its replies are there, and are merged again", number)
            strategy.merge_again(saved.gathered, grid)
        else:
            messages = strategy.configure_train(number, strategy.arrays, ConfigRecord(), grid)
            strategy.aggregate_train(number, grid.send_and_receive(messages, timeout=timeout))
        messages = strategy.configure_evaluate(number, strategy.arrays, ConfigRecord(), grid)
        strategy.aggregate_evaluate(number, grid.send_and_receive(messages, timeout=timeout))


def tidy_up(folder: RunFolder, result: Mapping[str, Any], rounds: int, *, recorded: bool) -> None:
    """Remove what a finished run needs no longer: the last round's replies, unless they are recorded.

    Args:
        folder: of the run.
        result: of the run, for the events, where they lack their end.
        rounds: of the run.
        recorded: whether its replies are.
    """
    with storage.writing(folder.path):
        logbook.tell_end(folder.path, result)
    folder.sweep()
    folder.forget_replies(rounds, recorded=recorded)


def _clear(place: Path, number: int, saved: Saved) -> None:
    """Make room for a round that is not closed, unless what it merges is there."""
    closed, next_one = (place / STATE).exists(), number == saved.round + 1
    damage = next((found for found in saved.damage if found.round <= number), None)
    if damage is not None and (closed or damage.round == number):
        _set_aside(place, damage)
    elif not (next_one and (closed or saved.gathered)):
        storage.remove(place)


def _set_aside(place: Path, damage: Damage) -> None:
    """Rename a round that is damaged, or follows on one that is, and say so."""
    name, count = f"{place.name}.damaged", 1
    while place.with_name(name).exists():
        count += 1
        name = f"{place.name}.damaged-{count}"
    place.rename(place.with_name(name))
    logger.warning("%s is set aside as %s, and the round is run again: %s", place, name, damage)
