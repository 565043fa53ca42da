"""What came of a run, in sentences: beside the best trivial baseline, and silo by silo."""

from __future__ import annotations

from dataclasses import dataclass

from fedmerge.study.report.document import count, listed
from fedmerge.study.report.groups import KEPT, Group
from fedmerge.study.report.seeds import Interval, interval, mean

ALONE, BASE, CENTROIDS, POOLED = "alone/", "base", "centroids", "pooled"
_DIGITS = 3


def trivial(group: Group) -> str:
    """The best of what needs no federation: the base, centroids, one silo's training; "" for none."""
    names = [name for name in group.candidates() if name in (BASE, CENTROIDS) or name.startswith(ALONE)]
    known = {name: value for name in names if (value := group.mean(name)) is not None}
    # Of equals the first one, which is the base.
    return max(known, key=lambda name: known[name] * group.sign) if known else ""


def label(name: str) -> str:
    """A candidate as a person reads it.

    Example:
        >>> label("alone/north"), label("shadow/ties() @ factors()"), label("merged/3")
        ('north alone', 'ties() @ factors()', 'merged, round 3')
    """
    kind, _, rest = name.partition("/")
    if kind == "alone":
        return f"{rest} alone"
    if kind == "shadow":
        return rest
    if kind == "merged" and rest:
        return f"merged, round {rest}"
    return {
        "pooled": "pooled training",
        "centroids": "class centroids",
        "merged": "merged, last round",
        KEPT: "merged (kept)",
    }.get(name, name)


def gain_over(group: Group, name: str) -> Interval | None:
    """The kept adapter's gain over a candidate, paired by seed; positive is better."""
    pairs = zip(group.means(KEPT), group.means(name), strict=True)
    gains = [
        group.sign * (ours - theirs) for ours, theirs in pairs if ours is not None and theirs is not None
    ]
    return interval(gains) if gains else None


def headline(group: Group) -> str:
    """The result in one sentence, the best trivial baseline beside it."""
    kept = group.mean(KEPT)
    if kept is None:
        return unfinished(group)
    unit = group.metric if " per " in group.metric else f"in {group.metric}"
    reached = f"{number(kept)}{_margin(group.spread(KEPT))} {unit}"
    name = trivial(group)
    gain = gain_over(group, name) if name else None
    if gain is None:
        return f"The merge reaches {reached}; no baseline was scored beside it."
    theirs = f"{label(name)}, {number(group.mean(name))}"
    words = {"tie": "a tie with", "more": "better than", "less": "worse than"}
    caution = "" if gain.low is not None else "; one seed, spread unknown"
    said = (
        f"The merge reaches {reached}, {words[gain.verdict]} the best trivial baseline ({theirs}{caution})."
    )
    return f"{said}{_own_rows(duel(group))}"


def _own_rows(fight: Duel | None) -> str:
    """What the headline must not hide: silos that have more from their own training."""
    if fight is None or fight.against != "training alone" or not fight.losers:
        return ""
    verb = "does" if len(fight.losers) == 1 else "do"
    return (
        f" On their own rows, {len(fight.losers)} of {count(len(fight.gains), 'silo')} {verb} better alone."
    )


def unfinished(group: Group) -> str:
    """What there is of runs that did not come to their end."""
    run = group.runs[0]
    wanted = run.config.get("run.rounds", "?")
    return f"Not finished: {len(run.rounds)} of {wanted} rounds are closed, and nothing is scored yet."


def certainty(group: Group) -> str:
    """How far the difference to the best trivial baseline can be trusted."""
    name = trivial(group)
    gain = gain_over(group, name) if name else None
    if gain is None:
        return ""
    if gain.low is None or gain.high is None:
        seed = group.results[0].seed
        return (
            f"One seed ({seed}): the spread is unknown, so a small difference may be chance. "
            f"The gain over {label(name)} is {gain.mean:+.3f}."
        )
    over = count(len(group.results), "seed")
    return (
        f"Over {over} the gain over {label(name)} is {gain.mean:+.3f}, with a 95 % "
        f"interval (paired by seed, Student's t) from {gain.low:+.3f} to {gain.high:+.3f}."
    )


@dataclass(frozen=True)
class Duel:
    """Every silo's score of the kept adapter against another, on its own rows.

    Args:
        against: in words.
        gains: by silo, positive where merging is better, as printed at three digits; sorted from the best.
    """

    against: str
    gains: dict[str, float]

    @property
    def losers(self) -> list[str]:
        """The silos that merging cost something, from the worst."""
        return [silo for silo, gain in reversed(self.gains.items()) if gain < 0]

    def sentence(self) -> str:
        """Who won and who lost, by name."""
        won = sum(gain > 0 for gain in self.gains.values())
        tied = sum(gain == 0 for gain in self.gains.values())
        parts = [
            f"Against {self.against}, on each silo's own rows, merging wins at {won} of "
            f"{count(len(self.gains), 'silo')}"
        ]
        parts += [f"ties at {tied}"] if tied else []
        text = " and ".join(parts)
        if not self.losers:
            return f"{text}; it loses nowhere."
        worst = self.losers[0]
        most = "" if len(self.losers) == 1 else f"most at {worst}: "
        return f"{text}; it loses at {listed(self.losers)} ({most}{self.gains[worst]:+.3f})."


def duel(group: Group) -> Duel | None:
    """The kept adapter against training alone, or against the base where nobody trained alone."""
    own = {silo: f"{ALONE}{silo}" for silo in group.silos}
    names = set(group.candidates())
    alone = any(name in names for name in own.values())
    if not alone and BASE not in names:
        return None
    gains = {}
    for silo in group.silos:
        ours, theirs = group.at(KEPT, silo), group.at(own[silo] if alone else BASE, silo)
        if ours is not None and theirs is not None:
            gains[silo] = round(group.sign * (ours - theirs), _DIGITS)
    ranked = dict(sorted(gains.items(), key=lambda entry: (-entry[1], entry[0])))
    return Duel("training alone" if alone else "the base", ranked) if ranked else None


def own_training(group: Group) -> float | None:
    """Every silo's own training on its own rows, the mean over silos: what each has without a federation."""
    values = [group.at(f"{ALONE}{silo}", silo) for silo in group.silos]
    return None if None in values else mean(values)


def number(value: float | None) -> str:
    """A score in a sentence."""
    return "" if value is None else f"{value:.{_DIGITS}f}"


def _margin(deviation: float | None) -> str:
    return "" if deviation is None else f" ± {deviation:.{_DIGITS}f}"
