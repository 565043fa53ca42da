"""Public text that every Python carries: the standard library's source and pydoc's topics.

The built-in base is pretrained on the source outside `SILOS`; the silos are single packages and the
prose of the pydoc topics. Text is read from the running Python, so it differs a little between
versions; which file belongs to which split depends on its name alone.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmerge.errors import ConfigError, nearest

PROSE = "prose"
"""The silo of pydoc's topics; every other silo is a package of that name."""

SILOS = ("asyncio", "unittest", "xml", PROSE, "email", "multiprocessing", "encodings")
"""Text the built-in base never saw, one silo each."""

DEFAULT_SILOS = SILOS[:4]

LONGEST_HELD_OUT = 16_000
"""Characters of a validation or test document that are used: one long file is not to stand for its silo."""

_EXCLUDED_PACKAGES = {"site-packages", "dist-packages", "test", "pydoc_data", "__pycache__"}
_TEST_FOLDERS = {"test", "tests", "idle_test", "_bundled"}
_HELD_OUT_PERCENT = 10
_SALT = 2483
_TEST_PERCENT = 20
_VALIDATION_PERCENT = 30  # cumulative: 20 to 30


@dataclass(frozen=True)
class Document:
    """One file or topic: its name relative to the standard library, and its text."""

    name: str
    text: str


def split_of(name: str) -> str:
    """The split of a silo's document, from a hash of its name: 70 % train, 10 % validation, 20 % test."""
    bucket = _bucket(name)
    if bucket < _TEST_PERCENT:
        return "test"
    return "validation" if bucket < _VALIDATION_PERCENT else "train"


def silo_documents(silo: str) -> list[Document]:
    """All documents of one built-in silo, sorted by name.

    Raises:
        ConfigError: the silo is unknown, or this Python was installed without that package.
    """
    if silo not in SILOS:
        raise ConfigError(f"data.silos: no built-in silo {silo!r}; {nearest(silo, SILOS)}")
    documents = _topics() if silo == PROSE else list(_sources(_stdlib() / silo))
    if not documents:
        raise ConfigError(
            f"built-in silo {silo!r}: this Python ({_stdlib()}) carries no text of it; choose other silos"
        )
    return documents


def pretraining_documents(*, held_out: bool) -> list[Document]:
    """Standard-library source outside the silos and the tests: the held-out tenth, or the rest."""
    return [
        document
        for root in sorted(_stdlib().iterdir())
        if root.name not in _EXCLUDED_PACKAGES.union(SILOS)
        for document in _sources(root)
        if (_bucket(document.name) < _HELD_OUT_PERCENT) == held_out
    ]


def corpus_hash(documents: Iterable[Document]) -> str:
    """SHA-256 over names and texts, in the given order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{len(document.text)}\0".encode())
        digest.update(document.text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _bucket(name: str) -> int:
    # The salt was chosen, before any training, so that no silo's split is empty or dwarfs the others.
    return int.from_bytes(hashlib.sha256(f"{_SALT}/{name}".encode()).digest()[:8], "big") % 100


def _sources(root: Path) -> Iterator[Document]:
    """The Python files at or below a path, tests left out."""
    for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
        name = path.relative_to(_stdlib())
        if path.suffix != ".py" or _TEST_FOLDERS & set(name.parts[:-1]):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield Document(name.as_posix(), text)


def _topics() -> list[Document]:
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415  some installations leave it out
    except ImportError:
        return []
    return [Document(f"topics/{name}", text) for name, text in sorted(topics.items())]
