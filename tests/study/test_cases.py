from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedmerge.adapters import Adapter, Lora
from fedmerge.errors import AdapterMismatch, ConfigError
from fedmerge.study.base_weights import base_weights
from fedmerge.study.cases import check_bases, folder_of, updates_alone
from fedmerge.study.points import PointScorer
from fedmerge.study.whole_models import inspect_models
from fedmerge.wire.checkpoint import open_checkpoint
from fedmerge.wire.tensorfile import write_tensors

HEAD = "base_model.model.score.weight"


def told(**metadata: str) -> Adapter:
    return Adapter({"x": torch.ones(1)}, None, metadata)


def base(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    write_tensors(folder / "model.safetensors", {name.replace("__", "."): t for name, t in tensors.items()})
    return folder


def test_fingerprints_decide_before_names() -> None:
    assert check_bases({"a": told(fingerprint="f" * 64), "b": told(fingerprint="f" * 64)}, "") == "f" * 64
    assert check_bases({"a": told(fingerprint="f" * 64), "b": told()}, "") == ""
    with pytest.raises(AdapterMismatch, match="different bases: a on 'north', b on 'south'"):
        check_bases({"a": told(base_model="north"), "b": told(base_model="south")}, "")
    # the same base under two names, where it is at hand
    assert check_bases({"a": told(base_model="north"), "b": told(base_model="south")}, "f" * 64) == ""
    with pytest.raises(AdapterMismatch, match="a was trained on the base with fingerprint eeee"):
        check_bases({"a": told(fingerprint="e" * 64)}, "f" * 64)


def test_whole_weights_count_by_their_difference_to_the_base(tmp_path: Path) -> None:
    adapter = Adapter({HEAD: torch.full((2, 2), 3.0)}, Lora(1, 1))
    with pytest.raises(AdapterMismatch, match="whole weight and no update"):
        updates_alone({"a": adapter}, None)
    folder = base(tmp_path / "base", score__weight=torch.ones(2, 2))
    assert torch.equal(updates_alone({"a": adapter}, folder)["a"].tensors[HEAD], torch.full((2, 2), 2.0))
    plain = {"a": Adapter({"head.weight": torch.ones(1)})}
    assert updates_alone(plain, None) == plain


def test_a_base_by_its_modules(tmp_path: Path) -> None:
    weights = base_weights(base(tmp_path / "base", q__weight=torch.ones(2, 3), bias=torch.ones(2)))
    assert weights is not None
    assert weights("base_model.model.q").shape == (2, 3)
    assert weights("base_model.model.bias").shape == (2,)
    assert weights("head") is None
    (tmp_path / "empty").mkdir()
    assert base_weights(tmp_path / "empty") is None
    assert folder_of("builtin").is_dir()
    with pytest.raises(ConfigError, match="no such folder"):
        folder_of("./nowhere")


def test_whole_models(tmp_path: Path) -> None:
    start = open_checkpoint(base(tmp_path / "base", q__weight=torch.ones(2, 8), step=torch.tensor([3])))
    near = open_checkpoint(base(tmp_path / "near", q__weight=torch.full((2, 8), 1.1), step=torch.tensor([4])))
    seen: list[str] = []
    found = inspect_models({"near": near}, start, seen.append)
    assert seen == ["q.weight"]
    assert found.figures.relative == pytest.approx((0.1,))
    assert found.relative["q.weight"] == pytest.approx((0.1,))
    other = open_checkpoint(base(tmp_path / "other", q__weight=torch.ones(2, 7), step=torch.tensor([4])))
    with pytest.raises(AdapterMismatch, match=r"other: .q\.weight. has shape"):
        inspect_models({"other": other}, start)
    whole_numbers = open_checkpoint(base(tmp_path / "ints", step=torch.tensor([3])))
    with pytest.raises(AdapterMismatch, match="nothing to compare"):
        inspect_models({"ints": whole_numbers}, whole_numbers)


def test_a_bench_without_validation_rows_can_not_score() -> None:
    from fedmerge.server_app.scoring import Scores

    class Empty:
        metric, initial = "accuracy", told()

        def evaluate(self, candidates, splits):
            return Scores({"a": {}, "b": {}})

    with pytest.raises(ConfigError, match=r"data\.validation above 0"):
        PointScorer(Empty())(told())
