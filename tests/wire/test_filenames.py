from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.wire.filenames import file_name


@settings(deadline=None)
@given(st.lists(st.text(max_size=200), unique=True, max_size=20))
def test_every_silo_has_a_file_name_of_its_own(names):
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    for file in files:
        assert (
            0 < len(file) <= 100 and file.isascii() and file == Path(file).name and not file.startswith(".")
        )
        assert set(file) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_%")
