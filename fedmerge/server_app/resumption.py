"""Whether the run that a folder holds can be gone on with here: the same base, silos and versions."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmerge.adapters import Adapter
from fedmerge.config import Config
from fedmerge.errors import CheckpointError
from fedmerge.server import storage
from fedmerge.server.books import Keeping
from fedmerge.server.folder import BROADCAST
from fedmerge.server.saved import Saved, find_saved
from fedmerge.server_app import outcome
from fedmerge.server_app.baselines import ALONE
from fedmerge.server_app.muster import Muster
from fedmerge.wire.files import TENSOR_FILE
from fedmerge.wire.protocol import Card

logger = logging.getLogger(__name__)

DECISIVE = ("fedmerge", "torch", "transformers", "peft", "numpy")
"""Packages whose other version may give other bits; of others it is only said."""

_MACHINE = ("machine", "cuda", "gpu", "threads")


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that has come to its end; None of one that has not."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        logger.warning(
            "%s can't be read (%s): the final evaluation is run again", folder / "result.json", err
        )
        return None
    if not isinstance(result, dict) or not _seals(result):
        logger.warning("%s: the adapter is not what was written: the final evaluation is run again", folder)
        return None
    logger.info("%s holds this run, finished: its result is given again", folder)
    return result


def seal(adapter: str) -> dict[str, str]:
    """What result.json tells of the adapter's file, by which it is known again."""
    return {"adapter_sha256": storage.hash_of(Path(adapter) / TENSOR_FILE)}


def saved_run(config: Config, folder: Path) -> Saved | None:
    """Where the run in a folder stands; None where nothing was begun.

    Raises:
        CheckpointError: nothing of what is there can be used.
    """
    wanted = config.run.rounds if _replies_needed(config) else 0
    return find_saved(folder, wanted, config.run.keep_rounds)


def keeping(config: Config, *, shared: bool) -> Keeping:
    """Which replies the run writes down; in a deployment none stays when its round is closed."""
    resumable = config.run.resume == "auto"
    last = config.run.rounds if resumable and shared and _replies_needed(config) else 0
    return Keeping(config.run.record, resumable, last, config.run.keep_rounds)


def names(saved: Saved | None) -> tuple[str, ...]:
    """The silos of an interrupted run."""
    return () if saved is None else tuple(card.name for card in _cards(saved))


def to_be_found_again(silos: Muster) -> dict[str, Any]:
    """What of the silos decides the result, for round 0's state."""
    cards = [dataclasses.asdict(card) for card in silos.roster.cards]
    return {"silos": cards, "shared": silos.roster.shared, "labels": list(silos.labels)}


def same_run(saved: Saved, config: Config, silos: Muster) -> Muster:
    """The silos as the run knew them, at the nodes where they are now.

    In a deployment a silo that does not answer yet stays one of the run's, and another one does not join.

    Raises:
        CheckpointError: another base, other versions, another machine, or in a simulation other silos: to go
            on would give another adapter than the run that was interrupted.
    """
    began, now = saved.begun["environment"], outcome.environment(config, silos)
    _check_environment(began, now, shared=silos.roster.shared)
    _check_silos(saved, silos)
    roster = dataclasses.replace(silos.roster, cards=_cards(saved))
    labels, membership = tuple(saved.begun["labels"]), silos.membership
    if membership.labels is not None:  # those of all, not of whoever has answered by now
        membership = dataclasses.replace(membership, labels=labels)
    return dataclasses.replace(silos, roster=roster, labels=labels, membership=membership)


def same_start(saved: Saved, initial: Adapter) -> None:
    """Refuse a run whose initial adapter would be another one now.

    Raises:
        CheckpointError: it would.
    """
    digest = storage.sha256_of(storage.tensors_file(initial.tensors))
    if saved.links[0].state["sha256"].get(BROADCAST) != digest:
        raise CheckpointError(
            f"{saved.links[0].folder}: the run began with another adapter than this base and configuration "
            f"give now; {_REMEDY}"
        )


_REMEDY = 'restore what it began with, or begin anew by run.resume = "never" or in another run.output'


def _seals(result: Mapping[str, Any]) -> bool:
    """Whether a result's adapter is the one that was written."""
    try:
        return seal(str(result["adapter"])) == {"adapter_sha256": result["adapter_sha256"]}
    except (KeyError, OSError):
        return False


def _replies_needed(config: Config) -> bool:
    """Whether the last round's replies are used once it is closed: by shadows, or as what silos train alone.

    In a deployment neither is.
    """
    return bool(config.strategy.shadows) or (ALONE in config.run.baselines and config.run.rounds == 1)


def _cards(saved: Saved) -> tuple[Card, ...]:
    return tuple(Card.from_json(card) for card in saved.begun["silos"])


def _check_environment(then: Mapping[str, Any], now: Mapping[str, Any], *, shared: bool) -> None:
    """Refuse another base, and what may give other bits; say what else is different."""
    if then["fingerprint"] != now["fingerprint"]:
        raise CheckpointError(
            f"the run began on the base with the fingerprint {then['fingerprint'][:16]}, and base.model is "
            f"{now['fingerprint'][:16]} now; {_REMEDY}"
        )
    was, is_now = (environment.get("versions", {}) for environment in (then, now))
    trained, trains = ({"silos on": _devices(environment)} for environment in (then, now))
    decisive = _different(then, now, _MACHINE) + _different(was, is_now, DECISIVE)
    decisive += _different(
        trained, trains, ["silos on"] * shared
    )  # in a deployment they are their own masters
    if decisive:
        raise CheckpointError(f"the run began with {', '.join(decisive)}: bits may depend on it; {_REMEDY}")
    others = sorted({*was, *is_now} - {*DECISIVE})
    for said in _different(then, now, ("python", "system")) + _different(was, is_now, others):
        logger.warning("the run began with %s", said)


def _check_silos(saved: Saved, silos: Muster) -> None:
    """Refuse a simulation of other silos; of a deployment say what is different."""
    began, roster = {card.name: card for card in _cards(saved)}, silos.roster
    # Who is named and has not answered stands in the roster, too, without a home and without rows.
    found = {card.name: card for card in roster.cards if roster.shared or card.name in roster.homes}
    different = sorted(name for name in {*began, *found} if began.get(name) != found.get(name))
    if roster.shared != saved.begun["shared"] or (roster.shared and different):
        what = (
            f"silo {different[0]!r} is another one"
            if different
            else "its silos were no simulation's, or are none"
        )
        raise CheckpointError(
            f"the run began with other silos or rows than there are now ({what}); {_REMEDY}"
        )
    for name in different:
        if name not in began:
            logger.warning("silo %r was not there when the run began, and does not take part", name)
        elif name not in found:
            logger.warning("silo %r takes part in the run, and has not answered yet", name)
        elif began[name].examples:
            logger.warning("silo %r has other rows than when the run began", name)


def _devices(environment: Mapping[str, Any]) -> str:
    """What the nodes compute on."""
    return ", ".join(sorted({str(node["device"]) for node in environment["nodes"].values()}))


def _different(then: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """What two records tell differently, in words."""
    return [f"{key} {then.get(key)} (now {now.get(key)})" for key in keys if then.get(key) != now.get(key)]
