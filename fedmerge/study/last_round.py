"""The last round of a finished run, with all that it takes to merge it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from fedmerge.adapters import Adapter
from fedmerge.adapters.optimizers import OptimizerState, Unchanged, parse_optimizer
from fedmerge.errors import CheckpointError
from fedmerge.study.one_round import Material
from fedmerge.study.recorded import RecordedRound, RecordedRun, open_run
from fedmerge.wire.files import load_adapter


@dataclass(frozen=True)
class Last:
    """The last round of a finished run, from its files.

    Args:
        run: the run.
        round: its last round.
        counts: what each silo counted, raw.
        state: of the server optimizer before the round.
    """

    run: RecordedRun
    round: RecordedRound
    counts: Mapping[str, float]
    state: OptimizerState | None

    @property
    def material(self) -> Material:
        """What the round merged."""
        return Material(
            self.round.received, self.round.deltas, self.counts, self.state, self.round.statistics
        )

    @property
    def before(self) -> Adapter:
        """The run's adapter."""
        return load_adapter(str(self.run.path / "adapter"))


def last_round(path: Path) -> Last:
    """The last round of a finished run, with the state that its server optimizer had before it.

    Raises:
        CheckpointError: no such run, no recorded deltas, damaged files, or a state that was not kept.
    """
    run = open_run(path)
    last = run.round()
    reports = {report["round"]: report["admitted"] for report in run.result["rounds"]}
    admitted = reports.get(last.number, {})
    counts = {silo: float(admitted.get(silo, {}).get("examples", 1.0)) for silo in last.deltas}
    return Last(run, last, counts, _state(run, last.number))


def _state(run: RecordedRun, number: int) -> OptimizerState | None:
    """What the server optimizer remembered before a round.

    Raises:
        CheckpointError: it remembers something, and what it was before the round was not kept.
    """
    before, after = (
        run.path / "rounds" / f"{place:04d}" / "optimizer.safetensors" for place in (number - 1, number)
    )
    if before.is_file():
        return safetensors.torch.load_file(before)
    optimizer = parse_optimizer(run.config.strategy.server_optimizer)
    if number > 1 and after.is_file() and not isinstance(optimizer, Unchanged):
        raise CheckpointError(
            f"{before} is missing: {optimizer} can't take round {number} again without what it remembered of "
            "the rounds before"
        )
    return None
