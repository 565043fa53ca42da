"""Rules: pure functions that merge the clients' values, tensor by tensor, into one row.

Stack, Draw                      what a rule is given
fedavg, ties, dare, ...          the rules (catalogue/)
chain(stage, ...)                rules of one's own, from
KeepLargest, ElectSign, ...      the stages
parse_rule, RULES                rules from text
"""

from __future__ import annotations

from fedmerge.rules.catalogue.means import fedavg, task_arithmetic, uniform
from fedmerge.rules.catalogue.robust import median, trimmed_mean
from fedmerge.rules.catalogue.ties import dare, dare_ties, ties
from fedmerge.rules.combine import Mean, Median, Scale, Total, TrimmedMean
from fedmerge.rules.compose import Chain, Rule, chain
from fedmerge.rules.registry import RULES, STAGES, parse_rule
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import DropRandom, ElectSign, EqualWeights, KeepLargest, Stage

__all__ = [
    "RULES",
    "STAGES",
    "Chain",
    "Draw",
    "DropRandom",
    "ElectSign",
    "EqualWeights",
    "KeepLargest",
    "Mean",
    "Median",
    "Rule",
    "Scale",
    "Stack",
    "Stage",
    "Total",
    "TrimmedMean",
    "chain",
    "dare",
    "dare_ties",
    "fedavg",
    "median",
    "parse_rule",
    "task_arithmetic",
    "ties",
    "trimmed_mean",
    "uniform",
]
