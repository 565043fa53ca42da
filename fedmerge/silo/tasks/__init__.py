"""What a silo learns: next tokens of text, labels of text, or a task that another package brings.

`task.kind` is "causal-lm", "classification", or a name in the entry point group `fedmerge.tasks`.
"""

from __future__ import annotations

from fedmerge.errors import ConfigError, nearest
from fedmerge.silo.entries import entry_names, load_entry
from fedmerge.silo.tasks.causal import CausalLanguage
from fedmerge.silo.tasks.classification import Classification
from fedmerge.silo.tasks.task import Batch, Example, Task

__all__ = ["TASKS", "Batch", "CausalLanguage", "Classification", "Example", "Task", "task_class"]

TASKS: dict[str, type[Task]] = {"causal-lm": CausalLanguage, "classification": Classification}
"""The tasks that fedmerge brings, by `task.kind`."""

GROUP = "fedmerge.tasks"
_MEMBERS = (
    "architecture",
    "metric",
    "higher_is_better",
    "initial_head",
    "prepare",
    "encode",
    "loss",
    "score",
)


def task_class(kind: str) -> type[Task]:
    """The class of a task.

    Args:
        kind: `task.kind`.

    Raises:
        ConfigError: no task of that name, here or in the entry points.

    Example:
        >>> task_class("causal-lm").metric
        'bits_per_byte'
    """
    if kind in TASKS:
        return TASKS[kind]
    known = sorted({*TASKS, *entry_names(GROUP)})
    if kind not in known:
        raise ConfigError(f"task.kind = {kind!r}: no such task; {nearest(kind, known)}")
    found: type[Task] = load_entry(GROUP, kind, "task.kind")
    lacking = [member for member in _MEMBERS if not hasattr(found, member)]
    if lacking:
        raise ConfigError(f"task.kind = {kind!r}: {found!r} is no task, it has no {', '.join(lacking)}")
    return found
