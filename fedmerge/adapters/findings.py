"""From figures to plain sentences: one base or not, one basin or not, who pulls against whom, who leads.

Each sentence carries the figures that it rests on; what was not measured is not spoken of.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from fedmerge.adapters.figures import Figures, share, share_range
from fedmerge.adapters.findings_lines import MOST_NAMED, base_sentences, basin_sentences, merge_sentences

FAR = 0.5
"""An update half as long as the weights that it moves is no fine-tune any more: weights of two
initialisations lie 1.4 lengths apart, updates that merge well were measured at .02 to .1."""

OPPOSED = -0.1
"""From here on a tenth of each silo's length is undone by the other; chance alone gives some hundredths."""

DOMINANT = 0.5
"""A silo of more than half of the influence outweighs all others together."""

LITTLE = 0.1
"""With fewer than one shared coordinate in ten in conflict, an election of signs changes next to nothing."""

COIN = 0.9
"""A conflict of this share of what coins would give: signs tell next to nothing about the others'."""


def sentences(figures: Figures) -> tuple[str, ...]:
    """What the figures say, the most weighty first."""
    parts = (
        base_sentences,
        _lengths,
        basin_sentences,
        merge_sentences,
        _opposition,
        _elections,
        _dominance,
        _directions,
    )
    return tuple(sentence for part in parts for sentence in part(figures))


def _lengths(figures: Figures) -> Iterator[str]:
    if figures.relative is None:
        return
    lengths = dict(zip(figures.names, figures.relative, strict=True))
    yield f"An update is {share_range(lengths.values())} as long as the weights that it moves."
    if figures.whole and max(lengths.values()) < FAR:
        yield (
            "By their distance all are fine-tunes of this base."
            if len(lengths) > 1
            else (f"By its distance {figures.names[0]} is a fine-tune of this base.")
        )
    for name, length in lengths.items():
        if length >= FAR:
            yield (
                f"{name} lies {share(length)} of the weights' own length away, too far for a fine-tune of "
                "this base: another base, or a learning rate that was much too high."
            )


def _opposition(figures: Figures) -> Iterator[str]:
    cosines = {
        (figures.names[i], figures.names[j]): figures.geometry.cosines[i][j]
        for i, j in combinations(range(len(figures.names)), 2)
    }
    if not cosines:
        return
    values = list(cosines.values())
    told = (
        f"cosines from {min(values):+.3f} to {max(values):+.3f}, {sum(values) / len(values):+.3f} on average"
    )
    against = sorted((cosine, pair) for pair, cosine in cosines.items() if cosine <= OPPOSED)
    if not against:
        yield f"No two silos pull against each other ({told})."
    elif len(against) <= MOST_NAMED:
        listed = ", ".join(f"{one} and {two} ({cosine:+.3f})" for cosine, (one, two) in against)
        yield f"These pull against each other: {listed}; {told}."
    else:
        _, (one, two) = against[0]
        pairs = f"{len(against)} of {len(values)} pairs"
        yield f"{pairs} pull against each other, most {one} and {two}; {told}."


def _elections(figures: Figures) -> Iterator[str]:
    before, after = figures.before, figures.after
    if before is None or after is None:
        return
    told = (
        f"of the coordinates that two silos share, {share(before.against)} conflict in sign, "
        f"{share(after.against)} after a trim to {share(after.density)} "
        f"(coins would give {share(after.chance)})"
    )
    if after.against < LITTLE:
        yield f"Rules that elect signs have little to elect: {told}."
        return
    drops = f"an election drops {share(after.minority)} of what the trim leaves"
    if after.against >= COIN * after.chance:
        yield (
            f"Rules that elect signs have much to elect, and little to go by: {told}, so a silo's sign tells "
            f"next to nothing about the others'; {drops}."
        )
    else:
        yield f"Rules that elect signs have something to elect: {told}; {drops}."


def _dominance(figures: Figures) -> Iterator[str]:
    shape = figures.geometry
    if len(figures.names) < 2 or shape.leader is None:
        return
    name, influence = figures.names[shape.leader], shape.influence[shape.leader]
    longest = max(range(len(shape.norms)), key=lambda place: shape.norms[place])
    shortest = min(shape.norms)
    ratio = f"{shape.norms[longest] / shortest:.1f} times the shortest" if shortest else "another is zero"
    told = f"the longest update is that of {figures.names[longest]}, {ratio}"
    if influence > DOMINANT and len(figures.names) > 2:
        yield f"{name} dominates: {share(influence)} of the mean update is its doing; {told}."
    else:
        yield (
            f"Nobody dominates: {name} has most influence on the mean update, {share(influence)} "
            f"({share(1 / len(figures.names))} would be even); {told}."
        )


def _directions(figures: Figures) -> Iterator[str]:
    every = [spectrum for row in figures.spectra.values() for spectrum in row if spectrum.values]
    if every:
        ranks = [spectrum.effective_rank for spectrum in every]
        first = [spectrum.energy(1) for spectrum in every]
        yield (
            f"A matrix's update uses {sum(ranks) / len(ranks):.1f} directions on average (effective rank, of "
            f"at most {max(len(spectrum.values) for spectrum in every)}); the first holds "
            f"{share(sum(first) / len(first))} of its energy."
        )
