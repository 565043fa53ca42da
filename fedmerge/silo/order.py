"""What the server asks of a silo, and what the silo answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor

from fedmerge.adapters import Adapter
from fedmerge.errors import PolicyError


@dataclass(frozen=True)
class Order:
    """One piece of work for one silo.

    Args:
        silo: whose data to use.
        round: from 1; 0 outside of rounds. Of an evaluation, the round that made the adapters.
        seed: of the run.
        epochs: passes over the silo's rows; exactly one of epochs and steps is above 0 where it trains.
        steps: optimizer steps.
        stream: a label mixed into the random seed; "" in rounds.
        splits: held-out splits to score on, of "validation" and "test".
        labels: the labels that all silos agreed on; empty where the task has none.
        deadline_seconds: work stops so many seconds after the order's start; 0 is without limit.
        statistics: what is measured of the trained adapter, "fisher" or "gram", for the server's rule.
        run: names the run, where silos remember something of it in a folder of their own.
        head: another head to score with, "centroid" (class means of all silos' training rows here); "" is
            the task's own.
        outcomes: whether scores come with what each held-out row contributed to them.
        rows: score on at most so many examples of each split, spread evenly over it; 0 is all.
        max_steps: more steps than these are refused, however they are asked for; 0 is without limit.
    """

    silo: str
    round: int = 0
    seed: int = 0
    epochs: int = 0
    steps: int = 0
    stream: str = ""
    splits: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    deadline_seconds: float = 0.0
    statistics: tuple[str, ...] = ()
    run: str = ""
    head: str = ""
    outcomes: bool = False
    rows: int = 0
    max_steps: int = 0

    @property
    def place(self) -> str:
        """Where an error happened, for its sentence."""
        return f"silo {self.silo!r}, round {self.round}"

    def late(self, began: float) -> bool:
        """Whether the deadline is over, of an order whose clock started at `time.monotonic()` = `began`."""
        return time.monotonic() - began > self.deadline_seconds > 0

    def check_time(self, began: float) -> None:
        """End the work where its time is over.

        Raises:
            PolicyError: it is, with the code "late".
        """
        if self.late(began):
            raise PolicyError(
                f"{self.place}: the {self.deadline_seconds:.0f} s that were left are over before there is "
                "anything to send",
                code="late",
            )


@dataclass(frozen=True)
class Trained:
    """A silo's answer to a train order.

    Args:
        delta: trained minus received, with the names, shapes and dtypes of the broadcast.
        examples: rows the silo trained on.
        metrics: "received/<split>/<name>" scores of the broadcast, and "train_loss", "steps", "seconds".
        statistics: those that the order asked for, by name, and within by names of tensors or modules.
    """

    delta: Adapter
    examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, dict[str, Tensor]] = field(default_factory=dict)
