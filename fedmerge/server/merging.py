"""From the admitted replies to the next broadcast: the merge, then the server optimizer's step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.merge import Merged, MergeReport, merge
from fedmerge.adapters.optimizers import OptimizerState, Unchanged
from fedmerge.adapters.spaces import Space
from fedmerge.errors import FedMergeError, RoundFailed
from fedmerge.rules import Rule
from fedmerge.rules.statistics import needs_of
from fedmerge.server.guard import Admitted
from fedmerge.server.plan import Plan
from fedmerge.server.reading import check_finite


@dataclass(frozen=True)
class Closed:
    """What a round merges, sorted by silo name."""

    round: int
    received: Adapter
    replies: list[Admitted]
    weights: list[float]


@dataclass
class Merger:
    """Merges rounds by a plan; all that it remembers is the server optimizer's state.

    Args:
        plan: rule, space, optimizer and shadows.
        seed: of the rule's randomness.
        device: "auto", "cpu" or "cuda".
        state: of the server optimizer; None before its first step.
    """

    plan: Plan
    seed: int = 0
    device: str = "auto"
    state: OptimizerState | None = field(default=None)

    def step(self, closed: Closed) -> tuple[Adapter, MergeReport]:
        """The next broadcast, and what the merge reports.

        Raises:
            RoundFailed: the merge failed, or its result is not finite; the state is what it was.
        """
        try:
            remembers = not isinstance(self.plan.optimizer, Unchanged)
            merged = self.merged(closed, self.plan.rule, self.plan.space, step=remembers)
            adapter, state = self.plan.optimizer.step(closed.received, merged, self.state)
            for name, value in adapter.tensors.items():
                if value is not merged.adapter.tensors.get(name):  # what the merge made, it has checked
                    check_finite(name, value)
            # Flower's older apps know tensors by their position, so that stays what it was.
            # In one layout: bits depend on it, and what a resumed run reads from a file has no other.
            tensors = {name: adapter.tensors[name].contiguous() for name in closed.received.tensors}
            adapter = replace(adapter, tensors=tensors)
        except (FedMergeError, RuntimeError, MemoryError) as err:  # torch's RuntimeError: no convergence, say
            intact = f"The adapter of round {closed.round - 1} is intact"
            reason = str(err) or type(err).__name__
            raise RoundFailed(f"round {closed.round}: the merge failed: {reason}. {intact}") from err
        self.state = state
        return adapter, merged.report

    def merged(self, closed: Closed, rule: Rule, space: Space, *, step: bool = False) -> Merged:
        """The replies merged by one rule in one space; with the step beside it, where that is wanted."""
        needs = needs_of(rule)
        statistics = [{name: reply.statistics[name] for name in needs} for reply in closed.replies]
        return merge(
            [reply.delta for reply in closed.replies],
            closed.weights,
            received=closed.received,
            rule=rule,
            space=space,
            names=[reply.silo for reply in closed.replies],
            seed=self.seed,
            round=closed.round,
            device=self.device,
            finite=True,
            step=step,
            statistics=statistics if needs else None,
        )
