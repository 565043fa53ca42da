"""A run as it goes: a display on a terminal, quiet lines anywhere else. All of it on stderr.

No thread is started: the local engine forks its workers, and a fork beside a running thread is not safe. The
display is drawn anew at each event instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from math import isfinite
from typing import TYPE_CHECKING, Any

from fedmerge.cli.manner import console, count, size
from fedmerge.cli.table import METRIC_NAMES, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fedmerge.server.observer import Observer


class Watch:
    """A display with one bar: what goes on, and how much of it is done. On no terminal only lines.

    Args:
        out: where to draw.
    """

    def __init__(self, out: Console) -> None:
        """Draw nothing yet."""
        self._out = out
        self._display = _display(out) if out.is_terminal else None
        self._task = self._display.add_task("", total=1, detail="") if self._display else None
        self._done = self._pieces = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the display is on the screen."""
        with self._display or nullcontext():
            yield

    def say(self, line: str) -> None:
        """A line that stays."""
        (self._display.console if self._display else self._out).print(line, soft_wrap=True)

    def announce(self, text: str) -> None:
        """Something begins that has no pieces to count: on the display, or in a line where there is none."""
        if self._display is None:
            self.say(text)
        self.begin(text, 0)

    def begin(self, text: str, pieces: int) -> None:
        """Something begins that has pieces."""
        self._done, self._pieces = 0, pieces
        self._draw(description=text, total=pieces or 1, completed=0, detail="")

    def rename(self, text: str) -> None:
        """What goes on has another name now."""
        self._draw(description=text)

    def advance(self, piece: str) -> None:
        """One more piece is done."""
        self._done += 1
        self._draw(completed=self._done, detail=f"{self._done}/{self._pieces} {piece}")

    def _draw(self, **changes: Any) -> None:
        if self._display is not None and self._task is not None:
            self._display.update(self._task, refresh=True, **changes)


class RunWatch:
    """An `Observer` that shows a run on a `Watch`.

    Args:
        watch: where.
        rounds: of the run.
    """

    def __init__(self, watch: Watch, rounds: int) -> None:
        """Watch a run."""
        self._watch = watch
        self._rounds = rounds
        self._round = 0  # while rounds are going on, the present one

    def run_started(self, plan: Mapping[str, Any]) -> None:
        """Say what is run."""
        self._watch.say(start_line(plan))
        self._round = 1

    def phase(self, text: str) -> None:
        """Show what goes on now; on no terminal the steps of a round are left unsaid."""
        if self._round:
            self._watch.rename(self._in_round(self._round, text))
        else:
            self._watch.announce(text)

    def round_started(self, round: int, silos: Sequence[str]) -> None:
        """Begin the bar of a round."""
        self._round = round
        self._watch.begin(self._in_round(round, "training"), len(silos))

    def reply(self, round: int, silo: str, outcome: str, metrics: Mapping[str, float]) -> None:
        """Move the bar on; say it where a reply is refused."""
        if outcome != "admitted":
            self._watch.say(self._in_round(round, f"{silo} refused: {outcome}"))
        self._watch.advance(silo)

    def round_closed(self, report: Mapping[str, Any]) -> None:
        """Say how the round went."""
        for line in filter(None, (round_line(report, self._rounds), shadow_line(report, self._rounds))):
            self._watch.say(line)
        self._round = 0 if report["round"] == self._rounds else self._round

    def finished(self, result: Mapping[str, Any]) -> None:
        """Nothing: the table follows."""

    def _in_round(self, round: int, text: str) -> str:
        return f"round {round}/{self._rounds}: {text}"


def start_line(plan: Mapping[str, Any]) -> str:
    """What is run, in one line."""
    silos, rounds = count(len(plan["silos"]), "silo"), count(plan["rounds"], "round")
    return f"{silos}, {rounds}, {plan['rule']} in {plan['space']}"


def round_line(report: Mapping[str, Any], rounds: int) -> str:
    """A closed round in one line; the score is that of the adapter which the round began with.

    Args:
        report: a `RoundReport` as observers get it.
        rounds: of the run.

    Example:
        >>> report = {"round": 1, "asked": ["a", "b"], "admitted": {"a": {}, "b": {}}, "refused": [],
        ...           "missing": [], "received": {"metric": "loss", "mean": 0.5},
        ...           "seconds": {"merge": 0.03}, "bytes_up": 2000, "bytes_down": 4000}
        >>> round_line(report, 3)
        'round 1/3: 2 of 2 silos merged, loss before 0.500, merged 0.03 s, 2.0 kB up, 4.0 kB down'
    """
    parts = [f"{len(report['admitted'])} of {len(report['asked'])} silos merged"]
    if report.get("rejected"):
        parts = [f"REJECTED: {report['rejected']}; {count(len(report['admitted']), 'silo')} trained in vain"]
    parts += [f"{len(report[what])} {what}" for what in ("refused", "missing") if report.get(what)]
    if received := report.get("received"):
        parts.append(
            f"{METRIC_NAMES.get(received['metric'], received['metric'])} before {number(received['mean'])}"
        )
    seconds = report.get("seconds", {})
    parts += [
        f"{word} {seconds[phase]:.{digits}f} s"
        for phase, word, digits in (("train", "trained", 1), ("merge", "merged", 2))
        if phase in seconds
    ]
    parts += [f"{size(report['bytes_up'])} up", f"{size(report['bytes_down'])} down"]
    return f"round {report['round']}/{rounds}: {', '.join(parts)}"


def shadow_line(report: Mapping[str, Any], rounds: int) -> str:
    """The one-step counterfactuals of a round in one line: the merged adapter, and the best other one.

    Args:
        report: a `RoundReport` as observers get it.
        rounds: of the run.

    Returns:
        The line; "" for a round whose shadows were not scored.

    Example:
        >>> shadows = {"merged": {"metric": "loss", "mean": 0.5}, "ties()": {"error": "why"},
        ...            "median()": {"metric": "loss", "mean": 0.25}}
        >>> shadow_line({"round": 1, "shadows": shadows}, 3)
        'round 1/3: one-step counterfactuals: loss merged 0.500, best of 1 median() 0.250, 1 failed'
    """
    rows = report.get("shadows") or {}
    scored = {name: row for name, row in rows.items() if "mean" in row}
    parts = [f"{len(rows) - len(scored)} failed"] * (len(scored) < len(rows))
    if others := {name: row for name, row in scored.items() if name != "merged"}:
        name = _best(others)
        parts.insert(0, f"best of {len(others)} {name} {number(others[name]['mean'])}")
    if merged := scored.get("merged"):
        metric = METRIC_NAMES.get(merged["metric"], merged["metric"])
        parts.insert(0, f"{metric} merged {number(merged['mean'])}")
    return f"round {report['round']}/{rounds}: one-step counterfactuals: {', '.join(parts)}" if parts else ""


def _best(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of the best mean; of no finite one the first."""
    from fedmerge.server.scores import HIGHER_IS_BETTER

    known = {name: row for name, row in rows.items() if row["mean"] is not None and isfinite(row["mean"])}
    choose = max if HIGHER_IS_BETTER.get(next(iter(rows.values()))["metric"], True) else min
    return choose(known, key=lambda name: known[name]["mean"]) if known else next(iter(rows))


@contextmanager
def watching(rounds: int) -> Iterator[Observer]:
    """An observer for one run, on the screen while inside."""
    watch = Watch(console(stderr=True))
    with watch.shown():
        watch.rename("loading")
        yield RunWatch(watch, rounds)


@contextmanager
def working(text: str, pieces: int) -> Iterator[Watch]:
    """A bar over so many pieces of work."""
    watch = Watch(console(stderr=True))
    with watch.shown():
        watch.begin(text, pieces)
        yield watch


@contextmanager
def studying() -> Iterator[Observer]:
    """An observer of a study of many runs: it shows what goes on now."""
    watch = Watch(console(stderr=True))
    with watch.shown():
        watch.rename("loading base and data")
        yield RunWatch(watch, rounds=0)


def _display(out: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    return Progress(*columns, console=out, auto_refresh=False, transient=True)
