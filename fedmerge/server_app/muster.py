"""Before round 1: which silos are there, and do they agree on base, labels and device?"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from flwr.serverapp import Grid

from fedmerge.config import Config
from fedmerge.errors import ConfigError, RoundFailed
from fedmerge.rules.statistics import STATISTICS
from fedmerge.server.plan import Plan
from fedmerge.server.roster import Roster, ask, check_devices, wait_for_nodes
from fedmerge.server.settings import StrategySettings
from fedmerge.silo.base import check_fingerprint
from fedmerge.silo.data import agreed_labels
from fedmerge.wire.protocol import QueryReply
from fedmerge.wire.schema import shown

logger = logging.getLogger(__name__)

# A node's first answer includes importing torch and loading its base and rows.
_QUERY_SECONDS = 600.0


@dataclass(frozen=True)
class Muster:
    """Who takes part, and what they agreed on.

    Args:
        roster: the silos.
        fingerprint: of the base that all have.
        labels: the labels of all silos; empty where the task has none.
        nodes: what each node computes on, and its versions, by node id; for the records.
    """

    roster: Roster
    fingerprint: str
    labels: tuple[str, ...]
    nodes: dict[str, dict[str, object]]


def muster(grid: Grid, config: Config, known: Collection[str] = ()) -> Muster:
    """Wait for nodes, ask who they are, and check that they belong together.

    Args:
        grid: reaches the nodes.
        config: of the run.
        known: silos that are waited for besides those of `data.silos`: they took part before.

    Raises:
        RoundFailed: no node came in time, or none could answer; with what the first of them said.
        ConfigError: another base or other labels than agreed, or silos that contradict each other.
    """
    answers = _answers(grid, config, known)
    fingerprint = config.silo.base.fingerprint or check_fingerprint(config.silo.base)
    roster = Roster.of(answers)
    if roster.fingerprint != fingerprint:
        raise ConfigError(
            f"the silos' base has the fingerprint {roster.fingerprint[:16]}, the server expects "
            f"{fingerprint[:16]}: base.model must be the same model everywhere"
        )
    if roster.shared:
        devices = {f"node {node}": answer.device for node, answer in answers.items()}
        check_devices(devices, expects_gpu=expects_gpu(config))
    _check_statistics(answers, config, roster)
    cards = [{"name": card.name, "labels": card.labels} for card in roster.cards]
    about = {str(node): _about(answer) for node, answer in answers.items()}
    return Muster(roster, fingerprint, tuple(agreed_labels(config.silo.data, cards)), about)


def rounds_of(config: Config, *, shared: bool) -> StrategySettings:
    """The strategy that a run's rounds follow.

    In a deployment the final evaluation scores no shadows, which would cost each silo its time: they are
    merged there only where they are scored in every round.
    """
    strategy = config.strategy
    dropped = not shared and strategy.shadow_scoring == "final"
    return replace(strategy, shadows="") if dropped else strategy


def _check_statistics(answers: Mapping[int, QueryReply], config: Config, roster: Roster) -> None:
    """Find silos that can't measure what the rule needs before any of them trains.

    Raises:
        ConfigError: there are some; the message names them and the statistic.
    """
    settings = rounds_of(config, shared=roster.shared)
    for statistic in sorted(Plan.of(settings).needs):
        unable = [answer for answer in answers.values() if statistic not in answer.statistics]
        silos = sorted(card.name for answer in unable for card in answer.silos)
        if unable:
            raise ConfigError(
                f"{', '.join(shown(silo) for silo in silos[:5])} can't measure {statistic!r} "
                f"({STATISTICS[statistic]}), which strategy.rule or strategy.shadows needs: the fedmerge "
                "installed there is older; update it, or choose another rule"
            )


def _answers(grid: Grid, config: Config, known: Collection[str]) -> dict[int, QueryReply]:
    """What the nodes say; in a deployment, of all silos that `data.silos` names, if they come in time."""
    wanted = {name.strip() for name in config.silo.data.silos.split(",") if name.strip()}.union(known)
    patience = config.strategy.wait_seconds
    end = time.monotonic() + patience
    nodes = wait_for_nodes(grid, bool, wait_seconds=patience)
    if not nodes:
        raise RoundFailed(f"no node connected within {patience:g} seconds (strategy.wait-seconds)")
    answers = ask(grid, nodes, timeout_seconds=_QUERY_SECONDS)
    asked = set(nodes)
    while not _complete(answers, wanted) and (patience := end - time.monotonic()) > 0:
        nodes = wait_for_nodes(grid, lambda nodes: bool(set(nodes) - asked), wait_seconds=patience)  # noqa: B023
        if new := set(nodes) - asked:
            asked |= new
            answers |= _late(grid, new)
    return answers


def _late(grid: Grid, nodes: set[int]) -> dict[int, QueryReply]:
    """What nodes say that came after the first; those that can't answer are left out."""
    try:
        return ask(grid, nodes, timeout_seconds=_QUERY_SECONDS)
    except RoundFailed as err:
        logger.warning("%s", err)
        return {}


def _complete(answers: dict[int, QueryReply], wanted: Collection[str]) -> bool:
    names = {card.name for answer in answers.values() for card in answer.silos}
    return any(answer.shared for answer in answers.values()) or names.issuperset(wanted)


def expects_gpu(config: Config) -> bool:
    """Whether a simulation's silos should train on a GPU: the server sees one, and the choice is open."""
    return config.silo.train.device == "auto" and torch.cuda.is_available()


def _about(answer: QueryReply) -> dict[str, object]:
    return {"device": answer.device, "gpu-seen": answer.gpu_seen, "versions": dict(answer.versions)}
