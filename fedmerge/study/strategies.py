"""The strategies that a comparison is given: each a name and the run-config keys it sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmerge import config, project
from fedmerge.config import Config, Flat, read_config
from fedmerge.errors import ConfigError, FedMergeError, RoundFailed, nearest
from fedmerge.server.asking import quorum_of
from fedmerge.server.plan import Plan
from fedmerge.study.knobs import with_knob

REFERENCE = "fedavg"
ALL = "all"
"""Stands for every packaged strategy that fits."""


@dataclass(frozen=True)
class Strategy:
    """What one row of a comparison changes.

    Args:
        name: of the row.
        keys: of the run-config, "strategy.<key>".
    """

    name: str
    keys: Mapping[str, config.Scalar]

    def flat(self, simulation: Flat, seed: int, sets: Mapping[str, config.Scalar]) -> Flat:
        """The whole run-config of this strategy on a simulation, at a seed.

        What a comparison is about is the rules, so the gate of the silos does not act unless the strategy
        asks for it, and no shadows are merged beside.
        """
        still = {"strategy.shadows": "", "strategy.gate": "off()", "run.baselines": "", "run.trackers": ""}
        known = config.defaults()
        still = {key: value for key, value in still.items() if key in known}
        return {**simulation, **still, **self.keys, **sets, "run.seed": seed}

    def tuned(self, knob: str, value: float, default: str) -> Strategy | None:
        """The strategy with a knob of its rule at a value; None where the rule has no such knob.

        Args:
            knob: of the rule.
            value: for it.
            default: the rule of the simulation, for a strategy that sets none.
        """
        rule = with_knob(str(self.keys.get("strategy.rule", default)), knob, value)
        return None if rule is None else Strategy(self.name, {**self.keys, "strategy.rule": rule})


def read_strategies(
    given: Sequence[str], simulation: Flat, reference: str = REFERENCE
) -> tuple[list[Strategy], dict[str, Path]]:
    """The strategies by file or packaged name, with the one that all are compared with among them.

    Args:
        given: paths or names; "all" stands for every packaged one.
        simulation: FedAvg is taken in its space where no strategy of that name is given.
        reference: name of the strategy that all are compared with.

    Returns:
        The strategies, the reference first, and the packaged files that "all" brought in: of these, what
        does not fit is left out.

    Raises:
        ConfigError: a file that sets more than [strategy], no such file, two of one name, or a reference that
            is none of them.
    """
    packaged = project.recipes("strategies")
    optional = packaged if ALL in given else {}
    files = [project.find_recipe("strategies", name) for name in given if name != ALL]
    named = {path.stem: path for path in files}
    if len(named) < len(files):
        twice = sorted(path.stem for path in files if [other.stem for other in files].count(path.stem) > 1)
        raise ConfigError(f"two strategies are called {twice[0]!r}: a table has one row for each name")
    paths = {**{name: path for name, path in optional.items() if name not in named}, **named}
    found = {name: Strategy(name, config.strategy_keys(path)) for name, path in paths.items()}
    if reference == REFERENCE and reference not in found:
        keys = {"strategy.rule": "fedavg()", "strategy.space": simulation["strategy.space"]}
        found[reference] = Strategy(reference, keys)
    if reference not in found:
        raise ConfigError(f"--reference {reference!r} is none of the strategies; {nearest(reference, found)}")
    return [found.pop(reference), *found.values()], {
        name: optional[name] for name in optional if name not in named
    }


def check(strategy: Strategy, flat: Flat, silos: int) -> Config:
    """The strategy's configuration, refused before anything is trained where it contradicts the simulation.

    Raises:
        ConfigError: the two contradict each other, or the rule can't merge so many silos.
    """
    try:
        read = read_config(flat)
        asked = max(1, round(read.strategy.fraction * silos))
        Plan.of(read.strategy).check_clients(asked, quorum_of(asked, read.strategy.quorum))
    except RoundFailed as problem:
        raise ConfigError(f"strategy {strategy.name!r}: {problem}") from None
    except FedMergeError as problem:
        raise ConfigError(f"strategy {strategy.name!r} does not fit the simulation: {problem}") from None
    return read
