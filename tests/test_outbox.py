"""An outbox delivers everything once and in order, however its receiver behaves."""

import threading

import pytest

from tensorstate_callbacks.loggers.mlflow_delivery import is_away
from tensorstate_callbacks.loggers.outbox import Outbox, delivering


class Receiver:
    """Takes messages, unless it is away or told to refuse or to hang."""

    def __init__(self):
        self.got, self.tries = [], 0
        self.away, self.hang = False, None
        self.inside = []

    def __call__(self, message):
        self.tries += 1
        self.inside.append(delivering.get())
        if self.hang is not None:
            self.hang.wait(10)
        if self.away:
            raise ConnectionRefusedError("nobody there")
        if message.get("bad"):
            raise ValueError("refused")
        self.got.append(message["n"])


@pytest.fixture
def receiver():
    return Receiver()


@pytest.fixture
def outbox(receiver):
    return Outbox(receiver, is_away, patience=0.2)


def test_messages_arrive_in_order_while_all_is_well(outbox, receiver):
    letters = [outbox.post({"n": n}) for n in range(5)]
    assert receiver.got == [0, 1, 2, 3, 4]
    assert all(letter.done and letter.error is None for letter in letters)
    assert outbox.unsent() == []


def test_what_came_while_the_receiver_was_away_arrives_in_order_when_it_is_back(outbox, receiver):
    before = set(threading.enumerate())
    outbox.post({"n": 0})
    receiver.away = True
    for n in (1, 2, 3):
        outbox.post({"n": n})
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    # Only the first was tried: the others wait for a retry.
    assert (receiver.got, receiver.tries, outbox.away) == ([0], 2, True)
    assert outbox.reason == "nobody there"
    outbox.retry()
    assert (receiver.tries, outbox.away) == (3, True)
    receiver.away = False
    outbox.retry()
    outbox.post({"n": 4})
    assert (receiver.got, outbox.away) == ([0, 1, 2, 3, 4], False)


def test_what_was_never_sent_is_given_back(outbox, receiver):
    receiver.away = True
    for n in (1, 2):
        outbox.post({"n": n})
    assert outbox.unsent() == [{"n": 1}, {"n": 2}]
    assert outbox.unsent() == []


def test_a_receiver_that_hangs_keeps_nobody_waiting(outbox, receiver):
    receiver.hang = threading.Event()
    outbox.post({"n": 0})
    assert (outbox.away, outbox.reason) == (True, "no answer within 0.2 seconds")
    outbox.post({"n": 1})
    assert receiver.tries == 1
    stuck, receiver.hang = receiver.hang, None
    outbox.retry()
    assert (receiver.got, outbox.away) == ([0, 1], False)
    # The first try comes through at last, and changes nothing but that.
    stuck.set()
    outbox.post({"n": 2})
    assert [n for n in receiver.got if n] == [1, 2]
    assert outbox.unsent() == []


def test_a_refusal_is_told_and_what_follows_arrives(outbox, receiver):
    letter = outbox.post({"n": 0, "bad": True})
    assert str(letter.error) == "refused"
    assert outbox.refused == []
    outbox.post({"n": 1})
    receiver.away = True
    outbox.post({"n": 2, "bad": True})
    outbox.post({"n": 3})
    receiver.away = False
    outbox.retry()
    assert receiver.got == [1, 3]
    assert [letter.message["n"] for letter in outbox.refused] == [2]


def test_many_threads_may_post(outbox, receiver):
    threads = [
        threading.Thread(target=lambda k=k: [outbox.post({"n": (k, n)}) for n in range(20)])
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receiver.got) == 80
    for k in range(4):
        assert [n for kk, n in receiver.got if kk == k] == list(range(20))


def test_calls_from_the_outbox_can_be_told(outbox, receiver):
    outbox.post({"n": 0})
    assert receiver.inside == [True]
    assert not delivering.get()


@pytest.mark.parametrize(
    ("status", "away"), [(400, False), (404, False), (401, True), (429, True), (500, True)]
)
def test_an_answer_that_may_be_another_next_time_is_no_refusal(status, away):
    class AnsweredError(Exception):
        def get_http_status_code(self):
            return status

    assert is_away(AnsweredError()) is away
