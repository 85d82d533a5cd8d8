"""The queue and its thread, with answers made here."""

import threading
from concurrent.futures import wait

import pytest

from jaxptft.recipes.serving.batcher import Batcher, Closed, Overloaded


class Gate:
    """Answers that wait until they may come; what each batch held is in `batches`."""

    def __init__(self):
        self.open, self.entered, self.batches = threading.Event(), threading.Semaphore(0), []

    def __call__(self, rows):
        self.batches.append([row["x"] for row in rows])
        self.entered.release()
        assert self.open.wait(30)
        if any(row["x"] == "bad" for row in rows):
            raise ValueError("a bad row")
        return [{"y": row["x"]} for row in rows]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def batcher(gate):
    made = Batcher(gate, most=4, room=6, wait=0.0)
    made.start()
    yield made
    gate.open.set()
    assert made.close(30)


def rows(*values):
    return [{"x": value} for value in values]


def held(batcher, gate):
    """A first request, in whose batch the thread is held."""
    future = batcher.submit(rows("first"))
    assert gate.entered.acquire(timeout=30)
    return future


def test_requests_are_batched_whole_in_their_order_and_each_gets_its_own_answers(batcher, gate):
    first = held(batcher, gate)
    futures = [batcher.submit(rows(*values)) for values in ((1, 2), (3,), (4, 5))]
    gate.open.set()
    assert first.result(30) == [{"y": "first"}]
    assert [future.result(30) for future in futures] == [[{"y": 1}, {"y": 2}], [{"y": 3}], [{"y": 4}, {"y": 5}]]
    # (4, 5) does not fit with the three before it.
    assert gate.batches == [["first"], [1, 2, 3], [4, 5]]
    assert (batcher.counts.requests, batcher.counts.rows, batcher.counts.batches) == (4, 6, 3)


def test_a_request_larger_than_a_batch_is_one_of_its_own(batcher, gate):
    held(batcher, gate)
    small, large = batcher.submit(rows(0)), batcher.submit(rows(1, 2, 3, 4, 5))
    gate.open.set()
    wait([small, large], 30)
    assert gate.batches[1:] == [[0], [1, 2, 3, 4, 5]]


def test_a_full_queue_refuses_and_takes_rows_again_later(batcher, gate):
    held(batcher, gate)
    waiting = [batcher.submit(rows(number)) for number in range(5)]
    assert not batcher.full
    with pytest.raises(Overloaded, match="5 rows wait, 0 are being made, and 6 have room"):
        batcher.submit(rows(6, 7))
    waiting.append(batcher.submit(rows(8)))
    assert batcher.full
    gate.open.set()
    wait(waiting, 30)
    assert batcher.submit(rows(9)).result(30) == [{"y": 9}]


def test_rows_that_are_being_made_take_room_until_they_are(batcher, gate):
    held(batcher, gate)
    with batcher.reserved(5):
        assert not batcher.full
        with pytest.raises(Overloaded, match="0 rows wait, 5 are being made, and 6 have room"):
            batcher.submit(rows(1, 2))
        with pytest.raises(Overloaded), batcher.reserved(2):
            pass
        waiting = [batcher.submit(rows(3))]
        assert batcher.full
    waiting.append(batcher.submit(rows(4, 5, 6, 7, 8)))
    gate.open.set()
    assert [answer["y"] for future in waiting for answer in future.result(30)] == [3, 4, 5, 6, 7, 8]
    batcher.close(30)
    with pytest.raises(Closed), batcher.reserved(1):
        pass


def test_what_a_request_raises_is_raised_to_no_other_of_its_batch(batcher, gate, caplog):
    held(batcher, gate)
    others = [batcher.submit(rows(1, 2)), batcher.submit(rows("bad")), batcher.submit(rows(3, 4, 5))]
    gate.open.set()
    with pytest.raises(ValueError, match="a bad row"):
        others[1].result(30)
    assert others[0].result(30) == [{"y": 1}, {"y": 2}]
    assert others[2].result(30) == [{"y": 3}, {"y": 4}, {"y": 5}]
    assert gate.batches == [["first"], [1, 2, "bad"], [1, 2], ["bad"], [3, 4, 5]]
    assert batcher.counts.failed == 2  # all three rows, and the bad one
    assert "a batch of 3 rows failed" in caplog.text


def test_a_wrong_number_of_answers_is_an_error_and_no_mix_up():
    batcher = Batcher(lambda rows: [{}], most=4, room=4, wait=0.0)
    batcher.start()
    with pytest.raises(RuntimeError, match="1 answers to 2 rows"):
        batcher.submit(rows(1, 2)).result(30)
    assert batcher.close(30)


def test_a_request_that_nobody_waits_for_is_not_computed(batcher, gate):
    held(batcher, gate)
    given_up, wanted = batcher.submit(rows(1)), batcher.submit(rows(2))
    assert given_up.cancel()
    gate.open.set()
    assert wanted.result(30) == [{"y": 2}]
    assert gate.batches[1:] == [[2]]


def test_closing_answers_what_waits_and_takes_nothing_more(gate):
    batcher = Batcher(gate, most=4, room=6, wait=0.0)
    batcher.start()
    futures = [held(batcher, gate), batcher.submit(rows(1)), batcher.submit(rows(2))]
    assert not batcher.close(0.01)  # held
    with pytest.raises(Closed, match="the server is stopping"):
        batcher.submit(rows(3))
    for future in futures[1:]:  # the time to answer them was over
        with pytest.raises(Closed):
            future.result(30)
    gate.open.set()
    assert futures[0].result(30) == [{"y": "first"}]

    batcher = Batcher(gate, most=1, room=6, wait=0.0)
    batcher.start()
    futures = [batcher.submit(rows(number)) for number in range(5)]
    assert batcher.close(30)
    assert [future.result(0) for future in futures] == [[{"y": number}] for number in range(5)]


def test_a_batch_waits_for_more_rows_and_no_longer_than_it_must():
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate, most=3, room=6, wait=60.0)  # far beyond the test's patience: only a full batch ends it
    batcher.start()
    futures = [batcher.submit(rows(number)) for number in range(3)]
    assert [future.result(30) for future in futures] == [[{"y": 0}], [{"y": 1}], [{"y": 2}]]
    assert gate.batches == [[0, 1, 2]]
    last = batcher.submit(rows(3))
    assert batcher.close(30)  # nor does closing wait for rows
    assert last.result(0) == [{"y": 3}]


def test_with_enough_rows_it_does_not_wait_and_takes_all_that_are_there():
    gate = Gate()
    batcher = Batcher(gate, most=4, room=8, wait=60.0, enough=2)
    futures = [batcher.submit(rows(number)) for number in range(3)]  # before it begins
    batcher.start()
    gate.open.set()
    assert [future.result(30) for future in futures] == [[{"y": 0}], [{"y": 1}], [{"y": 2}]]
    assert gate.batches == [[0, 1, 2]]
    assert batcher.close(30)


def test_a_preparation_that_fails_leaves_nobody_waiting():
    reached = threading.Event()

    def fail():
        return not reached.wait(30)

    batcher = Batcher(lambda rows: rows, most=4, room=4, wait=0.0)
    batcher.start(fail)
    future = batcher.submit(rows(1))
    reached.set()
    with pytest.raises(Closed):
        future.result(30)
    with pytest.raises(Closed):
        batcher.submit(rows(2))
