"""Three good silos and a bad one, whole rounds with a run folder, and the two outcomes that there may be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.serverapp import Grid

from fedmerge.adapters import Lora
from fedmerge.errors import RoundFailed
from fedmerge.server.folder import RunFolder
from fedmerge.server.strategy import MergeStrategy
from fedmerge.server.streaming import StreamingGrid
from tests.server.world import FakeGrid, Node, initial, node_of, roster_of

from .link import Tamper, link_grid

NAMES = ("a", "b", "c", "d")
BAD = "d"
LORA = Lora(rank=2, alpha=4.0)
MakeGrid = Callable[[Node], Grid]


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Args:
        broadcasts: SHA-256 of the broadcast file of each round that was written, from round 0.
        refused: (silo, round, reason) of each refusal.
        lines: of metrics.jsonl.
        failure: the error that ended the run, if one did.
        strategy: that ran.
    """

    broadcasts: list[str]
    refused: list[tuple[str, int, str]]
    lines: list[dict] = field(repr=False)
    failure: RoundFailed | None
    strategy: MergeStrategy = field(repr=False)


def run(
    folder: Path, node: Node, *, rounds: int = 1, grid: MakeGrid = FakeGrid, names=NAMES, **settings
) -> Outcome:
    """A run of MergeStrategy over `node`, written to `folder`."""
    settings = {"quorum": 0.5, "wait_seconds": 0.0, "lora": LORA, "rule": "ties(density=0.5)", **settings}
    run_folder = RunFolder(folder, {"run.seed": 0})
    run_folder.start({})
    strategy = MergeStrategy(
        settings.pop("rule"), roster=roster_of(*names), folder=run_folder, observer=run_folder, **settings
    )
    failure = None
    try:
        strategy.start(StreamingGrid(grid(node)), initial(), num_rounds=rounds, timeout=0.05)
    except RoundFailed as error:
        failure = error
    finally:
        run_folder.close()
    return Outcome(
        [hash_of(path) for path in sorted(folder.glob("rounds/*/broadcast.safetensors"))],
        [(refusal.silo, refusal.round, refusal.reason) for refusal in strategy.refused],
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        failure,
        strategy,
    )


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


_known: dict[str, Outcome] = {}


def without(silo: str = BAD, **settings) -> Outcome:
    """The same run in which one silo does not answer; made once."""
    key = f"{silo} {sorted(settings.items())}"
    if key not in _known:
        with TemporaryDirectory() as folder:
            _known[key] = run(Path(folder) / "run", node_of({silo: lambda content: None}), **settings)
    return _known[key]


def left_out(folder: Path, change: Callable, **settings) -> Outcome:
    """Run with a bad silo; its reply must be refused and leave no trace, and the refusal must be written."""
    found = run(folder / "run", node_of({BAD: change}), **settings)
    return judged(found, **settings)


def tampered(folder: Path, tamper: Tamper, **settings) -> Outcome:
    """The same for a silo whose bytes are changed on their way, over Flower's own grid."""
    settings["grid"] = lambda node: link_grid(node, {BAD: tamper})
    return judged(run(folder / "run", node_of(), **settings), **settings)


def judged(found: Outcome, **settings) -> Outcome:
    """Hold a run with a bad silo against the run without it."""
    settings = {key: value for key, value in settings.items() if key != "grid"}
    assert found.failure is None, found.failure
    assert found.broadcasts == without(**settings).broadcasts
    assert {silo for silo, _, _ in found.refused} == {BAD}, found.refused
    for (silo, number, reason), line in zip(found.refused, found.lines, strict=True):
        [told] = line["refused"]
        assert (told["silo"], told["reason"], line["round"]) == (silo, reason, number)
    return found


def intact(outcome: Outcome, rounds: int = 0) -> str:
    """The run must have failed clearly after so many rounds, the last good adapter untouched; why it did."""
    assert outcome.failure is not None
    assert f"The adapter of round {rounds} is intact" in str(outcome.failure)
    assert len(outcome.broadcasts) == rounds + 1
    assert outcome.lines[-1]["failed"] == str(outcome.failure)
    return str(outcome.failure)


def everyone(change: Callable) -> Mapping[str, Callable]:
    """Every silo answers like that."""
    return dict.fromkeys(NAMES, change)
