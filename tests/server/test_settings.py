from __future__ import annotations

import math

import pytest

from fedmerge.errors import ConfigError
from fedmerge.server.settings import StrategySettings


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("weighting", "example", "strategy.weighting is 'example': did you mean 'examples'"),
        ("weight_cap", 1.5, "strategy.weight-cap is 1.5, expected a number at least 0 and at most 1"),
        ("fraction", 0, "strategy.fraction is 0, expected a number above 0 and at most 1"),
        ("fraction", "all", "strategy.fraction is 'all'"),
        ("quorum", True, "strategy.quorum is True"),
        ("quorum", math.nan, "strategy.quorum is nan"),
        ("deadline_seconds", 0, "strategy.deadline-seconds is 0, expected a number above 0$"),
        ("deadline_seconds", math.inf, "strategy.deadline-seconds is inf"),
        ("wait_seconds", -1, "strategy.wait-seconds is -1, expected a number at least 0$"),
        ("server_optimizer", None, "strategy.server-optimizer is None, expected text"),
    ],
)
def test_a_setting_out_of_range_is_named(field, value, reason):
    with pytest.raises(ConfigError, match=reason):
        StrategySettings(**{field: value})
