from fedmerge.adapters.figures import share, share_range


def test_shares_as_they_are_read():
    assert [share(v) for v in (0.0994, 0.0996, 1.4, -0.03)] == ["9.9 %", "10 %", "140 %", "-3.0 %"]
    assert share(float("inf")) == "more than any share"
    assert share_range([0.2, 0.1]) == "10 % to 20 %"
