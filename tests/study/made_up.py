"""Folders of runs and comparisons, made up: what a report reads, with figures that are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmerge.config import defaults
from fedmerge.server.storage import to_toml

SILOS = ("east", "north", "south", "west")
BASE, ALONE, MERGED, POOLED = 0.50, 0.70, 0.76, 0.82


def scores(values: dict[str, float], validation: bool = True) -> dict[str, Any]:
    """A candidate of result.json, higher is better."""
    mean = sum(values.values()) / len(values)
    below = {silo: value - 0.01 for silo, value in values.items()}
    return {
        "test": values,
        "validation": below if validation else {},
        "mean": mean,
        "worst": min(values.values()),
    }


@dataclass
class RunFolder:
    """A run of accuracy: silos gain 0.06 over training alone, but for the first one, which loses 0.04."""

    path: Path
    silos: tuple[str, ...] = SILOS
    rounds: int = 3
    seed: int = 0
    shift: float = 0.0

    def write(self, **settings: Any) -> Path:
        """Write config, environment, metrics and result."""
        self.path.mkdir(parents=True, exist_ok=True)
        ours = {
            "run.name": "made-up",
            "run.rounds": self.rounds,
            "run.seed": self.seed,
            "run.output": str(self.path),
        }
        config = defaults() | ours | {key.replace("__", "."): value for key, value in settings.items()}
        (self.path / "config.toml").write_text(to_toml(config), encoding="utf-8")
        self.put("environment.json", {"python": "3.11", "versions": {"torch": "2.13.0"}})
        lines = [json.dumps(self.round(number)) for number in range(1, self.rounds + 1)]
        (self.path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.put("result.json", self.result(config))
        return self.path

    def put(self, name: str, value: Any) -> None:
        """Write a file of JSON."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    def at(self, middle: float) -> dict[str, float]:
        """Scores of the silos around a middle."""
        around = (len(self.silos) - 1) / 2
        return {silo: middle + self.shift + 0.01 * (n - around) for n, silo in enumerate(self.silos)}

    def round(self, number: int) -> dict[str, Any]:
        """A line of metrics.jsonl; the last silo is refused in round 2, and missing in round 3."""
        last, received = self.silos[-1], self.at(BASE + (MERGED - BASE) * (number - 1) / self.rounds)
        return {
            "round": number,
            "asked": list(self.silos),
            "admitted": {silo: {"examples": 10.0} for silo in self.silos[: len(self.silos) - (number > 1)]},
            "refused": [{"silo": last, "reason": "NaN in 'a.lora_A'"}] if number == 2 else [],
            "missing": [last] if number == 3 else [],
            "flagged": {},
            "received": {
                "metric": "accuracy",
                "silos": received,
                "mean": sum(received.values()) / len(received),
            },
            "shadows": {
                "ties() @ product()": {"mean": BASE + 0.05 * number, "worst": 0.4},
                "dare() @ core()": {"error": "x"},
            },
            "rejected": "",
            "bytes_down": 2_000_000,
            "bytes_up": 1_000_000,
            "seconds": {"wait": 0.1, "train": 4.0, "merge": 0.5},
            "merge": {"discarded_total": 0.02},
        }

    def result(self, config: dict[str, Any]) -> dict[str, Any]:
        """The content of result.json."""
        merged, first = self.at(MERGED), self.silos[0]
        own = {silo: value - 0.06 for silo, value in merged.items()} | {first: merged[first] + 0.04}
        alone = {f"alone/{silo}": scores(self.at(0.6) | {silo: own[silo]}, False) for silo in self.silos}
        return {
            "metric": "accuracy",
            "higher_is_better": True,
            "silos": list(self.silos),
            "candidates": {
                "base": scores(self.at(BASE)),
                **alone,
                "shadow/ties() @ product()": scores(self.at(0.7), False),
                "merged": scores(merged),
                "pooled": scores(self.at(POOLED), False),
            },
            "kept": "merged",
            "seed": self.seed,
            "rule": config["strategy.rule"],
            "space": config["strategy.space"],
            "rounds": [],
            "bytes_up": 3_000_000,
            "bytes_down": 8_000_000,
            "seconds": {"setup": 1.0, "rounds": 14.0, "baselines": 6.0, "evaluation": 2.0},
            "refused": [],
        }

    def sweep(self, candidates: int = 5) -> None:
        """Add a sweep, whose third candidate failed."""
        folder = self.path / "sweep"
        folder.mkdir()
        lines = [
            {
                "candidate": f"ties(density={0.05 * (n + 1):.2f}) @ product()",
                "mean": 0.74 - 0.001 * n,
                "worst": 0.7,
                "split": "validation",
                "metric": "accuracy",
                "seconds": 1.5,
            }
            if n != 2
            else {"candidate": "krum() @ product()", "error": "needs 5 deltas"}
            for n in range(candidates)
        ]
        (folder / "leaderboard.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        best = lines[0]["candidate"]
        self.put(
            "sweep/result.json",
            {
                "best": {"candidate": best, "test": {"mean": 0.77}},
                "beside": {"base": {"test": {"mean": 0.5}}},
            },
        )

    def geometry(self, modules: int = 12) -> None:
        """Add a geometry."""
        count = len(self.silos)
        cosines = [[1.0 if a == b else 0.3 - 0.15 * abs(a - b) for b in range(count)] for a in range(count)]
        layers = {
            f"model.layers.{n}.self_attn.q_proj": {
                "length": [1.0 + 0.1 * n + 0.2 * s for s in range(count)],
                "relative": [0.01 * (1 + n % 5 + s) for s in range(count)],
                "rank": [4.0] * count,
                "energy": [0.9] * count,
            }
            for n in range(modules)
        }
        axis = [-0.5, 0.0, 0.5, 1.0, 1.5]
        ways = [n / 4 for n in range(5)]
        self.put(
            "geometry.json",
            {
                "names": list(self.silos),
                "in_products": True,
                "layers": layers,
                "cosines": cosines,
                "influence": [1 / count] * count,
                "leader": self.silos[0],
                "conflict": {"before": 0.6, "after": 0.35, "density": 0.2},
                "lines": [
                    {
                        "from": "base",
                        "to": silo,
                        "at": ways,
                        "loss": [2 - at + 0.3 * n * at * (1 - at) for at in ways],
                        "score": ways,
                        "metric": "accuracy",
                        "barrier": 0.02 * n,
                    }
                    for n, silo in enumerate(self.silos[:4])
                ],
                "plane": {
                    "corners": ["base", *self.silos[:2]],
                    "x": axis,
                    "y": axis,
                    "loss": [[(x - 0.5) ** 2 + (y - 0.5) ** 2 for x in axis] for y in axis],
                    "points": {"base": [0, 0], self.silos[0]: [1, 0], self.silos[1]: [0, 1]},
                },
                "sentences": ["The updates point in much the same direction."],
            },
        )


def write_comparison(folder: Path, **changes: Any) -> Path:
    """A comparison of three strategies and a baseline: ties is better, dare is a tie."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        row("base", "baseline", 0.50, None),
        row("fedavg", "strategy", 0.70, None),
        row("ties", "strategy", 0.73, {"mean": 0.03, "low": 0.01, "high": 0.05, "verdict": "better"}),
        row("dare", "strategy", 0.695, {"mean": -0.005, "low": -0.02, "high": 0.01, "verdict": "tie"}),
    ]
    value = {
        "kind": "compare",
        "name": "made-up",
        "simulation": "s.toml",
        "command": "fedmerge compare s.toml ties dare",
        "metric": "accuracy",
        "higher_is_better": True,
        "split": "test",
        "seeds": [0, 1, 2],
        "silos": list(SILOS),
        "reference": "fedavg",
        "tuned": None,
        "machine": "2 cores",
        "seconds": 60.0,
        "rows": rows,
        "notes": ["Intervals are Student's t over seeds."],
    }
    (folder / "compare.json").write_text(json.dumps(value | changes), encoding="utf-8")
    return folder


def row(name: str, kind: str, mean: float, difference: dict[str, Any] | None) -> dict[str, Any]:
    """A row of compare.json."""
    return {
        "name": name,
        "kind": kind,
        "rule": f"{name}()",
        "space": "product()",
        "knob": None,
        "mean": mean,
        "spread": 0.01,
        "worst": mean - 0.1,
        "worst_silo": "west",
        "silos": dict.fromkeys(SILOS, mean),
        "by_seed": [mean - 0.01, mean, mean + 0.01],
        "bytes_up": 1e6,
        "bytes_down": 2e6,
        "seconds": 20.0,
        "difference": difference,
    }
