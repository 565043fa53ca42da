"""Rules: pure functions that merge the clients' values, tensor by tensor, into one row.

Stack, Draw                      what a rule is given
fedavg, ties, dare, ...          the rules (catalogue/)
chain(stage, ...)                rules of one's own, from
KeepLargest, ElectSign, ...      the stages
parse_rule, RULES                rules from text
by_name, by_depth, over_depth    another rule for another tensor
"""

from __future__ import annotations

from fedmerge.rules.by_name import ByDepth, ByName, by_depth, by_name, over_depth, resolve
from fedmerge.rules.catalogue.agreement import consensus, emr_unified, magmax, ram, sce
from fedmerge.rules.catalogue.byzantine import geometric_median, krum, multi_krum
from fedmerge.rules.catalogue.clipping import norm_clipping
from fedmerge.rules.catalogue.geometric import karcher, model_stock, multislerp, nuslerp, slerp
from fedmerge.rules.catalogue.informed import fisher, regmean
from fedmerge.rules.catalogue.means import fedavg, task_arithmetic, uniform
from fedmerge.rules.catalogue.robust import median, trimmed_mean
from fedmerge.rules.catalogue.singular import cart, iso_c, iso_cts, tsv_merge
from fedmerge.rules.catalogue.sparse import breadcrumbs, breadcrumbs_ties, della, della_linear
from fedmerge.rules.catalogue.spectral import core_space, knots
from fedmerge.rules.catalogue.ties import dare, dare_ties, ties
from fedmerge.rules.combine import Mean, Median, Scale, Total, TrimmedMean
from fedmerge.rules.compose import Chain, Rule, chain
from fedmerge.rules.gram import GramStage
from fedmerge.rules.gram_robust import ClipNorm, GeometricMedian, Krum, MultiKrum
from fedmerge.rules.gram_sphere import Karcher, ModelStock, Multislerp, Nuslerp, Slerp
from fedmerge.rules.negation import Negate
from fedmerge.rules.registry import RULES, STAGES, parse_rule
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import DropRandom, ElectSign, EqualWeights, KeepLargest, Stage
from fedmerge.rules.stages_agreement import (
    ElectChanged,
    ElectLargest,
    KeepConsensus,
    KeepVarying,
    RescaleUnique,
    WeighByEnergy,
)
from fedmerge.rules.stages_magnitude import DropByRank, KeepMiddle
from fedmerge.rules.statistics import FisherWeights, RegMean

__all__ = [
    "RULES",
    "STAGES",
    "ByDepth",
    "ByName",
    "Chain",
    "ClipNorm",
    "Draw",
    "DropByRank",
    "DropRandom",
    "ElectChanged",
    "ElectLargest",
    "ElectSign",
    "EqualWeights",
    "FisherWeights",
    "GeometricMedian",
    "GramStage",
    "Karcher",
    "KeepConsensus",
    "KeepLargest",
    "KeepMiddle",
    "KeepVarying",
    "Krum",
    "Mean",
    "Median",
    "ModelStock",
    "MultiKrum",
    "Multislerp",
    "Negate",
    "Nuslerp",
    "RegMean",
    "RescaleUnique",
    "Rule",
    "Scale",
    "Slerp",
    "Stack",
    "Stage",
    "Total",
    "TrimmedMean",
    "WeighByEnergy",
    "breadcrumbs",
    "breadcrumbs_ties",
    "by_depth",
    "by_name",
    "cart",
    "chain",
    "consensus",
    "core_space",
    "dare",
    "dare_ties",
    "della",
    "della_linear",
    "emr_unified",
    "fedavg",
    "fisher",
    "geometric_median",
    "iso_c",
    "iso_cts",
    "karcher",
    "knots",
    "krum",
    "magmax",
    "median",
    "model_stock",
    "multi_krum",
    "multislerp",
    "norm_clipping",
    "nuslerp",
    "over_depth",
    "parse_rule",
    "ram",
    "regmean",
    "resolve",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
    "trimmed_mean",
    "tsv_merge",
    "uniform",
]
