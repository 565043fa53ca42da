"""Where an interrupted run stands: read from its folder, verified, and not one bit other than it was.

A closed round has a state.json. A round whose replies were all gathered, but which was not closed, has a
replies.json: it is merged again, and no silo is asked. Whatever else there is of it is run again. Nothing
here changes a file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedmerge.adapters import Adapter
from fedmerge.adapters.optimizers import OptimizerState
from fedmerge.errors import CheckpointError
from fedmerge.server import exact, logbook, storage
from fedmerge.server.chain import Damage, Link, read_chain, read_object
from fedmerge.server.folder import BROADCAST, OPTIMIZER, REPLIES
from fedmerge.server.forms import adapter_of, best_of, good_of, reply_of, report_of
from fedmerge.server.guard import Admitted
from fedmerge.server.merging import Closed
from fedmerge.server.report import RoundReport
from fedmerge.server.standing import Good, Scored

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gathered:
    """The admitted replies of a round that was not closed, and its report so far."""

    report: RoundReport
    replies: list[Admitted]


@dataclass(frozen=True)
class Saved:
    """All that the next round depends on.

    Args:
        links: the closed rounds, from 0.
        broadcast: what the last of them made.
        optimizer: state of the server optimizer.
        good: the last broadcast that the gate let pass.
        best: the one with the best scores.
        reports: of the closed rounds, from 1.
        closed: what the last round merged, where that is still wanted.
        gathered: what the next round merges, where it is all there.
        damage: what was found to be damaged, the first round first.
    """

    links: tuple[Link, ...]
    broadcast: Adapter
    optimizer: OptimizerState | None
    good: Good | None
    best: Scored | None
    reports: tuple[RoundReport, ...]
    closed: Closed | None = None
    gathered: Gathered | None = None
    damage: tuple[Damage, ...] = ()

    @property
    def round(self) -> int:
        """The last closed round."""
        return self.links[-1].round

    @property
    def begun(self) -> Mapping[str, Any]:
        """What the run began with."""
        begun: Mapping[str, Any] = self.links[0].state["begun"]
        return begun


def find_saved(path: Path, wanted: int = 0, keep_rounds: int = 0) -> Saved | None:
    """Read where the run in a folder stands.

    Args:
        path: of the folder.
        wanted: the round whose replies are wanted still when it is closed, in a simulation; 0: none.
        keep_rounds: of how many last rounds the tensors were kept; 0: of all.

    Returns:
        The last round that is whole, with all that it leans on; None where no round was begun.

    Raises:
        CheckpointError: there are rounds, and none of them can be used, or only such as are long past: where
            tensors were not kept, a run does not begin anew for one damaged file.
    """
    known = logbook.reported(path)
    links, found = read_chain(path / "rounds", max(known, default=-1))
    damage = [] if found is None else [found]
    last = max([*known, *(link.round for link in links)], default=-1)
    while links:
        try:
            return _load(tuple(links), known, wanted, damage)
        except Damage as err:
            if keep_rounds and err.round <= last - keep_rounds:  # not damaged: let go
                raise CheckpointError(
                    f"{path}: {damage[-1] if damage else err}; the rounds before it were not kept "
                    f"(run.keep-rounds = {keep_rounds}). Nothing was changed: {_REMEDY}"
                ) from None
            damage.insert(0, err)
            links = links[: err.round]
    if damage:
        raise CheckpointError(
            f"{path}: no round can be used to go on from: {damage[0]}. Nothing was changed: {_REMEDY}"
        )
    return None


_REMEDY = 'put the file back, or begin anew, elsewhere by run.output or here by run.resume = "never"'


def _load(
    links: tuple[Link, ...], known: Mapping[int, Mapping[str, Any]], wanted: int, damage: Sequence[Damage]
) -> Saved:
    """What the last of the rounds left.

    Raises:
        Damage: a file that is needed is not what was written; the round that it is of is named.
        CheckpointError: the rounds were written by something that leaves no state to go on from.
    """
    _check_kind(links)
    broadcast, optimizer = _broadcast(links[-1]), _optimizer(links[-1])
    good, best = _standing(links, broadcast, optimizer)
    forms = [exact.timed(link.state["report"], known.get(link.round)) for link in links[1:]]
    reports = tuple(report_of(form) for form in forms)
    saved = Saved(links, broadcast, optimizer, good, best, reports, damage=tuple(damage))
    if saved.round == wanted > 0 and saved.begun["shared"] and not reports[-1].rejected:
        if not (links[-1].folder / REPLIES).exists():
            logger.warning("round %d is run again: its replies are needed, and were not kept", wanted)
            return _load(links[:-1], known, 0, damage)
        return replace(saved, closed=_closed(links, reports[-1]))
    return _with_next(saved)


def _check_kind(links: Sequence[Link]) -> None:
    """Refuse rounds of an older fedmerge, or of a command that merges a single round."""
    for link in links:
        told = link.state if link.round else link.state.get("begun", {})
        if ("report" if link.round else "silos") not in told:
            raise CheckpointError(
                f"{link.folder} holds no state to go on from: another command wrote it, or an older fedmerge"
            )


def _broadcast(link: Link) -> Adapter:
    return adapter_of(link.state, link.tensors(BROADCAST))


def _optimizer(link: Link) -> OptimizerState | None:
    if not link.state["remembers"]:
        return None
    return link.tensors(OPTIMIZER) if OPTIMIZER in link.state["sha256"] else {}


def _standing(
    links: Sequence[Link], broadcast: Adapter, optimizer: OptimizerState | None
) -> tuple[Good | None, Scored | None]:
    """The last good broadcast and the best one; where the run went back to the good one they are the same."""
    form = links[-1].state.get("standing") or {}
    judged, leading = form.get("good"), form.get("best")
    good = best = None
    if judged:
        made = links[judged["round"]]
        adapter = broadcast if judged["returned"] else _broadcast(made)
        good = good_of(judged, adapter, optimizer if judged["returned"] else _optimizer(made))
    if leading:
        best = best_of(leading, _broadcast(links[leading["round"]]))
    return good, best


def _closed(links: Sequence[Link], report: RoundReport) -> Closed:
    """What the last round merged.

    Raises:
        Damage: its replies are not what was written.
    """
    received = _broadcast(links[-2])
    try:
        replies = _gathered(links[-1].folder, links[-2], received).replies
    except CheckpointError as err:
        raise Damage(report.round, str(err)) from None
    return Closed(report.round, received, replies, [report.admitted[r.silo]["weight"] for r in replies])


def _with_next(saved: Saved) -> Saved:
    """With what the next round merges, where its replies were all gathered."""
    last = saved.links[-1]
    folder = last.folder.with_name(f"{last.round + 1:04d}")
    if not (folder / REPLIES).exists() or any(found.round == last.round + 1 for found in saved.damage):
        return saved
    try:
        return replace(saved, gathered=_gathered(folder, last, saved.broadcast))
    except CheckpointError as err:
        return replace(saved, damage=(Damage(last.round + 1, str(err)), *saved.damage))


def _gathered(folder: Path, before: Link, received: Adapter) -> Gathered:
    """The replies that were written down in a round's folder.

    Raises:
        CheckpointError: they are not what was written.
    """
    told, _ = read_object(folder / REPLIES)
    if (told.get("round"), told.get("previous")) != (before.round + 1, before.digest):
        raise CheckpointError(f"{folder / REPLIES} does not follow on the state of round {before.round}")
    deltas: dict[str, dict[str, Tensor]] = {}
    statistics: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, digest in told["sha256"].items():
        tensors, silo = storage.read_tensors(folder / name, digest)
        if name.startswith("deltas/"):
            deltas[silo] = tensors
        else:
            statistics.setdefault(silo, {})[name.split(".")[-2]] = tensors
    replies = [
        reply_of(form, deltas[form["silo"]], statistics.get(form["silo"], {}), received)
        for form in told["replies"]
    ]
    return Gathered(report_of(told["report"]), replies)
