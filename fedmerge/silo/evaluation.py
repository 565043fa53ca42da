"""Scores of what a model holds, on a silo's held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fedmerge.silo.lora import AdaptedModel
from fedmerge.silo.split import Split
from fedmerge.silo.tasks import Batch, Task
from fedmerge.silo.tasks.task import Scored


@torch.no_grad()
def evaluate(
    model: AdaptedModel,
    task: Task,
    held_out: Split,
    train: Callable[[], Split],
    batch_size: int,
    *,
    check: Callable[[], None] = lambda: None,
) -> Scored:
    """Score one split; batches are the same every time, so that the same adapter has the same score.

    Args:
        model: with the adapter written into it.
        task: gives the scores.
        held_out: rows to score.
        train: gives the silo's training rows, for tasks that score against them; not called for others.
        batch_size: rows of one forward pass.
        check: called before each forward pass; what it raises ends the scoring.

    Returns:
        "loss", "count" and the task's metric, and lists where the task tells of each row.
    """
    model.train(False)
    return task.score(model, _lazily(lambda: held_out, batch_size, check), _lazily(train, batch_size, check))


def _lazily(split: Callable[[], Split], batch_size: int, check: Callable[[], None]) -> Iterator[Batch]:
    for batch in split().in_order(batch_size):
        check()
        yield batch
