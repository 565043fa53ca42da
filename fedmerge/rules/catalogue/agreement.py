"""Rules that look at who changed a coordinate, and by how much: SCE, consensus, MagMax, EMR and RAM."""

from __future__ import annotations

from fedmerge.rules.catalogue.named import named
from fedmerge.rules.combine import Mean, Total
from fedmerge.rules.compose import Chain
from fedmerge.rules.presets import Knobs, preset
from fedmerge.rules.stages import ElectSign, Stage
from fedmerge.rules.stages_agreement import (
    ElectChanged,
    ElectLargest,
    KeepConsensus,
    KeepVarying,
    RescaleUnique,
    WeighByEnergy,
)


def sce(density: float = 1.0, scale: float = 1.0, like: str | None = None) -> Chain:
    """SCE: select where clients differ, calculate weights from energies, erase minority signs.

    One mask m for all clients keeps the `max(1, int(rho n))` coordinates of largest variance across them.
    With `t_i = m tau_i`, `g = sgn(sum_i w_i t_i)` and `c_i = sum over the tensor of t_i^2`:
    `lambda * sum_{i: sgn t_i = g} w_i c_i t_i / sum_{i: sgn t_i = g} w_i c_i`, and 0 where `g = 0`. Variance
    and votes are weighted by w_i; with equal weights it is the published rule.

    Args:
        density: rho, share of a tensor's coordinates kept, in (0, 1].
        scale: lambda, any finite number.
        like: None, or "mergekit" for its mathematics: no weights, and all `c_i` alike for a tensor whose
            entries are around 1e-3 or smaller (presets/).

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(sce(density=0.1))
        sce(density=0.1)

    Reference:
        Wan, Zhong, Yang, Chen, Quan, "FuseChat: Knowledge Fusion of Chat Models", 2024, arXiv:2408.07990.
    """
    stages: tuple[Stage, ...] = (KeepVarying(density), ElectSign(), WeighByEnergy(), Mean())
    if like is not None:
        stages = preset("sce", like, Knobs(density))
    return named("sce", {"density": density, "scale": scale, "like": like}, stages, scale)


def consensus(clients: int = 2, threshold: float = 0.4, scale: float = 1.0) -> Chain:
    """Consensus merging: the sum of the deltas where enough clients use a coordinate (TALL masks).

    With `c_i = w_i tau_i` and `S = sum_i c_i`, client i uses a coordinate where `|c_i| > threshold * |S -
    c_i|`. Where at least k clients do (all, if fewer than k are there): `lambda * N * S / sum_i w_i`, with
    equal weights `lambda * sum_i tau_i`; elsewhere 0.

    Args:
        clients: k, from 1.
        threshold: the paper's lambda of a mask, from 0; the authors search 0.2 to 0.6 on validation data.
        scale: lambda of the merge, any finite number.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(consensus(clients=2, threshold=0.4, scale=0.3))
        consensus(clients=2, threshold=0.4, scale=0.3)

    Reference:
        Wang, Dimitriadis, Ortiz-Jimenez, Fleuret, Frossard, "Localizing Task Information for Improved Model
        Merging and Compression", 2024, arXiv:2405.07813.
    """
    knobs = {"clients": clients, "threshold": threshold, "scale": scale}
    return named("consensus", knobs, (KeepConsensus(clients, threshold), Total()), scale)


def magmax(scale: float = 1.0) -> Chain:
    """MagMax: of each coordinate the change of largest magnitude.

    `lambda * tau_i` with `i = argmax |tau_i|` over the clients of weight above 0. Weights decide only where
    entries of opposite sign tie: the sign with more weight wins, and 0 where the weights are equal too.

    Args:
        scale: lambda, any finite number.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(magmax(scale=0.5))
        magmax(scale=0.5)

    Reference:
        Marczak, Twardowski, Trzcinski, Cygert, "MagMax: Leveraging Model Merging for Seamless Continual
        Learning", 2024, arXiv:2407.06322.
    """
    return named("magmax", {"scale": scale}, (ElectLargest(), ElectSign(), Mean()), scale)


def emr_unified(scale: float = 1.0) -> Chain:
    """The unified delta of EMR-Merging: the elected sign with the largest magnitude among those who agree.

    With `g = sgn(sum_i w_i tau_i)`: `lambda * g * max_{i: sgn tau_i = g} |tau_i|`, and 0 where `g = 0`. The
    paper goes on to a mask and a scale for each task; a single merged adapter has no place for them.

    Args:
        scale: lambda, any finite number.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(emr_unified(scale=0.5))
        emr_unified(scale=0.5)

    Reference:
        Huang, Ye, Chen, He, Yue, Ouyang, "EMR-Merging: Tuning-Free High-Performance Model Merging", 2024,
        arXiv:2405.17461.
    """
    return named("emr_unified", {"scale": scale}, (ElectSign(), ElectLargest(), Mean()), scale)


def ram(
    threshold: float = 1e-5,
    rate: float = 0.05,
    limit: float = 1.0,
    scale: float = 1.0,
    scope: str | None = None,
) -> Chain:
    """RAM+: the mean over those who changed a coordinate, and a little more than that where only one did.

    Client i changed a coordinate where `|tau_i| > threshold`. Where several did, `lambda * sum w_i tau_i /
    sum w_i` over them; where one did, `lambda * tau_i * (1 + r min(alpha, shared_i / unique_i))`, with the
    numbers of coordinates that i changed together with others and alone; elsewhere 0. For the sparse deltas
    of reinforcement learning. Rate 0 is the paper's RAM. The threshold is absolute: it fits deltas of full
    weights, while small deltas of LoRA factors may want a smaller one.

    Args:
        threshold: magnitude up to which an entry counts as unchanged, from 0.
        rate: r, from 0. The authors' code has 0.05 and the ratio at most 1, mergekit 0.1 and at most 0.2.
        limit: alpha, the largest ratio that counts, from 0.
        scale: lambda, any finite number.
        scope: "tensor" (the default) or "adapter", as in the authors' code: what is counted over.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(ram(threshold=1e-5, rate=0.1, limit=0.2))
        ram(threshold=1e-05, rate=0.1, limit=0.2)

    Reference:
        Yuan, Shi, Zhang, Liu, Yao, Vosoughi, Lee, "Behavior Knowledge Merge in Reinforced Agentic Models",
        2026, arXiv:2601.13572.
    """
    knobs = {"threshold": threshold, "rate": rate, "limit": limit, "scale": scale, "scope": scope}
    stages = (ElectChanged(threshold), RescaleUnique(rate, limit, scope or "tensor"), Mean())
    return named("ram", knobs, stages, scale)
