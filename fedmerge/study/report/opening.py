"""The top of the page: what was run, what came of it, and the figures that matter."""

from __future__ import annotations

from collections.abc import Sequence

from fedmerge.study.report.document import Block, Column, Facts, Table, Text, best_cells, count, listed
from fedmerge.study.report.groups import KEPT, Group
from fedmerge.study.report.seeds import mean
from fedmerge.study.report.study_sources import Comparison
from fedmerge.study.report.verdict import (
    ALONE,
    BASE,
    CENTROIDS,
    POOLED,
    certainty,
    duel,
    headline,
    label,
    number,
    own_training,
    trivial,
    unfinished,
)

_LONGEST_BASE = 40


def title_of(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> str:
    """What the page is called."""
    names = [run.name for group in groups for run in group.runs] + [study.name for study in comparisons]
    return listed(list(dict.fromkeys(names)), most=4)


def about(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> str:
    """One line of what was run."""
    if len(groups) == 1 and not comparisons:
        return _about(groups[0])
    runs = sum(len(group.runs) for group in groups)
    parts = [f"{count(runs, 'run')} of {count(len(groups), 'experiment')}"] if runs else []
    parts += [
        f"comparison of {len(study.rows)} over {count(len(study.seeds), 'seed')}" for study in comparisons
    ]
    return " · ".join(parts)


def _about(group: Group) -> str:
    config = group.runs[0].config
    seeds = listed([str(run.seed) for run in group.runs])
    parts = [
        count(len(group.silos), "silo") if group.silos else "",
        count(int(config.get("run.rounds", 1)), "round"),
        f"{config.get('strategy.rule', '')} in {config.get('strategy.space', '')}",
        f"base {_short(str(config.get('base.model', '')))}",
        f"{'seed' if len(group.runs) == 1 else 'seeds'} {seeds}",
    ]
    return " · ".join(part for part in parts if part)


def _short(base: str) -> str:
    """A base's path without its beginning, which says nothing to others."""
    return base if len(base) <= _LONGEST_BASE else "…/" + "/".join(base.split("/")[-2:])


def headline_of(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> str:
    """The result in one sentence."""
    if comparisons and not groups:
        return comparison_headline(comparisons[0])
    if len(groups) == 1:
        return headline(groups[0])
    comparable = [group for group in groups if group.mean(KEPT) is not None]
    if len({(group.metric, group.split, group.silos) for group in comparable}) != 1:
        return f"{count(len(groups), 'experiment')}, which have no figure in common to be ranked by."
    leading = max(comparable, key=lambda group: (group.mean(KEPT) or 0.0) * group.sign)
    same = [group for group in comparable if number(group.mean(KEPT)) == number(leading.mean(KEPT))]
    names = listed([group.label for group in same])
    verb = "reach" if len(same) > 1 else "reaches"
    best = f"{number(leading.mean(KEPT))} in {leading.metric}{_beside(leading)}"
    single = any(len(group.results) == 1 for group in comparable)
    caution = " Of one seed the spread is unknown, so a small lead may be chance." if single else ""
    return f"{names} {verb} the best mean of {count(len(comparable), 'experiment')}: {best}.{caution}"


def _beside(group: Group) -> str:
    """The best trivial baseline of an experiment, in brackets."""
    name = trivial(group)
    return f" (best trivial baseline: {label(name)}, {number(group.mean(name))})" if name else ""


def comparison_headline(study: Comparison) -> str:
    """How the strategies of a comparison stand to its reference, ties called ties."""
    rivals = [row for row in study.rows if row.kind == "strategy" and row.difference is not None]
    metric = study.metric.replace("_", " ")
    if not rivals:
        return f"{study.reference} was measured in {metric}, with no other strategy beside it."
    by = {
        verdict: [row.name for row in rivals if row.difference and row.difference.verdict == verdict]
        for verdict in ("better", "worse", "tie")
    }
    than, parts = study.reference, []
    for verdict, one, many in (
        ("better", "is better than", "are better than"),
        ("tie", "ties with", "tie with"),
        ("worse", "is worse than", "are worse than"),
    ):
        if names := by[verdict]:
            parts.append(f"{listed(names, 4)} {one if len(names) == 1 else many} {than}")
            than = "it"
    return f"{'; '.join(parts)} ({metric}, {count(len(study.seeds), 'seed')})."


def opening(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> tuple[Block, ...]:
    """What stands below the headline."""
    if not groups:
        return (Facts(tuple(_compared(comparisons[0]))),) if len(comparisons) == 1 else ()
    if len(groups) == 1:
        return _single(groups[0])
    return (overview(groups),)


def _compared(study: Comparison) -> list[tuple[str, str, str]]:
    """The reference, the best strategy and the best baseline of a comparison."""
    sign, metric = 1.0 if study.higher else -1.0, study.metric.replace("_", " ")
    rows = [row for row in study.rows if row.mean is not None]
    strategies = [row for row in rows if row.kind == "strategy"]
    chosen = {
        "best strategy": strategies,
        "reference": [row for row in rows if row.name == study.reference],
        "best baseline": [row for row in rows if row.kind == "baseline" and not row.name.startswith(POOLED)],
        "pooled": [row for row in rows if row.name.startswith(POOLED)],
    }
    entries = []
    for title, found in chosen.items():
        if found:
            row = max(found, key=lambda row: sign * (row.mean or 0.0))
            margin = "" if row.spread is None else f", ± {number(row.spread)} over seeds"
            entries.append((title, number(row.mean), f"{row.name}: {metric}{margin}"))
    return entries


def _single(group: Group) -> tuple[Block, ...]:
    if group.mean(KEPT) is None:
        return ()
    blocks: list[Block] = [Facts(tuple(_facts(group)))]
    fight = duel(group)
    said = [certainty(group), fight.sentence() if fight else "", *_stopped(group)]
    blocks += [Text(" ".join(filter(None, said)))]
    return tuple(blocks)


def _facts(group: Group) -> list[tuple[str, str, str]]:
    deviation = group.spread(KEPT)
    remark = (
        "mean over silos"
        if deviation is None
        else f"± {number(deviation)} over {count(len(group.results), 'seed')}"
    )
    entries = [("merged", number(group.mean(KEPT)), f"{group.metric}, {remark}")]
    name = trivial(group)
    if BASE in group.candidates():
        entries.append(("base", number(group.mean(BASE)), "before any training"))
    if CENTROIDS in group.candidates():
        entries.append(("class centroids", number(group.mean(CENTROIDS)), "nothing is trained"))
    if name.startswith(ALONE):
        entries.append(("best single silo", number(group.mean(name)), label(name)))
    if (own := own_training(group)) is not None:
        entries.append(("each silo for itself", number(own), "alone, on its own rows only"))
    if POOLED in group.candidates():
        entries.append(("pooled", number(group.mean(POOLED)), "all rows in one place"))
    return entries


def _stopped(group: Group) -> list[str]:
    open_runs = [run for run in group.runs if run.result is None]
    return [f"{unfinished(Group('', (run,)))} ({run.path.name})" for run in open_runs]


def overview(groups: Sequence[Group]) -> Table:
    """Several experiments side by side."""
    columns = (
        Column("experiment"), Column("seeds"), Column("metric"), Column("merged", 4),
        Column("spread over seeds", 4), Column("worst silo", 4), Column("base", 4),
        Column("best baseline", 4), Column("each for itself", 4), Column("pooled", 4),
    )  # fmt: skip
    rows = []
    for group in groups:
        name = trivial(group)
        rows.append(
            (
                group.label, ", ".join(str(run.seed) for run in group.runs),
                f"{group.metric}, {group.direction}", group.mean(KEPT), group.spread(KEPT),
                mean(group.worsts(KEPT)), group.mean(BASE), group.mean(name),
                own_training(group), group.mean(POOLED),
            )
        )  # fmt: skip
    same = len({(group.metric, group.split) for group in groups}) == 1
    best = (
        best_cells(rows, 3, 4, groups[0].higher) | best_cells(rows, 5, 4, groups[0].higher) if same else set()
    )
    return Table("Experiments", columns, tuple(rows), best=frozenset(best))
