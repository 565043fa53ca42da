"""Whole checkpoints: equal to the plain rule on deltas, bounded in memory, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fedmerge
from fedmerge.checkpoints import Policy, merge_checkpoints, prepare
from fedmerge.errors import AdapterMismatch, ConfigError, RuleError, WireError
from fedmerge.wire import checkpoint_writer
from fedmerge.wire.checkpoint import open_checkpoint

from .making import SHAPES, commanded, family, large_family, measured, save, values

MEMORY = 64 << 20


def opened(folders):
    base, *models = folders
    return {model.name: open_checkpoint(model) for model in models}, open_checkpoint(base)


def merged(folders, out, rule="fedavg()", seed=0, **options):
    models, base = opened(folders)
    report = merge_checkpoints(
        prepare(models, base, rule=rule, **{"memory": MEMORY, **options}), out, seed=seed
    )
    return report, {name: open_checkpoint(out).read(name).reshape(shape) for name, shape in SHAPES.items()}


def plain(folders, rule, weights=None, names=None, seed=0):
    """The rule on deltas in memory, as `fedmerge.merge` applies it."""
    models, base = opened(folders)
    start = {name: base.read(name).float().reshape(shape) for name, shape in SHAPES.items()}
    deltas = [
        {n: model.read(n).float().reshape(s) - start[n] for n, s in SHAPES.items()}
        for model in models.values()
    ]
    step = fedmerge.merge(deltas, weights, rule=rule, names=names, seed=seed, kernel="plain").adapter.tensors
    dtype = base.entries["model.norm.weight"].dtype
    return {name: (start[name].double() + step[name].double()).to(dtype) for name in SHAPES}


RULES = [
    "fedavg()", "task_arithmetic(scale=0.5)", "ties(density=0.3)", "dare_ties(density=0.5)", "median()",
    "breadcrumbs()", "della()", "sce(density=0.5)",
    'chain(keep_largest(density=0.3, scope="adapter"), mean())',
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_base_plus_the_rule_on_deltas(tmp_path, rule, dtype):
    folders = family(tmp_path, 3, dtype)
    names, weights = ["a", "b", "c"], [3.0, 1.0, 2.0]
    report, found = merged(folders, tmp_path / "out", rule, names=names, weights=weights)
    expected = plain(folders, rule, weights, names)
    assert all(torch.equal(found[name], expected[name]) for name in SHAPES)
    assert report.models == ("tune-0", "tune-1", "tune-2")
    assert 0 < report.change < 0.2


@pytest.mark.parametrize("rule", ["model_stock()", "geometric_median()", "krum()"])
def test_rules_by_inner_products_agree(tmp_path, rule):
    folders = family(tmp_path, 5)
    _, found = merged(folders, tmp_path / "out", rule, names=list("abcde"))
    expected = plain(folders, rule, names=list("abcde"))
    for name in SHAPES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_matrix_rules_work_on_matrices_and_take_the_mean_elsewhere(tmp_path):
    folders = family(tmp_path, 3)
    _, found = merged(folders, tmp_path / "out", "iso_c()", names=list("abc"))
    _, mean = merged(folders, tmp_path / "mean", names=list("abc"))
    assert torch.equal(found["model.norm.weight"], mean["model.norm.weight"])
    name = "model.layers.0.q_proj.weight"
    step = found[name].double() - open_checkpoint(folders[0]).read(name).reshape(SHAPES[name]).double()
    spectrum = torch.linalg.svdvals(step)
    assert float(spectrum.max() / spectrum.min()) < 1.001


@pytest.mark.parametrize("rule", ["ties(density=0.3)", "dare_ties()", "model_stock()", "median()"])
def test_small_tiles_and_any_order_give_the_same_bits(tmp_path, rule, monkeypatch):
    folders = family(tmp_path, 3)
    _, wide = merged(folders, tmp_path / "wide", rule)
    monkeypatch.setattr("fedmerge.checkpoints.treatment.NARROWEST", 16)
    monkeypatch.setattr("fedmerge.checkpoints.treatment.WIDEST_ENTRIES", 48)
    _, narrow = merged([folders[0], *folders[:0:-1]], tmp_path / "narrow", rule)
    assert all(torch.equal(wide[name], narrow[name]) for name in SHAPES)
    assert (tmp_path / "wide" / "model.safetensors").read_bytes() == (
        tmp_path / "narrow" / "model.safetensors"
    ).read_bytes()


def test_a_fine_tune_of_weight_zero_changes_nothing(tmp_path):
    folders = family(tmp_path, 3)
    _, found = merged(folders, tmp_path / "with", "dare()", weights=[1, 2, 0])
    _, without = merged(folders[:-1], tmp_path / "without", "dare()", weights=[1, 2])
    assert all(torch.equal(found[name], without[name]) for name in SHAPES)


def test_equal_fine_tunes_and_the_seed(tmp_path):
    folders = family(tmp_path, 1)
    shutil.copytree(folders[1], tmp_path / "copy")
    _, first = merged([*folders, tmp_path / "copy"], tmp_path / "a", "dare()")
    _, again = merged([*folders, tmp_path / "copy"], tmp_path / "b", "dare()")
    _, other = merged([*folders, tmp_path / "copy"], tmp_path / "c", "dare()", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in SHAPES)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_float32_fine_tunes_of_a_bfloat16_base(tmp_path):
    base = {name: tensor.to(torch.bfloat16) for name, tensor in values(0).items()}
    tuned = {name: base[name].float() + x for name, x in values(1, scale=0.1).items()}
    half = {name: x.to(torch.float16) for name, x in tuned.items()}
    folders = [save(tmp_path / "base", base), save(tmp_path / "one", tuned), save(tmp_path / "two", half)]
    _, found = merged(folders, tmp_path / "out")
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        mean = (tuned[name].double() + half[name].double()) / 2
        torch.testing.assert_close(tensor.double(), mean, rtol=2**-8, atol=0)


def test_shards_index_config_and_tokenizer(tmp_path):
    folders = family(tmp_path, 2, shard_bytes=1000)
    (folders[0] / "tokenizer.json").write_text("{}")
    (folders[0] / "tokenizer_config.json").write_text("{}")
    (folders[0] / "generation_config.json").write_text("{}")
    (folders[0] / "code.py").write_text("raise SystemExit")
    models, base = opened(folders)
    out = tmp_path / "out"
    merge_checkpoints(prepare(models, base), out, shard_bytes=1000, card=lambda report: "card")
    files = sorted(path.name for path in out.iterdir())
    assert files == [
        "README.md", "config.json", "generation_config.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(SHAPES)
    assert index["metadata"]["total_size"] == base.size


def test_whole_numbers_are_copied_if_alike_and_else_refused(tmp_path):
    extra = {"position_ids": torch.arange(5)}
    folders = [save(tmp_path / str(seed), {**values(0), **extra}) for seed in range(3)]
    merged(folders, tmp_path / "out")
    assert torch.equal(open_checkpoint(tmp_path / "out").read("position_ids"), torch.arange(5))
    save(tmp_path / "other", {**values(0), "position_ids": torch.arange(5) + 1})
    with pytest.raises(AdapterMismatch, match=r"other: 'position_ids' holds other whole numbers"):
        merged([*folders, tmp_path / "other"], tmp_path / "no")
    assert not list(tmp_path.glob("*no*"))


def tuned(place: Path, **changes):
    """A fine-tune with some tensors replaced; None takes one away."""
    tensors = {**{n: x + 0.01 for n, x in values(0).items()}, **changes}
    return save(place, {name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"model.norm.weight": None}, r"odd lacks 'model\.norm\.weight' of the base; --missing base"),
        ({"score.weight": torch.ones(2)}, r"odd has 'score\.weight', which the base has not; --extra drop"),
        ({"model.norm.weight": torch.ones(9)}, r"'model\.norm\.weight' has shape \(9,\), the base"),
        ({"model.norm.weight": torch.ones(8, dtype=torch.int64)}, r"is torch\.int64, the base has"),
        ({"model.norm.weight": torch.tensor([torch.nan, torch.inf, *[1.0] * 6])}, "holds 1 NaN and 1 Inf"),
        (values(99), "odd was trained from another base: its matrices have a median cosine"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(tmp_path, changes, says):
    folders = [*family(tmp_path, 2), tuned(tmp_path / "odd", **changes)]
    with pytest.raises(AdapterMismatch, match=says):
        merged(folders, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_base_with_nan_is_named(tmp_path):
    folders = family(tmp_path, 2)
    shutil.rmtree(folders[0])
    save(folders[0], {**values(0), "model.norm.weight": torch.full((8,), torch.nan)})
    with pytest.raises(AdapterMismatch, match=r"the base: 'model\.norm\.weight' holds 8 NaN"):
        merged(folders, tmp_path / "out")


def test_missing_and_extra_tensors_under_a_policy(tmp_path):
    odd = tuned(tmp_path / "odd", **{"model.norm.weight": None, "score.weight": torch.ones(2)})
    folders = [*family(tmp_path, 1), odd]
    report, found = merged(folders, tmp_path / "out", policy=Policy("base", "drop"))
    base, one = open_checkpoint(folders[0]), open_checkpoint(folders[1])
    name = "model.norm.weight"
    torch.testing.assert_close(found[name], (base.read(name) + one.read(name)) / 2)
    assert len(report.notes) == 2
    with pytest.raises(ConfigError, match="did you mean 'base'"):
        Policy(missing="bas")


def test_a_tied_head_is_left_out_wherever_it_lies(tmp_path):
    config = {"model_type": "llama", "tie_word_embeddings": True}
    base = values(0)
    one = {name: x + 0.1 for name, x in base.items()}
    folders = [
        save(tmp_path / "base", base, config),
        save(tmp_path / "one", {**one, "lm_head.weight": one["model.embed_tokens.weight"]}, config),
        save(tmp_path / "two", one, config),
    ]
    merged(folders, tmp_path / "out")
    assert set(open_checkpoint(tmp_path / "out").entries) == set(base)
    untied = save(tmp_path / "untied", {**one, "lm_head.weight": base["model.embed_tokens.weight"]})
    with pytest.raises(AdapterMismatch, match=r"untied has 'lm_head\.weight'"):
        merged([*folders, untied], tmp_path / "no")


@pytest.mark.parametrize(
    "config, says",
    [
        ({"model_type": "gpt2"}, "is a 'gpt2', the base a 'llama'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_another_architecture_or_quantised_weights(tmp_path, config, says):
    folders = [*family(tmp_path, 1), save(tmp_path / "odd", values(0), config)]
    with pytest.raises(AdapterMismatch, match=says):
        merged(folders, tmp_path / "out")


@pytest.mark.parametrize(
    "options, says",
    [
        ({"weights": [1, -1]}, "weight 1 is -1"),
        ({"weights": [0, 0]}, "all are 0"),
        ({"weights": [1]}, "1 weights for 2"),
        ({"names": ["a", "a"]}, "expected 2 different names"),
        ({"rule": "fisher()"}, "needs what silos measure"),
        ({"rule": "ties(density=0)"}, "density"),
        ({"rule": "regmean()"}, "needs what silos measure|LoRA factors only"),
    ],
)
def test_rules_weights_and_names_that_can_not_be_used(tmp_path, options, says):
    with pytest.raises(RuleError, match=says):
        merged(family(tmp_path, 2), tmp_path / "out", **options)


def test_an_overflow_is_told_and_nothing_is_left(tmp_path):
    base = {"x": torch.full((2, 2), 60000.0, dtype=torch.float16)}
    folders = [
        save(tmp_path / name, {"x": base["x"] + step})
        for name, step in (("b", 0), ("one", 4000), ("two", 4000))
    ]
    models, start = opened(folders)
    with pytest.raises(
        AdapterMismatch, match=r"the merge overflows: 4 values of 'x' are beyond torch\.float16"
    ):
        merge_checkpoints(prepare(models, start, rule="task_arithmetic()"), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_memory_that_is_too_small_is_told_before_anything_is_written(tmp_path):
    models, base = opened(family(tmp_path, 2))
    task = prepare(models, base, rule="della()", memory=1000)
    assert set(task.misfits) == set(SHAPES)
    with pytest.raises(
        ConfigError, match=r"'model\.embed_tokens\.weight' of 2 fine-tunes wants \d+ bytes under della"
    ):
        merge_checkpoints(task, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    assert not replace(task, memory=MEMORY).misfits


def test_an_output_that_holds_something_is_refused(tmp_path):
    folders = family(tmp_path, 2)
    with pytest.raises(WireError, match="there is something already"):
        merged(folders, folders[1])


@pytest.mark.parametrize("call", range(3))
def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch, call):
    folders = family(tmp_path, 2)
    calls, real = iter(range(100)), os.fsync

    def failing(descriptor):
        if next(calls) == call:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(WireError, match=r"can't be written: No space left"):
        merged(folders, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer.shutil, "rmtree", lambda *_, **__: None)  # as SIGKILL would

    def killed(report):
        raise KeyboardInterrupt

    models, base = opened(family(tmp_path, 2))
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints(prepare(models, base), tmp_path / "out", card=killed)
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.glob(".out.*.partial")
    assert left.is_dir()


def test_transformers_loads_the_result(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    folders = []
    for number in range(3):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * number * torch.randn_like(parameter))
        folders.append(tmp_path / f"llama-{number}")
        model.save_pretrained(folders[-1], max_shard_size="8KB")
    models, base = opened(folders)
    merge_checkpoints(prepare(models, base), tmp_path / "out", shard_bytes=8000)
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    one, two = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders[1:])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)


@pytest.mark.parametrize("rule", ["fedavg()", "ties(density=0.2)", "model_stock()"])
def test_memory_stays_within_the_bound(tmp_path, rule):
    """Ten fine-tunes of 16 MB in 40 MB over what the process takes before."""
    folders = large_family(tmp_path, 10, 2048, 2048, 2)
    found = measured(rule, 40 << 20, tmp_path / "out", folders)
    assert found["planned"] <= 40 << 20
    assert found["over"] <= 40 << 20, found


def test_memory_of_a_rule_that_wants_whole_tensors(tmp_path):
    folders = large_family(tmp_path, 4, 1024, 1024, 2)
    found = measured("sce(density=0.5)", 400 << 20, tmp_path / "out", folders)
    assert found["over"] <= found["planned"] <= 400 << 20, found


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fedavg()", "ties(density=0.2)"])
def test_ten_fine_tunes_of_one_gigabyte_on_two(tmp_path, rule):
    """FEDMERGE_DISK_SCALE=0.1 takes a tenth of the 12 GB of disk."""
    scale = float(os.environ.get("FEDMERGE_DISK_SCALE", "1"))
    needed = int(13e9 * scale)
    if shutil.disk_usage(tmp_path).free < needed:
        pytest.skip(
            f"needs {needed / 1e9:.1f} GB of disk at {tmp_path}; FEDMERGE_DISK_SCALE makes it smaller"
        )
    base, *models = large_family(tmp_path, 10, 4096, 4096, max(1, round(30 * scale)))
    arguments = (*models, "--base", base, "--rule", rule, "--memory", "2GB", "-o", tmp_path / "out")
    payload, peak = commanded("merge", *arguments)
    print(rule, f"{peak / 1e6:.0f} MB", payload["report"]["seconds"], "s")
    shutil.rmtree(tmp_path)
    assert peak <= 2e9


@pytest.mark.parametrize(
    "rule", ["fedavg()", "ties(density=0.3)", "dare(density=0.5)", "dare_ties(density=0.5)"]
)
def test_the_fused_kernels_give_the_bits_of_the_plain_composition(tmp_path, rule, monkeypatch):
    folders = family(tmp_path, 3)
    _, expected = merged(folders, tmp_path / "plain", rule, kernel="plain")
    monkeypatch.setattr("fedmerge.checkpoints.treatment.NARROWEST", 16)
    monkeypatch.setattr("fedmerge.checkpoints.treatment.WIDEST_ENTRIES", 48)
    report, found = merged(folders, tmp_path / "fused", rule, kernel="numba", memory=1 << 30)
    assert report.kernel == "numba"
    assert all(torch.equal(found[name], expected[name]) for name in SHAPES)


def test_kernels_that_can_not_be_had(tmp_path):
    folders = family(tmp_path, 2)
    with pytest.raises(RuleError, match="did you mean 'numba'"):
        merged(folders, tmp_path / "out", kernel="numbra")
    with pytest.raises(RuleError, match="67108864 are left to work in"):
        merged(folders, tmp_path / "out", kernel="numba")
    report, _ = merged(folders, tmp_path / "out", "median()", kernel="numba")
    assert report.kernel == "plain"
