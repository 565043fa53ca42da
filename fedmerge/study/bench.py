"""A test bench for adapters: base and silos of a simulation, loaded once, all cores at work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fedmerge.adapters import Adapter
from fedmerge.client_app import installed
from fedmerge.config import Config
from fedmerge.engine.executors import Executor
from fedmerge.engine.local import grid_over, serving
from fedmerge.errors import ConfigError, RoundFailed
from fedmerge.server.reading import arrays_of
from fedmerge.server.scores import HIGHER_IS_BETTER
from fedmerge.server_app.errands import Errand, Errands
from fedmerge.server_app.muster import Muster, muster
from fedmerge.server_app.scoring import Ballot, Scores
from fedmerge.silo.data import load_silos
from fedmerge.silo.lora import initial_adapter
from fedmerge.silo.private import PersonalPart
from fedmerge.silo.seeding import use_deterministic_algorithms
from fedmerge.silo.tasks import task_class
from fedmerge.study.memo import Memo
from fedmerge.study.remembering import Remembering
from fedmerge.wire.protocol import Instruction, instruction_content
from fedmerge.wire.records import from_record, to_record

_DECIDES_BITS = ("fedmerge", "torch", "transformers", "peft")
_LONGEST_SECONDS = 24 * 3600.0


class Bench:
    """Scores adapters on a simulation's silos, and trains silos from them.

    Made inside `with`, which starts the workers and ends them.

    Args:
        config: of the simulation; what it says of the strategy has no part in it.
        memo: a folder in which answers are kept, so that they are given again without being computed; None
            keeps none.

    Raises:
        ConfigError: a base or data set that can't be used.

    Example:
        >>> from fedmerge.config import read_config
        >>> with Bench(read_config({"data.silos": "xml", "data.max-rows": 4})) as bench:
        ...     bench.silos, bench.metric, bench.initial.lora.rank
        (('xml',), 'bits_per_byte', 8)
    """

    def __init__(self, config: Config, memo: Path | None = None) -> None:
        """Load nothing yet."""
        self.config = config
        self._memo = memo
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        with ExitStack() as stack:
            executor: Executor = stack.enter_context(serving(self.config))
            if self._memo is not None:
                self.memo = stack.enter_context(Memo(self._memo))
                executor = Remembering(executor, self.memo, scope_of(self.config))
            self.executor = executor
            self._grid = grid_over(executor)
            self._silos: Muster = muster(self._grid, self.config)
            self._errands = Errands(self._grid, self._silos.roster)
            torch.set_num_threads(self.config.silo.train.threads)
            use_deterministic_algorithms()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def silos(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return self._silos.roster.names

    @property
    def examples(self) -> dict[str, int]:
        """Training rows of each silo."""
        return {card.name: card.examples for card in self._silos.roster.cards}

    @property
    def muster(self) -> Muster:
        """What the silos agreed on."""
        return self._silos

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of all silos; empty where the task has none."""
        return self._silos.labels

    @property
    def fingerprint(self) -> str:
        """Of the base."""
        return self._silos.fingerprint

    @property
    def initial(self) -> Adapter:
        """The adapter that round 1 would receive: it changes nothing yet."""
        return initial_adapter(self.config.silo, self.labels or None)

    @property
    def metric(self) -> str:
        """The figure that adapters are compared by."""
        return task_class(self.config.silo.task.kind).metric

    @property
    def higher_is_better(self) -> bool:
        """The metric's direction."""
        return HIGHER_IS_BETTER.get(self.metric, True)

    @property
    def has_test_rows(self) -> bool:
        """Whether any silo has test rows."""
        return any(card.test for card in self._silos.roster.cards)

    def evaluate(
        self, candidates: Mapping[str, Adapter], splits: tuple[str, ...] = ("validation",)
    ) -> Scores:
        """Every candidate on every silo's rows.

        Args:
            candidates: adapters by name; of any rank.
            splits: of "validation" and "test".

        Returns:
            What the silos measured; a silo without rows of a split has no scores there.

        Raises:
            RoundFailed: a silo gave no scores, so that they could not be compared; the log says why.
            ConfigError: a candidate lacks the tensors that silos keep to themselves (lora.private).
        """
        self._check_whole(candidates)
        ballot = Ballot(candidates, splits)
        metrics = {}
        order = dataclasses.replace(self._instruction, labels=self.labels)
        for silo, content in self._errands.run(
            ballot.errands(self.silos, order), timeout_seconds=_LONGEST_SECONDS
        ):
            metrics[silo] = ballot.read(content)
        if absent := [silo for silo in self.silos if silo not in metrics]:
            raise RoundFailed(
                f"{', '.join(absent[:5])} could not score {', '.join(list(candidates)[:3])}; the log says why"
            )
        return Scores(dict(sorted(metrics.items())))

    def train(self, silo: str, received: Adapter, round: int = 1) -> Adapter:
        """A silo's local training as in a round.

        Args:
            silo: its name.
            received: the adapter it starts from.
            round: decides the order of batches and dropout.

        Returns:
            The delta, trained minus received.

        Raises:
            RoundFailed: the silo could not train; the log says why.
            ConfigError: the adapter lacks the tensors that silos keep to themselves (lora.private).
        """
        self._check_whole({"received": received})
        train = self.config.silo.train
        order = dataclasses.replace(
            self._instruction, silo=silo, round=round, epochs=train.epochs, steps=train.steps
        )
        content = instruction_content(to_record(received.tensors), order)
        errand = Errand(silo, "train", content)
        for _, reply in self._errands.run({silo: errand}, timeout_seconds=_LONGEST_SECONDS):
            return Adapter(from_record(arrays_of(reply)), received.lora)
        raise RoundFailed(f"silo {silo!r} could not train; the log says why")

    def _check_whole(self, candidates: Mapping[str, Adapter]) -> None:
        """Refuse adapters that silos would complete in a run: here they have nothing to complete them by."""
        personal = PersonalPart(self.config.silo.lora.private_parts)
        if lacking := [name for name, adapter in candidates.items() if personal.lacks(adapter)]:
            raise ConfigError(
                f"{lacking[0]!r} has no {' and '.join(personal.parts)}: outside of a run with lora.private "
                "no silo completes it by its own; score the adapters in the run's personal/"
            )

    @property
    def _instruction(self) -> Instruction:
        return Instruction(seed=self.config.run.seed, fingerprint=self.fingerprint, labels=self.labels)


def scope_of(config: Config) -> str:
    """Hash of all that decides what silos answer, beside the messages: settings, rows, base, versions.

    The base stands in every message by its fingerprint, but scores are kept under this hash alone, so that
    it is in here as well.
    """
    from fedmerge.silo.base import check_fingerprint  # noqa: PLC0415 (loads transformers)

    found = hashlib.sha256()
    about: dict[str, Any] = {
        "silo": dataclasses.asdict(config.silo),
        "encoding": config.wire.encoding,
        "fingerprint": check_fingerprint(config.silo.base),
        "versions": installed(_DECIDES_BITS),
    }
    found.update(json.dumps(about, sort_keys=True).encode())
    for name, silo in load_silos(config.silo.data).items():
        for split in ("train", "validation", "test"):
            for row in getattr(silo, split):
                found.update(json.dumps([name, split, row], sort_keys=True, default=str).encode())
    return found.hexdigest()
