"""The tables that make rules and stages reachable from text."""

from __future__ import annotations

from collections.abc import Callable

from fedmerge.errors import RuleError
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
from fedmerge.rules.combine import Mean, Scale, Total
from fedmerge.rules.compose import Rule, chain
from fedmerge.rules.entry_points import with_entry_points
from fedmerge.rules.gram_robust import ClipNorm
from fedmerge.rules.negation import Negate
from fedmerge.rules.presets import (
    DropByRankKeepNorm,
    DropInPlainPrecision,
    ElectInPlainPrecision,
    KeepThreshold,
    KeepVaryingOfNonzero,
    SumInPlainPrecision,
    WeighByMeanSquare,
)
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
from fedmerge.rules.statistics import FisherWeights
from fedmerge.text import build, parse_call

RULES: dict[str, Callable[..., Rule]] = {
    "fedavg": fedavg,
    "uniform": uniform,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare": dare,
    "dare_ties": dare_ties,
    "della": della,
    "della_linear": della_linear,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "sce": sce,
    "consensus": consensus,
    "magmax": magmax,
    "emr_unified": emr_unified,
    "ram": ram,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
    "krum": krum,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
    "norm_clipping": norm_clipping,
    "fisher": fisher,
    "regmean": regmean,
    "core_space": core_space,
    "knots": knots,
    "tsv_merge": tsv_merge,
    "iso_c": iso_c,
    "iso_cts": iso_cts,
    "cart": cart,
    "chain": chain,
}
"""Rule name -> function. A new rule joins by a line here."""

STAGES: dict[str, Callable[..., Stage]] = {
    "equal_weights": EqualWeights,
    "fisher_weights": FisherWeights,
    "negate": Negate,
    "keep_largest": KeepLargest,
    "drop_random": DropRandom,
    "drop_by_rank": DropByRank,
    "keep_middle": KeepMiddle,
    "keep_varying": KeepVarying,
    "keep_consensus": KeepConsensus,
    "clip_norm": ClipNorm,
    "elect_sign": ElectSign,
    "elect_largest": ElectLargest,
    "elect_changed": ElectChanged,
    "rescale_unique": RescaleUnique,
    "weigh_by_energy": WeighByEnergy,
    "mean": Mean,
    "total": Total,
    "scale": Scale,
    "keep_threshold": KeepThreshold,
    "keep_varying_of_nonzero": KeepVaryingOfNonzero,
    "drop_by_rank_keep_norm": DropByRankKeepNorm,
    "weigh_by_mean_square": WeighByMeanSquare,
    "drop_in_plain_precision": DropInPlainPrecision,
    "elect_in_plain_precision": ElectInPlainPrecision,
    "sum_in_plain_precision": SumInPlainPrecision,
}
"""Stage name -> class, for use inside `chain(...)`; a rule of one stage (median, model_stock, krum) stands
there by its own name."""


def parse_rule(text: str) -> Rule:
    """Read a rule from text.

    Args:
        text: `ties(density=0.2)`, or `chain(keep_largest(density=0.2), elect_sign(), mean())`; a name may
            also be that of an entry point in the group `fedmerge.rules` of an installed package.

    Returns:
        The rule; `str` gives text back that reads as an equal rule.

    Raises:
        RuleError: text that can't be read, an unknown name or knob, an argument out of range, an entry point
            that fails.

    Example:
        >>> parse_rule("ties(density=0.2)") == ties(density=0.2)
        True
        >>> parse_rule("trimmed_mean(trin=0.2)")
        Traceback (most recent call last):
        fedmerge.errors.RuleError: trimmed_mean() has no knob 'trin'. Did you mean 'trim'? There are: trim
    """
    call = parse_call(text, "rule")
    made = build(call, with_entry_points(call, {**STAGES, **RULES}), "rule")
    if not isinstance(made, Rule):
        raise RuleError(f"rule {text!r} is a single stage; put it into chain(...)")
    return made
