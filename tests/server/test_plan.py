from __future__ import annotations

import pytest

from fedmerge.errors import ConfigError, RoundFailed, RuleError
from fedmerge.server.plan import Plan, parse_shadows
from fedmerge.server.settings import StrategySettings


def test_shadows():
    assert parse_shadows(" ; ") == ()
    assert [shadow.name for shadow in parse_shadows("fedavg ; median() @ factors")] == [
        "fedavg() @ factors()",
        "median() @ factors()",
    ]
    with pytest.raises(ConfigError, match=r"'fedavg\(\) @ factors\(\)' is given twice"):
        parse_shadows("fedavg; fedavg() @ factors()")
    with pytest.raises(ConfigError, match="expected 'rule @ space'"):
        parse_shadows("ties @ factors @ product")
    with pytest.raises(RuleError, match="did you mean 'product'"):
        parse_shadows("ties @ produkt")


def plan(rule: str, space: str, shadows: str = "") -> Plan:
    return Plan.of(StrategySettings(rule=rule, space=space, shadows=shadows))


def test_spaces_that_grow_take_one_round():
    for space in ("stacked()", "residual()"):
        plan("fedavg()", space).check_rounds(1)
        plan("fedavg()", "factors()", f"fedavg() @ {space}").check_rounds(3)
        with pytest.raises(
            ConfigError, match=r"rank that grows: over 3 rounds .* use product\(\) or core\(\)"
        ):
            plan("fedavg()", space).check_rounds(3)
    plan("ties()", "core()").check_rounds(3)


@pytest.mark.parametrize(
    "rule, space", [("knots()", "factors()"), ("ties()", "stacked()"), ("median()", "residual()")]
)
def test_rules_that_do_not_work_in_their_space_are_refused(rule, space):
    with pytest.raises(RuleError, match=r"use product\(\)"):
        plan(rule, space).check_rounds(1)
    with pytest.raises(RuleError, match=r"use product\(\)"):
        plan("fedavg()", "product()", f"{rule} @ {space}").check_rounds(1)


def test_a_rule_that_negates_a_silo_wants_it_among_those_asked():
    negating = plan("task_arithmetic(scale=0.3, negate='hospital-b')", "product()")
    negating.check_names(["hospital-a", "hospital-b"])
    negating.check_names(None)
    negating.check_clients(3, 2)
    with pytest.raises(
        RoundFailed, match=r"'hospital-b' is not among the clients; did you mean 'hospital-c'"
    ):
        negating.check_names(["hospital-a", "hospital-c"])
    plan("task_arithmetic(negate='a')", "stacked()").check_rounds(1)
