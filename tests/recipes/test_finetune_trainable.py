"""What of a model trains, what stays and what is held near its imported values, on one device and on several."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

# Softmax takes no notice of the keys' bias, whose gradient is rounding alone: with a small eps Adam blows it up.
# Batches of 12 rows do not split over 8 devices or 3 micro-steps on them, so padding rows come in too.
ONE_WAY = {"optimizer": {"eps": 1e-3}, "batch_size": 12}
WAYS = [
    pytest.param({"parallel": "pmap"}, marks=pytest.mark.slow),
    {"devices": 8},
    pytest.param({"devices": 8, "parallel": "pmap", "accumulate": 3}, marks=pytest.mark.slow),
    {"accumulate": 2},
]


@pytest.fixture(scope="module")
def one_way(fine_tune, tmp_path_factory):
    """A run under jit, on one device, in one piece."""
    return fine_tune(tmp_path_factory.mktemp("runs") / "one", **ONE_WAY).out


@pytest.mark.parametrize("variant", WAYS, ids=str)
def test_devices_pmap_and_micro_steps_train_the_same_model(variant, fine_tune, tmp_path, one_way, tensors_of, lines_of):
    fine_tune(tmp_path / "run", **ONE_WAY, **variant)
    one, other = (tensors_of(out / "model") for out in (one_way, tmp_path / "run"))
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, atol=1e-5, err_msg=name)
    losses = [[line["loss"] for line in lines_of(out, "train")] for out in (one_way, tmp_path / "run")]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


FROZEN = {
    "backbone": ("bert.",),
    "all-but-top-1": ("bert.embeddings.", "bert.encoder.layer.0."),
    "backbone/embeddings/word/**,**/layer_1/mlp/{up,down}/bias": (
        *("bert.embeddings.word_embeddings.", "bert.encoder.layer.1.intermediate.dense.bias"),
        *("bert.encoder.layer.1.output.dense.bias",),
    ),
}


@pytest.mark.parametrize("freeze", FROZEN)
def test_frozen_tensors_are_byte_for_byte_those_of_the_source(freeze, fine_tune, tmp_path, make_model, tensors_of):
    source = make_model(tmp_path / "source", num_hidden_layers=2)
    changes = {"model": str(source), "optimizer": {"weight_decay": 0.5}, "dropout": 0.1}
    result = fine_tune(tmp_path / "run", freeze=freeze, steps=3, **changes)
    # An encoder's tensors carry no "bert." prefix.
    before, after = tensors_of(source), tensors_of(tmp_path / "run/model")
    assert {name for name in after if not name.startswith("bert.")} == {"classifier.weight", "classifier.bias"}
    trained = 0
    for name, array in after.items():
        source = before.get(name.removeprefix("bert."))
        if name.startswith(FROZEN[freeze]):
            assert array.tobytes() == source.tobytes(), name
        else:
            trained += array.size
            assert source is None or array.tobytes() != source.tobytes(), name
    assert (result.trainable, result.parameters) == (trained, sum(array.size for array in after.values()))


HELD = {"freeze": "all-but-top-0", "l2_to_pretrained": 0.5, "log_every": 1}


@pytest.fixture(scope="module")
def held(fine_tune, tmp_path_factory):
    """A run that is held near the imported model, of which the pooler and the head train."""
    return fine_tune(tmp_path_factory.mktemp("runs") / "held", **HELD).out


def test_l2_to_pretrained_is_a_term_in_the_log_over_the_trainable_backbone(held, lines_of):
    terms = [line["l2_to_pretrained/loss"] for line in lines_of(held, "train")]
    # The first step is taken at the pre-trained values, where the penalty is 0; then it grows.
    assert terms[0] == 0.0
    assert terms[-1] > 0.0
    for line in lines_of(held, "train"):
        assert line["loss"] == pytest.approx(line["classification/loss"] + line["l2_to_pretrained/loss"], rel=1e-5)


def test_l2_to_pretrained_keeps_the_weights_nearer(fine_tune, one_way, tmp_path, encoder, tensors_of):
    def moved(out):
        before, after = tensors_of(encoder), tensors_of(out / "model")
        return sum(float(np.square(after[f"bert.{name}"] - array).sum()) for name, array in before.items())

    fine_tune(tmp_path / "near", **ONE_WAY, l2_to_pretrained=10.0)
    assert moved(tmp_path / "near") < 0.5 * moved(one_way)


def test_l2_factors_choose_what_is_held(fine_tune, tmp_path, encoder, tensors_of):
    """Adam's steps do not shrink with the gradient, so a strong pull shows as a small distance: by pattern, and only
    where the pattern says."""
    values = {"steps": 30, "freeze": "all-but-top-0", "l2_to_pretrained": 100.0, "log_every": 30}
    factors = {"backbone/pooler/bias": 0.0}
    fine_tune(tmp_path / "run", **values, l2={"factors": factors})
    start, end = tensors_of(encoder), tensors_of(tmp_path / "run" / "model")
    start = {name.removeprefix("bert."): value for name, value in start.items()}
    moved = {
        name: float(np.abs(end[f"bert.pooler.dense.{name}"] - start[f"pooler.dense.{name}"]).mean())
        for name in ("weight", "bias")
    }
    assert moved["bias"] > 4 * moved["weight"]


def test_l2_new_pulls_the_new_head_to_zero(built, first_loss, tmp_path):
    """Before the first step nothing imported has moved: there is what is new alone, by numpy."""
    values = {"freeze": "all-but-top-0", "l2_to_pretrained": 0.5}
    run = built(tmp_path / "run", **values, l2={"new": 5.0})
    squares = sum(float(np.square(leaf).sum()) for leaf in run.params["classifier"].values())
    assert first_loss(run)[0]["l2_to_pretrained"] == pytest.approx(5.0 * squares, rel=1e-5)


def test_l2_shapes_without_a_weight_and_unknown_patterns_are_refused(fine_tune, tmp_path):
    with pytest.raises(ValueError, match=r"l2.factors and l2.new shape l2_to_pretrained, which is 0"):
        fine_tune(tmp_path / "run", l2={"new": 1.0})
    with pytest.raises(ValueError, match="nothing/\\*\\*"):
        fine_tune(tmp_path / "run", l2_to_pretrained=1.0, l2={"factors": {"nothing/**": 1.0}})


def test_parameters_that_start_afresh_must_not_be_frozen(fine_tune, built, tmp_path, make_model):
    model = make_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "pooler" not in name}, model / "model.safetensors")
    values = {"model": str(model), "allow_missing": ["pooler.*"]}
    with pytest.raises(
        ValueError, match=r"backbone/pooler/\w+ is not in .*, so it starts afresh, and freeze='backbone/\*\*'"
    ):
        fine_tune(tmp_path / "run", **values, freeze="backbone/**")
    run = built(tmp_path / "run", **values, freeze="backbone/embeddings/**")
    assert run.trainable["backbone"]["pooler"]["kernel"]
    run = built(tmp_path / "run", **values, freeze="backbone")
    assert run.trainable["backbone"]["pooler"] == {"kernel": True, "bias": True}
    assert not any(jax.tree.leaves(run.trainable["backbone"]["layer_0"]))
    run = built(tmp_path / "run", **values, bitfit=True)
    learning = jax.tree.leaves_with_path(run.training.plan.mask(0)["backbone"])
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, learns in learning if learns}
    assert {name for name in names if not name.endswith("/bias")} == {"pooler/kernel"}
