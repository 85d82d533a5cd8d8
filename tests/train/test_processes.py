"""What several processes agree on; that they really work together, experiments/reliability/topology.py tries."""

import jax
import numpy as np
import pytest

from jaxptft import train
from jaxptft.train import processes


class Board:
    """A bulletin without a service."""

    def __init__(self):
        self.texts = {}

    def put(self, name, text):
        self.texts[name] = text

    def get(self, name):
        return self.texts.get(name)

    def all(self, prefix):
        return {name.rpartition("/")[2]: text for name, text in self.texts.items() if name.startswith(prefix)}


@pytest.mark.parametrize("behind", [0, 1, 3])
@pytest.mark.parametrize("signalled", [0, 1])
def test_all_processes_stop_at_the_same_count_whoever_was_asked(monkeypatch, behind, signalled):
    """The second is up to three askings ahead of the first; the signal comes at its tenth."""
    board = Board()
    agreements = [train.Agreement(board), train.Agreement(board)]
    counts, stopped = [0, 0], [None, None]

    def ask(index):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        counts[index] += 1
        own = 15 if index == signalled and counts[index] >= 10 else None
        if agreements[index](own) is not None and stopped[index] is None:
            stopped[index] = counts[index]

    for _ in range(behind):
        ask(1)
    for _ in range(30):
        ask(0)
        ask(1)
    assert stopped[0] == stopped[1] is not None
    assert 10 <= stopped[0] <= 10 + 2 * processes._AHEAD


def test_a_single_process_asks_nobody():
    tree = {"a": np.arange(3), "b": np.float64(0.1)}
    found = train.from_first(tree)
    assert found["b"].dtype == np.float64
    np.testing.assert_array_equal(found["a"], tree["a"])
    assert train.value_from_first([1, {"x": None}]) == [1, {"x": None}]
    assert train.is_first()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"JAXPTFT_COORDINATOR": "localhost:1"}, "JAXPTFT_PROCESSES, JAXPTFT_PROCESS must be set beside the others"),
        (
            {"JAXPTFT_COORDINATOR": "localhost:1", "JAXPTFT_PROCESSES": "two", "JAXPTFT_PROCESS": "0"},
            "JAXPTFT_PROCESSES is 'two' and JAXPTFT_PROCESS '0'; expected numbers",
        ),
        (
            {"JAXPTFT_COORDINATOR": "localhost:1", "JAXPTFT_PROCESSES": "2", "JAXPTFT_PROCESS": "2"},
            "JAXPTFT_PROCESS is 2; expected 0 to 1, as JAXPTFT_PROCESSES is 2",
        ),
    ],
)
def test_an_environment_that_names_no_processes_is_refused(monkeypatch, changes, expected):
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=expected):
        train.connect()


def test_an_environment_without_processes_is_one_process():
    train.connect()
    assert jax.process_count() == 1
