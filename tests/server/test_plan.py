from __future__ import annotations

import pytest

from fedmerge.errors import ConfigError, RuleError
from fedmerge.server.plan import parse_shadows


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
