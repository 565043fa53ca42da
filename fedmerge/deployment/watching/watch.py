"""The watch itself: a turn asks Flower how the run is, and does at most one thing about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedmerge.deployment.figures import Figures, Following
from fedmerge.deployment.flwr import PATIENCE_SECONDS, NoAnswer
from fedmerge.deployment.watching import memory as memories
from fedmerge.deployment.watching.fate import Fate
from fedmerge.deployment.watching.flower import Flower, Run
from fedmerge.deployment.watching.journal import Journal
from fedmerge.deployment.watching.memory import Memory
from fedmerge.deployment.watching.place import Place
from fedmerge.deployment.watching.view import State, View

FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 300.0
_LOOK_SECONDS = 1.0  # between two looks into the run's folder


@dataclass(frozen=True)
class Habits:
    """How a watcher goes about it.

    Args:
        every_seconds: between two questions to Flower, each of which starts a `flwr`.
        attempts: in a row, without a round closed in between, after which it gives up.
        clock: unix time.
        rest: waits so many seconds, or until the watch is to end; whether it is.
    """

    every_seconds: float
    attempts: int
    rest: Callable[[float], bool]
    clock: Callable[[], float] = time.time


def backoff_seconds(in_a_row: int) -> float:
    """How long to wait before the next attempt, after so many in a row.

    Example:
        >>> backoff_seconds(1), backoff_seconds(2), backoff_seconds(9)
        (10.0, 20.0, 300.0)
    """
    return float(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** max(0, min(in_a_row - 1, 9))))


class Watcher:
    """Keeps one run going. `watch` until it has ended.

    Args:
        place: where the server is.
        memory: what is watched, and what became of it so far.
        flower: the commands.
        journal: told each change.
        habits: how often, how long.
        view: what can be seen of it.
    """

    def __init__(
        self, place: Place, memory: Memory, flower: Flower, journal: Journal, habits: Habits
    ) -> None:
        """Begin where the memory ends."""
        self.memory = memory
        self._runs, self._flower, self._journal, self._habits = place.runs, flower, journal, habits
        self._following = Following(memory.folder)
        # A submission of a watcher that was killed can still be on its way.
        under_way = memory.submitting is not None
        self._due = habits.clock() + (PATIENCE_SECONDS if under_way else 0.0)
        figures = self._following.read()
        self.view = View(resubmissions=memory.resubmissions, since=habits.clock(), figures=figures)

    def watch(self) -> bool:
        """Keep the run going until it has ended, or the watch is to end.

        Returns:
            Whether the run has ended; `memory.ended` says how, and `memory.completed` whether well.
        """
        while not self.memory.ended:
            try:
                self._turn()
            except NoAnswer as problem:
                self._journal.change("superlink", "superlink-silent", str(problem))
            if self.memory.ended:
                break
            if self._pause():
                return False
        self._look()
        return True

    def _pause(self) -> bool:
        """Wait for the next turn, and read what the run writes meanwhile; whether the watch is to end."""
        until = self._habits.clock() + self._habits.every_seconds
        while (left := until - self._habits.clock()) > 0:
            if self._habits.rest(min(_LOOK_SECONDS, left)):
                return True
            if self._look():
                return False
        return False

    def _look(self) -> bool:
        """Read what the run has written; whether it has just said that it is finished."""
        before, figures = self.view.figures, self._following.read()
        if figures != before:
            self._tell_rounds(before, figures)
            self.view = replace(self.view, figures=figures)
        return figures.finished and not before.finished

    def _tell_rounds(self, before: Figures, now: Figures) -> None:
        for (number, failed), figures in now.rounds.items():
            if before.rounds.get((number, failed)) != figures:
                sentence = f"{figures.admitted} of {figures.asked} silos admitted"
                event = "round-failed" if failed else "round-closed"
                self._journal.say(event, sentence, round=number, missing=figures.missing)

    def _turn(self) -> None:
        """Ask, and do at most one thing.

        Raises:
            NoAnswer: Flower could not be asked.
        """
        if self.memory.submitting is not None:
            self._reconcile(self.memory.submitting)
        elif not self.memory.runs:
            self._begin()
        else:
            self._follow(self.memory.runs[-1])

    def _follow(self, run_id: str) -> None:
        """See what became of the last attempt."""
        run = self._flower.find(run_id)
        self._answered()
        if self.memory.in_a_row and self.view.figures.closed > self.memory.closed:
            self._remember(replace(self.memory, in_a_row=0))
        if run is None:
            self._lost(run_id, "the SuperLink does not know the run: its database is another")
        elif run.fate is Fate.LOST:
            self._lost(run_id, run.details or "Flower gives no reason")
        elif run.fate is Fate.ALIVE:
            self._show(State.RUNNING, "", run_id)
            self._journal.change("run", f"run-{run.status}", f"run {run_id} is {run.status}", id=run_id)
        else:
            self._ended(run)

    def _lost(self, run_id: str, why: str) -> None:
        self._show(State.LOST, why, run_id)
        self._journal.change("lost", "run-lost", f"run {run_id} was lost: {why}", id=run_id)
        self._due = self._due or self._habits.clock() + backoff_seconds(self.memory.in_a_row)
        self._attempt(f"run {run_id} was lost ({why})")

    def _begin(self) -> None:
        """Find the run that is there, or submit it."""
        alive = [run for run in self._flower.runs() if run.fate is Fate.ALIVE]
        self._answered()
        if len(alive) == 1 and memories.in_use(self.memory.folder):
            self._took(alive[0].id, "run-found", f"run {alive[0].id} is at work on the folder: it is watched")
        else:
            self._attempt("the run was not taken")

    def _attempt(self, why: str) -> None:
        """Submit an attempt when its time has come, nobody is at work, and there were not too many."""
        if self.memory.in_a_row >= self._habits.attempts:
            self._end(f"{why}, and {self.memory.in_a_row} attempts in a row closed no round: given up")
        elif self._habits.clock() >= self._due:
            known = self._flower.runs()
            if self._is_free([run.id for run in known if run.fate is Fate.ALIVE]):
                self._submit(tuple(run.id for run in known))

    def _submit(self, known: tuple[str, ...]) -> None:
        """Submit an attempt; that it is under way is written down before, and its id after."""
        tried = self.memory.in_a_row + 1
        self._remember(
            replace(self.memory, submitting=known, in_a_row=tried, closed=self.view.figures.closed)
        )
        try:
            run_id = self._flower.submit(self.memory.config)
        except NoAnswer as problem:
            self._due = self._habits.clock() + backoff_seconds(tried)
            self._journal.say(
                "submission-unclear", f"{problem}; Flower's list will tell whether it was taken"
            )
            return
        event = "run-resubmitted" if self.memory.runs else "run-submitted"
        self._took(run_id, event, f"attempt {len(self.memory.runs) + 1} is run {run_id}")

    def _is_free(self, alive: list[str]) -> bool:
        """Whether an attempt may be submitted: never two at once, neither in Flower nor in the folder."""
        if alive:
            busy = f"run {', '.join(alive)} is alive; this one is submitted when that has ended"
        elif memories.in_use(self.memory.folder):
            busy = f"a process that Flower no longer knows still works in {self.memory.folder}"
        else:
            return True
        self._show(State.WAITING, busy)
        self._journal.change("run", "run-waiting", busy)
        return False

    def _reconcile(self, known: tuple[str, ...]) -> None:
        """Learn from Flower's list whether a submission without an answer was taken."""
        new = [run.id for run in self._flower.runs() if run.id not in known]
        self._answered()
        if new:
            self._took(new[0], "run-found", f"run {new[0]} is the one whose submission got no answer")
        elif self._habits.clock() >= self._due:
            self._remember(replace(self.memory, submitting=None))

    def _took(self, run_id: str, event: str, sentence: str) -> None:
        """From now on this attempt is the one."""
        self._remember(replace(self.memory, runs=(*self.memory.runs, run_id), submitting=None))
        self._due = 0.0
        self._journal.change("run", event, sentence, id=run_id, folder=str(self.memory.folder))
        self.view = replace(self.view, resubmissions=self.memory.resubmissions, since=self._habits.clock())
        self._show(State.RUNNING, "", run_id)

    def _ended(self, run: Run) -> None:
        if run.fate is Fate.COMPLETED:
            self._end(f"run {run.id} is completed: {self.memory.folder}", completed=True)
        else:
            said = f": {run.details}" if run.details else ""
            self._end(f"run {run.id} is {run.status}{said}")

    def _end(self, sentence: str, *, completed: bool = False) -> None:
        self._remember(replace(self.memory, ended=sentence, completed=completed))
        self._show(State.COMPLETED if completed else State.FAILED, sentence)
        self._journal.say("run-completed" if completed else "run-failed", sentence)

    def _answered(self) -> None:
        self._journal.change("superlink", "superlink-answers", "the SuperLink answers")

    def _show(self, state: State, sentence: str, run_id: str = "") -> None:
        self.view = replace(self.view, state=state, sentence=sentence, run=run_id or self.view.run)

    def _remember(self, memory: Memory) -> None:
        memories.write(self._runs, memory)
        self.memory = memory
