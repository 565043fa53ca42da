"""Before round 1: which silos are there, and do they agree on base, labels and device?

In a simulation whatever contradicts itself stops the run. In a deployment a silo that does not fit is
refused by name, and the run goes on while its quorum holds: of the silos that `data.silos` names, or else of
all that answered. A named silo that is not there, or does not fit yet, may join later
(`fedmerge.server.returning`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from flwr.serverapp import Grid

from fedmerge.client_app import installed
from fedmerge.config import Config
from fedmerge.errors import ConfigError, RoundFailed
from fedmerge.rules.statistics import STATISTICS
from fedmerge.server.asking import quorum_of
from fedmerge.server.membership import Membership, judge
from fedmerge.server.plan import Plan
from fedmerge.server.returning import QUERY_SECONDS
from fedmerge.server.roster import Roster, ask, check_devices, wait_for_nodes
from fedmerge.server.sampling import sample
from fedmerge.server.settings import StrategySettings
from fedmerge.silo.base_files import check_fingerprint
from fedmerge.silo.data import agreed_labels
from fedmerge.wire.protocol import Card, QueryReply
from fedmerge.wire.schema import shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Muster:
    """Who takes part, and what they agreed on.

    Args:
        roster: the silos.
        fingerprint: of the base that all have.
        labels: the labels of all silos; empty where the task has none.
        nodes: what each node computes on, and its versions, by node id; for the records.
        membership: what a silo must bring along that comes later.
    """

    roster: Roster
    fingerprint: str
    labels: tuple[str, ...]
    nodes: dict[str, dict[str, object]]
    membership: Membership = field(default_factory=Membership)


def muster(grid: Grid, config: Config, known: Collection[str] = ()) -> Muster:
    """Wait for nodes, ask who they are, and check that they belong together.

    Args:
        grid: reaches the nodes.
        config: of the run.
        known: silos that are waited for besides those of `data.silos`: they took part before.

    Raises:
        RoundFailed: no node came in time, none could answer, or too few silos are fit for the quorum; with
            what is wrong with the others.
        ConfigError: in a simulation, another base or other labels than agreed, or silos that contradict each
            other.
    """
    answers = _answers(grid, config, known)
    fingerprint = config.silo.base.fingerprint or check_fingerprint(config.silo.base)
    about = {str(node): _about(answer) for node, answer in answers.items()}
    if all(answer.shared for answer in answers.values()):
        return _simulation(answers, config, fingerprint, about)
    named = _named(config) | frozenset(known)
    return _deployment(answers, config, named, fingerprint, about)


def _simulation(
    answers: Mapping[int, QueryReply], config: Config, fingerprint: str, about: dict[str, dict[str, object]]
) -> Muster:
    """All nodes are ours: whatever does not fit is a mistake to be mended."""
    roster = Roster.of(answers)
    if roster.fingerprint != fingerprint:
        raise ConfigError(
            f"the silos' base has the fingerprint {roster.fingerprint[:16]}, the server expects "
            f"{fingerprint[:16]}: base.model must be the same model everywhere"
        )
    devices = {f"node {node}": answer.device for node, answer in answers.items()}
    check_devices(devices, expects_gpu=expects_gpu(config))
    _check_statistics(answers, config, roster)
    labels = tuple(agreed_labels(config.silo.data, _told(roster.cards)))
    return Muster(roster, fingerprint, labels, about)


def _deployment(
    answers: Mapping[int, QueryReply],
    config: Config,
    named: frozenset[str],
    fingerprint: str,
    about: dict[str, dict[str, object]],
) -> Muster:
    """Each silo is judged alone; those that are named and not fit stay in the roster, without a home."""
    data, settings = config.silo.data, rounds_of(config, shared=False)
    release = installed(["fedmerge"])["fedmerge"]
    membership = Membership(
        named, fingerprint, _given_labels(config), Plan.of(settings).needs, release,
        must_tell=bool(data.label) and not data.labels,
    )  # fmt: skip
    found = judge(answers, membership)
    expected = sorted(named or found.cards.keys() | found.misfits.keys())
    _check_quorum(expected, found.cards, found.misfits, config)
    labels = tuple(agreed_labels(data, _told(found.cards.values())))
    cards = tuple(found.cards.get(name, Card(name, 0)) for name in expected)
    misfits = {name: why for name, why in found.misfits.items() if name in expected}
    roster = Roster(cards, found.homes, False, fingerprint, misfits)
    return Muster(
        roster, fingerprint, labels, about, replace(membership, labels=labels if data.label else None)
    )


def _given_labels(config: Config) -> tuple[str, ...] | None:
    """The labels that the run-config lists; None where silos may bring any."""
    data = config.silo.data
    return tuple(agreed_labels(data, ())) if data.label and data.labels else None


def _check_quorum(
    expected: Collection[str], fit: Collection[str], misfits: Mapping[str, str], config: Config
) -> None:
    """Refuse to begin with fewer silos than the quorum of a round wants.

    Raises:
        RoundFailed: with what is wrong with each silo that is not fit.
    """
    strategy = config.strategy
    asked = len(sample(expected, strategy.fraction, seed=config.run.seed, round=1)) if expected else 0
    need = quorum_of(asked, strategy.quorum)
    absent = "it did not answer"
    why = [f"{shown(name)}: {misfits.get(name, absent)}" for name in sorted(expected) if name not in fit]
    if len(fit) < need:
        raise RoundFailed(
            f"{len(fit)} of {len(expected)} silos can take part, the quorum of {strategy.quorum:g} wants "
            f"{need}; {'; '.join(why) or 'no node has a silo: check its node-config'}. Nothing was trained"
        )
    if why:
        logger.warning("the run begins without %s", "; ".join(why))


def _told(cards: Collection[Card]) -> list[dict[str, object]]:
    return [{"name": card.name, "labels": card.labels} for card in cards]


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
    wanted = _named(config) | frozenset(known)
    patience = config.strategy.wait_seconds
    end = time.monotonic() + patience
    nodes = wait_for_nodes(grid, bool, wait_seconds=patience)
    if not nodes:
        raise RoundFailed(f"no node connected within {patience:g} seconds (strategy.wait-seconds)")
    answers = ask(
        grid, nodes, timeout_seconds=QUERY_SECONDS, enough=lambda so_far: _all_named(so_far, wanted)
    )
    asked = set(nodes)
    while not _complete(answers, wanted) and (patience := end - time.monotonic()) > 0:
        nodes = wait_for_nodes(grid, lambda nodes: bool(set(nodes) - asked), wait_seconds=patience)  # noqa: B023
        if new := set(nodes) - asked:
            asked |= new
            answers |= _late(grid, new)
    return answers


def _named(config: Config) -> frozenset[str]:
    """The silos that the run expects; none where it takes whoever is there."""
    return frozenset(name.strip() for name in config.silo.data.silos.split(",") if name.strip())


def _late(grid: Grid, nodes: set[int]) -> dict[int, QueryReply]:
    """What nodes say that came after the first; those that can't answer are left out."""
    try:
        return ask(grid, nodes, timeout_seconds=QUERY_SECONDS)
    except RoundFailed as err:
        logger.warning("%s", err)
        return {}


def _all_named(answers: Mapping[int, QueryReply], wanted: Collection[str]) -> bool:
    """Whether all silos that are named have answered: a node that does not answer is nobody's then."""
    return bool(wanted) and not any(each.shared for each in answers.values()) and _complete(answers, wanted)


def _complete(answers: Mapping[int, QueryReply], wanted: Collection[str]) -> bool:
    names = {card.name for answer in answers.values() for card in answer.silos}
    return all(answer.shared for answer in answers.values()) or names.issuperset(wanted)


def expects_gpu(config: Config) -> bool:
    """Whether a simulation's silos should train on a GPU: the server sees one, and the choice is open."""
    return config.silo.train.device == "auto" and torch.cuda.is_available()


def _about(answer: QueryReply) -> dict[str, object]:
    return {"device": answer.device, "gpu-seen": answer.gpu_seen, "versions": dict(answer.versions)}
