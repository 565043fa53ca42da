"""How every command behaves: `--json`, `--debug`, one sentence for an error, true exit statuses.

A command returns an `Outcome`; only this file writes to stdout. Anything else that prints there while a
command runs (a library, say) is sent to stderr, so that `--json` leaves one object and nothing more.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import typer
from typer.core import TyperCommand, TyperOption

from fedmerge.errors import FedMergeError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STARTED = time.perf_counter()
"""When the command line was loaded, before anything heavy: what a total time counts from."""

INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """What a command found.

    Args:
        payload: the one object of `--json`.
        shown: what a person sees instead, line by line or as rich renderables.
        status: the exit status; 0 only for success.
    """

    payload: Mapping[str, Any]
    shown: Sequence[RenderableType] = ()
    status: int = 0


class Command(TyperCommand):
    """A command with the manner of this file; it has `--json` and `--debug` without asking for them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            _switch("--json", "json", "Write one JSON object to stdout, and nothing else."),
            _switch("--debug", "debug", "Show the traceback of an error, and the libraries' logs."),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; with `--json` a misuse is an object too, beside click's own words on stderr."""
        asked = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if asked:
                _write_json({"error": {"kind": "UsageError", "message": error.format_message()}})
            raise

    def invoke(self, ctx: click.Context) -> None:
        """Run the command, write its outcome or the sentence of its error, and exit with its status.

        Raises:
            typer.Exit: always; the exit status of the command.
        """
        if not debugging():
            _quieten()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                outcome = super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
            raise
        except KeyboardInterrupt as stop:
            _fail("Interrupted", f"stopped by Ctrl-C{f'; {stop}' if str(stop) else ''}")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if debugging():
                raise
            _fail(type(error).__name__, sentence(error))
            raise typer.Exit(1) from None
        _write(outcome)
        raise typer.Exit(outcome.status)


def wants_json() -> bool:
    """Whether the running command was given `--json`."""
    return bool(_meta().get("fedmerge.json"))


def debugging() -> bool:
    """Whether the running command was given `--debug`."""
    return bool(_meta().get("fedmerge.debug"))


def sentence(error: Exception) -> str:
    """What a person is told about an error: the message of ours, the kind and message of others'."""
    if isinstance(error, FedMergeError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name!r} is missing here; `fedmerge doctor` lists what is needed"
    return f"unforeseen {type(error).__name__}: {error} (--debug shows where; please report it)"


def console(*, stderr: bool = False) -> Console:
    """A rich console on stdout or stderr that never guesses at markup in what users wrote."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def plain(value: Any) -> Any:
    """A value as JSON knows it: paths as text, tuples as lists, numbers that are not finite as null.

    Example:
        >>> plain({"score": float("nan"), "silos": ("a", "b")})
        {'score': None, 'silos': ['a', 'b']}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return str(value)


def size(count: float) -> str:
    """Bytes as a person reads them.

    Example:
        >>> size(532), size(1_500_000), size(0)
        ('532 B', '1.5 MB', '0 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> count(1, "silo"), count(0, "silo")
        ('1 silo', '0 silos')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _meta() -> dict[str, Any]:
    context = click.get_current_context(silent=True)
    return context.meta if context else {}


def _switch(flag: str, name: str, text: str) -> click.Option:
    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[f"fedmerge.{name}"] = value

    callback: Callable[..., None] = remember
    return TyperOption(
        param_decls=[flag],
        is_flag=True,
        default=False,
        is_eager=True,
        expose_value=False,
        callback=callback,
        help=text,
    )


def _quieten() -> None:
    """Keep the libraries' banners and warnings off the terminal: what matters, fedmerge says itself."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _write(outcome: Outcome) -> None:
    if wants_json():
        _write_json(outcome.payload)
        return
    out = console()
    for part in outcome.shown:
        # Lines of text wrap in the terminal, where they can be selected whole: paths and commands above all.
        out.print(part, soft_wrap=isinstance(part, str))


def _fail(kind: str, text: str) -> None:
    if wants_json():
        _write_json({"error": {"kind": kind, "message": text}})
    console(stderr=True).print(f"fedmerge: {text}", soft_wrap=True)


def _write_json(payload: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(plain(payload), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()
