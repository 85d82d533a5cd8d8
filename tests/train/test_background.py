"""Jobs behind the steps: in order, few at a time, and their errors told at the next call."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft.train.background import Background, copied_to_host


def test_jobs_are_done_in_order_and_leaving_waits_for_them():
    done = []
    with Background() as background:
        for number in range(10):
            background.give(lambda number=number: done.append(number))
    assert done == list(range(10))


def test_giving_one_too_many_waits_for_the_oldest():
    released, given = threading.Event(), []
    threading.Timer(0.2, released.set).start()
    with Background(most=2) as background:
        for _ in range(2):
            background.give(released.wait)
        assert not released.is_set()
        background.give(lambda: given.append(released.is_set()))
    assert given == [True]


@pytest.mark.parametrize("how", ["give", "check", "wait", "leave"])
def test_an_error_is_raised_at_the_next_call_and_what_came_behind_it_is_dropped(how):
    done, failed = [], threading.Event()

    def fail():
        failed.set()
        raise OSError("the disk is full")

    def provoke():
        with Background(most=3) as background:
            background.give(fail)
            background.give(lambda: done.append(1))
            assert failed.wait(60)
            background._thread.submit(lambda: None).result()  # both are over
            if how == "give":
                background.give(lambda: done.append(2))
            elif how != "leave":
                getattr(background, how)()

    with pytest.raises(OSError, match="the disk is full"):
        provoke()
    assert done == []


def test_the_error_on_the_way_out_is_not_replaced():
    def provoke():
        with Background() as background:
            background.give(lambda: 1 / 0)
            raise KeyError("the first")

    with pytest.raises(KeyError, match="the first"):
        provoke()


def test_copies_are_equal_and_outlive_what_they_were_copied_from():
    tree = {
        "w": jnp.arange(12.0).reshape(3, 4),
        "half": jnp.ones(5, jnp.bfloat16),
        "key": jax.random.key(7),
        "wide": np.arange(3, dtype=np.int64),
        "number": 2.5,
    }
    expected = {"w": np.arange(12.0, dtype=np.float32).reshape(3, 4), "wide": np.arange(3)}
    key = np.asarray(jax.random.key_data(tree["key"]))
    copied = copied_to_host(tree)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)({"w": tree["w"]})
    tree["wide"][:] = 0
    for name, value in expected.items():
        np.testing.assert_array_equal(copied[name], value)
    np.testing.assert_array_equal(copied["key"], key)
    assert (copied["wide"].dtype, copied["half"].dtype, copied["number"].dtype) == (np.int64, jnp.bfloat16, np.float32)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(copied))
