"""What a site lets a run ask of it. Whoever holds the data decides; the server is told a code, no more."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from fedmerge.errors import ConfigError, PolicyError, nearest
from fedmerge.silo.settings import SiloSettings

ENCODINGS = ("exact", "bf16", "fp16")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Policy:
    """The `[policy]` of a site; None lets anything pass.

    Args:
        bases: fingerprints (SHA-256) of the bases that may be trained.
        tasks: values of `task.kind`.
        columns: those of the rows that may be read.
        label_columns: those whose values the server may be told, as a silo's labels. None tells of any column
            where `columns` is None too, else of none: a run that lists its `data.labels` need not be told.
        encodings: values of `wire.encoding`.
        max_rounds: rounds of a run.
        max_steps: optimizer steps of a round; epochs are converted by the silo's own rows.
        min_silos: how many silos must be asked in a round. With one alone, the server reads its very delta.

    Raises:
        ConfigError: a value that no run could meet, or of the wrong kind.

    Example:
        >>> Policy(max_rounds=50).check_order(round=51, steps=0, asked=3)
        Traceback (most recent call last):
        fedmerge.errors.PolicyError: round 51: policy.max-rounds is 50
    """

    section: ClassVar[str] = "policy"
    bases: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    label_columns: tuple[str, ...] | None = None
    encodings: tuple[str, ...] | None = None
    max_rounds: int | None = None
    max_steps: int | None = None
    min_silos: int | None = None

    def __post_init__(self) -> None:
        for key in ("bases", "tasks", "columns", "label_columns", "encodings"):
            _check_names(key.replace("_", "-"), getattr(self, key))
        for key in ("max_rounds", "max_steps", "min_silos"):
            _check_count(key, getattr(self, key))
        for base in self.bases or ():
            if not _FINGERPRINT.fullmatch(base):
                raise ConfigError(f"policy.bases: {base!r}: expected 64 hexadecimal digits (a SHA-256)")
        for encoding in self.encodings or ():
            if encoding not in ENCODINGS:
                raise ConfigError(f"policy.encodings: {encoding!r}: {nearest(encoding, ENCODINGS)}")

    def check_run(self, *, task: str, columns: Collection[str], encoding: str, rounds: int) -> None:
        """Refuse a run by its config: before rows are read or a base is looked at.

        Raises:
            PolicyError: the first value that is not allowed.
        """
        _check_listed("task.kind", task, "tasks", self.tasks)
        for column in columns:
            _check_listed("a column of the rows", column, "columns", self.columns)
        _check_listed("wire.encoding", encoding, "encodings", self.encodings)
        if self.max_rounds is not None and rounds > self.max_rounds:
            raise _refused(f"run.rounds = {rounds}: policy.max-rounds is {self.max_rounds}", "max-rounds")

    def may_tell(self, column: str) -> bool:
        """Whether the server may be told the values of a column.

        Which column is the label is the run's to say, and a column of texts tells every row.

        Example:
            >>> policy = Policy(columns=("text", "intent"), label_columns=("intent",))
            >>> policy.may_tell("intent"), policy.may_tell("text")
            (True, False)
        """
        if self.label_columns is None:
            return self.columns is None
        return column in self.label_columns

    def check_base(self, fingerprint: str) -> None:
        """Refuse a base; it need not be loaded.

        Raises:
            PolicyError: its fingerprint is not listed.
        """
        _check_listed("the base's fingerprint", fingerprint, "bases", self.bases)

    def check_order(self, *, round: int, steps: int, asked: int) -> None:
        """Refuse what one message asks for, whatever the run's config says.

        Args:
            round: of the message.
            steps: optimizer steps; 0 where it trains epochs, or not at all.
            asked: silos that got this message, as the server says.

        Raises:
            PolicyError: beyond a limit.
        """
        if self.max_rounds is not None and round > self.max_rounds:
            raise _refused(f"round {round}: policy.max-rounds is {self.max_rounds}", "max-rounds")
        if self.min_silos is not None and asked < self.min_silos:
            raise _refused(f"{asked} silos are asked: policy.min-silos is {self.min_silos}", "min-silos")
        self.check_steps(steps)

    def check_steps(self, steps: int) -> None:
        """Refuse too long a training.

        Raises:
            PolicyError: more optimizer steps than are allowed.
        """
        if self.max_steps is not None and steps > self.max_steps:
            raise _refused(f"{steps} optimizer steps: policy.max-steps is {self.max_steps}", "max-steps")


def columns_read(settings: SiloSettings) -> tuple[str, ...]:
    """Every column that a run's config names, used by its task or not."""
    data = settings.data
    named = (data.messages, data.prompt, data.completion, data.label)
    plain = "" if data.messages or data.prompt else data.text
    text = data.text if settings.task.kind == "classification" else plain
    return tuple(dict.fromkeys(filter(None, (text, *named))))


def _check_listed(what: str, value: str, key: str, allowed: tuple[str, ...] | None) -> None:
    if allowed is not None and value not in allowed:
        raise _refused(f"{what} is {value!r}: policy.{key} allows {', '.join(allowed)}", key)


def _check_names(key: str, names: tuple[str, ...] | None) -> None:
    if names is None:
        return
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ConfigError(
            f"policy.{key} = {list(names)!r}: no run could meet it; expected texts, or leave the key out"
        )


def _check_count(key: str, count: int | None) -> None:
    if count is not None and (type(count) is not int or count < 1):
        name = key.replace("_", "-")
        raise ConfigError(
            f"policy.{name} = {count!r}: no run could meet it; expected an integer of at least 1"
        )


def _refused(sentence: str, key: str) -> PolicyError:
    return PolicyError(sentence, code=f"policy/{key}")
