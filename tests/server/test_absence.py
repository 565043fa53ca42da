import pytest
from flwr.app import Error, Message, RecordDict

from fedmerge.server.absence import GONE, LATE, Absences, absence_of


@pytest.mark.parametrize(("code", "why"), [(3, LATE), (4, LATE), (5, GONE), (2, ""), (8, "")])
def test_flower_answers_for_a_silo_that_does_not(code, why):
    message = Message(RecordDict(), dst_node_id=3, message_type="train")
    assert absence_of(Message(Error(code, "x"), reply_to=message)) == why
    assert absence_of(Message(RecordDict(), reply_to=message)) == ""


def test_the_count_begins_anew_when_a_silo_answers():
    absences = Absences()
    absences.note(1, {"a": LATE}, ["b"])
    assert absences.note(2, {"a": GONE}, [])["a"].rounds == 2
    absences.note(3, {}, ["a"])
    again = absences.note(4, {"a": LATE}, [])["a"]
    assert (again.round, again.rounds) == (4, 1)


def test_a_silo_that_a_round_does_not_ask_stays_what_it_was():
    absences = Absences()
    absences.note(1, {"a": LATE}, ["b"])
    absences.note(2, {}, ["b"])
    assert absences.note(3, {"a": LATE}, ["b"])["a"].rounds == 2


def test_a_resumed_run_knows_who_was_missing():
    before, after = Absences(), Absences()
    noted = before.note(1, {"a": LATE}, ["b"])
    after.recall(("a", "b"), noted)
    assert after.known == before.known
    after.recall(("a", "b"), {})
    assert after.known == {}
