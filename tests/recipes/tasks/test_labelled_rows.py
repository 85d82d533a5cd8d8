"""What tasks over whole texts share: changed training batches, and lines of predictions."""

import numpy as np
import pytest

from jaxptft import data
from jaxptft.recipes.finetune import Config
from jaxptft.recipes.tasks.answering import lines
from jaxptft.recipes.tasks.labelled_rows import augmented, training_options


@pytest.fixture
def tokenizer(encoder):
    return data.load_tokenizer(encoder)


def config(**changes):
    return Config(model="m", train="t", out="o", **changes)


def test_words_of_training_batches_change_only_where_that_is_asked_for(tokenizer):
    table = data.make_table(["the film was very good", "a book was bad"] * 5, list("xy") * 5)
    tokenized = data.tokenize(table, tokenizer, 16, cache=False)
    batches = data.Batches(tokenized, table.labels, batch_size=4)
    options = {"tokenizer": tokenizer, "vocab_size": 32}
    assert augmented(batches, config(), **options) is batches
    changed = augmented(batches, config(augment={"swap": 0.5}), **options)
    before, after = batches.batch_at(0), changed.batch_at(0)
    assert (before["input_ids"] != after["input_ids"]).any()
    np.testing.assert_array_equal(np.sort(before["input_ids"]), np.sort(after["input_ids"]))  # the same words
    np.testing.assert_array_equal(before["label"], after["label"])
    assert changed.fingerprint != batches.fingerprint


def test_a_task_whose_tokens_must_stay_is_refused_before_the_first_step(tokenizer):
    class Tagged:
        tokenized = data.tokenize(data.make_table(["a", "b"]), tokenizer, 8, cache=False)
        steps_per_epoch, fingerprint = 1, ""

        def batch_at(self, step):
            return data.Batches(self.tokenized, batch_size=2).batch_at(step) | {"tags": np.zeros((2, 8))}

    with pytest.raises(ValueError, match="words cannot be moved in a batch with tags"):
        augmented(Tagged(), config(augment={"deletion": 0.1}), tokenizer=tokenizer, vocab_size=32)


def test_balanced_sampling_is_weights_for_the_batches():
    labels = np.array([0, 0, 0, 1])
    assert training_options(config(), labels) == {}
    np.testing.assert_allclose(training_options(config(sampling="balanced"), labels)["weights"], [1 / 3] * 3 + [1])


def test_lines_carry_the_row_and_the_key():
    table = data.make_table(["a", "b"])
    assert list(lines(table, [{"x": 1}, {"x": 2}])) == [{"row": 1, "x": 1}, {"row": 2, "x": 2}]
