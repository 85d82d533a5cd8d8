import numpy as np
import pytest

from jaxptft import data
from jaxptft.data.tokenized import Tokenized


def rows_of(lengths):
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    boundaries = np.asarray(lengths, np.int32)
    return Tokenized(
        tokens=tokens, offsets=offsets, boundaries=boundaries, pad_id=0, max_length=16, truncated=0, fingerprint="rows"
    )


@pytest.mark.parametrize("memory", [10**9, 0])
@pytest.mark.parametrize("pooled", [False, True])
def test_each_row_keeps_what_was_made_of_it_however_it_was_padded(tmp_path, memory, pooled):
    """By a computation that is told apart by its tokens: three numbers for each."""
    lengths = [3, 9, 1, 16, 8, 5, 2]
    batches = data.Batches(rows_of(lengths), batch_size=3, seed=1, buckets=(8, 16), multiple_of=2)
    seen = []

    def compute(batch):
        seen.append(batch["input_ids"].shape)
        states = np.stack([batch["input_ids"] * factor for factor in (1.0, 2.0, 3.0)], -1).astype(np.float32)
        return states.sum(1) if pooled else states

    kept = data.keep_states(batches, compute, rows=4, multiple_of=2, memory=memory, folder=tmp_path / "features")
    assert kept.states.in_memory == bool(memory)
    assert len(seen) == 2
    for step in range(2 * batches.steps_per_epoch):
        batch, plain = kept.batch_at(step), batches.batch_at(step)
        assert batch.keys() == ({"ids", "valid"} if pooled else plain.keys()) | {"hidden"}
        for name in batch.keys() - {"hidden"}:
            np.testing.assert_array_equal(batch[name], plain[name])
        expected = compute(plain)
        if pooled:
            expected[~plain["valid"]] = 0
        np.testing.assert_array_equal(batch["hidden"], expected)
    assert (kept.content, kept.fingerprint) == (batches.content, batches.fingerprint)
    assert not list((tmp_path / "features").glob("*"))  # the file has no name
