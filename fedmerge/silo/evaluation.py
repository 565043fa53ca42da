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
    model: AdaptedModel, task: Task, held_out: Split, train: Callable[[], Split], batch_size: int
) -> Scored:
    """Score one split; batches are the same every time, so that the same adapter has the same score.

    Args:
        model: with the adapter written into it.
        task: gives the scores.
        held_out: rows to score.
        train: gives the silo's training rows, for tasks that score against them; not called for others.
        batch_size: rows of one forward pass.

    Returns:
        "loss", "count" and the task's metric, and lists where the task tells of each row.
    """
    model.train(False)
    return task.score(model, held_out.in_order(batch_size), _lazily(train, batch_size))


def _lazily(train: Callable[[], Split], batch_size: int) -> Iterator[Batch]:
    yield from train().in_order(batch_size)
