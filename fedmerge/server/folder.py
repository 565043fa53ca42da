"""A run's folder: everything a run leaves behind, written atomically, by one writer.

::

    config.toml          the run-config; `fedmerge simulate` reads it again
    environment.json     versions, device, threads, fingerprint of the base
    metrics.jsonl        one line a round
    events.jsonl         every observer event, one line each
    rounds/0000/         broadcast.safetensors and state.json: the initial adapter
    rounds/0003/         what round 3 made of rounds/0002; optimizer.safetensors; until it is closed, or for
                         good: deltas/<silo>.safetensors, statistics/<silo>.fisher.safetensors, replies.json;
                         with run.keep-rounds only state.json stays of earlier rounds
    rounds/0003.damaged/ what a resumed run found to be so, and did not use
    adapter/             the final adapter in PEFT's format
    private/<silo>/      what silos keep to themselves, by round, and
    personal/<silo>/     each silo's own final adapter, where a simulation sets lora.private
    result.json          the scores
    failed.json          why a run that failed did; adapter/ is then that of the last closed round
    tensorboard/, mlflow/  what the trackers of those names write; MLflow keeps the runs before, too

Each state.json has the hashes of its round's files and of the state.json of the round before, and all that
the next round depends on besides: a run that ended early goes on from there (`fedmerge.server.saved`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from fedmerge.adapters import Adapter
from fedmerge.errors import CheckpointError
from fedmerge.server import storage
from fedmerge.server.chain import STATE, sealed
from fedmerge.server.forms import adapter_form, reply_form
from fedmerge.server.guard import Admitted
from fedmerge.wire.filenames import file_name
from fedmerge.wire.files import save_adapter

NOT_IDENTITY = ("run.output", "run.name", "run.trackers", "run.resume", "run.keep-rounds", "engine.")
"""Keys that say where a run is written and shown and how fast it is computed, but not what it computes."""

_OURS = (
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "events.jsonl",
    "result.json",
    "failed.json",
    "rounds",
    "adapter",
    "tensorboard",  # not mlflow/: that is a database of runs, and this process may have it open
    "private",
    "personal",
)
BROADCAST = "broadcast.safetensors"
OPTIMIZER = "optimizer.safetensors"
REPLIES = "replies.json"
_OF_REPLIES = (REPLIES, "deltas", "statistics")  # without the first the others are no whole round


class RunFolder:
    """The folder of one run; also an `Observer` that writes every event down.

    Args:
        path: of the folder; it need not exist.
        config: the whole run-config, flat: "run.rounds" -> 4.

    Raises:
        CheckpointError: the folder belongs to a run of another config (the message names the keys), holds
            something else, is in use by another run, or can't be written.
    """

    def __init__(self, path: str | Path, config: Mapping[str, storage.Scalar]) -> None:
        """Open the folder and check that it is ours; nothing that is in it changes before `start`."""
        self.path = Path(path).expanduser().absolute()
        self.config = dict(config)
        self._events: TextIO | None = None
        self._last_state = ""
        self._begun: Mapping[str, Any] = {}
        with storage.writing(self.path):
            self._check_owner()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = storage.lock(self.path)

    def start(self, environment: Mapping[str, Any], begun: Mapping[str, Any] | None = None) -> None:
        """Replace what an earlier run of the same config left, and begin: config, environment, empty logs.

        Args:
            environment: content of environment.json.
            begun: what a resumed run must find to be so again; it stands with the environment in round 0.
        """
        self._begun = {"environment": dict(environment), **(begun or {})}
        with storage.writing(self.path):
            self.sweep()
            for name in _OURS:
                if name != "config.toml":  # it marks the folder as ours while the rest is removed
                    storage.remove(self.path / name)
            storage.write_text(self.path / "config.toml", storage.to_toml(self.config))
            storage.write_json(self.path / "environment.json", environment)
            self._open_events()

    def go_on(self, last_state: str, environment: Mapping[str, Any]) -> None:
        """Go on with the run that is in the folder.

        Args:
            last_state: SHA-256 of the state.json of its last round.
            environment: of the run; written again where the file is gone.
        """
        self._last_state = last_state
        with storage.writing(self.path):
            self.sweep()
            storage.remove(self.path / "tensorboard")  # it is told all rounds again
            storage.write_text(self.path / "config.toml", storage.to_toml(self.config))  # what is no identity
            if not (self.path / "environment.json").is_file():
                storage.write_json(self.path / "environment.json", environment)
            self._open_events()
        self._event("resumed")

    def write_round(
        self,
        round: int,
        broadcast: Adapter,
        *,
        optimizer: Mapping[str, Tensor] | None = None,
        state: Mapping[str, Any] | None = None,
        recorded: bool = True,
    ) -> None:
        """Write what a round made; its state.json comes last, so that a folder with one is whole.

        Args:
            round: its number; 0 for the initial adapter.
            broadcast: the adapter of the next round.
            optimizer: state of the server optimizer, if it has any.
            state: further values for state.json.
            recorded: whether the deltas that are there are a part of it, with their hashes.
        """
        folder = self.round_folder(round)
        with storage.writing(folder):
            tensors = {BROADCAST: broadcast.tensors, OPTIMIZER: optimizer or {}}
            files: dict[str, storage.Content] = {
                name: storage.tensors_file(values) for name, values in tensors.items() if values
            }
            hashes = {name: storage.sha256_of(data) for name, data in files.items()}
            for place in ("deltas", "statistics") if recorded else ():
                for path in sorted((folder / place).glob("*.safetensors")):
                    hashes[f"{place}/{path.name}"] = storage.hash_of(path)
            record = {"round": round, "previous": self._last_state, "sha256": hashes, **(state or {})}
            record |= adapter_form(broadcast) | {"remembers": optimizer is not None}
            record |= {"begun": self._begun} if round == 0 else {}
            files[STATE] = sealed(record)
            storage.write_together(folder, files)
            self._last_state = storage.sha256_of(files[STATE])

    def write_replies(self, round: int, replies: Sequence[Admitted], report: Mapping[str, Any]) -> None:
        """Write down what a round is going to merge; replies.json comes last, when all the others are there.

        Args:
            round: that is open.
            replies: all that it admitted.
            report: of the round so far.
        """
        folder = self.round_folder(round)
        self.forget_replies(round)
        hashes: dict[str, str] = {}
        for reply in replies:
            hashes |= self.write_delta(round, reply.silo, reply.delta, reply.statistics)
        told = {"round": round, "previous": self._last_state, "sha256": hashes, "report": report}
        told["replies"] = [reply_form(reply) for reply in replies]
        with storage.writing(folder):
            storage.write_bytes(folder / REPLIES, sealed(told))

    def write_delta(
        self,
        round: int,
        silo: str,
        delta: Adapter,
        statistics: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> dict[str, str]:
        """Write one silo's delta down, and what it measured; returns their hashes by file."""
        file = file_name(silo)  # a silo's own dots are quoted
        written = {f"deltas/{file}.safetensors": delta.tensors}
        for name, values in (statistics or {}).items():
            written[f"statistics/{file}.{name}.safetensors"] = dict(values)
        hashes = {}
        for name, tensors in written.items():
            path = self.round_folder(round) / name
            with storage.writing(path):
                hashes[name] = storage.write_tensors(path, tensors, silo)
        return hashes

    def forget_replies(self, round: int, *, recorded: bool = False) -> None:
        """Remove what a round merged, or where it is recorded what only says that it is all there."""
        folder = self.round_folder(round)
        with storage.writing(folder):
            for name in _OF_REPLIES[: 1 if recorded else None]:
                storage.remove(folder / name)

    def forget_tensors(self, rounds: Iterable[int]) -> None:
        """Remove the tensors of closed rounds; their state.json still tells what they were."""
        for round in rounds:
            folder = self.round_folder(round)
            with storage.writing(folder):
                for name in (BROADCAST, OPTIMIZER):
                    storage.remove(folder / name)

    def write_adapter(
        self, adapter: Adapter, *, base_model: str = "", task_type: str | None = None, silo: str = ""
    ) -> Path:
        """Write the final adapter, or with `silo` that silo's own, in PEFT's format; returns its folder."""
        path = self.path / "personal" / file_name(silo) if silo else self.path / "adapter"
        with storage.writing(path):
            save_adapter(adapter, path, base_model=base_model, task_type=task_type)
        return path

    def round_folder(self, round: int) -> Path:
        """Where a round is written."""
        return self.path / "rounds" / f"{round:04d}"

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self._events is not None:
            self._events.close()
            self._events = None
        self._lock.close()

    def run_started(self, plan: Mapping[str, Any]) -> None:
        """Write the event."""
        self._event("run_started", plan=plan)

    def phase(self, text: str) -> None:
        """Write the event."""
        self._event("phase", text=text)

    def round_started(self, round: int, silos: Sequence[str]) -> None:
        """Write the event."""
        self._event("round_started", round=round, silos=list(silos))

    def reply(self, round: int, silo: str, outcome: str, metrics: Mapping[str, float]) -> None:
        """Write the event."""
        self._event("reply", round=round, silo=silo, outcome=outcome, metrics=metrics)

    def round_closed(self, report: Mapping[str, Any]) -> None:
        """Write the event, and the round's line in metrics.jsonl."""
        with storage.writing(self.path), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            storage.append_line(lines, storage.to_json(report))
        self._event("round_closed", report=report)

    def finished(self, result: Mapping[str, Any]) -> None:
        """Write result.json and the event."""
        with storage.writing(self.path):
            storage.write_json(self.path / "result.json", result)
            storage.remove(self.path / "failed.json")  # of a run that was taken up again
        self._event("finished", result=result)

    def _open_events(self) -> None:
        self._events = (self.path / "events.jsonl").open("a", encoding="utf-8")

    def sweep(self) -> None:
        """Remove what earlier runs were writing, or removing, when they died."""
        with storage.writing(self.path):
            for name in _OURS:
                storage.sweep(self.path / name)
            for path in filter(storage.is_hidden, self.path.iterdir()):
                storage.remove(path)

    def _event(self, name: str, **values: Any) -> None:
        """Append one line to events.jsonl."""
        if self._events is None:
            raise CheckpointError(f"{self.path}: the folder was not started, or is closed")
        with storage.writing(self.path):
            line = {"event": name, "time": round(time.time(), 3), **values}
            storage.append_line(self._events, storage.to_json(line), durable=False)

    def _check_owner(self) -> None:
        """Refuse a folder that holds something else than an earlier run of this config."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path} is a file, expected a folder for the run")
        config = self.path / "config.toml"
        if not config.is_file():
            others = (path for path in self.path.iterdir() if not storage.is_hidden(path))
            strangers = sorted(path.name for path in others if path.name != storage.LOCK)
            if strangers:
                raise CheckpointError(
                    f"{self.path} holds {strangers[0]!r} and no config.toml: it is no run's folder"
                )
            return
        keys = differing_keys(storage.read_toml(config), self.config)
        if keys:
            raise CheckpointError(
                f"{self.path} holds a run of another config: {', '.join(keys)} differ; "
                "give this run another run.output"
            )


def differing_keys(earlier: Mapping[str, object], config: Mapping[str, object]) -> list[str]:
    """The keys that two run-configs do not share, or not with the same value, sorted.

    Example:
        >>> differing_keys({"run.seed": 0, "run.name": "a"}, {"run.seed": 1, "run.name": "b"})
        ['run.seed']
    """
    keys = {key for key in earlier.keys() | config.keys() if not key.startswith(NOT_IDENTITY)}
    absent = object()
    return sorted(key for key in keys if earlier.get(key, absent) != config.get(key, absent))
