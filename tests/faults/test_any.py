"""Fault 50: any schema, any corruption: the bits of the run without the bad silo, or a clear failure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from fedmerge.engine.identity import server_identity
from fedmerge.errors import RoundFailed
from fedmerge.server import guard, pulling
from fedmerge.server.folder import RunFolder
from fedmerge.server.signed_grid import SignedGrid
from fedmerge.server.strategy import MergeStrategy
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server.verifying import Verifier
from fedmerge.wire.protocol import Instruction, Sender, read_instruction, reply_content
from fedmerge.wire.records import to_record
from tests.server.signing import RUN, credentials_of, identity_of
from tests.server.world import roster_of

from .corruptions import STRUCTURED, Corruption, flips, other_metrics, other_values
from .federation import hash_of
from .link import link_grid

pytestmark = pytest.mark.fault(50)

NAMES = ("a", "b", "c", "d")
BAD = "d"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
RULES = ["fedavg()", "ties(density=0.5)", "median()"]

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
Schema = dict[str, tuple[tuple[int, ...], torch.dtype]]
schemas = st.dictionaries(names, st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=4)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def adapter(schema: Schema, seed: int) -> dict[str, Tensor]:
    return {
        name: values(shape, dtype, seed + place)
        for place, (name, (shape, dtype)) in enumerate(schema.items())
    }


corruptions = st.builds(
    Corruption,
    st.lists(st.sampled_from(STRUCTURED), max_size=2).map(tuple),
    st.integers(0, 3),
    st.integers(0, 2**32),
).filter(lambda corruption: corruption.changes or corruption.byte_changes)


@dataclass(frozen=True)
class Ended:
    """How a run ended: hashes of its broadcasts, the deltas that it took, and the failure, if it failed."""

    broadcasts: tuple[str, ...]
    taken: dict[str, dict[str, Tensor]]
    failure: str


def ended(
    schema: Schema,
    rule: str,
    corruption: Corruption | None,
    *,
    packed: bool = False,
    signed: bool = False,
    absent: bool = False,
) -> Ended:
    """One round of three good silos and a bad one, over Flower's own grid."""

    def node(message: Message):
        silo = read_instruction(message.content).silo
        if silo == BAD and absent:
            return None
        content = reply_content(adapter(schema, ord(silo)), 10, sender=Sender(silo, 1, "", "cpu"))
        if signed:
            credentials_of(silo).check(message)
            content = credentials_of(silo).sign(content, message)
        return corrupted(content, corruption) if corruption and silo == BAD else content

    tamper = {}
    if corruption is not None and corruption.byte_changes:
        tamper = {BAD: flips(random.Random(corruption.seed), corruption.byte_changes)}
    grid: Grid = StreamingGrid(link_grid(node, tamper), packed=packed)
    grid = SignedGrid(grid, identity_of()) if signed else grid
    with TemporaryDirectory() as place, server_identity(run_id=1):
        folder = RunFolder(Path(place) / "run", {"run.seed": 0})
        folder.start({})
        strategy = MergeStrategy(
            rule, roster=roster_of(*NAMES), quorum=0.5, wait_seconds=0.0, folder=folder,
            instruction=Instruction(run=RUN if signed else ""),
        )  # fmt: skip
        failure = ""
        try:
            strategy.start(grid, to_record(adapter(schema, 0)), num_rounds=1, timeout=0.01)
        except RoundFailed as error:
            failure = str(error)
        finally:
            folder.close()
        files = sorted(Path(place).glob("run/rounds/*/broadcast.safetensors"))
        taken = {reply.silo: dict(reply.delta.tensors) for reply in strategy.last_replies}
        return Ended(tuple(hash_of(path) for path in files), taken, failure)


def corrupted(content: RecordDict, corruption: Corruption) -> RecordDict | Error | None:
    """The records after all changes, as far as there is something left to change."""
    answer: RecordDict | Error | None = content
    drawn = random.Random(corruption.seed)
    for change in corruption.changes:
        if isinstance(answer, RecordDict) and whole(answer):
            answer = change(answer, drawn)
    return answer


def whole(content: RecordDict) -> bool:
    kinds = {"arrays": ArrayRecord, "metrics": MetricRecord, "fedmerge": ConfigRecord}
    return all(isinstance(content.get(key), kind) and content[key] for key, kind in kinds.items())


def holds(schema: Schema, rule: str, corruption: Corruption, *, packed: bool = False) -> bool:
    """Whether a round with the bad silo ends as it may.

    Without signatures a changed number is another good number: then the others' deltas must have come as they
    were sent. Where dtypes are narrow, or wider than the sums, such numbers may be beyond what can be merged.
    """
    found = ended(schema, rule, corruption, packed=packed)
    if found.failure:
        overflows = "the merge overflows" in found.failure and {dtype for _, dtype in schema.values()} - {
            torch.float32
        }
        return bool(overflows) and "round 0 is intact" in found.failure and len(found.broadcasts) == 1
    if BAD not in found.taken:
        return found.broadcasts == ended(schema, rule, None, absent=True).broadcasts
    return all(
        torch.equal(found.taken[silo][name], value)
        for silo in NAMES[:3]
        for name, value in adapter(schema, ord(silo)).items()
    )


def holds_signed(schema: Schema, rule: str, corruption: Corruption, *, packed: bool = False) -> bool:
    """With signatures there are two outcomes: all took part as they signed, or one did not take part."""
    found = ended(schema, rule, corruption, signed=True, packed=packed)
    expected = ended(schema, rule, None, signed=True, absent=BAD not in found.taken)
    return not found.failure and found.broadcasts == expected.broadcasts


quiet = {
    "phases": (Phase.explicit, Phase.generate),
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}
PROPERTIES = pytest.mark.parametrize("property_holds", [holds, holds_signed])


@PROPERTIES
@settings(max_examples=25, derandomize=True, **quiet)
@given(schema=schemas, rule=st.sampled_from(RULES), corruption=corruptions, packed=st.booleans())
def test_any_corruption_of_any_schema_has_one_of_the_two_outcomes(
    property_holds, schema, rule, corruption, packed
):
    assert property_holds(schema, rule, corruption, packed=packed)


@pytest.mark.slow
@PROPERTIES
@settings(max_examples=1500, **quiet)
@given(schema=schemas, rule=st.sampled_from(RULES), corruption=corruptions, packed=st.booleans())
def test_many_corruptions_have_one_of_the_two_outcomes(property_holds, schema, rule, corruption, packed):
    assert property_holds(schema, rule, corruption, packed=packed)


# A check that can't fail proves nothing: without a guard each of them does.

PLAIN = {"x": ((2, 2), torch.float32)}


def seed_of(change, odd) -> int:
    """A seed with which a change makes of a good reply what `odd` says."""
    for seed in range(1000):
        content = reply_content(adapter(PLAIN, 1), 10, sender=Sender(BAD, 1, "", "cpu"))
        changed = change(content, random.Random(seed))
        if isinstance(changed, RecordDict) and odd(changed):
            return seed
    raise AssertionError("no such seed")


def test_the_property_fails_where_values_are_not_checked(monkeypatch):
    def nan(content: RecordDict) -> bool:
        return b"\xc0\x7f" in content["arrays"]["x"].data

    bad = Corruption((other_values,), 0, seed_of(other_values, nan))
    assert holds(PLAIN, "fedavg()", bad)
    monkeypatch.setattr(guard, "finite_norm", lambda tensors: 1.0)
    assert not holds(PLAIN, "fedavg()", bad)


def test_the_property_fails_where_damaged_objects_are_put_together(monkeypatch):
    cut = Corruption((), 3, 1)
    assert holds(PLAIN, "fedavg()", cut)
    monkeypatch.setattr(pulling, "DAMAGE", ())
    with pytest.raises((ValueError, LookupError, TypeError)):
        holds(PLAIN, "fedavg()", cut)


def test_the_signed_property_fails_where_signatures_are_not_checked(monkeypatch):
    def heavier(content: RecordDict) -> bool:
        return content.get("metrics", {}).get("num-examples") == 5

    bad = Corruption((other_metrics,), 0, seed_of(other_metrics, heavier))
    assert holds_signed(PLAIN, "fedavg()", bad)
    monkeypatch.setattr(Verifier, "check", lambda self, reply: None)
    assert not holds_signed(PLAIN, "fedavg()", bad)
