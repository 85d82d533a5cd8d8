"""Words deleted and swapped; tokens 1 to 3 are special, 50 and above go on with a word."""

from collections import Counter

import numpy as np
import pytest

from jaxptft import data
from jaxptft.data import AugmentedBatches, WordEdits, edit_words

SPECIAL = np.isin(np.arange(90), [0, 1, 2, 3])
STARTS = np.arange(90) < 50
PAIR = [2, 10, 50, 51, 11, 12, 60, 13, 3, 20, 21, 70, 22, 3]  # [CLS] 10## 11 12# 13 [SEP] 20 21# 22 [SEP]
WORDS = ([(10, 50, 51), (11,), (12, 60), (13,)], [(20,), (21, 70), (22,)])


def batch_of(rows, width=16):
    ids = np.zeros((len(rows), width), np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    mask = (np.arange(width) < np.array([len(row) for row in rows])[:, None]).astype(np.int32)
    types = np.array([[place > 8 and bool(mask[row, place]) for place in range(width)] for row in range(len(rows))])
    numbers = np.arange(len(rows), dtype=np.int32)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types.astype(np.int32),
        "ids": numbers,
        "valid": numbers >= 0,
        "label": numbers % 2,
    }


def edit(batch, edits, *, seed=0, step=0, **options):
    return edit_words(batch, edits, special=SPECIAL, starts_word=STARTS, pad_id=0, seed=seed, step=step, **options)


def texts_of(batch, row):
    """The row's words, by text, and its special tokens."""
    ids = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
    texts, special = [[]], []
    for token in ids:
        if token in (2, 3):
            special.append(token)
            if token == 3:
                texts.append([])
        elif token < 50:
            texts[-1].append((token,))
        else:
            texts[-1][-1] += (token,)
    return texts[:-1], special


def test_words_stay_whole_in_their_text_and_special_tokens_in_place():
    batch = batch_of([PAIR] * 200)
    changed = edit(batch, WordEdits(deletion=0.4, swap=0.5))
    kept = Counter()
    for row in range(200):
        (first, second), special = texts_of(changed, row)
        assert special == [2, 3, 3]
        for words, original in ((first, WORDS[0]), (second, WORDS[1])):
            assert len(words) >= 1
            assert not Counter(words) - Counter(original)  # none new, none twice
            kept[len(original)] += len(words)
        length = int(changed["attention_mask"][row].sum())
        ids, types = changed["input_ids"][row], changed["token_type_ids"][row]
        assert not ids[length:].any()
        np.testing.assert_array_equal(types[:length], np.arange(length) > np.flatnonzero(ids == 3)[0])
        assert not types[length:].any()
    # Of 4 words each stays with probability 0.6, and one at least: 4 * 0.6 + 0.4^4 = 2.4256; of 3, 1.8 + 0.064.
    np.testing.assert_allclose([kept[4] / 200, kept[3] / 200], [2.4256, 1.864], atol=4 * 1.0 / np.sqrt(200))
    for name in ("ids", "valid", "label"):
        assert changed[name] is batch[name]
    assert batch["input_ids"][0].tolist()[: len(PAIR)] == PAIR  # the batch given is untouched


def test_swaps_alone_keep_every_word():
    changed = edit(batch_of([PAIR] * 50), WordEdits(deletion=0.0, swap=0.5))
    orders = {tuple(map(tuple, texts_of(changed, row)[0])) for row in range(50)}
    assert len(orders) > 10
    for first, second in orders:
        assert (sorted(first), sorted(second)) == (sorted(WORDS[0]), sorted(WORDS[1]))


def test_what_happens_to_a_row_depends_on_seed_step_and_id_alone():
    edits = WordEdits(deletion=0.3, swap=0.3)
    batch = batch_of([PAIR] * 6)
    changed = edit(batch, edits, seed=3, step=7)
    order = np.array([4, 0, 5])
    part = {name: values[order] for name, values in batch.items()}
    wider = part | {
        name: np.pad(part[name], ((0, 0), (0, 8))) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    again = edit(wider, edits, seed=3, step=7)
    np.testing.assert_array_equal(again["input_ids"][:, :16], changed["input_ids"][order])
    for other in (edit(batch, edits, seed=4, step=7), edit(batch, edits, seed=3, step=8)):
        assert (other["input_ids"] != changed["input_ids"]).any()


def test_nothing_to_do_changes_nothing():
    batch = batch_of([PAIR, [2, 10, 50, 3], [2, 3], PAIR])
    batch["ids"][3] = -1  # padding
    for edits in (WordEdits(deletion=0.0, swap=0.0), WordEdits(deletion=0.9, swap=0.9, rows=0.0)):
        for name, values in edit(batch, edits).items():
            np.testing.assert_array_equal(values, batch[name])
    changed = edit(batch, WordEdits(deletion=1.0, swap=1.0))
    for row in (1, 2, 3):  # one word, none, and padding
        np.testing.assert_array_equal(changed["input_ids"][row], batch["input_ids"][row])


def test_augmented_batches_are_those_batches_changed(ragged):
    tokenized = ragged(np.random.default_rng(0).integers(4, 12, 11), pad_id=0)
    special, starts = np.zeros(100, bool), np.ones(100, bool)
    batches = data.Batches(tokenized, targets=np.ones((11, 2)), batch_size=4, seed=1)
    made = AugmentedBatches(batches, WordEdits(deletion=0.5), special=special, starts_word=starts, seed=2)
    assert (made.steps_per_epoch, made.tokenized) == (batches.steps_per_epoch, tokenized)
    for step in (0, 5):
        before, after, again = batches.batch_at(step), made.batch_at(step), made.batch_at(step)
        np.testing.assert_array_equal(after["ids"], before["ids"])
        np.testing.assert_array_equal(after["input_ids"], again["input_ids"])
        assert after["attention_mask"].sum() < before["attention_mask"].sum()
        assert after["input_ids"].shape == before["input_ids"].shape

    def of(edits=made.edits, seed=2, special=special):
        return AugmentedBatches(batches, edits, special=special, starts_word=starts, seed=seed).fingerprint

    prints = [batches.fingerprint, of(), of(WordEdits(deletion=0.4)), of(seed=3), of(special=~special)]
    assert len(set(prints)) == len(prints)
    assert of() == made.fingerprint


def test_what_cannot_be_moved_is_refused():
    batch = batch_of([PAIR])
    with pytest.raises(ValueError, match="words cannot be moved in a batch with positions"):
        edit({**batch, "positions": np.zeros((1, 2))}, WordEdits())
    with pytest.raises(ValueError, match=r"the batch has input_ids \(1, 16\) and label int32 \(1, 16\)"):
        edit({**batch, "label": np.zeros((1, 16), np.int32)}, WordEdits())
    with pytest.raises(ValueError, match=r"input_ids \(1, 1, 16\)"):
        edit({**batch, "input_ids": batch["input_ids"][None]}, WordEdits())
    for name in ("deletion", "swap", "rows"):
        with pytest.raises(ValueError, match=f"{name} is 1.5; expected a share between 0 and 1"):
            WordEdits(**{name: 1.5})
