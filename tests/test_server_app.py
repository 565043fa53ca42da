import hashlib
import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedmerge import client_app, server_app
from fedmerge.config import read_config
from fedmerge.engine.executors import InProcess
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.errors import ConfigError, RoundFailed
from fedmerge.server.membership import Membership, judge
from fedmerge.server.roster import Roster
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.conduct import conduct
from fedmerge.server_app.muster import Muster
from fedmerge.server_app.outcome import environment
from fedmerge.server_app.resumption import same_run
from fedmerge.server_app.scoring import Scores
from fedmerge.wire.files import load_adapter
from fedmerge.wire.protocol import FEDMERGE, METRICS, Card, QueryReply, read_instruction


class Silos:
    """Every node's ClientApp in this process; notes the orders that go out, and may spoil replies."""

    def __init__(self, flat, nodes=None, spoil=None):
        self.flat, self.nodes = flat, nodes or {7: {}}
        self.spoil = spoil or (lambda message, reply: reply)
        self.orders = []

    def serve(self, message):
        node = message.metadata.dst_node_id
        if message.metadata.message_type != "query":
            self.orders.append((message.metadata.message_type, node, read_instruction(message.content)))
        context = Context(1, node, dict(self.nodes[node]), RecordDict(), dict(self.flat))
        return self.spoil(message, client_app.app(message, context))

    def run(self, observer=None):
        grid = LocalGrid(InProcess(self.serve), sorted(self.nodes), run_id=1)
        with server_identity(run_id=1):
            return conduct(read_config(self.flat), StreamingGrid(grid), observer)

    def trained(self, *streams):
        return [order for kind, _, order in self.orders if kind == "train" and order.stream in streams]


def broadcast(folder, round):
    from safetensors.torch import load_file

    return load_file(folder / "rounds" / f"{round:04d}" / "broadcast.safetensors")


def test_the_app_runs_what_its_context_says(tiny_flat, tmp_path):
    flat = tiny_flat(run__rounds=1, run__baselines="")
    grid = LocalGrid(InProcess(Silos(flat).serve), [7], run_id=1)
    with server_identity(run_id=1):
        server_app.app(grid, Context(1, 1, {}, RecordDict(), flat))
    assert list(json.loads((tmp_path / "run" / "result.json").read_text())["candidates"]) == [
        "base",
        "merged",
    ]


def test_an_error_leaves_the_app_so_that_flower_says_failed(tiny_flat):
    flat = tiny_flat(data__source="/nowhere/rows.jsonl")
    grid = LocalGrid(InProcess(Silos(flat).serve), [7], run_id=1)
    with server_identity(run_id=1), pytest.raises(RoundFailed, match=r"data\.source"):
        server_app.app(grid, Context(1, 1, {}, RecordDict(), flat))


def test_one_round_alone_is_the_delta_that_was_sent_and_trains_nothing_more(tiny_flat, tmp_path):
    silos = Silos(tiny_flat(run__rounds=1, run__baselines="alone", run__record=True))
    result = silos.run()
    assert len(silos.trained("")) == 3 and not silos.trained("alone", "pooled")
    assert {"alone/birds", "alone/rocks", "alone/ships"} < set(result["candidates"])
    assert len({row["mean"] for row in result["candidates"].values()}) == 5


def test_more_rounds_alone_and_pooled_train_as_much_as_all_rounds_together(tiny_flat):
    silos = Silos(tiny_flat(run__rounds=2))
    silos.run()
    assert [(order.silo, order.steps) for order in silos.trained("alone")] == [
        ("birds", 6), ("rocks", 6), ("ships", 6),
    ]  # fmt: skip
    assert [(order.silo, order.steps) for order in silos.trained("pooled")] == [("pooled", 18)]


def test_baselines_in_epochs(tiny_flat):
    silos = Silos(tiny_flat(run__rounds=2, train__steps=0, train__epochs=1))
    silos.run()
    assert [order.epochs for order in silos.trained("alone", "pooled")] == [2, 2, 2, 2]
    assert {order.steps for order in silos.trained("alone", "pooled")} == {0}


def test_a_baseline_that_fails_is_left_out(tiny_flat):
    def no_pooled(message, reply):
        if reply.content[FEDMERGE]["silo"] != "pooled":
            return reply
        failed = ConfigRecord({"failure": "ValueError", "sentence": "as wished"})
        return Message(RecordDict({FEDMERGE: failed}), reply_to=message)

    result = Silos(tiny_flat(), spoil=lambda m, r: r if is_query(m) else no_pooled(m, r)).run()
    assert "pooled" not in result["candidates"] and "alone/birds" in result["candidates"]


def is_query(message):
    return message.metadata.message_type == "query"


def test_a_silo_that_does_not_score_at_the_end_is_left_out_of_the_table(tiny_flat):
    def silent(message, reply):
        late = message.metadata.message_type == "evaluate" and reply.content[FEDMERGE]["silo"] == "rocks"
        failed = ConfigRecord({"failure": "ValueError"})
        return Message(RecordDict({FEDMERGE: failed}), reply_to=message) if late else reply

    result = Silos(tiny_flat(run__baselines=""), spoil=silent).run()
    assert set(result["candidates"]["merged"]["test"]) == {"birds", "ships"}


def test_scores_that_are_none_leave_the_silo_out_and_end_nothing(tiny_flat):
    def empty(message, reply):
        if message.metadata.message_type == "evaluate" and reply.content[FEDMERGE]["silo"] == "rocks":
            del reply.content[METRICS]
        return reply

    result = Silos(tiny_flat(run__baselines=""), spoil=empty).run()
    assert set(result["candidates"]["merged"]["test"]) == {"birds", "ships"}


def test_a_shadow_that_fails_is_left_out_and_ends_nothing(tiny_flat):
    shadows = "task_arithmetic(scale=1e42) @ factors(); ties(density=0.5) @ factors()"
    result = Silos(tiny_flat(run__baselines="", strategy__shadows=shadows)).run()
    names = [name for name in result["candidates"] if name.startswith("shadow/")]
    assert names == ["shadow/ties(density=0.5) @ factors()"]


def test_no_scores_at_all_fail_the_run(tiny_flat):
    def silent(message, reply):
        if message.metadata.message_type != "evaluate":
            return reply
        return Message(RecordDict({FEDMERGE: ConfigRecord({"failure": "ValueError"})}), reply_to=message)

    with pytest.raises(RoundFailed, match="no silo scored"):
        Silos(tiny_flat(run__baselines=""), spoil=silent).run()


def test_the_result_is_a_peft_adapter_that_says_where_it_comes_from(tiny_flat, tmp_path):
    result = Silos(tiny_flat(run__baselines="", run__keep="last")).run()
    adapter = load_adapter(result["adapter"])
    last = broadcast(tmp_path / "run", 2)
    assert adapter.tensors.keys() == last.keys()
    assert all(torch.equal(adapter.tensors[name], last[name]) for name in last)
    assert (adapter.lora.rank, adapter.lora.alpha) == (2, 4.0)
    metadata = {key: adapter.metadata[key] for key in ("rule", "space", "task", "round")}
    assert metadata == {"rule": "fedavg()", "space": "product()", "task": "causal-lm", "round": "2"}
    assert len(adapter.metadata["fingerprint"]) == 64


def worse_at_the_end(message, reply):
    """Say that what the last round made is worse than everything before."""
    if "merged/validation/bits_per_byte" in reply.content.get(METRICS, ()):
        reply.content[METRICS]["merged/validation/bits_per_byte"] += 1.0
    return reply


@pytest.mark.parametrize(("keep", "kept", "round"), [("best", "merged/1", 1), ("last", "merged", 2)])
def test_an_earlier_round_is_kept_where_it_was_better(tiny_flat, tmp_path, keep, kept, round):
    flat = tiny_flat(run__baselines="", run__keep=keep, train__learning_rate=0.01, strategy__gate="off()")
    result = Silos(flat, spoil=worse_at_the_end).run()
    assert result["kept"] == kept
    assert {"merged", "merged/1"} < set(result["candidates"])
    expected = broadcast(tmp_path / "run", round)
    tensors = load_adapter(result["adapter"]).tensors
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def scores_of(*changes):
    """Adds to what silos measure: each change is the key of a figure, and what is added to it."""

    def spoil(message, reply):
        metrics = reply.content.get(METRICS, {})
        for key, amount in changes:
            if key in metrics:
                metrics[key] += amount
        return reply

    return spoil


@pytest.mark.parametrize("keep", ["best", "last"])
def test_what_the_last_round_made_is_not_kept_where_it_hurts(tiny_flat, tmp_path, keep):
    flat = tiny_flat(run__baselines="", run__keep=keep, train__learning_rate=0.01)
    result = Silos(flat, spoil=worse_at_the_end).run()
    assert result["kept"] == "merged/1"
    [sentence] = result["rejected"]
    assert sentence.startswith("the merge of round 2 raised bits_per_byte by more than 2 % at 3 of 3 silos (")
    assert sentence.endswith("): it is not kept")
    assert f"rejected by the gate: {sentence}" in server_app.summary(result)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["rejected"] == [sentence] and set(written["candidates"]) == {"base", "merged/1", "merged"}
    expected, adapter = broadcast(tmp_path / "run", 1), load_adapter(result["adapter"])
    assert all(torch.equal(adapter.tensors[name], expected[name]) for name in expected)
    assert adapter.metadata["round"] == "1"


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_single_round_that_hurts_leaves_the_initial_adapter(tiny_flat, tmp_path, keep):
    flat = tiny_flat(run__baselines="", run__keep=keep, run__rounds=1)
    result = Silos(flat, spoil=worse_at_the_end).run()
    assert result["kept"] == "base" and len(result["rejected"]) == 1
    expected, adapter = broadcast(tmp_path / "run", 0), load_adapter(result["adapter"])
    assert all(torch.equal(adapter.tensors[name], expected[name]) for name in expected)
    assert adapter.metadata["round"] == "0"


def test_a_little_worse_is_kept_where_the_last_is_wanted(tiny_flat):
    flat = tiny_flat(run__baselines="", run__keep="last")
    result = Silos(flat, spoil=scores_of(("merged/validation/bits_per_byte", 0.05))).run()
    assert (result["kept"], result["rejected"]) == ("merged", [])


def test_a_run_whose_last_round_was_rejected_ends_with_the_last_good_adapter(tiny_flat, tmp_path):
    def worse_in_two(message, reply):
        order = read_instruction(message.content) if not is_query(message) else None
        hurt = order is not None and message.metadata.message_type == "train" and order.round == 2
        return scores_of(("received/validation/bits_per_byte", 9.0 * hurt))(message, reply)

    result = Silos(tiny_flat(run__baselines="", strategy__shadows="median()"), spoil=worse_in_two).run()
    assert result["kept"] == "merged" and set(result["candidates"]) == {"base", "merged"}
    assert result["rejected"] == [result["rounds"][1]["rejected"]]
    assert result["rejected"][0].endswith("back to the initial adapter")
    first, last = (broadcast(tmp_path / "run", number) for number in (0, 2))
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert load_adapter(result["adapter"]).metadata["round"] == "0"


SHADOWS = "ties(density=0.5) @ product(); task_arithmetic(scale=1e42) @ factors()"
NAMES = ["merged", "ties(density=0.5) @ product()", "task_arithmetic(scale=1e+42) @ factors()"]


def test_shadows_are_scored_in_every_round_and_change_nothing(tiny_flat, tiny_rows, tmp_path):
    digests, counted = set(), {}
    for number, (shadows, scoring) in enumerate(
        (("", "final"), (SHADOWS, "final"), (SHADOWS, "server"), (SHADOWS, "silos"))
    ):
        changes = {"strategy__shadows": shadows, "strategy__shadow_scoring": scoring}
        flat = tiny_flat(run__baselines="", data__server=str(tiny_rows), **changes)
        result = Silos(flat | {"run.output": str(tmp_path / str(number))}).run()
        digests.add(
            hashlib.sha256(
                (tmp_path / f"{number}/adapter/adapter_model.safetensors").read_bytes()
            ).hexdigest()
        )
        counted[scoring] = result
        for report in result["rounds"]:
            assert list(report["shadows"]) == (NAMES if scoring != "final" else [])
            assert "error" in report["shadows"].get(NAMES[2], {"error": ""})
    assert len(digests) == 1
    for report in counted["server"]["rounds"]:
        rows = [report["shadows"][name] for name in NAMES[:2]]
        assert all(5 < row["server"] == row["mean"] == row["worst"] < 9 for row in rows)
        assert rows[0]["server"] != rows[1]["server"] and rows[0]["metric"] == "bits_per_byte"
    reports = counted["silos"]["rounds"]
    assert set(reports[0]["shadows"]["merged"]["silos"]) == {"birds", "rocks", "ships"}
    # what round 1 made is scored again when round 2 receives it, by the same rows
    assert reports[0]["shadows"]["merged"]["silos"] == reports[1]["received"]["silos"]
    sent = sum(report["shadow_bytes"]["down"] for report in reports)
    assert sent > 0 and counted["silos"]["bytes_down"] == counted["server"]["bytes_down"] + sent
    lines = [json.loads(line) for line in (tmp_path / "3" / "metrics.jsonl").read_text().splitlines()]
    assert [list(line["shadows"]) for line in lines] == [NAMES, NAMES]


@pytest.mark.parametrize(("scoring", "rounds"), [("final", 0), ("server", 2), ("silos", 2)])
def test_shadows_in_a_deployment(tiny_flat, tiny_rows, hospitals, scoring, rounds):
    changes = {"strategy__shadows": "median() @ factors()", "strategy__shadow_scoring": scoring}
    silos = Silos(tiny_flat(data__server=str(tiny_rows), **changes), nodes=hospitals)
    result = silos.run()
    assert [bool(report["shadows"]) for report in result["rounds"]] == [rounds == 2] * 2
    asked = [order for kind, _, order in silos.orders if kind == "evaluate" and order.round and order.silo]
    assert len(asked) == 2 * (2 if scoring == "silos" else 0) + 2  # and once at the end, each
    assert set(result["candidates"]) - {"merged/1"} == {"base", "merged"}
    if scoring == "silos":
        assert set(result["rounds"][0]["shadows"]["median() @ factors()"]["silos"]) == {
            "hospital-a",
            "hospital-b",
        }


def test_rows_of_the_server_that_can_not_be_used_are_found_before_anybody_trains(tiny_flat, tmp_path):
    silos = Silos(
        tiny_flat(
            data__server=str(tmp_path / "none.jsonl"),
            strategy__shadows="median()",
            strategy__shadow_scoring="server",
        )
    )
    with pytest.raises(ConfigError, match=r"data\.server: .*none\.jsonl.*no such file"):
        silos.run()
    assert not silos.orders


@pytest.mark.parametrize("scoring", ["server", "silos"])
def test_of_private_adapters_only_the_silos_can_score_shadows(tiny_flat, tiny_rows, scoring):
    changes = {"strategy__shadows": "median() @ factors()", "strategy__shadow_scoring": scoring}
    silos = Silos(
        tiny_flat(run__baselines="", lora__private="B", strategy__space="factors()", **changes)
        | {"data.server": str(tiny_rows)}
    )
    if scoring == "server":
        with pytest.raises(ConfigError, match=r"with lora\.private = 'B' the server has a part"):
            silos.run()
        assert not silos.orders
        return
    first, second = silos.run()["rounds"]
    assert first["shadows"]["merged"]["silos"] == second["received"]["silos"]
    assert set(first["shadows"]["median() @ factors()"]["silos"]) == {"birds", "rocks", "ships"}


def test_of_equally_good_rounds_the_last_is_best():
    scores = {f"{name}/validation/loss": value for name, value in (("merged/1", 1.0), ("merged", 1.0))}
    assert Scores({"a": scores}).best(("merged/1", "merged")) == "merged"
    assert (
        Scores({"a": scores | {"merged/1/validation/loss": 0.9}}).best(("merged/1", "merged")) == "merged/1"
    )
    assert Scores({"a": {}}).best(("merged/1", "merged")) == "merged"


@pytest.fixture
def hospitals(tiny_rows, tmp_path):
    """The node-configs of two deployed silos."""
    lines = tiny_rows.read_text().splitlines(keepends=True)
    configs = {}
    for node, (name, rows) in enumerate(
        {"hospital-a": lines[:30], "hospital-b": lines[30:60]}.items(), start=7
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(rows))
        configs[node] = {"silo": name, "data": str(path)}
    return configs


def test_in_a_deployment_each_node_serves_its_silo_and_baselines_are_not_trained(tiny_flat, hospitals):
    silos = Silos(tiny_flat(), nodes=hospitals)
    result = silos.run()
    assert result["silos"] == ["hospital-a", "hospital-b"]
    assert {(node, order.silo) for _, node, order in silos.orders} == {(7, "hospital-a"), (8, "hospital-b")}
    assert [name for name in result["candidates"] if not name.startswith("merged")] == ["base"]


def test_a_deployment_waits_for_the_silos_it_names(tiny_flat, hospitals):
    silos = Silos(tiny_flat(data__silos="hospital-a, hospital-b"), nodes=hospitals)
    grid = LocalGrid(InProcess(silos.serve), [7], run_id=1)
    looks = []

    def late():
        looks.append(1)
        return [7] if len(looks) < 4 else [7, 8]

    grid.get_node_ids = late
    with server_identity(run_id=1):
        result = conduct(read_config(silos.flat), StreamingGrid(grid))
    assert result["silos"] == ["hospital-a", "hospital-b"]


def test_no_node_fails_the_run_after_the_wait(tiny_flat):
    grid = LocalGrid(InProcess(Silos({}).serve), [], run_id=1)
    with pytest.raises(RoundFailed, match=r"no node connected within 0\.3 seconds"):
        conduct(read_config(tiny_flat(strategy__wait_seconds=0.3)), StreamingGrid(grid))


def test_silos_on_another_base_are_refused_before_anything_is_trained(tiny_flat):
    def other_base(message, reply):
        if is_query(message):
            reply.content[FEDMERGE]["fingerprint"] = "f" * 64
        return reply

    silos = Silos(tiny_flat(), spoil=other_base)
    with pytest.raises(ConfigError, match=r"base\.model must be the same"):
        silos.run()
    assert not silos.orders


def changed_card(node, change):
    """Spoils what one node says of itself."""

    def spoil(message, reply):
        if is_query(message) and message.metadata.dst_node_id == node:
            change(reply.content[FEDMERGE])
        return reply

    return spoil


def another_base(record):
    record["fingerprint"] = "f" * 64


def older(record):
    record["versions"] = json.dumps({"fedmerge": "0.0.9"})


def same_name(record):
    record["silos"] = record["silos"].replace("hospital-b", "hospital-a")


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("change", "why"),
    [(another_base, "its base has the fingerprint 'ffffffffffffffff'"), (older, "it runs fedmerge '0.0.9'")],
)
def test_a_deployed_silo_that_does_not_fit_is_refused_alone(tiny_flat, hospitals, tmp_path, change, why):
    flat = tiny_flat(
        run__rounds=1, data__silos="hospital-a, hospital-b", strategy__quorum=0.5, strategy__wait_seconds=0.1
    )
    silos = Silos(flat, nodes=hospitals, spoil=changed_card(8, change))
    result = silos.run()
    assert {node for _, node, _ in silos.orders} == {7}
    assert result["silos"] == ["hospital-a", "hospital-b"] and result["unscored"] == ["hospital-b"]
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["missing"] == ["hospital-b"]
    assert line["missing_since"]["hospital-b"]["why"].startswith(why)


@pytest.mark.fault(25)
def test_where_the_quorum_wants_it_the_run_does_not_begin(tiny_flat, hospitals):
    silos = Silos(tiny_flat(), nodes=hospitals, spoil=changed_card(8, another_base))
    with pytest.raises(
        RoundFailed, match=r"1 of 2 silos can take part, .* wants 2; 'hospital-b': its base has"
    ):
        silos.run()
    assert not silos.orders


@pytest.mark.fault(27)
def test_two_nodes_with_one_name_are_both_refused(tiny_flat, hospitals):
    flat = tiny_flat(data__silos="hospital-a, hospital-b", strategy__quorum=0.5, strategy__wait_seconds=0.1)
    with pytest.raises(RoundFailed, match="'hospital-a': more than one node says that it is this silo"):
        Silos(flat, nodes=hospitals, spoil=changed_card(8, same_name)).run()


def test_a_named_silo_that_comes_late_takes_part_from_then_on(tiny_flat, hospitals, tmp_path):
    flat = tiny_flat(
        data__silos="hospital-a, hospital-b", strategy__quorum=0.5, strategy__wait_seconds=0.1,
        strategy__gate="off()",
    )  # fmt: skip
    silos = Silos(flat, nodes=hospitals)
    grid = LocalGrid(InProcess(silos.serve), [7], run_id=1)
    grid.get_node_ids = lambda: [7, 8] if silos.trained("") else [7]
    with server_identity(run_id=1):
        result = conduct(read_config(silos.flat), StreamingGrid(grid))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["missing"] for line in lines] == [["hospital-b"], []]
    assert result["unscored"] == []


def test_a_silo_that_nobody_named_is_left_out(tiny_flat, hospitals):
    silos = Silos(tiny_flat(run__rounds=1, data__silos="hospital-a"), nodes=hospitals)
    assert silos.run()["silos"] == ["hospital-a"]
    assert {node for _, node, _ in silos.orders} == {7}


def test_a_run_that_is_resumed_before_all_silos_are_back_keeps_the_labels_it_began_with(tiny_flat):
    """Of silos that come later: their labels were agreed on, whoever has answered by now."""
    a, b, c = (Card(name, 5, labels=(label,)) for name, label in zip("abc", "xyz", strict=True))
    config = read_config(tiny_flat())
    roster = Roster((a, b, Card("c", 0)), {"a": 1, "b": 2}, False, "f")
    terms = Membership(frozenset("abc"), "f", labels=("x", "y"))
    now = Muster(roster, "f", ("x", "y"), {"1": {"device": "cpu"}}, terms)
    cards = [asdict(card) for card in (a, b, c)]
    began = {
        "silos": cards,
        "shared": False,
        "labels": ["x", "y", "z"],
        "environment": environment(config, now),
    }
    silos = same_run(SimpleNamespace(begun=json.loads(json.dumps(began))), config, now)
    assert silos.labels == silos.membership.labels == ("x", "y", "z")
    found = judge({3: QueryReply((c,), fingerprint="f")}, silos.membership)
    assert found.homes == {"c": 3} and not found.misfits
