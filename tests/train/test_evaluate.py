import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft import objectives, train
from jaxptft.objectives import Mean, lift

ROWS = 23
WEIGHTS = np.array([0.5, -1.0, 2.0], np.float32)


def table():
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, 3)).astype(np.float32), rng.standard_normal(ROWS).astype(np.float32)


def batches(size, *, order=None, labelled=True, pad=False):
    """The table's rows cut into batches; with `pad` the last is filled up with rows that must not count."""
    x, y = table()
    order = np.arange(ROWS) if order is None else order
    for start in range(0, len(order), size):
        ids = order[start : start + size].astype(np.int32)
        batch = {"x": x[ids], "ids": ids, "valid": np.ones(len(ids), bool)} | ({"label": y[ids]} if labelled else {})
        yield train.pad_rows(batch, size) if pad else batch


def regression():
    def outputs(params, batch):
        return batch["x"] @ params["w"]

    def loss(params, batch, context):
        assert context.train is False
        error = outputs(params, batch) - batch["label"]
        counted = batch["valid"].sum()
        terms = {"fit": Mean((batch["valid"] * error**2).sum(), counted)}
        close = Mean((batch["valid"] & (jnp.abs(error) < 1)).sum(), counted)
        return terms, {"fit/close": close, "fit/nothing": Mean(jnp.zeros(()), jnp.zeros(()))}

    def predict(params, batch, context):
        return {"output": outputs(params, batch), "twice": jnp.stack([outputs(params, batch)] * 2, -1)}

    return lift(loss, init=lambda rng, batch: {"w": jnp.zeros(3)}, predict=predict)


EVALUATOR = train.make_evaluator(regression())
PARAMS = {"w": jnp.asarray(WEIGHTS)}


def run(rows, **options):
    return train.evaluate(EVALUATOR, PARAMS, {}, None, rows, **options)


@pytest.mark.parametrize("size", [1, 5, 8, 23, 40])
@pytest.mark.parametrize("devices", [1, 8])
def test_each_row_counts_once_whatever_the_batches_and_devices(size, devices):
    """Against numpy, over the rows in a random order."""
    x, y = table()
    output = x @ WEIGHTS
    mesh = train.make_mesh(jax.devices()[:devices])
    order = np.random.default_rng(1).permutation(ROWS)
    result = run(batches(size, order=order, pad=size == 8), place=lambda batch: train.shard(batch, mesh))
    assert result.ids.tolist() == list(range(ROWS))
    np.testing.assert_allclose(result.predictions["output"], output, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.predictions["twice"], np.stack([output] * 2, -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.metrics["fit/loss"], np.mean((output - y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(result.metrics["fit/close"], np.mean(np.abs(output - y) < 1), rtol=1e-6)
    assert np.isnan(result.metrics["fit/nothing"])
    assert all(type(value) is float for value in result.metrics.values())


def test_rows_without_labels_are_predicted_only():
    evaluator = train.make_evaluator(regression(), labelled=False)
    result = train.evaluate(evaluator, PARAMS, {}, None, batches(8, labelled=False, pad=True))
    assert result.metrics == {}
    np.testing.assert_allclose(result.predictions["output"], table()[0] @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_penalties_are_no_part_of_an_evaluation():
    objective = objectives.combine(regression(), penalties=[objectives.l2(weights=1.0)])
    evaluator = train.make_evaluator(objective)
    state = objective.start(PARAMS, next(batches(8)))
    result = train.evaluate(evaluator, PARAMS, state, objective.constants, batches(8))
    assert result.metrics.keys() == {"fit/loss", "fit/close", "fit/nothing"}


def test_a_row_that_comes_twice_is_an_error():
    with pytest.raises(ValueError, match="row 4 is evaluated more than once; each must come exactly once"):
        run(batches(8, order=np.array([*range(20), 4])))


@pytest.mark.parametrize("rows", [[], [next(batches(3)) | {"valid": np.zeros(3, bool)}]])
def test_no_row_at_all_is_an_error(rows):
    with pytest.raises(ValueError, match="there is no row to evaluate"):
        run(rows)


def test_a_stop_ends_it_between_batches():
    flag, seen = train.StopFlag(), []

    def stopping():
        for number, batch in enumerate(batches(8)):
            if number == 2:
                flag.request()
            seen.append(number)
            yield batch

    with pytest.raises(train.Stopped, match="stopped by SIGTERM"):
        run(stopping(), stop=flag)
    assert seen == [0, 1, 2]
    assert run(batches(8), stop=train.StopFlag()).ids.size == ROWS


def test_a_batch_of_one_source_gives_what_the_source_alone_gives():
    """Against the same rows evaluated without `combine`."""
    combined = objectives.combine({"task": (3.0, regression()), "other": (1.0, regression())})
    evaluator = train.make_evaluator(combined)
    state = {"task": {}, "other": {}}
    found = train.evaluate(evaluator, PARAMS, state, None, ({"task": batch} for batch in batches(8)))
    alone = run(batches(8))
    np.testing.assert_array_equal(found.ids, alone.ids)
    np.testing.assert_array_equal(found.predictions["output"], alone.predictions["output"])
    assert found.metrics["fit/close"] == alone.metrics["fit/close"]
    assert found.metrics["fit/loss"] == pytest.approx(3.0 * alone.metrics["fit/loss"])  # its weight in the sum


def test_rows_of_several_examples_each_with_empty_places():
    """As packed rows are: ids and valid are of [rows, places], and a place that is not valid counts nowhere."""
    ids = np.array([[3, 0, -1], [1, 2, 4], [-1, -1, -1]], np.int32)
    values = np.array([[30.0, 0.0, 9.0], [10.0, 20.0, 40.0], [9.0, 9.0, 9.0]])
    batch = {"ids": ids[:2], "valid": ids[:2] >= 0}  # the third row is one that `place` has added
    found = train.evaluate(lambda *_: ({"output": values}, {}), PARAMS, {}, None, [batch])
    assert found.ids.tolist() == [0, 1, 2, 3, 4]
    assert found.predictions["output"].tolist() == [0.0, 10.0, 20.0, 30.0, 40.0]
