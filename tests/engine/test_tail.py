import json
import time

from fedmerge.engine.tail import EVENTS, Tail
from fedmerge.server.folder import RunFolder
from fedmerge.server.observer import Observer, Silent


class Notes(Silent):
    def __init__(self):
        self.seen = []

    def phase(self, text):
        self.seen.append(text)

    def finished(self, result):
        self.seen.append(result)


def line(text, when=None):
    return (
        json.dumps({"event": "phase", "time": time.time() + 1 if when is None else when, "text": text}) + "\n"
    )


def test_it_passes_on_what_a_run_folder_writes(tmp_path):
    notes = Notes()
    tail = Tail(tmp_path / "run" / "events.jsonl", notes)
    assert tail.read() is False
    time.sleep(0.01)
    folder = RunFolder(tmp_path / "run", {"run.seed": 0})
    folder.start({})
    folder.phase("merging")
    assert tail.read() is False
    folder.finished({"kept": "merged"})
    folder.close()
    assert tail.read() is True
    assert notes.seen == ["merging", {"kept": "merged"}]


def test_a_line_that_is_still_being_written_waits(tmp_path):
    path, notes = tmp_path / "events.jsonl", Notes()
    tail = Tail(path, notes)
    whole = line("one")
    path.write_text(whole + line("two")[:10])
    tail.read()
    assert notes.seen == ["one"]
    path.write_text(whole + line("two"))
    tail.read()
    assert notes.seen == ["one", "two"]


def test_events_of_an_earlier_run_are_not_told(tmp_path):
    path, notes = tmp_path / "events.jsonl", Notes()
    path.write_text(line("old", when=time.time() - 60) * 3)
    tail = Tail(path, notes)
    tail.read()
    path.unlink()
    path.write_text(line("new"))
    tail.read()
    assert notes.seen == ["new"]


def test_it_knows_every_event_of_observers():
    assert {name for name in vars(Observer) if not name.startswith("_")} == EVENTS
