from __future__ import annotations

from fedmerge.server.observer import Several, Silent


class Recorder(Silent):
    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name in ("seen", "__class__"):
            return object.__getattribute__(self, name)
        return lambda *arguments: self.seen.append((name, *arguments))


def test_several_observers_see_the_same():
    one, two = Recorder(), Recorder()
    both = Several([one, two])
    both.run_started({"rounds": 1})
    both.phase("training")
    both.round_started(1, ["a"])
    both.reply(1, "a", "admitted", {})
    both.round_closed({"round": 1})
    both.finished({})
    assert one.seen == two.seen and len(one.seen) == 6


def test_silence():
    silent = Silent()
    silent.run_started({})
    silent.phase("")
    silent.round_started(1, [])
    silent.reply(1, "", "", {})
    silent.round_closed({})
    silent.finished({})
