"""Fault 38: what a run left is damaged, or of another base or config; and what a resumed run asks for."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmerge.errors import CheckpointError
from fedmerge.server.merging import Merger
from fedmerge.server_app import outcome as told
from fedmerge.silo import lora
from fedmerge.wire.protocol import read_instruction

from . import crashing
from .crashing import flat_of, outcome, serve

pytestmark = pytest.mark.fault(38)
Flat = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def no_flush():
    """Nobody pulls the plug here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def place(tiny_base, tmp_path_factory) -> Path:
    """Below it: "whole", a run that nobody disturbed, and "open", one that ended in round 4."""
    place = tmp_path_factory.mktemp("runs")
    crashing.run(flat_of(place / "whole", tiny_base))
    interrupt(flat_of(place / "open", tiny_base), "train", 4)
    return place


@pytest.fixture
def flat(place, tiny_base, tmp_path) -> Flat:
    """A run that ended in round 4, while its silos trained."""
    shutil.copytree(place / "open", tmp_path / "run")
    return flat_of(tmp_path / "run", tiny_base)


@pytest.fixture
def whole(place) -> dict[str, Any]:
    return outcome(place / "whole")


def interrupt(flat: Flat, kind: str, round: int) -> None:
    """Run until the first message of a kind in a round."""

    def answer(message):
        if message.metadata.message_type == kind and read_instruction(message.content).round == round:
            raise KeyboardInterrupt
        return serve(message)

    with pytest.raises(KeyboardInterrupt):
        crashing.run(flat, answer)


def resumed(flat: Flat) -> list[str]:
    """Go on; the kinds of the messages that were sent, each as often."""
    crashing.asks().clear()
    crashing.run(flat)
    return list(crashing.asks())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    """One bit of the last digit or value."""
    data = bytearray(path.read_bytes())
    place = max(index for index, byte in enumerate(data) if chr(byte).isdigit() or path.suffix != ".json")
    data[place] ^= 1
    path.write_bytes(bytes(data))


def missing(path: Path) -> None:
    path.unlink()


HARMS = [truncated, flipped, missing]


def test_what_was_interrupted_in_a_round_runs_that_round_and_what_follows(flat, whole):
    assert resumed(flat) == ["query", *["train"] * 3, *["evaluate"] * 5 * 2]
    assert outcome(Path(flat["run.output"])) == whole


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["state.json", "broadcast.safetensors", "optimizer.safetensors"])
def test_a_damaged_last_round_is_set_aside_and_the_one_before_is_used(flat, whole, harm, name, caplog):
    folder = Path(flat["run.output"])
    harm(folder / "rounds" / "0003" / name)
    with caplog.at_level(logging.WARNING):
        assert resumed(flat).count("train") == 3 * 2
    assert outcome(folder) == whole
    assert (folder / "rounds" / "0003.damaged").is_dir()
    [said] = [record.message for record in caplog.records if "set aside" in record.message]
    assert f"0003/{name}" in said and said.startswith(str(folder / "rounds" / "0003"))


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_round_to_which_the_gate_went_back(flat, whole, harm):
    """Round 3 was sent back to what round 1 made: that file is needed, and so round 1 is run again."""
    folder = Path(flat["run.output"])
    assert json.loads((folder / "rounds/0003/state.json").read_text())["standing"]["good"]["round"] == 1
    harm(folder / "rounds" / "0001" / "optimizer.safetensors")
    interrupt(flat, "train", 4)  # sets nothing aside: what round 3 ended with has all of it
    harm(folder / "rounds" / "0001" / "state.json")
    assert resumed(flat).count("train") == 3 * 4
    assert outcome(folder) == whole
    assert sorted(path.name for path in (folder / "rounds").glob("*.damaged")) == [
        f"{number:04d}.damaged" for number in (1, 2, 3)
    ]


def test_a_second_damage_of_a_round_has_a_name_of_its_own(flat, whole):
    folder = Path(flat["run.output"])
    for _ in range(2):
        truncated(folder / "rounds" / "0003" / "state.json")
        interrupt(flat, "train", 4)
    assert resumed(flat)
    assert {path.name for path in (folder / "rounds").glob("*.d*")} == {"0003.damaged", "0003.damaged-2"}
    assert outcome(folder) == whole


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["state.json", "broadcast.safetensors"])
def test_where_everything_is_damaged_nothing_is_touched(flat, harm, name):
    folder = Path(flat["run.output"])
    for path in (folder / "rounds").glob(f"*/{name}"):
        harm(path)
    before = tree(folder)
    with pytest.raises(
        CheckpointError, match=r"no round can be used to go on from: .*0000.*Nothing was changed"
    ):
        crashing.run(flat)
    assert tree(folder) == before


def gathered(flat: Flat, patch: pytest.MonkeyPatch) -> Path:
    """Go on until the replies of round 4 are there, and end in the merge."""

    def step(self, closed):
        raise KeyboardInterrupt

    with patch.context() as inside, pytest.raises(KeyboardInterrupt):
        inside.setattr(Merger, "step", step)
        crashing.run(flat)
    return Path(flat["run.output"]) / "rounds" / "0004"


def test_a_round_that_was_gathered_is_merged_again_and_nobody_trains(flat, whole, monkeypatch):
    folder = gathered(flat, monkeypatch)
    assert len(list((folder / "deltas").iterdir())) == 3
    assert "train" not in resumed(flat)
    assert outcome(Path(flat["run.output"])) == whole
    assert not list(Path(flat["run.output"]).rglob("deltas")), "replies are deleted once the run is finished"


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["replies.json", "deltas/{}"])
def test_replies_that_are_damaged_are_asked_for_again(flat, whole, monkeypatch, harm, name):
    folder = gathered(flat, monkeypatch)
    harm(folder / name.format(sorted((folder / "deltas").iterdir())[0].name))
    assert resumed(flat).count("train") == 3
    assert folder.with_name("0004.damaged").is_dir() == ((harm, name) != (missing, "replies.json"))
    assert outcome(Path(flat["run.output"])) == whole


def test_killed_in_the_final_evaluation_only_that_is_run_again(flat, whole):
    interrupt(flat, "evaluate", 4)
    assert set(resumed(flat)) == {"query", "evaluate"}
    assert outcome(Path(flat["run.output"])) == whole


def test_the_last_replies_are_damaged_when_shadows_are_to_be_made_of_them(flat, whole):
    interrupt(flat, "evaluate", 4)
    folder = Path(flat["run.output"])
    flipped(next((folder / "rounds" / "0004" / "deltas").iterdir()))
    assert resumed(flat).count("train") == 3
    assert outcome(folder) == whole


def test_a_finished_run_gives_its_result_again_and_asks_nobody(place, tiny_base):
    before = tree(place / "whole")
    crashing.asks().clear()
    result = crashing.run(flat_of(place / "whole", tiny_base), crashing.no_reply)
    assert result == json.loads((place / "whole" / "result.json").read_text())
    assert not crashing.asks() and tree(place / "whole") == before


@pytest.mark.parametrize("name", ["result.json", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_result_is_made_again(flat, whole, harm, name):
    folder = Path(flat["run.output"])
    resumed(flat)
    harm(folder / name)
    assert "evaluate" in resumed(flat)
    assert outcome(folder) == whole


def test_a_run_that_kept_no_replies_can_be_gone_on_with(place, tiny_base, tmp_path, whole):
    """run.resume was "never": the last round is run again, as shadows are to be made of its replies."""
    flat = flat_of(tmp_path / "run", tiny_base)
    interrupt(flat | {"run.resume": "never"}, "evaluate", 4)
    assert not list((tmp_path / "run").rglob("replies.json"))
    assert resumed(flat).count("train") == 3
    assert outcome(tmp_path / "run") == whole


def test_never_begins_anew(flat):
    assert resumed(flat | {"run.resume": "never"}).count("train") == 3 * 4


def test_rounds_of_another_command_or_an_older_fedmerge_are_refused(flat):
    folder = Path(flat["run.output"])
    for path in (folder / "rounds").glob("*/state.json"):
        state = json.loads(path.read_text())
        path.write_text(json.dumps({key: state[key] for key in ("round", "previous", "sha256")}))
    before = tree(folder)
    with pytest.raises(CheckpointError, match="an older fedmerge wrote it"):
        crashing.run(flat)
    assert tree(folder) == before


def refused(flat: Flat, match: str, answer: Callable[..., Any] = serve) -> None:
    """Going on is refused in a sentence, and the folder is as it was."""
    before = tree(Path(flat["run.output"]))
    with pytest.raises(CheckpointError, match=match):
        crashing.run(flat, answer)
    assert tree(Path(flat["run.output"])) == before


def test_another_config_is_refused(flat):
    refused(flat | {"train.steps": 7}, r"holds a run of another config: train\.steps differ")


def test_another_base_is_refused(flat, monkeypatch):
    folder = Path(flat["run.output"])
    for path in [folder / "config.toml"]:
        path.write_text(path.read_text().replace("f" * 64, ""))
    monkeypatch.setattr(crashing, "FINGERPRINT", "e" * 64)
    monkeypatch.setattr("fedmerge.server_app.muster.check_fingerprint", lambda _: "e" * 64)
    refused(flat | {"base.fingerprint": ""}, r"fingerprint f{16}, and base\.model is e{16} now; restore what")


def test_where_two_rounds_are_kept_the_one_before_a_damaged_one_is_there(flat, whole):
    truncated(Path(flat["run.output"]) / "rounds" / "0003" / "broadcast.safetensors")
    assert resumed(flat | {"run.keep-rounds": 2}).count("train") == 3 * 2
    found = outcome(Path(flat["run.output"]))
    assert {**whole, **found} == whole, "all that is there is what it was"
    assert whole.keys() - found.keys() == {
        "rounds/0002/broadcast.safetensors",
        "rounds/0002/optimizer.safetensors",
    }


def test_where_rounds_were_let_go_a_run_does_not_begin_anew_for_one_damaged_file(flat):
    rounds = Path(flat["run.output"]) / "rounds"
    truncated(rounds / "0002" / "state.json")
    missing(rounds / "0001" / "broadcast.safetensors")  # as if no round leaned on it
    refused(
        flat | {"run.keep-rounds": 2},
        r"0002/state\.json is damaged.*; the rounds before it were not kept \(run\.keep-rounds = 2\)",
    )


def test_another_initial_adapter_is_refused(flat, monkeypatch):
    made = lora.initial_adapter

    def other(*arguments):
        adapter = made(*arguments)
        return replace(adapter, tensors={name: tensor + 1 for name, tensor in adapter.tensors.items()})

    monkeypatch.setattr(lora, "initial_adapter", other)
    refused(flat, r"0000: the run began with another adapter than this base and configuration give now")


@pytest.mark.parametrize("package", ["torch", "fedmerge"])
def test_versions_that_change_bits_are_refused(flat, monkeypatch, package):
    real = told.installed
    monkeypatch.setattr(told, "installed", lambda names: real(names) | {package: "0.0.1"})
    refused(flat, rf"the run began with {package} .* \(now 0\.0\.1\): bits may depend on it; restore what")


def test_other_versions_are_told(flat, whole, monkeypatch, caplog):
    monkeypatch.setattr(told.platform, "python_version", lambda: "3.99")
    with caplog.at_level(logging.WARNING):
        resumed(flat)
    assert any("the run began with python" in record.message for record in caplog.records)
    assert outcome(Path(flat["run.output"])) == whole


def test_other_silos_are_refused_in_a_simulation(flat, monkeypatch):
    monkeypatch.setattr(crashing, "EXAMPLES", crashing.EXAMPLES | {"e": 16})
    refused(flat, r"other silos or rows than there are now \(silo 'e' is another one\)")
