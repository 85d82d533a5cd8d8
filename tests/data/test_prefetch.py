import threading
import traceback

import pytest

from jaxptft.data import Prefetch


def running() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_batches_come_in_order_and_end():
    with Prefetch(lambda step: step * step, start=3, stop=8, depth=2) as stream:
        assert list(stream) == [9, 16, 25, 36, 49]
        assert list(stream) == []
    assert running() == 0


def test_no_more_than_depth_is_prepared():
    asked = []
    enough = threading.Event()

    def batch_at(step):
        asked.append(step)
        if step == 4:
            enough.set()
        return step

    with Prefetch(batch_at, depth=2) as stream:
        assert [next(stream), next(stream)] == [0, 1]
        assert enough.wait(10)
        # Two taken, two ready, one in hand.
        assert asked == [0, 1, 2, 3, 4]
    assert running() == 0


def test_error_keeps_its_traceback_and_comes_after_the_good_batches():
    def fails_at_two(step):
        if step == 2:
            raise ValueError(f"batch {step} is broken")
        return step

    with Prefetch(fails_at_two) as stream:
        assert [next(stream), next(stream)] == [0, 1]
        with pytest.raises(ValueError, match="batch 2 is broken") as caught:
            next(stream)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "fails_at_two" in names
    assert running() == 0


def test_an_error_of_the_consumer_ends_the_thread():
    def consume():
        with Prefetch(lambda step: step, depth=1) as stream:
            next(stream)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert running() == 0


def test_used_without_with():
    with pytest.raises(RuntimeError, match="use Prefetch in a `with` block"):
        next(Prefetch(lambda step: step))


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth is 0, expected at least 1"):
        Prefetch(lambda step: step, depth=0)
