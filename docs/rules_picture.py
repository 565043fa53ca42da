"""Draw docs/rules.svg: what each rule makes of three small deltas.

    python docs/rules_picture.py            # writes it
    python docs/rules_picture.py --check    # fails where the committed one is stale

Every panel is the real rule with the knobs in its title. Left out are rules that another number of silos, a
statistic or a matrix would be needed for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fedmerge.rules import Draw, Stack, parse_rule

TARGET = Path(__file__).with_name("rules.svg")
SILOS = ("silo a", "silo b", "silo c")
GROUPS = (
    (0, 3, "all agree"),
    (3, 6, "two against one"),
    (6, 9, "only one"),
    (9, 11, "noise"),
    (11, 12, "outlier"),
)
DELTAS = (
    (0.8, 0.5, -0.7, 0.4, -0.5, 0.4, 1.0, 0.0, 0.0, 0.06, -0.08, 0.1),
    (0.6, 0.9, -0.4, 0.5, 0.8, -0.9, 0.0, -0.9, 0.0, -0.1, 0.05, 0.0),
    (0.7, 0.4, -0.9, -1.2, -0.6, -0.3, 0.05, 0.0, 0.8, 0.04, 0.09, 2.4),
)
RULES = (
    "fedavg()",
    "task_arithmetic(scale=0.5)",
    "ties(density=0.5)",
    "ties(density=0.5, votes='frequency')",
    "dare(density=0.5)",
    "dare_ties(density=0.5)",
    "della(density=0.5, epsilon=0.4)",
    "della_linear(density=0.5, epsilon=0.4, scale=0.5)",
    "breadcrumbs(density=0.5, gamma=0.1, scale=0.5)",
    "breadcrumbs_ties(density=0.5, gamma=0.1, scale=0.5)",
    "sce(density=0.5)",
    "consensus(clients=2, scale=0.5)",
    "magmax()",
    "emr_unified()",
    "ram(threshold=0.2, rate=0.1)",
    "median()",
    "trimmed_mean(trim=0.34)",
    "multislerp()",
    "karcher()",
    "model_stock()",
    "geometric_median()",
    "norm_clipping()",
    "ties(density=0.5, like='paper')",
    "ties(density=0.5, like='peft')",
)
COLUMNS = 4
# Colours that stand out on white and on GitHub's dark background alike.
INK, FAINT, MERGED = "#7f8792", "#9aa3ad55", "#2f81f7"
SILO_COLOURS = ("#2da44e", "#d4760a", "#bf4bd1")
TALLEST = 1.25


def merged(rule: str) -> Tensor:
    """What the rule makes of the deltas, `(coordinates,)`."""
    values = torch.tensor(DELTAS)
    stack = Stack(values, torch.ones(len(SILOS), 1, dtype=torch.float64))
    return parse_rule(rule)(stack, Draw(4, 0, SILOS, "x", (values.shape[1],)))


def computed() -> str:
    """The numbers that are drawn, as text: what `--check` compares, since fonts differ by machine."""
    return json.dumps({rule: [round(value, 4) for value in merged(rule).tolist()] for rule in RULES})


def draw(target: Path) -> None:
    """Write the picture."""
    import matplotlib as mpl  # late: --help needs none of it

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "fedmerge", "font.size": 8, "text.color": INK})
    rows = 1 + -(-len(RULES) // COLUMNS)
    figure = plt.figure(figsize=(11, 1.25 * rows + 0.5))
    grid = figure.add_gridspec(
        rows, COLUMNS * 3, hspace=0.75, wspace=0.45, height_ratios=[1.35, *[1] * (rows - 1)],
        left=0.015, right=0.985, top=0.96, bottom=0.02,
    )  # fmt: skip
    for index, (silo, values) in enumerate(zip(SILOS, DELTAS, strict=True)):
        axes = figure.add_subplot(grid[0, 4 * index : 4 * index + 4])
        _bars(axes, values, SILO_COLOURS[index], silo)
        for first, last, name in GROUPS:
            axes.text((first + last - 1) / 2, -TALLEST * 1.12, name, ha="center", va="top", fontsize=6)
    mean = merged("fedavg()").tolist()
    for index, rule in enumerate(RULES):
        row, column = divmod(index, COLUMNS)
        axes = figure.add_subplot(grid[row + 1, 3 * column : 3 * column + 3])
        _bars(axes, merged(rule).tolist(), MERGED, rule)
        axes.hlines(mean, [x - 0.45 for x in range(12)], [x + 0.45 for x in range(12)], colors=INK, lw=0.9)
    figure.text(0.985, 0.995, "grey strokes: the mean of the three", ha="right", va="top", fontsize=7)
    figure.savefig(
        target, transparent=True, metadata={"Date": None, "Creator": None, "Description": computed()}
    )


def _bars(axes: object, values: object, colour: str, title: str) -> None:
    shown = [max(-TALLEST, min(TALLEST, value)) for value in values]
    axes.bar(range(len(shown)), shown, color=colour, width=0.8)
    for place, value in enumerate(values):
        if abs(value) > TALLEST:  # cut off, so the number is written out
            edge, side = (0.94, "top") if value > 0 else (-0.94, "bottom")
            axes.text(
                place, edge * TALLEST, f"{abs(value):.1f}", ha="center", va=side, fontsize=5, color="white"
            )
    for first, last, _ in GROUPS[::2]:
        axes.axvspan(first - 0.5, last - 0.5, color=FAINT, lw=0, zorder=0)
    axes.axhline(0, color=INK, lw=0.6)
    axes.set_xlim(-0.6, 11.6)
    axes.set_ylim(-TALLEST, TALLEST)
    axes.set_title(title, fontsize=7.5 if len(title) < 45 else 6, loc="left", pad=4, color=INK)
    axes.axis("off")


def main() -> int:
    """Write or check; the exit status."""
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--check", action="store_true", help="write nothing, fail where it is stale")
    if not reader.parse_args().check:
        draw(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "rules.svg"
        draw(fresh)
        wanted = _description(fresh)
    if _description(TARGET) == wanted:
        return 0
    print("docs/rules.svg is stale: run python docs/rules_picture.py", file=sys.stderr)
    return 1


def _description(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text.partition("<dc:description>")[2].partition("</dc:description>")[0]


if __name__ == "__main__":
    sys.exit(main())
