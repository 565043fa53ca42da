"""How often a deployed node loads its base: each message is a new process, so each that needs it does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedmerge import client_app
from fedmerge.config import read_config
from fedmerge.engine.executors import InProcess
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.conduct import conduct
from fedmerge.silo import worker


def test_once_a_round_once_for_the_scores_at_the_end_and_not_for_a_query(
    tiny_flat: Any, tiny_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tiny_rows.read_text().splitlines(keepends=True)
    configs: dict[int, dict[str, str]] = {}
    for node, start in ((7, 0), (8, 30)):
        rows = tmp_path / f"{node}.jsonl"
        rows.write_text("".join(lines[start : start + 30]))
        (tmp_path / f"{node}.toml").write_text(f'silo = "hospital-{node}"\ndata = "{rows}"\n')
        configs[node] = {"site": str(tmp_path / f"{node}.toml")}
    flat = tiny_flat(run__rounds=3, run__baselines="")
    messages: Counter[tuple[int, str]] = Counter()
    loads: Counter[tuple[int, str]] = Counter()
    serving: list[tuple[int, str]] = []
    load_base = worker.load_base

    def counted(*given: Any) -> Any:
        loads[serving[-1]] += 1
        return load_base(*given)

    def serve(message: Message) -> Message:
        client_app._stations.clear()  # a new process
        node = message.metadata.dst_node_id
        serving.append((node, message.metadata.message_type))
        messages[serving[-1]] += 1
        return client_app.app(message, Context(1, node, dict(configs[node]), RecordDict(), dict(flat)))

    monkeypatch.setattr(worker, "load_base", counted)
    with server_identity(run_id=1):
        conduct(read_config(flat), StreamingGrid(LocalGrid(InProcess(serve), [7, 8], run_id=1)))
    for node in configs:
        assert messages[node, "train"] == loads[node, "train"] == 3
        assert messages[node, "evaluate"] == loads[node, "evaluate"] == 1
        assert messages[node, "query"] == 1
        assert loads[node, "query"] == 0
