"""One tensor of every fine-tune to one merged tensor, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedmerge.checkpoints.deltas import Deltas, Tile, spans
from fedmerge.checkpoints.kernel import merge_tile
from fedmerge.checkpoints.treatment import NARROWEST, Treatment, Way, width_of
from fedmerge.checkpoints.trim import Cut, cuts, split_trim
from fedmerge.errors import AdapterMismatch
from fedmerge.rules import Draw, Rule, Stack
from fedmerge.rules.negation import for_silos


@dataclass
class Tally:
    """What is counted while tiles go by, for the report.

    Args:
        gram: the deltas' inner products over all tensors, float64 `(clients, clients)`.
        base: squared length of the base.
        step: squared length of the merged change.
        lost: squared length of what rounding to the base's dtype took from it.
    """

    gram: Tensor
    base: float = 0.0
    step: float = 0.0
    lost: float = 0.0


@dataclass(frozen=True, eq=False)
class Arithmetic:
    """A rule over all tensors of a base and its fine-tunes.

    Args:
        deltas: where the values come from.
        treatments: by tensor.
        memory: working bytes.
        seed: of random masks.
        device: where the rule runs.
        tally: what is counted on the way.
        kernel: "plain", or "numba" where it serves the rule.
    """

    deltas: Deltas
    treatments: Mapping[str, Treatment]
    memory: int
    seed: int
    device: torch.device
    tally: Tally
    kernel: str = "plain"
    _decided: dict[Rule, Tensor] = field(default_factory=dict)
    _cut: dict[Rule, dict[str, list[Cut]]] = field(default_factory=dict)

    def values(self, name: str) -> Iterator[Tensor]:
        """A tensor's merged values in the base's dtype, piece by piece.

        Raises:
            AdapterMismatch: NaN, Inf, an overflow, or whole numbers that differ from the base's.
        """
        treatment = self.treatments[name]
        if treatment.rule is None:
            yield from self._copied(name)
            return
        merge = self._merger(name, treatment)
        start = 0
        with torch.no_grad():
            for tile in self._tiles(name, tally=treatment.way is not Way.SUM):
                yield self._stepped(name, tile.base, merge(tile.rows, start))
                start += tile.base.numel()

    def _merger(self, name: str, treatment: Treatment) -> Callable[[Tensor, int], Tensor]:
        """What merges the next tile `(clients, width)`, given its first coordinate."""
        rule = treatment.rule
        assert rule is not None
        if treatment.way is Way.SUM:
            coefficients = self._coefficients(name, rule, treatment.together)
            return lambda rows, start: _weighted(rows, coefficients)
        if treatment.way is Way.TRIM:
            parts = split_trim(rule)
            assert parts is not None
            own = self._cuts(name, rule, treatment.together)
            return lambda rows, start: self._run(
                parts[1], name, torch.stack([cut(row) for cut, row in zip(own, rows, strict=True)]), start
            )
        return lambda rows, start: self._run(rule, name, rows, start)

    def _run(self, rule: Rule, name: str, rows: Tensor, start: int) -> Tensor:
        silos = tuple(client.name for client in self.deltas.clients)
        shape = self.deltas.base.entries[name].shape
        draw = Draw(seed=self.seed, round=0, silos=silos, tensor=name, shape=shape)
        if self.kernel == "numba" and rule.separable:
            merged = merge_tile(rule, rows, self.weights, draw.at(start))
            if merged is not None:
                return merged
        weights = self.weights.to(self.device).unsqueeze(1)
        return rule(Stack(rows.to(self.device), weights), draw.at(start)).cpu()

    @property
    def weights(self) -> Tensor:
        """Raw weights, float64 `(clients,)`."""
        return torch.tensor([client.weight for client in self.deltas.clients], dtype=torch.float64)

    def _tiles(self, name: str, *, tally: bool) -> Iterator[Tile]:
        entry = self.deltas.base.entries[name]
        width = width_of(entry, self.treatments[name], len(self.deltas.clients), self.memory)
        for start, stop in spans(entry.coordinates, width):
            tile = self.deltas.tile(name, start, stop)
            if tally:
                _add_gram(tile.rows, self.tally.gram)
            yield tile

    def _stepped(self, name: str, base: Tensor, merged: Tensor) -> Tensor:
        """Base plus merged, rounded once, and what that took from the change."""
        dtype = self.deltas.base.entries[name].dtype
        exact = base.to(torch.float64)
        self.tally.base += float(exact.square().sum())
        self.tally.step += float(merged.to(torch.float64).square().sum())
        result = (exact + merged).to(dtype)
        bad = result.numel() - int(result.isfinite().sum())
        if bad:
            raise AdapterMismatch(
                f"the merge overflows: {bad} values of {name!r} are beyond {dtype}, although all inputs are "
                "finite"
            )
        self.tally.lost += float((exact.add_(merged).sub_(result)).square().sum())
        return result

    def _copied(self, name: str) -> Iterator[Tensor]:
        """Whole numbers and truth values, which must be alike in all."""
        base = self.deltas.base
        for start, stop in spans(base.entries[name].coordinates, 1 << 20):
            values = base.read(name, start, stop)
            for client in self.deltas.clients:
                held = client.checkpoint
                if name in held.entries and not torch.equal(held.read(name, start, stop), values):
                    raise AdapterMismatch(
                        f"{client.label}: {name!r} holds other whole numbers than the base's; they can't be "
                        "merged"
                    )
            yield values

    def _coefficients(self, name: str, rule: Rule, together: bool) -> Tensor:
        """The coefficients of a tensor, or of all tensors that the rule merges."""
        if rule in self._decided:
            return self._decided[rule]
        names = self._sharing(rule) if together else [name]
        gram = torch.zeros_like(self.tally.gram)
        for each in names:
            for tile in self._tiles(each, tally=False):
                _add_gram(tile.rows, gram)
        # Counted here, because the tiles are read once more for the sum.
        self.tally.gram += gram
        placed = for_silos(rule, [client.name for client in self.deltas.clients])
        coefficients: Tensor = placed.coefficients(gram, self.weights)  # type: ignore[attr-defined]
        if together:
            self._decided[rule] = coefficients
        return coefficients

    def _cuts(self, name: str, rule: Rule, together: bool) -> list[Cut]:
        """The thresholds of a tensor's clients."""
        if not together:
            return self._thresholds([name], rule)
        if rule not in self._cut:
            names = self._sharing(rule)
            self._cut[rule] = self._shared_out(names, self._thresholds(names, rule))
        return self._cut[rule][name]

    def _thresholds(self, names: Sequence[str], rule: Rule) -> list[Cut]:
        parts = split_trim(rule)
        assert parts is not None
        trim = parts[0]
        total = sum(self.deltas.base.entries[name].coordinates for name in names)
        dtypes = {self.deltas.dtype(name) for name in names}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        count = max(trim.minimum, int(trim.density * total))

        def read() -> Iterator[Tensor]:
            for name in names:
                for tile in self._tiles(name, tally=False):
                    yield tile.rows.to(dtype)

        return cuts(read, len(self.deltas.clients), min(count, total), dtype)

    def _shared_out(self, names: Sequence[str], whole: Sequence[Cut]) -> dict[str, list[Cut]]:
        """One threshold over many tensors: how many of the entries equal to it each tensor may keep."""
        left = [cut.ties for cut in whole]
        shared: dict[str, list[Cut]] = {}
        for name in names:
            tied = [0] * len(whole)
            for tile in self._tiles(name, tally=False):
                for client, (row, cut) in enumerate(zip(tile.rows, whole, strict=True)):
                    tied[client] += int((row.abs() == cut.threshold).sum())
            own = [min(some, many) for some, many in zip(left, tied, strict=True)]
            left = [before - taken for before, taken in zip(left, own, strict=True)]
            shared[name] = [replace(cut, ties=ties) for cut, ties in zip(whole, own, strict=True)]
        return shared

    def _sharing(self, rule: Rule) -> list[str]:
        """The tensors that a rule merges, in the order in which it sees them as one row."""
        return sorted(name for name, treatment in self.treatments.items() if treatment.rule == rule)


def _weighted(rows: Tensor, coefficients: Tensor) -> Tensor:
    """`sum c_i tau_i` in float64, client by client."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for row, coefficient in zip(rows, coefficients.tolist(), strict=True):
        total.add_(row.to(torch.float64).mul_(coefficient))
    return total


def _add_gram(rows: Tensor, gram: Tensor) -> None:
    """Add inner products in float64, stretch by stretch: the same bits whatever the width of the tiles."""
    for start, stop in spans(rows.shape[1], NARROWEST):
        narrow = rows[:, start:stop].to(torch.float64)
        gram.addmm_(narrow, narrow.T)
