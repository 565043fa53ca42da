"""After the last round: baselines are trained while the candidates that are there already are scored."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import RecordDict

from fedmerge.adapters import Adapter
from fedmerge.errors import RoundFailed, WireError
from fedmerge.server_app.baselines import Baselines
from fedmerge.server_app.errands import Errand, Errands
from fedmerge.server_app.scoring import SPLITS, Ballot, Scores, ballots
from fedmerge.wire.protocol import Instruction

logger = logging.getLogger(__name__)


@dataclass
class Finale:
    """Has baselines trained and candidates scored, side by side where there is more than one worker.

    Args:
        errands: reach the silos.
        baselines: what is trained for comparison.
        instruction: with fingerprint, seed and labels of the run; trains nothing.
        timeout_seconds: of one scoring.
        splits: that candidates are scored on.
    """

    errands: Errands
    baselines: Baselines
    instruction: Instruction
    timeout_seconds: float
    splits: tuple[str, ...] = SPLITS
    metrics: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def run(self, candidates: Mapping[str, Adapter]) -> tuple[dict[str, Adapter], Scores]:
        """Score the candidates, and the baselines as soon as all of them are trained.

        Returns:
            The baselines that were trained here, by name, and the scores of all.

        Raises:
            RoundFailed: no silo answered with scores.
        """
        trained = self._pass(candidates, self.baselines.errands())
        if trained:
            self._pass(trained, {})
        if not self.metrics:
            raise RoundFailed(
                "no silo scored the final candidates; the log says why. All adapters are intact"
            )
        if silent := sorted(set(self.errands.roster.names) - set(self.metrics)):
            logger.warning("the final scores are without %s, which sent none", ", ".join(silent))
        return trained, Scores(dict(sorted(self.metrics.items())))

    def _pass(self, candidates: Mapping[str, Adapter], training: Mapping[str, Errand]) -> dict[str, Adapter]:
        asked: dict[str, tuple[str, Ballot]] = {}
        scoring: dict[str, Errand] = {}
        for number, ballot in enumerate(self._ballots(candidates)):
            for silo, errand in ballot.errands(self.errands.roster.names, self.instruction).items():
                key = f"scores {number} of {silo}"
                asked[key], scoring[key] = (silo, ballot), errand
        trained: dict[str, Adapter] = {}
        timeout = self.timeout_seconds + self.baselines.seconds
        for key, content in self.errands.run({**training, **scoring}, timeout_seconds=timeout):
            if key in training:
                trained |= self.baselines.read(key, content)
            else:
                self._note(*asked[key], content)
        return dict(sorted(trained.items()))

    def _note(self, silo: str, ballot: Ballot, content: RecordDict) -> None:
        """Take a silo's figures; a silo that sends none is left out, with a warning."""
        try:
            self.metrics[silo] |= ballot.read(content)
        except WireError as err:
            logger.warning("silo %r: its scores are left out: %s", silo, err)

    def _ballots(self, candidates: Mapping[str, Adapter]) -> list[Ballot]:
        shown = "test" in self.splits and any(card.test for card in self.errands.roster.cards)
        private = bool(self.baselines.config.silo.lora.private)
        return ballots(candidates, self.splits, has_test_rows=shown, by_round=private)
