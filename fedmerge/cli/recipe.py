"""From what stands on the command line to a checked configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmerge.config import Config


def read(simulation: str, strategy: str = "", sets: Sequence[str] = ()) -> Config:
    """The configuration of a simulation, checked before anything heavy is loaded.

    Args:
        simulation: a recipe's path or packaged name; "" takes the default job.
        strategy: a strategy file's path or packaged name; "" keeps the simulation's own.
        sets: `key=value` texts, which win over both files.

    Raises:
        ConfigError: no such recipe, an unknown key, a value of the wrong type or out of range.
        RuleError: a rule, space or server optimizer that can't be read.
    """
    from fedmerge import config, project

    files = [project.find_recipe("simulations", simulation)] if simulation else []
    if strategy:
        files.append(_strategy_file(strategy))
    read_config = config.read_config(config.overlay(*files, sets=sets))
    check_texts(read_config)
    return read_config


def check_texts(config: Config) -> None:
    """Read every text once, rule, space, guard and so on: a misspelt knob shall cost no waiting.

    Raises:
        FedMergeError: one of them can't be read.
    """
    from fedmerge.server.plan import Plan
    from fedmerge.silo.partition import parse_partition

    Plan.of(config.strategy)
    if config.silo.data.partition:
        parse_partition(config.silo.data.partition)


def _strategy_file(given: str) -> Path:
    from fedmerge import config, project

    path = project.find_recipe("strategies", given)
    config.strategy_keys(path)
    return path
