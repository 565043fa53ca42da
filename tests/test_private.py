"""Runs in which silos keep a part of the adapter to themselves, from the config to the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from safetensors.torch import load_file

from fedmerge import client_app
from fedmerge.config import read_config
from fedmerge.engine.executors import InProcess
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.engine.local import run_local
from fedmerge.errors import ConfigError
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.conduct import conduct
from fedmerge.silo.data import load_silos
from fedmerge.silo.lora import initial_adapter
from fedmerge.silo.order import Order
from fedmerge.silo.private import is_private, private_part
from fedmerge.silo.worker import Worker
from fedmerge.wire.files import load_adapter
from fedmerge.wire.protocol import METRICS, Instruction, read_instruction

Flat = dict[str, Any]
SILOS = ("birds", "rocks", "ships")


@pytest.fixture
def flat(tiny_flat: Callable[..., Flat], tmp_path: Path) -> Callable[..., Flat]:
    """A run-config in which silos keep their B."""

    def make(name: str = "run", **changes: Any) -> Flat:
        always = {"lora__private": "B", "strategy__space": "factors()", "train__learning_rate": 0.02}
        return tiny_flat(run__output=str(tmp_path / name), **(always | changes))

    return make


class Nodes:
    """ClientApps in this process; notes what passes, and may spoil replies."""

    def __init__(self, flat: Flat, nodes: dict[int, Flat] | None = None, spoil: Any = None) -> None:
        self.flat, self.nodes, self.spoil = flat, nodes or {7: {}}, spoil
        self.passed: list[tuple[Message, Message]] = []

    def serve(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(1, node, dict(self.nodes[node]), RecordDict(), dict(self.flat))
        reply = client_app.app(message, context)
        self.passed.append((message, reply))
        return self.spoil(message, reply) if self.spoil else reply

    def run(self) -> dict[str, Any]:
        grid = LocalGrid(InProcess(self.serve), sorted(self.nodes), run_id=1)
        with server_identity(run_id=1):
            return conduct(read_config(self.flat), StreamingGrid(grid))


def sent(content: RecordDict) -> Iterator[str]:
    """The names of all tensors in a message."""
    for record in content.values():
        if isinstance(record, ArrayRecord):
            yield from record


def contents(folder: Path) -> dict[str, str]:
    """The hashes of a run's tensors, by file."""
    files = [path for part in ("adapter", "private", "personal") for path in (folder / part).rglob("*.*")]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def test_private_tensors_are_in_no_message_and_not_in_the_servers_files(
    flat: Callable[..., Flat], tmp_path: Path
) -> None:
    nodes = Nodes(flat(run__baselines="", run__record=True, strategy__shadows="ties(density=0.5)"))
    result = nodes.run()
    assert "shadow/ties(density=0.5) @ factors()" in result["candidates"]
    names = {name for pair in nodes.passed for message in pair for name in sent(message.content)}
    assert names == {
        name for name in initial_adapter(read_config(nodes.flat).silo).tensors if "lora_A" in name
    }
    files = sorted((tmp_path / "run" / "rounds").rglob("*.safetensors"))
    assert len(files) == 3 + 2 * 3
    assert all(load_file(file).keys() == names for file in files)


def test_the_base_is_scored_with_the_part_that_changes_nothing(flat: Callable[..., Flat]) -> None:
    private = Nodes(flat(run__baselines="")).run()
    plain = Nodes(flat("plain", run__baselines="", lora__private="")).run()
    assert private["candidates"]["base"] == plain["candidates"]["base"]
    assert private["candidates"]["merged"] != plain["candidates"]["merged"]


def test_the_same_bits_from_one_worker_and_two_and_in_a_folder_that_was_used(
    flat: Callable[..., Flat], tmp_path: Path
) -> None:
    one = run_local(read_config(flat("one", run__baselines="", engine__workers=1)))
    two = run_local(read_config(flat("two", run__baselines="", engine__workers=2)))
    first = contents(one)
    assert len(first) == 2 + 2 * 3 + 2 * 3
    assert contents(two) == first
    assert result_of(one)["candidates"] == result_of(two)["candidates"]
    (one / "private" / "birds" / "0001.safetensors").write_bytes(b"what an earlier run left")
    run_local(read_config(flat("one", run__baselines="", engine__workers=1)))
    assert contents(one) == first


def test_the_result_is_a_start_for_everybody_and_an_adapter_for_each_silo(
    flat: Callable[..., Flat], tmp_path: Path
) -> None:
    config = read_config(flat(run__baselines="", run__keep="last"))
    run_local(config)
    folder, result = tmp_path / "run", result_of(tmp_path / "run")
    last = load_file(folder / "rounds" / "0002" / "broadcast.safetensors")
    everybodys = load_adapter(result["adapter"])
    assert everybodys.tensors.keys() == initial_adapter(config.silo).tensors.keys()
    assert everybodys.metadata["private"] == "B, at its initial values"
    assert not any(tensor.any() for tensor in private_part(everybodys, ("B",)).values())
    assert result["private"] == "B" and "adapter/ has B at initial values" in result["notes"][0]
    assert result["personal"] == str(folder / "personal")
    worker = Worker(config.silo, load_silos(config.silo.data))
    for silo in SILOS:
        own = load_adapter(folder / "personal" / silo)
        assert own.metadata["silo"] == silo
        for adapter in (everybodys, own):
            assert all(torch.equal(adapter.tensors[name], tensor) for name, tensor in last.items())
        kept = load_file(folder / "private" / silo / "0002.safetensors")
        assert kept and all(torch.equal(own.tensors[name], tensor) for name, tensor in kept.items())
        scores = worker.evaluate({"own": own}, Order(silo, splits=("test",)))
        assert scores["own/test/bits_per_byte"] == result["candidates"]["merged"]["test"][silo]


def test_an_earlier_round_that_is_kept_comes_with_what_silos_kept_of_it(
    flat: Callable[..., Flat], tmp_path: Path
) -> None:
    def worse_at_the_end(message: Message, reply: Message) -> Message:
        kind, key = message.metadata.message_type, "received/validation/bits_per_byte"
        if kind == "evaluate" and read_instruction(message.content).round == 3:
            metrics = reply.content[METRICS]
            metrics[key] = float(metrics[key]) + 5.0  # type: ignore[arg-type]
        return reply

    config = read_config(flat(run__baselines="", run__rounds=3))
    result = Nodes(config.flat, spoil=worse_at_the_end).run()
    name, _, round = result["kept"].partition("/")
    assert name == "merged" and round in ("1", "2")
    worker = Worker(config.silo, load_silos(config.silo.data))
    for silo in SILOS:
        own = load_adapter(tmp_path / "run" / "personal" / silo)
        state = load_file(tmp_path / "run" / "private" / silo / f"{round:0>4}.safetensors")
        assert all(torch.equal(own.tensors[name], tensor) for name, tensor in state.items())
        scores = worker.evaluate({"own": own}, Order(silo, splits=("test",)))
        assert scores["own/test/bits_per_byte"] == result["candidates"][result["kept"]]["test"][silo]


def test_a_silo_alone_trains_everything_also_over_one_round(flat: Callable[..., Flat]) -> None:
    nodes = Nodes(flat(run__rounds=1))
    result = nodes.run()
    trained = [read_instruction(m.content) for m, _ in nodes.passed if m.metadata.message_type == "train"]
    assert [order.stream for order in trained].count("alone") == 3
    own = [result["candidates"][f"alone/{silo}"]["test"][silo] for silo in SILOS]
    base = [result["candidates"]["base"]["test"][silo] for silo in SILOS]
    assert all(after < before for after, before in zip(own, base, strict=True))


def test_a_damaged_file_costs_its_silo_alone(flat: Callable[..., Flat], tmp_path: Path) -> None:
    def damaging(message: Message, reply: Message) -> Message:
        path = tmp_path / "run" / "private" / "rocks" / "0001.safetensors"
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3])
        return reply

    result = Nodes(flat(run__baselines="", strategy__quorum=0.6), spoil=damaging).run()
    assert [(each["round"], each["silo"]) for each in result["refused"]] == [(2, "rocks")]
    assert "0001.safetensors is no whole safetensors file" in result["refused"][0]["reason"]
    assert set(result["candidates"]["merged"]["test"]) == {"birds", "ships"}
    assert sorted(path.name for path in (tmp_path / "run" / "personal").iterdir()) == ["birds", "ships"]
    assert "silo 'rocks' has no adapter of its own" in result["notes"][1]


# A private head: every space works


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of two layers over bytes."""
    from transformers import BertConfig, BertModel, ByT5Tokenizer

    folder = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


@pytest.fixture
def opposed(tiny_encoder: Path, tmp_path: Path, flat: Callable[..., Flat]) -> Callable[..., Flat]:
    """Two silos that call the same texts by opposite labels: no one head serves both."""
    lines = [
        {"text": text * (3 + number % 5), "label": label, "place": place}
        for place, labels in (("north", ("x", "y")), ("south", ("y", "x")))
        for number in range(20)
        for text, label in zip(("aaa ", "zz-"), labels, strict=True)
    ]
    path = tmp_path / "opposed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    always = {
        "base__model": str(tiny_encoder), "task__kind": "classification", "task__head": "linear",
        "data__source": str(path), "data__label": "label", "data__partition": "by(column='place')",
        "train__steps": 12, "run__baselines": "", "strategy__space": "product()", "run__keep": "last",
    }  # fmt: skip
    return lambda name="run", **changes: flat(name, **(always | changes))


@pytest.mark.parametrize("private", ["head", "A, B", "B, head"])
def test_silos_that_contradict_each_other_are_served_by_parts_of_their_own(
    private: str, opposed: Callable[..., Flat]
) -> None:
    space = "product()" if private == "head" else "factors()"
    result = Nodes(opposed(lora__private=private, strategy__space=space)).run()
    shared = Nodes(opposed("shared", lora__private="")).run()
    assert shared["candidates"]["merged"]["mean"] <= 0.6
    if "head" in private:
        assert result["candidates"]["merged"]["worst"] >= 0.9
    personal = {silo: load_adapter(Path(result["personal"]) / silo).tensors for silo in ("north", "south")}
    for name, tensor in personal["north"].items():
        own = is_private(name, tuple(private.split(", ")))
        assert torch.equal(tensor, personal["south"][name]) == (not own)


# Deployments


@pytest.fixture
def hospitals(tiny_rows: Path, tmp_path: Path) -> dict[int, Flat]:
    """The node-configs of two deployed silos, each with a folder for what it keeps."""
    lines = tiny_rows.read_text().splitlines(keepends=True)
    configs: dict[int, Flat] = {}
    for node, name in enumerate(("hospital-a", "hospital-b"), start=7):
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[30 * (node - 7) : 30 * (node - 6)]))
        (tmp_path / f"{name}-state").mkdir()
        configs[node] = {
            "silo": name, "data": str(tmp_path / f"{name}.jsonl"), "state": str(tmp_path / f"{name}-state"),
        }  # fmt: skip
    return configs


def test_a_deployed_silo_keeps_its_part_in_a_folder_of_its_own_and_of_the_run(
    flat: Callable[..., Flat], hospitals: dict[int, Flat], tmp_path: Path
) -> None:
    def forgetting(message: Message, reply: Message) -> Message:
        client_app._stations.clear()  # each message of a deployment is a new process
        return reply

    results, adapters = [], []
    for _ in range(2):
        result = Nodes(flat(), nodes=hospitals, spoil=forgetting).run()
        results.append(result["candidates"])
        adapters.append(load_adapter(result["adapter"]).tensors)
        assert "personal" not in result and result["notes"]
    # The second run read nothing of the first, though the folders are the same.
    assert results[0] == results[1]
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
    for config in hospitals.values():
        files = sorted(Path(config["state"]).rglob("*.safetensors"))
        assert [path.name for path in files] == ["0001.safetensors", "0002.safetensors"] * 2
        assert {path.parent.name for path in files} == {config["silo"]}
        assert len({path.parent.parent for path in files}) == 2
    assert not (tmp_path / "run" / "private").exists()


@pytest.mark.parametrize("state", [None, "", "relative/folder", "/nowhere/to/be/found"])
def test_a_deployed_silo_without_such_a_folder_says_which_key_to_set(
    state: str | None, flat: Callable[..., Flat], hospitals: dict[int, Flat]
) -> None:
    own = {key: value for key, value in hospitals[7].items() if key != "state"}
    own |= {} if state is None else {"state": state}
    with pytest.raises(ConfigError, match=r"lora.private = 'B'.* --node-config '... state=\"/srv/state\"'"):
        client_app.station(Context(1, 7, own, RecordDict(), flat()))
    client_app.station(Context(1, 7, own, RecordDict(), flat(lora__private="")))


@pytest.mark.parametrize("wishes", [{"stream": "alone", "run": "r"}, {"run": ""}])
def test_a_deployed_silo_trains_no_baseline_and_for_no_run_without_a_name(
    wishes: dict[str, str], flat: Callable[..., Flat], hospitals: dict[int, Flat]
) -> None:
    here = client_app.station(Context(1, 7, dict(hospitals[7]), RecordDict(), flat()))
    with pytest.raises(ConfigError, match="trains in rounds of a run that has a name"):
        here.order(Instruction(round=1, steps=1, **wishes))


# Configs


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strategy__space": "product()"}, r"\[strategy\]: space product\(\) works on whole LoRA pairs"),
        ({"strategy__space": "core()"}, r"lora.private = 'B' the server has none: set strategy.space to"),
        ({"strategy__shadows": "ties() @ product()"}, "strategy.shadows likewise"),
        ({"lora__private": "A", "strategy__space": "residual()", "run__rounds": 1}, r"space residual\(\)"),
        ({"lora__private": "A, B"}, "leave something to share"),
        ({"lora__private": "head"}, "no 'head'"),
        ({"lora__private": "b"}, "lora.private = 'b': expected 'A', 'B' and 'head'"),
    ],
)
def test_configs_that_can_not_work(changes: Flat, sentence: str, flat: Callable[..., Flat]) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_config(flat(**changes))


@pytest.mark.slow
def test_flower_and_local_engine_keep_and_merge_the_same_bits(flat: Callable[..., Flat]) -> None:
    from fedmerge.engine.superlink import run_flower

    one = contents(run_local(read_config(flat("local"))))
    assert len(one) == 2 + 2 * 3 + 2 * 3
    assert contents(run_flower(read_config(flat("flower")))) == one
