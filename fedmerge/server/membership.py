"""Who may take part in a deployment: each silo is judged alone, and refused by name where it does not fit.

One silo that was set up wrongly costs the federation that silo, not the run: the run goes on while its quorum
holds. In a simulation all nodes are ours, and what contradicts itself there is an error (`Roster.of`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedmerge.rules.statistics import STATISTICS
from fedmerge.wire.protocol import Card, QueryReply
from fedmerge.wire.schema import shown

logger = logging.getLogger(__name__)

TWICE = "more than one node says that it is this silo, and either may be the wrong one"
UNNAMED = "serves every silo, as in a simulation: its node-config names none"


@dataclass(frozen=True)
class Membership:
    """What a silo must bring along.

    Args:
        names: the silos that the run expects; empty takes any that is there at the start.
        fingerprint: of the base; "" takes any.
        labels: that rows may have; None takes any.
        needs: statistics that the rule wants.
        release: fedmerge's version; one of another "major.minor" is refused. "" takes any.
        must_tell: whether a silo has to tell its labels, because they are agreed on from what silos tell.
    """

    names: frozenset[str] = frozenset()
    fingerprint: str = ""
    labels: tuple[str, ...] | None = None
    needs: frozenset[str] = frozenset()
    release: str = ""
    must_tell: bool = False

    def misfit(self, answer: QueryReply, card: Card) -> str:
        """Why a silo can't take part; "" for one that can."""
        if self.names and card.name not in self.names:
            return "the run does not name it (data.silos, or the server's roster)"
        if self.fingerprint and answer.fingerprint != self.fingerprint:
            found = shown(answer.fingerprint[:16])
            return f"its base has the fingerprint {found}, expected {self.fingerprint[:16]!r}; see base.model"
        theirs, ours = _series(answer.versions.get("fedmerge", "")), _series(self.release)
        if theirs and ours and theirs != ours:
            return f"it runs fedmerge {shown(answer.versions['fedmerge'][:20])}, the server {self.release}"
        if lacking := sorted(self.needs - set(answer.statistics)):
            what = f"{lacking[0]!r} ({STATISTICS[lacking[0]]})"
            return f"it can't measure {what}, which the rule or a shadow needs; update fedmerge there"
        return self._label_misfit(card)

    def _label_misfit(self, card: Card) -> str:
        if self.must_tell and card.labels is None:
            return "it doesn't tell its labels, and data.labels is empty"
        unknown = sorted(set(card.labels or ()) - set(self.labels)) if self.labels is not None else []
        return f"it has the label {shown(unknown[0])}, which is none of the agreed ones" if unknown else ""


@dataclass(frozen=True)
class Sorted:
    """Nodes' answers, judged.

    Args:
        cards: of the silos that may take part, by name.
        homes: their nodes.
        misfits: why, by name of a silo that may not.
    """

    cards: dict[str, Card] = field(default_factory=dict)
    homes: dict[str, int] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)


def judge(answers: Mapping[int, QueryReply], membership: Membership) -> Sorted:
    """Sort the silos into those that may take part and those that may not; each of the latter is logged.

    A name that two nodes claim is given to neither.
    """
    found = [
        (card, node, answer)
        for node, answer in sorted(answers.items())
        for card in (() if answer.shared else answer.silos)
    ]
    for node, answer in sorted(answers.items()):
        if answer.shared:
            logger.warning("node %d is left out: it %s", node, UNNAMED)
    count = Counter(card.name for card, _, _ in found)
    result = Sorted()
    for card, node, answer in found:
        why = TWICE if count[card.name] > 1 else membership.misfit(answer, card)
        if not why:
            result.cards[card.name], result.homes[card.name] = card, node
        elif card.name not in result.misfits:
            result.misfits[card.name] = why
            logger.warning("silo %s is refused: %s", shown(card.name), why)
    return result


def _series(version: str) -> tuple[str, ...]:
    """Major and minor version; nothing of a clone's, which is "unknown".

    Example:
        >>> _series("0.2.1"), _series("unknown")
        (('0', '2'), ())
    """
    parts = tuple(version.split(".")[:2])
    return parts if len(parts) == 2 and all(part.isdigit() for part in parts) else ()
