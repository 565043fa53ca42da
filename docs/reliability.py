"""Write docs/reliability.md: each fault, what is done about it, and the tests that hold it.

python docs/reliability.py            # after a test was added, or marked with another fault
python docs/reliability.py --check    # fails where docs/reliability.md is stale
"""

from __future__ import annotations

import argparse
import ast
import runpy
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
MOST_NAMED = 3

OPENING = """\
# What goes wrong, and what happens then

One rule stands over everything: **after any bad input or fault, either the result is bit-identical to the run
without the bad silo, or there is a clear failure with the last good adapter intact.**

*Refused* means: this one reply is dropped, with silo, round and reason on record, the round goes on while its
quorum holds, and the result has the bits of a run without that silo. `pytest -m fault` runs every test below;
those in *italics* start real processes or take minutes (`make test-all`), the others run in `make test`. They
run whole rounds, mostly over Flower's own grid, and compare the hashes of what was written.

This page is made from the tests by `python docs/reliability.py`.
"""


class Marked(NamedTuple):
    """A test that covers faults."""

    path: Path
    name: str
    numbers: tuple[int, ...]
    slow: bool


def marked_in(path: Path) -> Iterator[Marked]:
    """The tests of a file that say which faults they cover, by themselves or for the whole file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    everywhere = [
        mark
        for node in tree.body
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["pytestmark"]
        for mark in (node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value])
    ]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [*everywhere, *node.decorator_list]
            numbers = sorted({number for mark in marks for number in _numbers(mark)})
            if numbers:
                slow = any(isinstance(mark, ast.Attribute) and mark.attr == "slow" for mark in marks)
                yield Marked(path, node.name, tuple(numbers), slow)


def _numbers(mark: ast.expr) -> list[int]:
    """The numbers of ``pytest.mark.fault(1, 2)``, however the module calls it."""
    if not isinstance(mark, ast.Call):
        return []
    called = mark.func.attr if isinstance(mark.func, ast.Attribute) else getattr(mark.func, "id", "")
    return [ast.literal_eval(argument) for argument in mark.args] if called == "fault" else []


def by_number(tests: Path) -> dict[int, list[Marked]]:
    """The tests of each fault, in the order of their files."""
    found: dict[int, list[Marked]] = defaultdict(list)
    for path in sorted(tests.rglob("test_*.py")):
        for test in marked_in(path):
            for number in test.numbers:
                found[number].append(test)
    return found


def page(tests: Path) -> str:
    """The whole page.

    Raises:
        SystemExit: a test names a fault that there is none of.
    """
    faults = runpy.run_path(str(tests / "faults" / "catalogue.py"))["FAULTS"]
    known = {number for group in faults.values() for number in group}
    found = by_number(tests)
    if strangers := sorted(found.keys() - known):
        raise SystemExit(
            f"{found[strangers[0]][0].path} covers fault {strangers[0]}, which is in no catalogue"
        )
    parts = [OPENING]
    for group, members in faults.items():
        parts += [f"\n## {group}\n", "| | what goes wrong | what happens then | tests |", "|---|---|---|---|"]
        parts += [
            f"| {number} | {_cell(fault.what)} | {_cell(fault.then)} | {_listed(found[number])} |"
            for number, fault in members.items()
        ]
    return "\n".join(parts) + "\n"


def _listed(tests: Iterable[Marked]) -> str:
    """By file: the names of the first tests, and how many more there are."""
    files: dict[Path, list[Marked]] = defaultdict(list)
    for test in tests:
        files[test.path].append(test)
    cells = []
    for path, own in files.items():
        shown = [_named(test) for test in own[:MOST_NAMED]]
        more = [f"{len(own) - MOST_NAMED} more"] * (len(own) > MOST_NAMED)
        where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        cells.append(f"[{path.stem}](../{where.as_posix()}): {', '.join(shown + more)}")
    return "<br>".join(cells)


def _named(test: Marked) -> str:
    words = test.name.removeprefix("test_").replace("_", " ")
    return f"*{words}*" if test.slow else words


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write or check; the exit status."""
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--check", action="store_true", help="write nothing, fail where it is stale")
    check, fresh = reader.parse_args().check, page(ROOT / "tests")
    if not check:
        PAGE.write_text(fresh, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == fresh:
        return 0
    print("docs/reliability.md is stale: run python docs/reliability.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
