from functools import cache, partial

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy import stats

from jaxptft import train
from jaxptft.objectives import Masking, TokenTable, corrupt, gather_capacity, gather_positions, shared_rows
from jaxptft.objectives.masking import check_table

PAD, CLS, SEP, MASK = 1, 2, 3, 4
UNITS = ("token", "word", "span")
ROWS, WIDTH = 2048, 512


@pytest.fixture(scope="module")
def many(text):
    """A million tokens: half the rows are [CLS] ... [SEP] and padding, half ordinary tokens from end to end."""
    rng = np.random.default_rng(1)
    lengths = np.where(np.arange(ROWS) % 2, WIDTH, rng.integers(40, WIDTH + 1, ROWS))
    real = np.arange(WIDTH) < lengths[:, None]
    ids = np.where(real, text.ordinary(rng, (ROWS, WIDTH)), PAD).astype(np.int32)
    ids[::2, 0], ids[::2, 20] = CLS, SEP
    ids[np.arange(0, ROWS, 2), lengths[::2] - 1] = SEP
    return {"input_ids": ids, "attention_mask": real.astype(np.int32), "ids": np.arange(ROWS), "valid": real[:, 0]}


@pytest.fixture(scope="module")
def corrupted(many, tokens):
    """By unit: the corrupted ids and what was chosen. `words=False` makes every token a word of its own, `runs` puts a
    special token at every sixteenth position of every row."""
    programs = {unit: jax.jit(partial(corrupt, masking=Masking(unit=unit))) for unit in UNITS}

    @cache
    def run(unit, words=True, runs=False):
        table = tokens if words else tokens._replace(starts_word=np.ones_like(tokens.starts_word))
        batch = many
        if runs:
            ids = np.where(
                np.arange(WIDTH) % 16, np.where(tokens.special[many["input_ids"]], 9, many["input_ids"]), SEP
            )
            batch = {**many, "input_ids": ids, "attention_mask": np.ones_like(ids)}
        return jax.device_get(programs[unit](jax.random.key(5), batch, table))

    return run


@pytest.fixture(scope="module")
def ordinary(many, tokens):
    return many["attention_mask"].astype(bool) & ~tokens.special[many["input_ids"]]


def deviations(found, among, share):
    """How many standard deviations sum(found) / sum(among) is from `share`, examples being independent: the variance
    of a ratio is estimated from the examples' own residuals, which holds for words and spans as for tokens."""
    residual = found.sum(1, dtype=float) - share * among.sum(1, dtype=float)
    return residual.sum() / np.sqrt(np.sum(residual**2))


@pytest.mark.parametrize("unit", UNITS)
def test_a_million_tokens_are_masked_at_their_rates(unit, corrupted, many, ordinary):
    ids, chosen = corrupted(unit)
    original = many["input_ids"]
    assert ordinary.sum() > 7e5
    assert original.size > 1e6
    assert abs(deviations(chosen, ordinary, 0.15)) < 3
    if unit == "token":
        assert abs(chosen.sum() - 0.15 * ordinary.sum()) < 3 * np.sqrt(0.15 * 0.85 * ordinary.sum())  # binomial
    masked = chosen & (ids == MASK)
    assert abs(deviations(masked, chosen, 0.8)) < 3
    # A random token is the original one in 1 of 15 cases, and then looks kept.
    replaced = chosen & ~masked & (ids != original)
    assert abs(deviations(replaced, chosen, 0.1 * 14 / 15)) < 3
    assert abs(deviations(chosen & (ids == original), chosen, 0.1 + 0.1 / 15)) < 3


@pytest.mark.parametrize("unit", UNITS)
def test_special_tokens_and_padding_are_never_chosen_and_never_drawn(unit, corrupted, many, ordinary, tokens):
    ids, chosen = corrupted(unit)
    assert not (chosen & ~ordinary).any()
    assert np.array_equal(ids[~chosen], many["input_ids"][~chosen])
    drawn = ids[chosen & (ids != many["input_ids"]) & (ids != MASK)]
    assert not tokens.special[drawn].any()
    # Every ordinary token replaces as often as another; each is left out where it would replace itself, which over all
    # originals, drawn uniformly themselves, comes to the same for each.
    counts = np.bincount(drawn, minlength=len(tokens.special))[~tokens.special]
    if unit != "span":  # in a span they are drawn one by one too, but the originals' shares vary more
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("unit", UNITS)
def test_token_0_and_the_first_and_last_position_are_chosen_like_any_other(unit, corrupted, many):
    _, chosen = corrupted(unit)
    nought = many["input_ids"] == 0
    assert nought.sum() > 1e4
    assert abs(deviations(chosen & nought, nought, 0.15)) < 3
    full = chosen[1::2]
    for position in (0, WIDTH - 1):  # binomial over the rows
        assert abs(full[:, position].sum() - 0.15 * len(full)) < 3 * np.sqrt(0.15 * 0.85 * len(full))


@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_are_chosen_as_a_whole(unit, corrupted, many, ordinary, tokens):
    ids, chosen = corrupted(unit)
    before = np.pad(ordinary, ((0, 0), (1, 0)))[:, :-1]
    begins = (ordinary & (tokens.starts_word[many["input_ids"]] | ~before)).ravel()
    place = np.flatnonzero(ordinary.ravel())
    starts = np.flatnonzero(begins[place])
    flags = chosen.ravel()[place]
    assert np.array_equal(np.minimum.reduceat(flags, starts), np.maximum.reduceat(flags, starts))
    # Of the words of two or more chosen tokens, some are masked only in part, unless the span decides for all.
    masked = (ids == MASK).ravel()[place]
    mixed = np.minimum.reduceat(masked, starts) != np.maximum.reduceat(masked, starts)
    assert mixed.any() == (unit == "word")


def test_spans_are_a_stationary_renewal_process(corrupted):
    """Every expectation by hand from the process' definition, words of one token, rows of ordinary tokens alone."""
    lengths = 0.8 ** np.arange(10) / np.sum(0.8 ** np.arange(10))
    mean = lengths @ np.arange(1, 11)
    assert round(mean, 1) == 3.8  # SpanBERT, section 3.1
    start = 0.15 / (0.15 + mean * 0.85)
    ids, chosen = (part[1::2] for part in corrupted("span", words=False))
    # A run begins after an unchosen word with probability `start`.
    begins = chosen[:, 1:] & ~chosen[:, :-1]
    assert abs(deviations(begins, ~chosen[:, :-1], start)) < 3
    # It is one word long when the span is and no other follows at once.
    single = begins[:, :-1] & ~chosen[:, 2:]
    assert abs(deviations(single, begins[:, :-1], lengths[0] * (1 - start))) < 3
    # Two chosen neighbours are of one span, or of two that touch; only then may one be masked and the other not.
    both = chosen[:, 1:] & chosen[:, :-1]
    differ = both & ((ids[:, 1:] == MASK) != (ids[:, :-1] == MASK))
    assert abs(deviations(differ, both, start / (mean - 1 + start) * 2 * 0.8 * 0.2)) < 3

    # Stationary: the first words between two special tokens have the rate of all others, and a span they lie in goes on
    # as one does that began before the text: P(rest = 1) = P(length >= 1) / mean.
    _, chosen = corrupted("span", words=False, runs=True)
    runs = chosen.reshape(-1, 16)[:, 1:]
    scores = (runs.sum(0) - 0.15 * len(runs)) / np.sqrt(0.15 * 0.85 * len(runs))
    assert np.abs(scores).max() < 3.5  # the largest of fifteen
    inside = runs[runs[:, 0]]
    ends, share = ~inside[:, 1], (1 - start) / mean
    assert abs(ends.sum() - share * len(ends)) < 3 * np.sqrt(share * (1 - share) * len(ends))


@pytest.mark.parametrize("unit", UNITS)
def test_the_capacity_leaves_next_to_nothing_out(unit, corrupted):
    """Continuations are a third of the tokens, so the words' mean square over mean is (1 + 1/3) / (1 - 1/3) = 2."""
    _, chosen = corrupted(unit)
    capacity = gather_capacity(WIDTH, Masking(unit=unit))
    left_out = np.maximum(chosen.sum(1) - capacity, 0).sum() / chosen.sum()
    assert left_out < 1e-4
    assert capacity < 0.4 * WIDTH


@pytest.mark.parametrize(
    "length, masking, capacity",
    [
        (128, Masking(), 40),  # 19.2 + 4 sqrt(128 * 0.1275) = 35.4
        (512, Masking(), 112),  # 76.8 + 4 sqrt(512 * 0.1275) = 109.1
        (128, Masking(unit="word"), 48),  # 19.2 + 4 sqrt(2 * 128 * 0.1275) = 42.1
        (6, Masking(), 6),
        (64, Masking(rate=0.0), 8),
        (64, Masking(rate=1.0, unit="span"), 64),
    ],
)
def test_capacities_by_hand(length, masking, capacity):
    assert gather_capacity(length, masking) == capacity


def test_rows_together_need_fewer_places():
    """By hand: 16 x 19.2 + 5 sqrt(16 x 128 x 0.1275) = 388.0, in eights 392, where each alone would take 40."""
    assert gather_capacity(128, Masking(), rows=16) == 392
    assert gather_capacity(6, Masking(rate=0.6), rows=2) == 12  # all of them: 7.2 + 5 sqrt(12 * 0.24) = 15.7


@pytest.mark.parametrize(
    "most, rows, length, expected",
    [(16, 16, 128, 16), (64, 64, 128, 32), (12, 18, 128, 6), (8, 8, 9999, 1), (5, 8, 8, 1)],
)
def test_how_many_rows_share_their_places(most, rows, length, expected):
    """The largest divisor of both numbers whose rows have 4,096 tokens at most."""
    assert shared_rows(most, rows, length) == expected


def test_positions_are_those_numpy_finds():
    chosen = np.random.default_rng(0).random((50, 30)) < 0.3
    positions, used = jax.device_get(gather_positions(chosen, 8))
    for row, here, kept in zip(chosen, positions, used, strict=True):
        expected = np.flatnonzero(row)[:8]
        assert here[kept].tolist() == expected.tolist()
        assert kept.sum() == len(expected)
        assert not here[~kept].any()


def by_example(batch, outcome):
    """{unit: {example id: (its corrupted ids, what was chosen)}} of a batch, whatever its layout."""
    rows, columns = np.nonzero(batch["attention_mask"])
    if "segment_ids" in batch:
        owner = batch["ids"][rows, batch["segment_ids"][rows, columns] - 1]
    else:
        owner = batch["ids"][rows]
    return {
        unit: {
            int(number): tuple(tuple(part[rows, columns][owner == number].tolist()) for part in parts)
            for number in np.unique(owner)
        }
        for unit, parts in outcome.items()
    }


def all_units(rng, batch, tokens):
    return {unit: corrupt(rng, batch, tokens, Masking(unit=unit, rate=0.4)) for unit in UNITS}


@pytest.fixture(scope="module")
def reference(text, tokens, quick):
    found = by_example(text.batch, jax.device_get(quick(all_units)(jax.random.key(3), text.batch, tokens)))
    for outcome in found.values():
        assert len(outcome) == 16
        assert len({chosen for _, chosen in outcome.values()}) > 8  # examples do not share their masks
    return found


def test_packed_rows_are_masked_like_unpacked_ones(text, tokens, reference, quick):
    assert text.packed["segment_ids"].max() >= 3
    outcome = jax.device_get(quick(all_units)(jax.random.key(3), text.packed, tokens))
    assert by_example(text.packed, outcome) == reference


def test_eight_devices_another_width_order_and_padding_rows_change_no_mask(text, tokens, reference, quick):
    batch = text.unpacked(20, rows=24, order=[int(row) for row in np.random.default_rng(0).permutation(16)])
    mesh = train.make_mesh()
    assert mesh.size == 8
    outcome = quick(all_units)(jax.random.key(3), train.shard(batch, mesh), train.replicate(tokens, mesh))
    assert len(outcome["span"][1].sharding.device_set) == 8
    outcome = jax.device_get(outcome)
    assert by_example(batch, outcome) == reference
    for _, chosen in outcome.values():
        assert not chosen[16:].any()
    # Seen by each device as a batch of its own: spans walk along the row in a scan.
    by_rows = PartitionSpec("data")
    spans = partial(corrupt, masking=Masking(unit="span", rate=0.4))
    alone = jax.shard_map(
        spans, mesh=mesh, in_specs=(PartitionSpec(), by_rows, PartitionSpec()), out_specs=(by_rows, by_rows)
    )
    for found, expected in zip(quick(alone)(jax.random.key(3), batch, tokens), outcome["span"], strict=True):
        assert np.array_equal(found, expected)


def test_rows_that_repeat_another_to_fill_the_batch_are_not_masked(text, tokens, quick):
    repeated = {**text.batch, "valid": np.arange(16) < 15, "ids": np.where(np.arange(16) < 15, np.arange(16), -1)}
    for _, chosen in quick(all_units)(jax.random.key(3), repeated, tokens).values():
        assert not chosen[15].any()


def test_micro_steps_change_no_mask(text, tokens, reference, quick):
    program = quick(all_units)
    for part in range(2):  # strided, as the step cuts them
        micro = {name: leaf[part::2] for name, leaf in text.batch.items()}
        outcome = by_example(micro, jax.device_get(program(jax.random.key(3), micro, tokens)))
        assert outcome == {unit: {n: found[n] for n in range(part, 16, 2)} for unit, found in reference.items()}


def test_other_kinds_of_keys_draw_by_example_too(text, tokens, quick):
    """Under vmap an rbg key draws by the place in the batch; the masks must not."""
    program = quick(partial(corrupt, masking=Masking(rate=0.4)))
    rng = jax.random.key(3, impl="rbg")
    _, chosen = program(rng, text.batch, tokens)
    _, turned = program(rng, {name: leaf[::-1] for name, leaf in text.batch.items()}, tokens)
    assert chosen.any()
    assert np.array_equal(chosen, turned[::-1])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rate": 1.5}, r"rate is 1.5; expected a share between 0 and 1"),
        ({"mask_share": -0.1}, "mask_share is -0.1; expected a share"),
        ({"random_share": float("nan")}, "random_share is nan; expected a share"),
        ({"mask_share": 0.8, "random_share": 0.3}, "mask_share 0.8 and random_share 0.3 add up to more than 1"),
        ({"unit": "phrase"}, "unit is 'phrase'; expected 'token', 'word' or 'span'"),
        ({"span_p": 0.0}, "span_p is 0.0 and span_longest 10; expected above 0, and at least 1"),
        ({"span_longest": 0}, "span_p is 0.2 and span_longest 0; expected above 0"),
    ],
)
def test_masking_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Masking(**fields)


@pytest.mark.parametrize(
    "table, message",
    [
        (TokenTable(None, np.ones(3, bool), np.ones(3, bool)), "has no mask_id; masking needs a tokenizer with a mask"),
        (TokenTable(0, np.ones(3, bool), np.ones(4, bool)), r"bool of one shape \(vocab,\), got bool of \(3,\) and"),
        (TokenTable(0, np.ones(3), np.ones(3, bool)), r"bool of one shape \(vocab,\), got float64 of \(3,\)"),
        (TokenTable(5, np.ones(3, bool), np.ones(3, bool)), "mask_id is 5; expected a token below 3 that is marked"),
        (TokenTable(1, np.arange(3) > 1, np.ones(3, bool)), "mask_id is 1; expected a token below 3 that is marked"),
        (TokenTable(1, np.ones(3, bool), np.ones(3, bool)), "every token is marked special; expected at least one"),
    ],
)
def test_token_tables_are_checked(table, message):
    with pytest.raises(ValueError, match=message):
        check_table(table)
