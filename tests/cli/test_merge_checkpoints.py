"""`fedmerge merge` on whole checkpoints, and what adapters and checkpoints refuse from each other."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

import fedmerge as package
from fedmerge.wire.checkpoint import open_checkpoint

CHANGE = {"one": 0.25, "two": 0.75}


def write(folder: Path, tensors, config=None, shard_bytes=10**9):
    from fedmerge.wire.checkpoint import Entry
    from fedmerge.wire.checkpoint_writer import shards_of, write_checkpoint

    entries = [Entry(name, folder, tensor.dtype, tuple(tensor.shape), 0) for name, tensor in tensors.items()]
    files = {"config.json": json.dumps(config or {"model_type": "llama"}).encode(), "tokenizer.json": b"{}"}
    return write_checkpoint(folder, shards_of(entries, shard_bytes), lambda n: [tensors[n]], lambda: files)


@pytest.fixture
def models(tmp_path):
    start = torch.arange(1.0, 13.0).reshape(3, 4)
    write(tmp_path / "base", {"a.weight": start, "b.weight": start[0].clone()})
    for name, step in CHANGE.items():
        write(tmp_path / name, {"a.weight": start + step, "b.weight": start[0] + step})
    return [tmp_path / name for name in ("one", "two", "base")]


def test_a_weighted_mean_with_card_and_tokenizer(fedmerge, models, tmp_path) -> None:
    one, two, base = models
    out = tmp_path / "out"
    result = fedmerge("merge", one, two, "--base", base, "--weights", "3,1", "--memory", "4GB", "-o", out)
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout
    found = open_checkpoint(out)
    torch.testing.assert_close(found.read("b.weight"), torch.arange(1.0, 5.0) + 0.375)
    assert (out / "tokenizer.json").read_bytes() == b"{}"
    card = (out / "README.md").read_text()
    assert 'library_name: "transformers"' in card
    assert "fedmerge merge one two --rule 'fedavg()' --weights 3,1 --base base -o merged" in card
    assert str(tmp_path) not in card
    assert "| one | 3 |" in card


def test_json_and_random_masks_by_name(fedmerge, models, tmp_path) -> None:
    one, two, base = models
    arguments = ("--base", base, "--rule", "dare(density=0.5)", "--names", "n,s", "--json")
    first = fedmerge("merge", one, two, *arguments, "-o", tmp_path / "x")
    report = json.loads(first.stdout)["report"]
    assert report["models"] == [str(one), str(two)]
    assert report["cosines"][0][1] == pytest.approx(1.0)
    fedmerge("merge", one, two, *arguments, "--seed", "1", "-o", tmp_path / "y")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "xy"]
    assert files[0] != files[1]


def test_dry_run_says_what_it_takes_and_writes_nothing(fedmerge, models, tmp_path) -> None:
    one, two, base = models
    result = fedmerge("merge", one, two, "--base", base, "--dry-run", "--json")
    payload = json.loads(result.stdout)
    assert result.exit_code == 0
    assert payload["fits"]
    assert payload["tensors"] == 2
    assert payload["bytes_written"] == 64
    assert payload["bytes_read"] == 3 * 64
    out = tmp_path / "out"
    result = fedmerge(
        "merge", one, two, "--base", base, "--dry-run", "-o", out, "--rule", "ties(density=0.5)"
    )
    assert "2 fine-tunes of" in result.stdout
    assert "after reads for the trim's thresholds" in result.stdout
    assert not out.exists()


def test_what_does_not_fit_into_memory_is_said(fedmerge, models, tmp_path, monkeypatch) -> None:
    one, two, base = models
    monkeypatch.setattr("fedmerge.cli.merge_checkpoints.working", lambda text: (10**9, 1000))
    arguments = ("merge", one, two, "--base", base, "--rule", "della()")
    told = fedmerge(*arguments, "--dry-run")
    assert told.exit_code == 1
    assert "does not fit: 'a.weight' wants" in told.stdout
    result = fedmerge(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "'a.weight' of 2 fine-tunes wants" in result.stderr


def test_a_full_disk_is_told_before_anything_is_written(fedmerge, models, tmp_path, monkeypatch) -> None:
    one, two, base = models
    monkeypatch.setattr("fedmerge.cli.merge_checkpoints._free_disk", lambda request: 10)
    told = fedmerge("merge", one, two, "--base", base, "--dry-run")
    assert (told.exit_code, "does not fit: the disk" in told.stdout) == (1, True)
    result = fedmerge("merge", one, two, "--base", base, "-o", tmp_path / "out")
    assert "the result takes 64 B, 10 B are free there" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --base"),
        (["--base", "{base}", "--space", "product()"], "--space is for adapters, and these are checkpoints"),
        (["--base", "{base}", "--memory", "lots"], "expected a size above 0"),
        (["--base", "{base}", "--memory", "1MB"], "the program itself takes"),
        (["--base", "{base}", "--missing", "bas"], "did you mean 'base'"),
        (["--base", "{base}", "--kernel", "triton"], "kernel 'triton' for whole checkpoints"),
        (["--base", "{base}", "--device", "toaster"], "device 'toaster'"),
        (["--base", "{base}", "--rule", "ties(density=0)"], "density"),
        (["--base", "{base}", "--weights", "0,0"], "all are 0"),
        (["--base", "{base}", "--names", "a,a"], "expected 2 different names"),
        (["--base", "{base}", "--tokenizer-from", "nowhere"], "nowhere"),
        (["--base", "nowhere"], "'nowhere': there is no such folder"),
    ],
)
def test_bad_options_are_a_sentence(fedmerge, models, tmp_path, arguments: list[str], said: str) -> None:
    one, two, base = models
    given = [text.format(base=base) for text in arguments]
    result = fedmerge("merge", one, two, *given, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert said in result.stderr
    assert "unforeseen" not in result.stderr
    assert not list(tmp_path.glob("*out*"))


def test_outputs_that_are_in_the_way(fedmerge, models, tmp_path) -> None:
    one, two, base = models
    inside = fedmerge("merge", one, two, "--base", base, "-o", two / "merged")
    assert "lies in" in inside.stderr
    missing = fedmerge("merge", one, two, "--base", base)
    assert "no -o/--output is given" in missing.stderr
    twice = fedmerge("merge", one, one, "--base", base, "-o", tmp_path / "out")
    assert "a fine-tune is named twice" in twice.stderr


def test_adapters_and_checkpoints_do_not_mix(fedmerge, models, tmp_path) -> None:
    one, _, base = models
    pair = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.ones(4, 2)}
    adapter = package.save_adapter(package.Adapter(pair, package.Lora(2, 4.0)), tmp_path / "adapter")
    result = fedmerge("merge", one, adapter, "--base", base, "-o", tmp_path / "out")
    assert "do not merge with each other" in result.stderr
    again = package.save_adapter(package.Adapter(pair, package.Lora(2, 4.0)), tmp_path / "again")
    for option in (
        ("--memory", "2GB"),
        ("--missing", "base"),
        ("--tokenizer-from", "x"),
        ("--shard-size", "1GB"),
    ):
        result = fedmerge("merge", adapter, again, *option, "-o", tmp_path / "out")
        assert f"{option[0]} is for whole checkpoints, and these are adapters" in result.stderr


def test_pickles_and_folders_of_nothing(fedmerge, models, tmp_path) -> None:
    one, _, base = models

    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "canary",))

    for folder, file in (("whole", "pytorch_model.bin"), ("small", "adapter_model.bin")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(pickle.dumps(Attack()))
    (tmp_path / "small" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    (tmp_path / "none").mkdir()
    whole = fedmerge("merge", one, tmp_path / "whole", "--base", base, "-o", tmp_path / "out")
    assert "it has pytorch_model.bin, a pickle" in whole.stderr
    small = fedmerge("merge", tmp_path / "small", tmp_path / "small", "-o", tmp_path / "out")
    assert "it has adapter_model.bin, a pickle" in small.stderr
    none = fedmerge("merge", one, tmp_path / "none", "--base", base, "-o", tmp_path / "out")
    assert "holds neither an adapter" in none.stderr
    assert not (tmp_path / "canary").exists()


def test_the_tokenizer_of_another_folder(fedmerge, models, tmp_path) -> None:
    one, two, base = models
    (two / "tokenizer.json").write_text('{"other": 1}')
    result = fedmerge("merge", one, two, "--base", base, "--tokenizer-from", two, "-o", tmp_path / "out")
    assert "has another tokenizer.json than the base" in result.stdout
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"other": 1}'
