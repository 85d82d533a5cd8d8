"""Which heads a folder gives, what becomes of them on export, and tied and optional tensors."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models
from jaxptft.convert.families import FAMILIES
from jaxptft.convert.heads import find_architecture, present_heads

WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
IDS = np.random.default_rng(0).integers(1, 30, (2, 5)).astype(np.int32)


def fields_of(folder):
    return json.loads((folder / "config.json").read_text())


def with_fresh(checkpoint, task, **arguments):
    """What a checkpoint has of a backbone under a new head, every new tensor random."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(
        models.build(checkpoint.config, task, **arguments).init, jax.random.key(0), {"input_ids": IDS}
    )
    fresh = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    return convert.complete({"backbone": checkpoint.params.get("backbone", {})}, fresh)


def refused(folder, message, **arguments):
    with pytest.raises(ValueError, match=message) as caught:
        convert.load(folder, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "architecture, heads, taken",
    [
        ("BertForPreTraining", "source", ("mlm", "nsp")),
        ("BertForPreTraining", ("nsp",), ("nsp",)),
        ("BertForPreTraining", ["mlm", "classifier"], ("mlm",)),
        ("BertForPreTraining", (), ()),
        # These three share the name `classifier`.
        ("BertForTokenClassification", "source", ("token_classifier",)),
        ("BertForTokenClassification", ("classifier",), ()),
        ("BertForMultipleChoice", ("multiple_choice", "token_classifier"), ("multiple_choice",)),
    ],
)
def test_heads_are_those_asked_for_that_the_architecture_has(folders, assert_same_tensors, architecture, heads, taken):
    source = folders.make("source", architecture)
    checkpoint = convert.load(source, heads=heads)
    assert checkpoint.manifest.heads == taken
    assert checkpoint.params.keys() == {"backbone", *taken}
    assert (checkpoint.labels is None) == (taken != ("token_classifier",))
    convert.save(folders.root / "back", checkpoint)
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))
    assert fields_of(folders.root / "back")["architectures"] == [architecture]


def test_without_an_architecture_the_tensors_tell(folders):
    source = folders.make("source", "BertForPreTraining")
    folders.configure(source, drop=["architectures"])
    assert convert.load(source).manifest.heads == ("mlm", "nsp")
    # A tensor called `classifier` may be of three heads: the first is meant.
    source = folders.make("choice", "BertForMultipleChoice")
    folders.configure(source, drop=["architectures"])
    checkpoint = convert.load(source)
    assert (checkpoint.manifest.heads, checkpoint.manifest.classes) == (("classifier",), 1)
    assert convert.load(source, heads=("multiple_choice",)).params["multiple_choice"]["kernel"].shape == (8, 1)
    # One of an architecture that is not known has the heads that are asked for and that no other is called like.
    folders.configure(source, architectures=["BertForSomethingElse"])
    assert convert.load(source).manifest.heads == ()
    assert convert.load(source, heads=("multiple_choice",)).manifest.heads == ()


def test_of_heads_that_share_a_name_the_complete_one_is_meant():
    family = FAMILIES["distilbert"]
    config = family.config(token_types=0, pooler=False)
    both = ["pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"]
    assert present_heads(family, config, both, None, "source") == ("classifier",)
    assert present_heads(family, config, both[2:], None, "source") == ("token_classifier",)


@pytest.mark.parametrize("old, task, auto", [
    ("BertForTokenClassification", "masked_lm", "AutoModelForMaskedLM"),
    ("BertForMaskedLM", "token_classification", "AutoModelForTokenClassification"),
])  # fmt: skip
def test_another_head_makes_another_architecture(folders, old, task, auto):
    names = {"id2label": {0: "x", 1: "y", 2: "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}
    source = folders.make("source", old, problem_type="single_label_classification", **names)
    checkpoint = convert.load(source)
    classes = {"classes": 4} if task == "token_classification" else {}
    params = with_fresh(checkpoint, task, **classes)
    convert.save(folders.root / "new", checkpoint, params=params)
    loaded, report = getattr(transformers, auto).from_pretrained(folders.root / "new", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs = loaded.eval()(torch.tensor(IDS).long()).logits.numpy()
    ours = models.build(checkpoint.config, task, **classes).apply(params, {"input_ids": IDS})
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    fields = fields_of(folders.root / "new")
    assert fields["architectures"] == [type(loaded).__name__]
    assert "problem_type" not in fields
    assert fields.get("id2label") == ({str(i): f"LABEL_{i}" for i in range(4)} if classes else None)


def test_adapting_by_masked_words_keeps_the_pooler(folders, assert_same_tensors):
    checkpoint = convert.load(folders.make("source", "BertModel"))
    adapted = folders.root / "adapted"
    convert.save(adapted, checkpoint, params=with_fresh(checkpoint, "masked_lm"))
    assert "bert.pooler.dense.weight" in folders.tensors(adapted)
    _, report = transformers.AutoModelForMaskedLM.from_pretrained(adapted, output_loading_info=True)
    assert not report["missing_keys"]
    again = convert.load(adapted)
    assert again.manifest.heads == ("mlm",)
    for name, leaf in checkpoint.params["backbone"]["pooler"].items():
        np.testing.assert_array_equal(again.params["backbone"]["pooler"][name], leaf)
    convert.save(folders.root / "back", again)
    assert_same_tensors(folders.tensors(adapted), folders.tensors(folders.root / "back"))


def test_a_pooler_is_missed_where_the_head_reads_it(folders):
    without = lambda tensors: {name: array for name, array in tensors.items() if "pooler" not in name}  # noqa: E731
    source = folders.make("masked", "BertForMaskedLM")
    assert "pooler" not in convert.load(source).params["backbone"]
    assert convert.load(source, heads=()).manifest.missing == ("pooler.dense.weight", "pooler.dense.bias")
    source = folders.make("pair", "BertForNextSentencePrediction")
    folders.rewrite(source, without)
    refused(source, "2 tensors of family bert missing from the source: pooler.dense.weight, pooler.dense.bias")
    checkpoint = convert.load(folders.make("choice", "BertForMultipleChoice"))
    del checkpoint.params["backbone"]["pooler"]
    with pytest.raises(ValueError, match="parameter backbone/pooler/kernel is missing: family bert needs it"):
        convert.save(folders.root / "out", checkpoint)


def test_of_tied_tensors_a_file_may_hold_either(folders, assert_same_tensors):
    source = folders.make("source", "BertForMaskedLM")
    expected = convert.load(source).params

    def renamed(tensors):
        pairs = {WORDS: DECODER, "cls.predictions.bias": "cls.predictions.decoder.bias"}
        return {pairs.get(name, name): array for name, array in tensors.items()}

    folders.rewrite(source, renamed)
    checkpoint = convert.load(source)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, expected)
    convert.save(folders.root / "back", checkpoint)
    assert_same_tensors(folders.tensors(source), folders.tensors(folders.root / "back"))
    # With another head the names are today's.
    convert.save(folders.root / "tuned", checkpoint, params=with_fresh(checkpoint, "question_answering"))
    assert WORDS in folders.tensors(folders.root / "tuned")
    assert DECODER not in folders.tensors(folders.root / "tuned")


def test_an_output_of_its_own_is_refused_for_a_tied_head(folders):
    source = folders.make("source", "BertForMaskedLM", tie_word_embeddings=False)
    message = r"config.json: tie_word_embeddings is False, but the head mlm projects .*: pass heads=\(\) to take"
    refused(source, f"tensor {DECODER} differs from {WORDS}, .*; {message}")
    checkpoint = convert.load(source, heads=())
    assert checkpoint.params.keys() == {"backbone"}
    convert.save(folders.root / "new", checkpoint, params=with_fresh(checkpoint, "next_sentence"))
    assert fields_of(folders.root / "new")["tie_word_embeddings"] is False
    # It can be left aside by name, and then comes back as it was.
    allowed = folders.make("allowed", "BertForMaskedLM")
    folders.rewrite(allowed, lambda t: {**t, DECODER: t[WORDS] * 2})
    refused(allowed, f"tensor {DECODER} differs from {WORDS}, .* or allow_unused=.'{DECODER}'. to leave it aside")
    checkpoint = convert.load(allowed, allow_unused=[DECODER])
    convert.save(folders.root / "back", checkpoint)
    np.testing.assert_array_equal(folders.tensors(folders.root / "back")[DECODER], folders.tensors(allowed)[DECODER])
    # A new head that is tied says so.
    other = folders.make("other", "BertForSequenceClassification", tie_word_embeddings=False)
    checkpoint = convert.load(other)
    convert.save(folders.root / "tied", checkpoint, params=with_fresh(checkpoint, "masked_lm"))
    assert fields_of(folders.root / "tied").get("tie_word_embeddings", True)


def test_heads_that_no_architecture_has_together_are_refused(folders):
    checkpoint = convert.load(folders.make("source", "BertForPreTraining"))
    params = {**checkpoint.params, **convert.load(folders.make("other")).params}
    with pytest.raises(ValueError, match="no architecture of family bert has the heads classifier and mlm and nsp"):
        convert.save(folders.root / "out", checkpoint, params=params)


def test_a_head_that_only_comes_with_another_is_written_as_both():
    """ALBERT's sentence order has no class of its own."""
    assert find_architecture(FAMILIES["albert"], ["sop"]) == "AlbertForPreTraining"
    assert find_architecture(FAMILIES["bert"], ["nsp"]) == "BertForNextSentencePrediction"


def test_a_new_checkpoint_says_all_of_itself(folders):
    """What parity does not see: the fields, our own folder in between, and heads that share their names."""
    config = models.BertConfig(vocab_size=30, width=8, layers=1, heads=2, mlp_width=12, positions=10, token_types=3)
    new = convert.new_checkpoint(config, family="bert", fields={"cls_token_id": 5})
    assert new.params == {}
    params = with_fresh(new, "token_classification", classes=2)
    made = convert.Checkpoint("bert", config, params, labels=["O", "B"], extras=new.extras)
    convert.write_native(folders.root / "native", made)
    assert convert.read_native(folders.root / "native").config == config
    for folder in ("native", "there"):
        loaded = convert.load(folders.root / folder) if folder == "native" else made
        convert.save(folders.root / f"{folder}_out", loaded)
        fields = fields_of(folders.root / f"{folder}_out")
        assert fields["architectures"] == ["BertForTokenClassification"]
        assert fields["id2label"] == {"0": "O", "1": "B"}
        assert (fields["cls_token_id"], fields["type_vocab_size"], fields["hidden_size"]) == (5, 3, 8)
    theirs = transformers.AutoConfig.from_pretrained(folders.root / "there_out")
    assert (theirs.model_type, theirs.num_labels, theirs.intermediate_size) == ("bert", 2, 12)
