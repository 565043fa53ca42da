"""Who won and who lost: every silo's own score with the base, alone, merged, pooled."""

from __future__ import annotations

from fedmerge.study.report.document import Block, Column, Table, Text
from fedmerge.study.report.groups import KEPT, Group
from fedmerge.study.report.plots.canvas import Words
from fedmerge.study.report.plots.silos import SiloScores, silo_plot
from fedmerge.study.report.verdict import ALONE, BASE, POOLED, duel


def by_silo(group: Group) -> tuple[Block, ...]:
    """Sorted by what merging gained; () where the silos have no scores."""
    fight = duel(group)
    order = list(fight.gains) if fight else []
    order += [silo for silo in group.silos if silo not in order]
    silos = [
        SiloScores(silo, _scores(group, silo), fight.gains.get(silo) if fight else None) for silo in order
    ]
    if not any(silo.scores for silo in silos):
        return ()
    against = "training alone" if fight and fight.against == "training alone" else "the base"
    sentence = fight.sentence() if fight else "There is neither a base nor training alone to compare with."
    listing = ", ".join(f"{silo.name} {silo.gain:+.3f}" for silo in silos[:40] if silo.gain is not None)
    words = Words(
        f"{sentence} Gains over {against}: {listing}." if fight else sentence,
        f"Each silo's own {group.split} rows ({group.metric}, {group.direction}); a gain is positive where "
        "merging is better, whichever direction the metric has.",
    )
    picture = silo_plot(silos, group.metric, "alone" if against == "training alone" else "base", words)
    return (Text(sentence), picture, _table(group, silos, against))


def _scores(group: Group, silo: str) -> dict[str, float]:
    names = {"base": BASE, "alone": f"{ALONE}{silo}", "merged": KEPT, "pooled": POOLED}
    found = {kind: group.at(name, silo) for kind, name in names.items()}
    return {kind: value for kind, value in found.items() if value is not None}


def _table(group: Group, silos: list[SiloScores], against: str) -> Table:
    kinds = [
        kind for kind in ("base", "alone", "merged", "pooled") if any(kind in silo.scores for silo in silos)
    ]
    columns = (
        Column("silo"),
        *(Column(kind, 4) for kind in kinds),
        Column(f"gain over {against}", 3, signed=True),
        Column("merging"),
    )
    rows = tuple(
        (silo.name, *(silo.scores.get(kind) for kind in kinds), silo.gain, _word(silo.gain)) for silo in silos
    )
    return Table(f"By silo: {group.metric}, {group.direction}, on its own {group.split} rows", columns, rows)


def _word(gain: float | None) -> str:
    if gain is None:
        return ""
    return "wins" if gain > 0 else "loses" if gain < 0 else "ties"
