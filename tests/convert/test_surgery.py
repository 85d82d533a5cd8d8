"""Models changed before they learn on: torch with the same change computes the same, and transformers loads them."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models
from jaxptft.models import BertConfig, Gpt2Config

IDS = np.random.default_rng(0).integers(1, 30, (2, 7)).astype(np.int32)
KEY = jax.random.key(0)
SIZES = {"vocab_size": 30, "width": 8, "heads": 2, "positions": 10}
TASKS = {"bert": "masked_lm", "gpt2": "causal_lm", "modernbert": "masked_lm"}


@pytest.fixture
def bert(folders):
    """Four layers under a head that predicts words."""
    return convert.load(folders.make("bert", "BertForMaskedLM", num_hidden_layers=4, mask_token_id=4))


def random_checkpoint(family, config, task, **options):
    rng = np.random.default_rng(0)
    params = jax.eval_shape(models.build(config, task, **options).init, KEY, {"input_ids": IDS})
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), params)
    return replace(convert.new_checkpoint(config, family=family), params=params)


@pytest.fixture
def gpt2():
    return random_checkpoint("gpt2", Gpt2Config(**SIZES, layers=3), "causal_lm")


@pytest.fixture
def modernbert():
    config = models.ModernBertConfig(**SIZES, layers=5, mlp_width=6, local_attention=4, pad_id=0)
    return random_checkpoint("modernbert", config, "masked_lm")


def logits_of(checkpoint):
    model = models.build(checkpoint.config, TASKS[checkpoint.family])
    return np.asarray(model.apply(checkpoint.params, {"input_ids": IDS}))


def in_torch(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS).long()).logits.numpy()


def exported(folders, checkpoint, auto="AutoModelForMaskedLM", name="out"):
    """The torch model that a checkpoint's folder gives, with nothing missing, and nothing left over but a pooler."""
    convert.save(folders.root / name, checkpoint)
    found, report = getattr(transformers, auto).from_pretrained(folders.root / name, output_loading_info=True)
    assert not report["missing_keys"] | report["mismatched_keys"]
    assert not [key for key in report["unexpected_keys"] if "pooler" not in key]
    return found


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "change, order",
    [
        (lambda model: convert.keep_layers(model, [0, 2, 3]), [0, 2, 3]),
        (lambda model: convert.drop_layers(model, [0, 2]), [1, 3]),
        (lambda model: convert.add_layers(model, [1, 1, 3]), [0, 1, 1, 1, 2, 3, 3]),
    ],
)
def test_layers_left_out_and_added_are_torchs_in_that_order(folders, bert, change, order):
    before = jax.tree.map(np.array, bert.params)
    changed = change(bert)
    jax.tree.map(np.testing.assert_array_equal, bert.params, before)  # the source is left alone
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folders.root / "bert")
    theirs.bert.encoder.layer = torch.nn.ModuleList(theirs.bert.encoder.layer[index] for index in order)
    expected = in_torch(theirs)
    assert_close(logits_of(changed), expected)
    assert_close(in_torch(exported(folders, changed)), expected)
    fields = json.loads((folders.root / "out/config.json").read_text())
    assert (fields["num_hidden_layers"], fields["mask_token_id"]) == (len(order), 4)


def test_new_layers_that_add_nothing_leave_the_function_as_it_is(folders, gpt2, modernbert):
    for source, auto in ((gpt2, "AutoModelForCausalLM"), (modernbert, "AutoModelForMaskedLM")):
        changed = convert.add_layers(source, [1, 2, 2], start="identity")
        assert changed.config.layers == source.config.layers + 3
        assert_close(logits_of(changed), logits_of(source))
        assert_close(in_torch(exported(folders, changed, auto, source.family)), logits_of(source))
        # They can learn: their other parameters are those of the layers they stand behind.
        layers = changed.params["backbone"]
        np.testing.assert_array_equal(
            layers["layer_2"]["mlp"]["up"]["kernel"], layers["layer_1"]["mlp"]["up"]["kernel"]
        )
        assert not layers["layer_2"]["mlp"]["down"]["kernel"].any()
        assert layers["layer_1"]["mlp"]["down"]["kernel"].any()


def test_layers_take_their_kind_along(folders, modernbert):
    """Every third layer sees the whole text."""
    changed = convert.keep_layers(modernbert, [0, 1, 3, 4])
    assert [changed.config.is_global(layer) for layer in range(4)] == [True, False, True, False]
    assert_close(in_torch(exported(folders, changed)), logits_of(changed))
    for message, layers in (("layer 0 of ModernBERT has no norm", [1, 2]), ("keep it where it is, and once", [0])):
        with pytest.raises(ValueError, match=message):
            convert.keep_layers(modernbert, layers) if layers[0] else convert.add_layers(modernbert, layers)


def test_of_shared_layers_the_number_changes():
    config = BertConfig(**SIZES, layers=4, mlp_width=12, embedding_width=6, layer_groups=1, sentence_head="sop")
    config = replace(config, head_dropout=0.1, sentence_dropout=0.1)
    source = random_checkpoint("albert", config, "encoder")
    for changed, layers in ((convert.keep_layers(source, [0, 3]), 2), (convert.add_layers(source, [0]), 5)):
        assert changed.config == replace(config, layers=layers)
        jax.tree.map(np.testing.assert_array_equal, changed.params, source.params)
    grouped = random_checkpoint("albert", replace(config, layer_groups=2), "encoder")
    with pytest.raises(ValueError, match="4 layers share their parameters in 2 groups"):
        convert.drop_layers(grouped, [0])


def test_layers_keep_their_dtypes_and_old_buffers_stay_behind(folders, gpt2, tmp_path):
    masks = {f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 10, 10), np.float32)) for layer in range(3)}
    convert.save(tmp_path / "half", gpt2, dtype="float16")
    folders.rewrite(tmp_path / "half", lambda tensors: tensors | masks)
    source = convert.load(tmp_path / "half")
    assert source.extras.tensors
    changed = convert.add_layers(convert.keep_layers(source, [1, 2]), [1])
    convert.write_native(tmp_path / "native", changed)
    convert.save(tmp_path / "out", convert.read_native(tmp_path / "native"))
    tensors = folders.tensors(tmp_path / "out")
    assert {array.dtype.name for array in tensors.values()} == {"float16"}
    assert not [name for name in tensors if name.endswith(".attn.bias")]
    assert sum(name.endswith("ln_1.weight") for name in tensors) == 3


def test_a_resized_vocabulary_moves_no_id(folders, bert):
    larger = convert.resize_vocabulary(bert, 37, rng=KEY)
    smaller = convert.resize_vocabulary(bert, 12, rng=KEY)
    theirs, found = exported(folders, larger), logits_of(larger)
    assert_close(in_torch(theirs), found)
    assert theirs.config.vocab_size == 37
    assert_close(found[..., :30], logits_of(bert))
    assert smaller.params["backbone"]["embeddings"]["word"]["embedding"].shape == (12, 8)
    small = {"input_ids": IDS % 12}
    expected = models.build(bert.config, "masked_lm").apply(bert.params, small)[..., :12]
    assert_close(models.build(smaller.config, "masked_lm").apply(smaller.params, small), expected)
    # GPT-2's output is its word table, which source files may hold once more.
    assert convert.resize_vocabulary(larger, 30, rng=KEY).params["mlm"]["bias"].tobytes() == (
        bert.params["mlm"]["bias"].tobytes()
    )


def test_new_rows_are_drawn_around_the_mean_or_as_in_a_new_model(bert):
    old, bias = bert.params["backbone"]["embeddings"]["word"]["embedding"], bert.params["mlm"]["bias"]
    changed = convert.resize_vocabulary(bert, 20030, rng=KEY).params
    new = changed["backbone"]["embeddings"]["word"]["embedding"][30:]
    covariance = 1e-5 * np.cov(old.T)
    np.testing.assert_allclose(new.mean(0), old.mean(0), atol=2e-4)
    np.testing.assert_allclose(np.cov(new.T), covariance, atol=0.04 * covariance.max())
    np.testing.assert_allclose(changed["mlm"]["bias"][30:], bias.mean(), rtol=1e-6)
    assert (
        convert.resize_vocabulary(bert, 31, rng=jax.random.key(1)).params["backbone"]["embeddings"]["word"][
            "embedding"
        ][30]
        != new[0]
    ).any()
    fresh = convert.resize_vocabulary(bert, 2030, rng=KEY, new_rows="init").params
    np.testing.assert_allclose(fresh["backbone"]["embeddings"]["word"]["embedding"][30:].std(), 0.02, rtol=0.05)
    assert not fresh["mlm"]["bias"][30:].any()


def test_parameters_start_anew_where_they_are_chosen(folders, bert):
    chosen = lambda path: "/layer_3/" in path or path.startswith("mlm/dense")  # noqa: E731
    changed = convert.reinitialize(bert, chosen, rng=KEY)
    pairs = zip(*(jax.tree_util.tree_flatten_with_path(model.params)[0] for model in (bert, changed)), strict=True)
    for (path, one), (_, other) in pairs:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.array_equal(one, other) != chosen(name), name
    layer = changed.params["backbone"]["layer_3"]
    assert (np.asarray(layer["mlp_norm"]["scale"]) == 1).all()
    np.testing.assert_allclose(np.std(layer["mlp"]["up"]["kernel"]), bert.config.initializer_range, rtol=0.3)
    assert (
        layer["mlp"]["up"]["kernel"]
        != convert.reinitialize(bert, chosen, rng=jax.random.key(1)).params["backbone"]["layer_3"]["mlp"]["up"][
            "kernel"
        ]
    ).any()
    assert_close(in_torch(exported(folders, changed)), logits_of(changed))


def test_every_head_can_start_anew():
    config = BertConfig(**SIZES, layers=1, mlp_width=12)
    for task, options in (("multiple_choice", {}), ("token_classification", {"classes": 3}), ("next_sentence", {})):
        ids = np.zeros((1, 1, 2) if task == "multiple_choice" else (1, 2), np.int32)
        shapes = jax.eval_shape(models.build(config, task, **options).init, KEY, {"input_ids": ids})
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
        source = replace(convert.new_checkpoint(config, family="bert"), params=params)
        (head,) = params.keys() - {"backbone"}
        changed = convert.reinitialize(source, lambda path: path.startswith(head), rng=jax.random.key(1))  # noqa: B023
        assert changed.params[head]["kernel"].shape == params[head]["kernel"].shape
        assert (changed.params[head]["kernel"] != params[head]["kernel"]).any()


def test_a_head_goes_and_another_comes(folders, bert):
    named = convert.load(folders.make("named", problem_type="single_label_classification"), labels=["no", "yes"])
    bare = convert.drop_heads(named)
    assert (bare.params.keys(), bare.labels) == ({"backbone"}, None)
    exported(folders, bare, "AutoModel", "bare")
    fields = json.loads((folders.root / "bare/config.json").read_text())
    assert not {"problem_type", "id2label"} & fields.keys()

    # The source has no pooler; the new head reads one.
    assert "pooler" not in bert.params["backbone"]
    changed = convert.swap_head(convert.keep_layers(bert, [0, 1]), "classification", labels=["a", "b", "c"], rng=KEY)
    theirs = exported(folders, changed, "AutoModelForSequenceClassification", "three")
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    ours = models.build(changed.config, "classification", classes=3).apply(changed.params, {"input_ids": IDS})
    assert_close(ours, in_torch(theirs))
    again = convert.swap_head(changed, "masked_lm", rng=KEY)
    assert (again.params.keys(), again.labels) == ({"backbone", "mlm"}, None)
    assert_close(in_torch(exported(folders, again)), logits_of(again))
    # Without a head, and without the pooler that bare models have.
    convert.save(folders.root / "poolerless", convert.drop_heads(bert))
    assert not [name for name in folders.tensors(folders.root / "poolerless") if "pooler" in name]


def test_mistakes_are_named(bert, gpt2):
    for call, message in (
        (lambda: convert.keep_layers(bert, [0, 4]), "keep_layers must be numbers of layers from 0 to 3, got 4"),
        (lambda: convert.keep_layers(bert, [2, 1]), r"increasing numbers of layers, at least one, got \[2, 1\]"),
        (lambda: convert.keep_layers(bert, []), r"increasing numbers of layers, at least one, got \[\]"),
        (lambda: convert.drop_layers(bert, range(4)), "drop_layers would leave none of the 4 layers"),
        (lambda: convert.add_layers(bert, [-1]), "add_layers must be numbers of layers from 0 to 3, got -1"),
        (lambda: convert.add_layers(bert, [0], start="zero"), "start must be 'copy' or 'identity', got 'zero'"),
        (lambda: convert.add_layers(bert, [0], start="identity"), "a layer of family bert ends in a norm"),
        (lambda: convert.resize_vocabulary(bert, 0, rng=KEY), "must be an integer of at least 1, got 0"),
        (
            lambda: convert.resize_vocabulary(bert, 4, rng=KEY),
            "a vocabulary of 4 has no mask_token_id 4; keep at least 5",
        ),
        (lambda: convert.resize_vocabulary(bert, 40, rng=KEY, new_rows="zero"), "new_rows must be 'mean' or 'init'"),
        (lambda: convert.reinitialize(bert, lambda path: False, rng=KEY), "no parameter was chosen to start anew"),
        (lambda: convert.swap_head(bert, "classification", classes=2, labels=["a"], rng=KEY), "1 labels .* 2 classes"),
        (lambda: convert.swap_head(bert, "classification", labels=["a", "a"], rng=KEY), "labels must differ"),
        (lambda: convert.swap_head(bert, "singing", rng=KEY), "BERT has no task 'singing'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    numbered = replace(gpt2, config=replace(gpt2.config, scale_by_layer=True))
    assert convert.keep_layers(numbered, [0, 1]).config.layers == 2
    with pytest.raises(ValueError, match="scales its attention by the layer's number"):
        convert.keep_layers(numbered, [0, 2])
    strange = replace(gpt2, params={**gpt2.params, "domain": {"kernel": np.zeros(2, np.float32)}})
    with pytest.raises(ValueError, match="a new model of family gpt2 has no parameter domain/kernel; leave it out"):
        convert.reinitialize(strange, lambda path: path.startswith("domain"), rng=KEY)
