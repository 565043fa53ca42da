"""How a run was set up, what it ran on, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from fedmerge.config import defaults
from fedmerge.study.report.document import Block, Code, Column, Fold, Table, Text
from fedmerge.study.report.groups import Group
from fedmerge.study.report.run_source import Run


def settings(group: Group) -> tuple[Block, ...]:
    """The blocks of one experiment; its runs differ in their seed alone."""
    run = group.runs[0]
    usual = defaults()
    changed = tuple(
        (key, _shown(value), _shown(usual[key]) if key in usual else "no key of this version")
        for key, value in run.config.items()
        if usual.get(key) != value and key != "run.output"
    )
    columns = (Column("key"), Column("value"), Column("default"))
    blocks: list[Block] = []
    if changed:
        blocks.append(Table("What differs from the defaults", columns, changed))
    else:
        blocks.append(Text("Every key has its default."))
    everything = tuple((key, _shown(value)) for key, value in run.config.items())
    blocks.append(Fold(f"All {len(everything)} keys", (Table("config.toml", columns[:2], everything),)))
    for each in group.runs:
        if each.environment:
            table = Table("environment.json", columns[:2], tuple(_leaves(each.environment)))
            seed = f", seed {each.seed}" if len(group.runs) > 1 else ""
            blocks.append(Fold(f"Machine and versions{seed}", (table,)))
    again = "\n".join(repeat(each) for each in group.runs)
    return (*blocks, Text("To run it again:"), Code(again))


def repeat(run: Run) -> str:
    """The command that repeats a run; the output goes to a folder of its own.

    Same config, machine type and versions: same bits.
    """
    config = str(run.path / "config.toml")
    return shlex.join(["fedmerge", "simulate", config, "--set", f"run.output={run.path}-again"])


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return '""' if value == "" else str(value)


def _leaves(values: Mapping[str, object], head: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", _shown(value)
