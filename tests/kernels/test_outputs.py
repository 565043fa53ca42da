"""Memory for results."""

from __future__ import annotations

import mmap

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedmerge.kernels import outputs
from fedmerge.kernels.outputs import ALIGNMENT, LARGE, empty_tensors

SIZES = [LARGE // 4 + 3, 0, 1, 17]


def test_large_results_lie_side_by_side_and_can_be_saved(tmp_path):
    tensors = empty_tensors(SIZES)
    assert [tensor.numel() for tensor in tensors] == SIZES
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
    for place, tensor in enumerate(tensors):
        tensor.fill_(place)
    assert all(bool((tensor == place).all()) for place, tensor in enumerate(tensors))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        assert tensors[3].data_ptr() - tensors[2].data_ptr() == ALIGNMENT
    save_file({str(place): tensor for place, tensor in enumerate(tensors)}, tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors")["3"].tolist() == [3.0] * 17


def test_one_result_outlives_the_others():
    last = empty_tensors(SIZES)[3].fill_(7)
    assert last.tolist() == [7.0] * 17


class Refusing(mmap.mmap):
    def madvise(self, *given):
        raise OSError("no large pages here")


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no large pages")
def test_without_large_pages_results_are_ordinary_tensors(monkeypatch):
    monkeypatch.setattr(outputs.mmap, "mmap", Refusing)
    assert [tensor.numel() for tensor in empty_tensors(SIZES)] == SIZES
    monkeypatch.delattr(outputs.mmap, "MADV_HUGEPAGE")
    assert [tensor.numel() for tensor in empty_tensors(SIZES)] == SIZES
