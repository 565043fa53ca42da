"""Rules that need statistics of the silos, from the run-config to result.json, with both engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load_file

from fedmerge import client_app
from fedmerge.adapters import Adapter
from fedmerge.adapters.merge import merge
from fedmerge.config import read_config
from fedmerge.engine.executors import InProcess
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.engine.local import run_local
from fedmerge.engine.superlink import run_flower
from fedmerge.errors import ConfigError, RoundFailed
from fedmerge.server.observer import Silent
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.conduct import conduct
from fedmerge.wire.protocol import FEDMERGE

STRATEGY = {"run__baselines": "", "strategy__space": "factors()", "run__record": True}
RULES = {"fisher()": "fisher", "regmean()": "gram"}


def run(flat, spoil=lambda message, reply: reply):
    def serve(message):
        context = Context(1, message.metadata.dst_node_id, {}, RecordDict(), dict(flat))
        return spoil(message, client_app.app(message, context))

    grid = LocalGrid(InProcess(serve), [7], run_id=1)
    with server_identity(run_id=1):
        return conduct(read_config(flat), StreamingGrid(grid))


@pytest.mark.parametrize(("rule", "name"), RULES.items())
def test_a_run_merges_what_it_recorded(tiny_flat, tmp_path, rule, name):
    result = run(tiny_flat(**STRATEGY, strategy__rule=rule))
    assert result["rule"] == rule and not result["refused"] and len(result["rounds"]) == 2
    folder = tmp_path / "run" / "rounds" / "0002"
    deltas = {path.stem: load_file(path) for path in sorted((folder / "deltas").iterdir())}
    assert sorted(deltas) == ["birds", "rocks", "ships"]
    again = merge(
        list(deltas.values()),
        received=load_file(folder.parent / "0001" / "broadcast.safetensors"),
        rule=rule,
        names=list(deltas),
        round=2,
        statistics=[
            {name: load_file(folder / "statistics" / f"{silo}.{name}.safetensors")} for silo in deltas
        ],
    )
    kept = load_file(folder / "broadcast.safetensors")
    assert all(torch.equal(value, kept[key]) for key, value in again.adapter.tensors.items())


def test_shadows_are_scored_too(tiny_flat):
    shadows = "fisher(floor=1e-8, normalize='tensor') @ factors(); regmean() @ factors()"
    result = run(tiny_flat(run__baselines="", run__rounds=1, strategy__shadows=shadows))
    assert {
        "shadow/fisher(floor=1e-08, normalize='tensor') @ factors()",
        "shadow/regmean() @ factors()",
    } < set(result["candidates"])


def test_a_space_of_products_is_refused_with_the_config(tiny_flat):
    with pytest.raises(ConfigError, match=r"\[strategy\]: fisher\(\) needs .* not in product\(\)"):
        read_config(tiny_flat(strategy__rule="fisher()"))
    with pytest.raises(ConfigError, match=r"train\.statistics-rows"):
        read_config(tiny_flat(train__statistics_rows=-1))


def test_silos_too_old_to_measure_are_named_before_anything_is_trained(tiny_flat):
    trained = []

    def older(message, reply):
        if message.metadata.message_type == "query":
            del reply.content[FEDMERGE]["statistics"]
        else:
            trained.append(message)
        return reply

    with pytest.raises(ConfigError, match=r"'birds', 'rocks', 'ships' can't measure 'fisher' .* is older"):
        run(tiny_flat(**STRATEGY, strategy__rule="fisher()"), older)
    assert not trained


def test_a_silo_that_sends_none_is_refused_by_name_and_reason(tiny_flat, tmp_path):
    def forgetful(message, reply):
        if reply.content.get(FEDMERGE, {}).get("silo") == "rocks":
            reply.content.pop("statistics/fisher", None)
        return reply

    flat = tiny_flat(**STRATEGY, run__rounds=1, strategy__rule="fisher()", strategy__quorum=0.5)
    [refusal] = run(flat, forgetful)["refused"]
    assert refusal["silo"] == "rocks" and "carries no 'statistics/fisher'" in refusal["reason"]
    with pytest.raises(RoundFailed, match=r"refused: rocks \(it carries no 'statistics/fisher'"):
        run(flat | {"strategy.quorum": 1.0, "run.output": str(tmp_path / "all")}, forgetful)


def test_fewer_rows_cost_less_and_give_another_fisher(tiny_flat, tmp_path):
    found = []
    for rows in (1, 0):
        flat = tiny_flat(
            **STRATEGY, run__rounds=1, strategy__rule="fisher()", train__statistics_rows=rows,
            run__output=str(tmp_path / str(rows)),
        )  # fmt: skip
        run(flat)
        found.append(load_file(tmp_path / str(rows) / "rounds/0001/statistics/birds.fisher.safetensors"))
    assert not all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_flower_and_local_engine_give_the_same_bits(tiny_flat, tmp_path, rule):
    adapters = []
    for engine, folder in ((run_local, tmp_path / "local"), (run_flower, tmp_path / "flower")):
        flat = tiny_flat(**STRATEGY, run__rounds=1, strategy__rule=rule, run__output=str(folder))
        engine(read_config(flat), Silent())
        assert json.loads((folder / "result.json").read_text())["rule"] == rule
        assert len(list((folder / "rounds" / "0001" / "statistics").iterdir())) == 3
        adapters.append(Adapter(load_file(Path(folder, "rounds/0001/broadcast.safetensors"))))
    local, flower = adapters
    assert all(torch.equal(value, flower.tensors[name]) for name, value in local.tensors.items())
