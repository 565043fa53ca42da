"""The numbers of a run as a tracker shows them: names with slashes, which dashboards group by, and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figures = dict[str, float]

KEPT = "kept"
"""The score of the run's result: the one figure to compare runs by."""


def round_figures(report: Mapping[str, Any]) -> Figures:
    """A closed round in numbers.

    Args:
        report: a `RoundReport` as observers get it. Its scores are those of the adapter that the round began
            with.

    Returns:
        Scores as "received/<metric>/mean", ".../worst" and ".../silo/<silo>"; the training loss and the norm
        of the delta by silo; bytes, seconds by phase, how many silos were asked, admitted, refused, missing.

    Example:
        >>> report = {"round": 1, "asked": ["a", "b"], "admitted": {"a": {"norm": 2.0, "metrics": {}}},
        ...           "refused": [{"silo": "b", "reason": "NaN"}], "missing": [],
        ...           "bytes_up": 8, "bytes_down": 16,
        ...           "received": {"metric": "loss", "mean": 0.5, "worst": 0.5, "silos": {"a": 0.5}},
        ...           "seconds": {"train": 1.5}, "merge": None}
        >>> sorted(round_figures(report))  # doctest: +NORMALIZE_WHITESPACE
        ['bytes/down', 'bytes/up', 'norm/silo/a', 'received/loss/mean', 'received/loss/silo/a',
         'received/loss/worst', 'seconds/train', 'silos/admitted', 'silos/asked', 'silos/missing',
         'silos/refused']
    """
    figures = _received(report.get("received"))
    for silo, entry in report["admitted"].items():
        figures[f"norm/silo/{silo}"] = entry["norm"]
        if "train_loss" in entry["metrics"]:
            figures[f"train_loss/silo/{silo}"] = entry["metrics"]["train_loss"]
    figures |= {f"silos/{what}": len(report[what]) for what in ("asked", "admitted", "refused", "missing")}
    figures |= {f"bytes/{way}": report[f"bytes_{way}"] for way in ("up", "down")}
    figures |= {f"seconds/{phase}": seconds for phase, seconds in report["seconds"].items()}
    # What other rules would have made of the round's replies, where that is scored in every round.
    for name, row in (report.get("shadows") or {}).items():
        if "mean" in row:
            figures[f"shadow/{row['metric']}/mean/{name}"] = row["mean"]
    if merge := report.get("merge"):
        figures |= {f"merge/{what}": merge[f"{what}_total"] for what in ("discarded", "aggregation_error")}
    return figures


def final_figures(result: Mapping[str, Any]) -> Figures:
    """A finished run in numbers.

    Args:
        result: what stands in result.json.

    Returns:
        "final/<metric>/mean/<candidate>" and ".../worst/<candidate>" of each candidate; the mean of the kept
        one as "kept", and its scores by silo; bytes and seconds of the whole run.
    """
    metric, candidates, kept = result["metric"], result["candidates"], result["kept"]
    figures = {
        f"final/{metric}/{what}/{name}": row[what]
        for what in ("mean", "worst")
        for name, row in candidates.items()
        if what in row
    }
    row = candidates.get(kept, {})
    if "mean" in row:
        figures[KEPT] = row["mean"]
    by_silo = row.get("test") or row.get("validation") or {}
    figures |= {f"final/{metric}/silo/{silo}": value for silo, value in by_silo.items()}
    figures |= {f"total/bytes/{way}": result[f"bytes_{way}"] for way in ("up", "down")}
    return figures | {f"total/seconds/{phase}": value for phase, value in result["seconds"].items()}


def _received(received: Mapping[str, Any] | None) -> Figures:
    """Scores of a round's broadcast; none where no silo has validation rows."""
    if not received:
        return {}
    head = f"received/{received['metric']}"
    by_silo = {f"{head}/silo/{silo}": value for silo, value in received["silos"].items()}
    return {f"{head}/mean": received["mean"], f"{head}/worst": received["worst"]} | by_silo
