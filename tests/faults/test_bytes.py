"""Faults 17 to 21: what the bytes of a reply can be, as a node pushes them."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmerge.wire.records import to_record
from tests.server.world import node_of

from .changes import HEAD, A, array, good, sending
from .federation import BAD, judged, left_out, run, tampered
from .link import Link, Objects, link_grid

fault = pytest.mark.fault
ALLOWED = 2 << 20
"""Bytes: a reply to this adapter may have 1 MB, and the machinery takes some."""


def header(descr: str, shape: str, fortran: str = "False") -> bytes:
    """What ``np.save`` writes first, with claims of one's own."""
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def peaks(work: Callable[[], object]) -> tuple[int, int]:
    """What `work` takes at most, in bytes: in Python, and of address space (torch's memory too)."""
    before = virtual_peak()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1], virtual_peak() - before
    finally:
        tracemalloc.stop()


def virtual_peak() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmPeak"))


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(path: Path) -> dict[str, dict[str, object]]:
    """Pickles in every place that an array has for them."""
    bare = pickle.dumps(Canary(path))
    saved = io.BytesIO()
    np.save(saved, np.array([[Canary(path)] * 4] * 2, dtype=object), allow_pickle=True)
    buffered = io.BytesIO()
    torch.save(Canary(path), buffered)
    return {
        "bare": {"data": bare},
        "as an object array": {"data": saved.getvalue()},
        "declared": {"data": saved.getvalue(), "dtype": "object"},
        "by its serialization": {"data": bare, "stype": "pickle"},
        "behind a good header": {"data": header("<f4", "(2, 4)") + bare},
        "torch.save": {"data": buffered.getvalue(), "stype": "torch"},
    }


@fault(17)
@pytest.mark.parametrize("case", list(pickled(Path("x"))))
def test_a_pickle_is_refused_and_never_loaded(tmp_path, case):
    canary = tmp_path / "canary"
    left_out(tmp_path / "inner", array(**pickled(canary)[case]), grid=link_grid)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # it would have sung


DATA = to_record({A: good()})[A].data


@fault(18)
@pytest.mark.parametrize(
    "data",
    [b"", DATA[:-1], DATA[:-4], DATA[:64], DATA[:9], DATA + b"\0", b"x" * 5000, DATA[::-1], b"\0" * 160],
)
def test_truncated_garbage_or_empty_bytes_are_refused(tmp_path, data):
    left_out(tmp_path, array(data=data), grid=link_grid)


def kind_of(content: bytes) -> str:
    return content.split(b" ", 1)[0].decode()


def damage(kind: str, spoil: Callable[[bytes], bytes]) -> Callable[[Objects], None]:
    """Spoils every object of a kind."""

    def tamper(objects: Objects) -> None:
        names = [name for name, content in objects.items() if kind_of(content) == kind]
        assert names
        for name in names:
            objects[name] = spoil(objects[name])

    return tamper


SPOILT = {
    "empty": lambda content: b"",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "without a head": lambda content: content.partition(b"\0")[2],
    "garbage": lambda content: b"\xff" * len(content),
    "another kind": lambda content: b"Grid" + content,
    "deeply nested": lambda content: content.partition(b"\0")[0] + b"\0" + b"[" * 100_000,
}


@fault(18)
@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize(
    "kind", ["Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "MetricRecord", "ConfigRecord"]
)
def test_damaged_objects_cost_their_sender_the_round_and_no_one_else(tmp_path, kind, case):
    """Flower puts a reply together in the server's process: where that fails, one reply is refused."""
    tampered(tmp_path, damage(kind, SPOILT[case]))


@fault(18)
def test_objects_that_go_round_in_circles_are_refused(tmp_path):
    def tamper(objects: Objects) -> None:
        head = next(name for name, content in objects.items() if kind_of(content) == "RecordDict")
        objects[head] = f"RecordDict {head} 2".encode() + b"\0{}"

    tampered(tmp_path, tamper)


@fault(19)
@pytest.mark.parametrize("shape", ["(1000000, 1000000)", "(4294967296, 1073741824)", "(536870912,)"])
def test_a_header_that_claims_terabytes_allocates_nothing(tmp_path, shape):
    lies = [
        array(data=header("<f4", shape) + b"\0" * 32),
        array(data=header("<f4", shape) + b"\0" * 32, shape=eval(shape)),
        array(shape=eval(shape)),
    ]
    for place, lie in enumerate(lies):
        traced, mapped = peaks(
            lambda lie=lie, place=place: left_out(tmp_path / str(place), lie, grid=link_grid)
        )
        assert traced < ALLOWED
        assert mapped < 256 << 20


@fault(19, 21)
@pytest.mark.parametrize("times", [10_000, 200_000])
def test_a_chunk_named_many_times_is_not_put_together(tmp_path, times):
    """A hundred bytes that stand for gigabytes: Flower would join them before anyone looks."""

    def tamper(objects: Objects) -> None:
        for name, content in objects.items():
            if kind_of(content) == "Array":
                head, _, body = content.partition(b"\0")
                told = json.loads(body) | {"arraychunk_ids": [0] * times}
                body = json.dumps(told).encode()
                parts = head.split(b" ")
                head = b" ".join([*parts[:-1], str(len(body)).encode()])
                objects[name] = head + b"\0" + body

    found = tampered(tmp_path, tamper)
    assert found.refused == [(BAD, 1, "it is larger than any answer to what was asked")]


@fault(20)
@pytest.mark.parametrize(
    "fields",
    [
        {"data": to_record({A: good().t().contiguous()})[A].data},
        {"data": to_record({A: good().double()})[A].data},
        {"data": to_record({HEAD: good(HEAD)})[HEAD].data},
        {"shape": (4, 2)},
        {"shape": (-2, -4)},
        {"dtype": "float64"},
        {"dtype": "<f4"},
        {"stype": "fedmerge.raw"},
        {"data": header(">f4", "(2, 4)") + b"\0" * 32},
        {"data": header("<f4", "(2, 4)") + b"\0" * 36},
        {"data": header("<f4", "(2, 4), 'x': exit()") + b"\0" * 32},
    ],
)
def test_metadata_that_contradicts_the_bytes_is_refused(tmp_path, fields):
    left_out(tmp_path, array(**fields), grid=link_grid)


@fault(20)
def test_columns_first_are_what_they_say(tmp_path):
    """NumPy may store an array column by column: it says so, and the values are the same."""
    values = good().t().contiguous().numpy().tobytes()
    found = run(
        tmp_path / "one", node_of({BAD: array(data=header("<f4", "(2, 4)", "True") + values)}), grid=link_grid
    )
    plain = run(tmp_path / "two", node_of({BAD: array(data=DATA)}), grid=link_grid)
    assert found.refused == []
    assert found.broadcasts == plain.broadcasts


@fault(21)
def test_a_body_above_the_cap_is_refused_while_it_is_pulled(tmp_path):
    """30 MB of tensors that nobody asked for: hardly more than may be is taken."""
    many = {f"extra.{place}": torch.randn(25_000) for place in range(300)}
    links: list[Link] = []

    def grid(node):
        made = link_grid(node)
        links.append(made._client)
        return made

    change = sending(lambda sent: {**sent, **many})
    found = judged(run(tmp_path / "run", node_of({BAD: change}), grid=grid))
    assert found.refused == [(BAD, 1, "it is larger than any answer to what was asked")]
    assert links[0].pulled_bytes < 8 << 20
