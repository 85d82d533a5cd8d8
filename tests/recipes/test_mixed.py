import numpy as np
import pytest

from jaxptft import data
from jaxptft.recipes.mixed import Mixed


def batches(rows, size, seed=0):
    tokens = np.arange(3 * rows, dtype=np.int32)
    tokenized = data.Tokenized(
        tokens, np.arange(0, 3 * rows + 1, 3), np.full(rows, 3, np.int32), 8, 0, 0, f"{rows} rows"
    )
    return data.Batches(tokenized, batch_size=size, seed=seed)


def test_each_step_has_a_batch_of_every_source_and_the_first_says_how_long_an_epoch_is():
    task, texts = batches(10, 4), batches(7, 2)
    mixed = Mixed({"task": task, "mlm": texts})
    assert mixed.steps_per_epoch == 3  # ten rows, four at a time
    assert mixed.content == task.content
    for step in (0, 4, 11):
        batch = mixed.batch_at(step)
        assert list(batch) == ["task", "mlm"]
        np.testing.assert_array_equal(batch["task"]["ids"], task.batch_at(step)["ids"])
        np.testing.assert_array_equal(batch["mlm"]["ids"], texts.batch_at(step)["ids"])


def test_the_fingerprint_tells_every_source_its_name_and_its_order():
    def identity(**sources):
        return Mixed(sources).fingerprint

    first = identity(task=batches(10, 4), mlm=batches(7, 2))
    assert first == identity(task=batches(10, 4), mlm=batches(7, 2))
    others = (
        identity(task=batches(10, 4), mlm=batches(7, 2, seed=1)),
        identity(task=batches(10, 4), mlm=batches(8, 2)),
        identity(task=batches(10, 4), clm=batches(7, 2)),
        identity(task=batches(10, 4)),
    )
    assert len({first, *others}) == 5


def test_no_source_is_refused():
    with pytest.raises(ValueError, match="there is no source to make batches of"):
        Mixed({})
