"""A small federation across machines, as text and as the operator's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

TEXT = """\
name = "heart-study"

[server]
hosts = ["fed.example.org", "203.0.113.7"]

[silos.hospital-a]
data = "/srv/fedmerge/rows of a.parquet"
max-examples = 5000

[silos.hospital-a.policy]
bases = ["00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff"]
max-rounds = 50

[silos.hospital-b]
data = "/srv/fedmerge/rows.jsonl"
"""


@pytest.fixture
def text() -> str:
    return TEXT


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `deploy init` writes; to be read only."""
    from fedmerge.deployment.federation import parse_federation
    from fedmerge.deployment.founding import found

    return found(parse_federation(TEXT), tmp_path_factory.mktemp("founded") / "out")


@pytest.fixture
def out(founded: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change, and whose commands may be run: they write below `tmp_path`."""
    out = Path(shutil.copytree(founded, tmp_path / "out"))
    for place in out.rglob("bin/place.sh"):
        place.write_text(place.read_text().replace("STATE=/var/lib/", f"STATE={tmp_path}/lib/"))
    return out
