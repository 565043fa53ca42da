"""Whether the rounds of a run are what was written: files as hashed, rounds in a chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedmerge.deployment.doctor.finding import UNKNOWN, Finding, judged
from fedmerge.server.chain import Link, read_chain
from fedmerge.server.folder import BROADCAST, OPTIMIZER
from fedmerge.server.retention import kept
from fedmerge.server.storage import hash_of, read_toml

_REMOVED = ("deltas/", "statistics/", "replies")
"""Admitted replies are deleted when their round is closed, unless `run.record`."""

_TENSORS = (BROADCAST, OPTIMIZER)
"""Removed of rounds that nothing leans on any more, where `run.keep-rounds` says so."""


def whole(run: Path) -> Finding:
    """Verify a run's rounds by the hashes in their state.json."""
    asked = f"the hashes of {run.name}/rounds"
    links, damage = read_chain(run / "rounds")
    if not links and damage is None:
        return Finding("rounds on disk", UNKNOWN, asked, "no round yet")
    stay = _staying(run, links)
    wrong = [sentence for link in links for sentence in _changed(link, stay)] + [str(damage)] * bool(damage)
    told = "; ".join(wrong[:3]) or f"{len(links)} rounds, each as it was written"
    close = "something changed them after they were written; a resumed run uses the last whole one"
    return judged("rounds on disk", bool(wrong), asked, told, close)


def _staying(run: Path, links: Sequence[Link]) -> set[int]:
    """The rounds whose tensors must be there; where not all are kept, those that the last one leans on."""
    config = run / "config.toml"
    rounds = read_toml(config).get("run.keep-rounds", 0) if config.is_file() else 0
    states = {link.round: link.state for link in links}
    return kept(states, 1) if rounds else set(states)


def _changed(link: Link, stay: set[int]) -> Iterator[str]:
    for name, expected in sorted(link.state["sha256"].items()):
        said = f"{link.folder.name}/{name}"
        try:
            found = hash_of(link.folder / name)
        except FileNotFoundError:
            if not name.startswith(_REMOVED) and (link.round in stay or name not in _TENSORS):
                yield f"{said} is missing"
        else:
            if found != expected:
                yield f"{said} was changed"
