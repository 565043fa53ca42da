"""The content of a safetensors file without a copy of the tensors."""

from __future__ import annotations

import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmerge.wire.tensorfile import safetensors_pieces, write_file

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.int64, torch.float16)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 3), max_size=3)


@given(
    st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=6),
    st.dictionaries(st.just("silo"), names, max_size=1),
)
def test_pieces_are_the_librarys_file(forms, metadata):
    generator = torch.Generator().manual_seed(len(forms))
    tensors = {
        name: (100 * torch.randn(shape, generator=generator)).to(dtype)
        for name, (dtype, shape) in forms.items()
    }
    expected = safetensors.torch.save(tensors, metadata or None)
    assert b"".join(safetensors_pieces(tensors, metadata)) == expected


def test_values_are_the_tensors_own_memory():
    tensor = torch.zeros(3, 4)
    pieces = safetensors_pieces({"a": tensor}, {})
    tensor[1, 2] = 5.0
    assert torch.equal(safetensors.torch.load(b"".join(pieces))["a"], tensor)


def test_tensors_that_are_not_as_they_lie_in_memory(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    parts = {
        "turned": whole.T,
        "column": whole[:, 1],
        "one": whole[0],
        "same": whole[0],
        "gradient": whole + 0,
    }
    parts["gradient"].requires_grad_()
    path = tmp_path / "a.safetensors"
    write_file(path, safetensors_pieces(parts, {}))
    found = safetensors.torch.load_file(path)
    assert all(torch.equal(found[name], part) for name, part in parts.items())
    assert found.keys() == parts.keys()
