"""Checkpoint folders: read without trust, and refused by a sentence."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedmerge.errors import ConfigError, WireError
from fedmerge.wire.checkpoint import Entry, open_checkpoint
from fedmerge.wire.checkpoint_writer import shards_of, write_checkpoint

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.arange(4.0), "c": torch.tensor(1.5)}


def save(folder: Path, shard_bytes=10**9, tensors=None):
    tensors = TENSORS if tensors is None else tensors
    entries = [Entry(name, folder, tensor.dtype, tuple(tensor.shape), 0) for name, tensor in tensors.items()]
    return write_checkpoint(
        folder, shards_of(entries, shard_bytes), lambda n: [tensors[n]], lambda: {"config.json": b"{}"}
    )


@pytest.fixture
def single(tmp_path):
    return save(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return save(tmp_path / "model", 20)


@pytest.mark.parametrize("shard_bytes", [20, 10**9])
def test_what_is_written_is_read_and_safetensors_agrees(tmp_path, shard_bytes):
    folder = save(tmp_path / "model", shard_bytes)
    found = open_checkpoint(folder)
    assert {name: entry.shape for name, entry in found.entries.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    files = [safetensors.torch.load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    theirs = {name: tensor for file in files for name, tensor in file.items()}
    for name, tensor in TENSORS.items():
        assert torch.equal(found.read(name), tensor.reshape(-1))
        assert torch.equal(theirs[name], tensor)
    assert torch.equal(found.read("a.weight", 2, 5), torch.tensor([2.0, 3.0, 4.0]))
    assert len(files) == (1 if shard_bytes > 100 else 2)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8]
)
def test_dtypes_come_back(tmp_path, dtype):
    tensor = torch.tensor([0, 1, 2, 3]).to(dtype)
    safetensors.torch.save_file({"x": tensor}, tmp_path / "model.safetensors")
    assert torch.equal(open_checkpoint(tmp_path).read("x"), tensor)
    save(tmp_path / "again", tensors={"x": tensor})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "again" / "model.safetensors")["x"], tensor)


def test_what_transformers_would_not_read_is_not_missed(tmp_path):
    """Where a single file and an index are both there, transformers reads the single file."""
    save(tmp_path / "model", 20)
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "model" / "model.safetensors")
    assert set(open_checkpoint(tmp_path / "model").entries) == {"x"}


def reindexed(folder, **places):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= places
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard",
    ["../../etc/passwd", "/etc/passwd", "/tmp/x.safetensors", "sub/x.safetensors", ".x.safetensors",
     "x\0.safetensors", "..\\x.safetensors", "pytorch_model.bin", "x" * 300 + ".safetensors"],
)  # fmt: skip
def test_an_index_that_leads_elsewhere(sharded, shard):
    reindexed(sharded, **{"a.weight": shard})
    with pytest.raises(WireError, match="expected a \\*\\.safetensors beside it"):
        open_checkpoint(sharded)


def test_an_index_that_does_not_hold(sharded):
    reindexed(sharded, **{"a.weight": "model-00009-of-00009.safetensors"})
    with pytest.raises(
        WireError, match=r"names the shard 'model-00009-of-00009\.safetensors', which is missing"
    ):
        open_checkpoint(sharded)


def test_an_index_and_shards_that_disagree(tmp_path):
    one, two = save(tmp_path / "one", 20), save(tmp_path / "two", 20)
    reindexed(one, ghost="model-00001-of-00002.safetensors")
    with pytest.raises(WireError, match=r"names 'ghost' in .* which does not hold it"):
        open_checkpoint(one)
    reindexed(two, **{"b.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(WireError, match=r"holds 'b\.weight', for which .* names"):
        open_checkpoint(two)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}"])
def test_an_index_that_is_none(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WireError, match=r"index\.json"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_that_leads_out(single, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    (single / name).rename(elsewhere)
    (single / name).symlink_to(elsewhere)
    with pytest.raises(WireError, match="is a link that leads out of its folder"):
        open_checkpoint(single)


def test_links_inside_and_of_the_hubs_cache_are_followed(tmp_path):
    repository = tmp_path / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    made = save(tmp_path / "made")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in made.iterdir():
        path.rename(repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert set(open_checkpoint(snapshot).entries) == set(TENSORS)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(WireError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_named_and_never_opened(tmp_path, name):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "canary",))

    (tmp_path / name).write_bytes(pickle.dumps(Attack()))
    with pytest.raises(WireError, match=f"it has {name}, a pickle, which can run code and is never read"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "canary").exists()


def raw(folder: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + data)
    return folder


def one(**changes):
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "header, data, says",
    [
        (one(), b"1234", "is said to end at byte 8 of 4: the file is cut short"),
        (one(), b"1" * 12, "its tensors take 8 bytes, it holds 12"),
        (one(shape=[1 << 40], data_offsets=[0, 1 << 42]), b"", "is said to end at byte 4398046511104 of 0"),
        (one(shape=[3]), b"1" * 8, r"takes 12 bytes, its offsets give 8"),
        (one(shape=[-2]), b"1" * 8, "whole numbers from 0"),
        (one(shape=[True, 2]), b"1" * 8, "whole numbers from 0"),
        (one(data_offsets=[8, 0]), b"1" * 8, "its offsets give -8"),
        (one(data_offsets=[4, 12]), b"1" * 12, "begins at byte 4, the one before it ends at 0"),
        (one(dtype="F8_E4M3"), b"1" * 8, "is stored as F8_E4M3"),
        ({"x": 1}, b"", "has no dtype"),
        ([], b"", "its header is a list"),
        (b"{", b"", "is no JSON"),
        (b'{"x": {}, "x": {}}', b"", "a name stands in it twice"),
        (b"[" * 100_000, b"", "is no JSON"),
        ({"../x": one()["x"]}, b"1" * 8, "is no tensor's name"),
        ({"a/b": one()["x"]}, b"1" * 8, "is no tensor's name"),
        ({"a\0b": one()["x"]}, b"1" * 8, "is no tensor's name"),
        ({**one(), "y": one()["x"]}, b"1" * 8, "begins at byte 0, the one before it ends at 8"),
        ({}, b"", "holds no tensors"),
    ],
)
def test_headers_that_do_not_hold(tmp_path, header, data, says):
    with pytest.raises(WireError, match=says) as caught:
        open_checkpoint(raw(tmp_path / "model", header, data))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [1 << 62, 1 << 40, 200_000_000, 100])
def test_a_header_that_claims_more_than_the_file(tmp_path, length):
    with pytest.raises(WireError, match=f"its header is to take {length}"):
        open_checkpoint(raw(tmp_path / "model", {}, b"", length))


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_file_that_was_cut(single, cut):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WireError, match="safetensors"):
        open_checkpoint(single)


def test_a_file_that_shrinks_while_it_is_read(single):
    found = open_checkpoint(single)
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WireError, match="has become shorter"):
        found.read("b.weight")


def test_no_folder_and_no_hub(tmp_path, single):
    with pytest.raises(ConfigError, match="there is no such folder, and it is no Hub id"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="the Hub did not give it"):
        open_checkpoint("owner/name")
    with pytest.raises(ConfigError, match="`hf download owner/name` fetches it"):
        open_checkpoint("owner/name", fetch=False)
    with pytest.raises(WireError, match="is a file, expected the folder of the checkpoint"):
        open_checkpoint(single / "config.json")


def test_values_that_do_not_fit_what_was_announced(tmp_path):
    entries = [Entry("x", tmp_path, torch.float32, (3,), 0)]
    for values, says in ((torch.ones(2), "2 values came"), (torch.ones(3).double(), r"are torch\.float64")):
        with pytest.raises(WireError, match=says):
            write_checkpoint(tmp_path / "out", shards_of(entries), lambda _, values=values: [values], dict)
    assert not list(tmp_path.glob("*out*"))
