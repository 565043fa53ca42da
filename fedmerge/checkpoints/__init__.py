"""Whole checkpoints on disk: fine-tunes of one base merged out of core, adapters folded into their base."""

from fedmerge.checkpoints.folding import fold
from fedmerge.checkpoints.merge import merge_checkpoints, prepare
from fedmerge.checkpoints.report import CheckpointReport
from fedmerge.checkpoints.task import Task
from fedmerge.checkpoints.together import Policy
from fedmerge.checkpoints.whole_weights import less_base, plus_base, wanting_base

__all__ = [
    "CheckpointReport",
    "Policy",
    "Task",
    "fold",
    "less_base",
    "merge_checkpoints",
    "plus_base",
    "prepare",
    "wanting_base",
]
