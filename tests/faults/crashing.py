"""A small run whose server process can be killed at any instant: silos are stubs that answer in its process.

Everything is imported once; each run is a fork of the process that imported it, and takes tenths of a second.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message

from fedmerge.config import defaults, read_config
from fedmerge.engine.executors import InProcess
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.server import exact
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.conduct import conduct
from fedmerge.silo import lora  # noqa: F401 (what the first adapter takes, so that no fork loads it)
from fedmerge.wire.protocol import Card, QueryReply, Sender, read_candidates, read_instruction, reply_content
from fedmerge.wire.records import from_record

EXAMPLES = {"a": 10, "b": 30, "c": 20, "d": 40, "e": 15}
ROUNDS = 4
HURT = 3  # the round whose silos say that what they received is bad: the gate goes back
FINGERPRINT = "f" * 64
NODE = 7
_PATIENCE_SECONDS = 120.0


def flat_of(folder: Path, base: Path, **changes: Any) -> dict[str, Any]:
    """Momentum, random masks, a gate that rejects, sampled silos, and shadows of the last round's replies."""
    flat = defaults() | {
        "run.name": "crash",
        "run.rounds": ROUNDS,
        "run.output": str(folder),
        "run.resume": "auto",
        "run.baselines": "",
        "base.model": str(base),
        "base.fingerprint": FINGERPRINT,
        "lora.rank": 2,
        "lora.layers": "0",
        "lora.target-modules": "q_proj, v_proj",
        "strategy.rule": "dare_ties(density=0.5)",
        "strategy.space": "factors()",
        "strategy.server-optimizer": "momentum(beta=0.5)",
        "strategy.fraction": 0.6,
        "strategy.weighting": "examples",
        "strategy.shadows": "median() @ factors()",
    }
    return flat | {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}


def serve(message: Message) -> Message:
    """A silo: its delta and its scores depend on its name, the round, and what it received."""
    kind = message.metadata.message_type
    if kind == "query":
        cards = tuple(Card(name, count, validation=5, test=5) for name, count in EXAMPLES.items())
        return Message(
            QueryReply(cards, shared=True, fingerprint=FINGERPRINT, device="cpu").to_content(),
            reply_to=message,
        )
    order = read_instruction(message.content)
    adapters = {name: from_record(record) for name, record in read_candidates(message.content).items()}
    scores = {
        f"{name}/{split}/bits_per_byte": _score(tensors) + 9.0 * (kind == "train" and order.round == HURT)
        for name, tensors in adapters.items()
        for split in order.splits
    }
    sender = Sender(order.silo, order.round, FINGERPRINT, "cpu")
    delta = _delta(adapters["received"], order.silo, order.round) if kind == "train" else None
    content = reply_content(delta, EXAMPLES[order.silo], metrics=scores, sender=sender)
    return Message(content, reply_to=message)


def _delta(received: dict[str, torch.Tensor], silo: str, round: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * round + ord(silo))
    return {
        name: 0.1 * torch.randn(tensor.shape, generator=generator) - 0.01 * tensor
        for name, tensor in received.items()
    }


def _score(tensors: dict[str, torch.Tensor]) -> float:
    return 2.0 + 0.01 * sum(float(tensor.double().abs().mean()) for tensor in tensors.values())


def asks() -> list[str]:
    """The kinds of the messages that were answered in this process."""
    return _ASKED


_ASKED: list[str] = []


def run(flat: dict[str, Any], answer: Callable[[Message], Message] = serve) -> dict[str, Any]:
    """One run in this process, from where its folder is."""

    def noted(message: Message) -> Message:
        _ASKED.append(message.metadata.message_type)
        return answer(message)

    grid = StreamingGrid(LocalGrid(InProcess(noted), [NODE], 1), longest_pause_seconds=0.001)
    with server_identity(1):
        return conduct(read_config(flat), grid)


@dataclass
class Fork:
    """A run in a fork of this process.

    Args:
        flat: its config.
        prepare: called in the fork first.
        answer: the silos.
        work: what is run.
    """

    flat: dict[str, Any]
    prepare: Callable[[], None] = lambda: None
    answer: Callable[[Message], Message] = serve
    work: Callable[[dict[str, Any], Callable[[Message], Message]], Any] = run
    pid: int = field(init=False)

    def __post_init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of forks beside other threads
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                logging.disable(logging.CRITICAL)
                torch.set_num_threads(1)
                os.fsync = lambda _: None  # what a killed process has written is there all the same
                self.prepare()
                self.work(self.flat, self.answer)
                status = 0
            except BaseException:
                Path(f"{self.flat['run.output']}.error").write_text(traceback.format_exc())
            finally:
                sys.stdout.flush()
                os._exit(status)

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> bool:
        """Whether it came to its end; False where it was killed.

        Raises:
            AssertionError: it failed, with its traceback, or hangs.
        """
        end = time.monotonic() + _PATIENCE_SECONDS
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                self.kill()
                os.waitpid(self.pid, 0)
                raise AssertionError("a run hangs")
            time.sleep(0.002)
        if os.WIFSIGNALED(found[1]):
            return False
        error = Path(f"{self.flat['run.output']}.error")
        assert found[1] == 0, error.read_text() if error.exists() else "a run failed"
        return True


def finish(flat: dict[str, Any]) -> None:
    """Resume a run until it is finished."""
    assert Fork(flat).wait()


def die_at(number: int, folder: Path, count: Callable[[int], None] = lambda _: None) -> Callable[[], None]:
    """What makes a fork kill itself just before the `number`-th time that it changes the file system.

    Counted is what is opened for writing, renamed, removed, made or flushed below the run's folder. A line
    that is appended to a log dies in its middle. With number 0 it lives, and `count` is told at each one.
    """
    done = 0

    def one_more() -> bool:
        nonlocal done
        done += 1
        count(done)
        return done == number

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
        if (writes or changes) and f"{os.fsdecode(arguments[0])}/".startswith(f"{folder}/") and one_more():
            die()

    real_write = os.write

    def write(descriptor: int, data: bytes) -> int:
        if one_more():
            real_write(descriptor, bytes(data)[: len(data) // 2])
            die()
        return real_write(descriptor, data)

    def fsync(descriptor: int) -> None:
        if one_more():
            die()

    def prepare() -> None:
        os.write, os.fsync = write, fsync
        sys.addaudithook(hook)

    return prepare


def changes_of(flat: dict[str, Any], work: Callable[..., Any] = run) -> int:
    """How often a whole run changes the file system."""
    told = Path(f"{flat['run.output']}.count")
    descriptor = os.open(told, os.O_CREAT | os.O_WRONLY)

    def note(done: int) -> None:
        os.pwrite(descriptor, b"%09d" % done, 0)

    finished = Fork(flat, die_at(0, Path(flat["run.output"]), note), work=work).wait()
    os.close(descriptor)
    assert finished
    return int(told.read_text())


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for times and the place where it lies: equal for equal runs."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".damaged" not in str(path))
    told = ("metrics.jsonl", "events.jsonl", "result.json", "config.toml")
    found: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.name if path.name in told else digest(path)
        for path in files
    }
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found["metrics"] = [exact.timeless(json.loads(line)) for line in lines]
    result = exact.timeless(json.loads((folder / "result.json").read_text()))
    found["result"] = result | {"adapter": Path(result["adapter"]).name}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    found["closed"] = [event["report"]["round"] for event in events if event["event"] == "round_closed"]
    found["finished"] = [event["event"] for event in events].count("finished")
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def no_reply(message: Message) -> Message:
    """Asks of a silo where none may be asked."""
    raise AssertionError(f"a silo was asked: {message.metadata.message_type}")
