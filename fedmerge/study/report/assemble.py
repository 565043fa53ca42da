"""From folders to a page: what is there is read, and each section stands where its data are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmerge.errors import CheckpointError
from fedmerge.study.report.by_round import by_round
from fedmerge.study.report.by_silo import by_silo
from fedmerge.study.report.comparison import comparison
from fedmerge.study.report.costs import costs
from fedmerge.study.report.document import Block, Heading, Page, Section
from fedmerge.study.report.groups import Group, grouped
from fedmerge.study.report.leaderboard import leaderboard
from fedmerge.study.report.opening import about, headline_of, opening, title_of
from fedmerge.study.report.run_source import Run, read_run
from fedmerge.study.report.scores import scores
from fedmerge.study.report.settings import settings
from fedmerge.study.report.shape import shape
from fedmerge.study.report.study_sources import Comparison, read_comparison


@dataclass(frozen=True)
class Sources:
    """What a report is about."""

    runs: tuple[Run, ...]
    comparisons: tuple[Comparison, ...]


def read_sources(paths: Sequence[Path]) -> Sources:
    """Read runs' folders and comparisons' folders.

    Raises:
        CheckpointError: a folder that is neither, one given twice, or a file in it that is damaged.
    """
    folders = [path.expanduser().absolute() for path in paths]
    for place, folder in enumerate(folders):
        if folder.resolve() in {other.resolve() for other in folders[:place]}:
            raise CheckpointError(f"{folder} is given twice")
    runs: list[Run] = []
    comparisons: list[Comparison] = []
    for folder in folders:
        if (folder / "compare.json").is_file():
            comparisons.append(read_comparison(folder / "compare.json"))
        elif (folder / "config.toml").is_file():
            runs.append(read_run(folder))
        else:
            raise CheckpointError(
                f"{folder} is no run's folder: it has neither config.toml nor a comparison's compare.json"
            )
    return Sources(tuple(runs), tuple(comparisons))


def page_of(sources: Sources) -> Page:
    """The page about these sources."""
    groups = grouped(sources.runs)
    return Page(
        title=title_of(groups, sources.comparisons),
        about=about(groups, sources.comparisons),
        headline=headline_of(groups, sources.comparisons),
        opening=opening(groups, sources.comparisons),
        sections=tuple(section for section in _sections(groups, sources.comparisons) if section.blocks),
    )


def _sections(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> Iterator[Section]:
    for place, study in enumerate(comparisons):
        key = "comparison" + (f"-{place + 1}" if place else "")
        title = "Comparison" + (f": {study.name}" if len(comparisons) > 1 or groups else "")
        yield Section(key, title, comparison(study))
    yield Section("scores", "Scores", _each(groups, scores))
    yield Section("rounds", "Round by round", by_round(groups))
    yield Section("silos", "Silo by silo", _each(groups, by_silo))
    yield Section("sweep", "Sweep", _runs(groups, _sweep))
    yield Section("geometry", "Geometry of the updates", _runs(groups, _shape))
    yield Section("costs", "Bytes, time, replies", _runs(groups, _costs))
    yield Section("settings", "Settings", _each(groups, settings))


def _each(groups: Sequence[Group], build: Callable[[Group], tuple[Block, ...]]) -> tuple[Block, ...]:
    """The blocks of every experiment, each below its name where there are several."""
    found = [(group.label, build(group)) for group in groups]
    return _headed([(name, blocks) for name, blocks in found if blocks], len(groups) > 1)


def _runs(groups: Sequence[Group], build: Callable[[Run, Group], tuple[Block, ...]]) -> tuple[Block, ...]:
    """The blocks of every run, each below its name and seed where there are several."""
    found = [
        (f"{group.label}, seed {run.seed}" if len(group.runs) > 1 else group.label, build(run, group))
        for group in groups
        for run in group.runs
    ]
    return _headed(
        [(name, blocks) for name, blocks in found if blocks], sum(len(group.runs) for group in groups) > 1
    )


def _headed(found: Sequence[tuple[str, tuple[Block, ...]]], several: bool) -> tuple[Block, ...]:
    return tuple(
        block for name, blocks in found for block in ((Heading(name), *blocks) if several else blocks)
    )


def _sweep(run: Run, group: Group) -> tuple[Block, ...]:
    return leaderboard(run.sweep, group.metric, group.higher) if run.sweep else ()


def _shape(run: Run, _: Group) -> tuple[Block, ...]:
    return shape(run.geometry) if run.geometry else ()


def _costs(run: Run, _: Group) -> tuple[Block, ...]:
    return costs(run)
