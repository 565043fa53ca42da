"""The run-config: read here and nowhere else; everything above gets frozen dataclasses.

Keys, defaults and their meaning stand in pyproject.toml under `[tool.flwr.app.config]`. Flower carries a
run-config as one flat mapping of scalars with dotted keys ("train.learning-rate"); a recipe is the same
keys in TOML tables.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedmerge import project
from fedmerge.errors import ConfigError, FedMergeError, nearest
from fedmerge.server.folder import NOT_IDENTITY
from fedmerge.server.plan import Plan
from fedmerge.server.retention import FEWEST
from fedmerge.server.settings import StrategySettings
from fedmerge.silo.partition import parse_partition
from fedmerge.silo.settings import (
    BaseSettings,
    DataSettings,
    LoraSettings,
    SiloSettings,
    TaskSettings,
    TrainSettings,
)
from fedmerge.wire.encodings import ENCODINGS

Scalar = str | int | float | bool
Flat = dict[str, Scalar]

RESUMES = ("never", "auto")
KEEP = ("best", "last")
BASELINES = ("alone", "pooled", "centroids")
FOLLOW_RUN = -1  # data.seed: as run.seed


@dataclass(frozen=True)
class RunSettings:
    """The keys `run.*`."""

    name: str
    rounds: int
    seed: int
    output: str
    record: bool
    keep: str
    baselines: tuple[str, ...]
    trackers: tuple[str, ...]
    resume: str = RESUMES[0]
    keep_rounds: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"run.rounds = {self.rounds}: expected at least 1")
        self._check_kept()
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"run.seed = {self.seed}: expected 0 to 2^63 - 1")
        if self.keep not in KEEP:
            raise ConfigError(f"run.keep = {self.keep!r}: {nearest(self.keep, KEEP)}")
        if self.resume not in RESUMES:
            raise ConfigError(f"run.resume = {self.resume!r}: {nearest(self.resume, RESUMES)}")
        for baseline in self.baselines:
            if baseline not in BASELINES:
                raise ConfigError(f"run.baselines: {baseline!r} is unknown; {nearest(baseline, BASELINES)}")

    def _check_kept(self) -> None:
        if self.keep_rounds and self.keep_rounds < FEWEST:
            raise ConfigError(
                f"run.keep-rounds = {self.keep_rounds}: expected 0, which keeps all, or at least {FEWEST}"
            )
        if self.keep_rounds and self.record:
            raise ConfigError(
                f"run.keep-rounds = {self.keep_rounds} with run.record = true: a recorded round is of use "
                "with the adapter that it began from alone; give one of them up"
            )


@dataclass(frozen=True)
class EngineSettings:
    """The keys `engine.*`: how a simulation is spread over this machine."""

    workers: int
    nodes: int
    client_cpus: int
    client_gpus: float

    def __post_init__(self) -> None:
        for key, least in (("workers", 0), ("nodes", 1), ("client_cpus", 1), ("client_gpus", 0)):
            if getattr(self, key) < least:
                raise ConfigError(
                    f"engine.{key.replace('_', '-')} = {getattr(self, key)}: expected at least {least}"
                )


@dataclass(frozen=True)
class WireSettings:
    """The keys `wire.*`."""

    encoding: str

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ConfigError(f"wire.encoding = {self.encoding!r}: {nearest(self.encoding, ENCODINGS)}")


@dataclass(frozen=True)
class Config:
    """A whole run-config, checked. `flat` is what it was read from, complete."""

    run: RunSettings
    engine: EngineSettings
    silo: SiloSettings
    strategy: StrategySettings
    wire: WireSettings
    flat: Flat

    @property
    def digest(self) -> str:
        """Hash of all that decides the result: equal digests give equal runs."""
        decisive = {k: v for k, v in sorted(self.flat.items()) if not k.startswith(NOT_IDENTITY)}
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """The run's folder, absolute: `run.output`, or a name made of the run's name, rule and digest."""
        if self.run.output:
            return Path(self.run.output).expanduser().absolute()
        rule = self.strategy.rule.partition("(")[0]
        return Path("runs", f"{self.run.name}-{rule}-{self.digest[:8]}").absolute()


@cache
def _defaults() -> Flat:
    table = tomllib.loads((project.root() / "pyproject.toml").read_text(encoding="utf-8"))
    return flatten(table["tool"]["flwr"]["app"]["config"])


def defaults() -> Flat:
    """Every run-config key with its default."""
    return dict(_defaults())


def flatten(table: Mapping[str, Any], prefix: str = "") -> Flat:
    """Nested tables as one mapping with dotted keys.

    Raises:
        ConfigError: a value that Flower's run-config can't carry (a list, a date).

    Example:
        >>> flatten({"run": {"rounds": 3}, "base.dtype": "float32"})
        {'run.rounds': 3, 'base.dtype': 'float32'}
    """
    flat: Flat = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Scalar):
            flat[prefix + key] = value
        else:
            raise ConfigError(
                f"{prefix}{key} = {value!r}: expected a string, a number or a boolean, "
                f"as Flower's run-config carries no {type(value).__name__}"
            )
    return flat


def read_toml(path: Path) -> Flat:
    """One recipe as a flat mapping.

    Raises:
        ConfigError: no such file, or not TOML.
    """
    try:
        return flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def parse_set(text: str) -> tuple[str, Scalar]:
    """`key=value` of the command line; the value as TOML, or as plain text where it is no TOML.

    Example:
        >>> parse_set("train.steps=20"), parse_set("strategy.rule=ties(density=0.2)")
        (('train.steps', 20), ('strategy.rule', 'ties(density=0.2)'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: expected key=value, such as train.steps=20")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    wants_text = isinstance(_defaults().get(key.strip()), str)
    if not isinstance(parsed, Scalar) or (wants_text and not isinstance(parsed, str)):
        parsed = value.strip()
    return key.strip(), parsed


def overlay(*recipes: Path, sets: Sequence[str] = ()) -> Flat:
    """The defaults, overlaid by recipe files from left to right, then by `key=value` settings."""
    flat = defaults()
    for path in recipes:
        for key, value in read_toml(path).items():
            flat[key] = _checked(key, value, str(path))
    for text in sets:
        key, value = parse_set(text)
        flat[key] = _checked(key, value, "--set")
    return flat


def strategy_keys(path: Path) -> Flat:
    """A strategy file: keys of `[strategy]` only.

    Raises:
        ConfigError: it sets anything else, so it would change more than the strategy.
    """
    flat = read_toml(path)
    others = sorted(key for key in flat if not key.startswith("strategy."))
    if others:
        raise ConfigError(f"{path}: a strategy file sets [strategy] only; it also sets {', '.join(others)}")
    return flat


def read_config(flat: Mapping[str, Scalar]) -> Config:
    """A flat run-config as checked dataclasses; keys that are left out have their defaults.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, a rule, space, optimizer or
            partition that can't be read.
    """
    full = defaults() | {key: _checked(key, value, "run-config") for key, value in flat.items()}
    lists = {name: _names(full[f"run.{name}"]) for name in ("baselines", "trackers")}
    run = RunSettings(**_section(full, "run") | lists)
    if "centroids" in run.baselines and full["task.kind"] != "classification":
        raise ConfigError(
            "run.baselines: 'centroids' are means of classes, "
            f"and task.kind = {full['task.kind']!r} has none; leave it out"
        )
    return Config(
        run=run,
        engine=EngineSettings(**_section(full, "engine")),
        silo=_silo(full, run.seed),
        strategy=_strategy(full),
        wire=WireSettings(**_section(full, "wire")),
        flat=full,
    )


def _silo(full: Flat, seed: int) -> SiloSettings:
    data = _section(full, "data")
    data["seed"] = seed if data["seed"] == FOLLOW_RUN else data["seed"]
    train = TrainSettings(**_section(full, "train"))
    if not (train.epochs or train.steps):
        raise ConfigError("train.epochs and train.steps are both 0: a round would train nothing; set one")
    settings = SiloSettings(
        base=BaseSettings(**_section(full, "base")),
        lora=LoraSettings(**_section(full, "lora")),
        task=TaskSettings(**_section(full, "task")),
        data=DataSettings(**data),
        train=train,
        seed=seed,
    )
    if settings.data.partition:
        parse_partition(settings.data.partition)
    return settings


def _strategy(full: Flat) -> StrategySettings:
    settings = StrategySettings(**_section(full, "strategy"))
    try:
        plan = Plan.of(settings)
        plan.check_rounds(int(full["run.rounds"]))
        plan.check_private(str(full["lora.private"]))
    except FedMergeError as error:
        raise ConfigError(f"[strategy]: {error}") from None
    if settings.shadow_scoring == "server" and not full["data.server"]:
        raise ConfigError("strategy.shadow-scoring = 'server' needs rows that the server holds: data.server")
    return settings


def _names(text: Scalar) -> tuple[str, ...]:
    """The names in "a, b", each once."""
    return tuple(dict.fromkeys(filter(None, (name.strip() for name in str(text).split(",")))))


def _section(flat: Flat, table: str) -> dict[str, Any]:
    head = table + "."
    return {key[len(head) :].replace("-", "_"): value for key, value in flat.items() if key.startswith(head)}


def _checked(key: str, value: Scalar, where: str) -> Scalar:
    """A value of the type that the key's default has; an integer is taken where a float is expected."""
    known = _defaults()
    if key not in known:
        raise ConfigError(f"{where}: unknown key {key!r}; {nearest_key(key)}")
    expected = type(known[key])
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not expected:
        names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        raise ConfigError(f"{where}: {key} = {value!r}: expected {names[expected]}")
    return value


def nearest_key(key: str) -> str:
    """What an unknown key may have meant: the nearest of all, or the keys of its table."""
    table = key.partition(".")[0] + "."
    siblings = [known for known in _defaults() if known.startswith(table)]
    return nearest(key, siblings or _defaults())
