"""Raw text in, a model out that fine-tunes here and loads in transformers."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert
from jaxptft.recipes import pretrain, settings

TINY = {"layers": 2, "width": 16, "heads": 2, "mlp_width": 24, "positions": 24}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "ran", "on", "under"]
WORDS += ["mat", "tree", ".", "good", "bad"]


def documents(count: int, seed: int) -> str:
    """Documents of four sentences in which the animal decides the verb: something to be learnt."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sentences = []
        for _ in range(4):
            animal, verb = [("cat", "sat on"), ("dog", "ran under")][rng.integers(2)]
            sentences.append(f"{rng.choice(['The', 'A'])} {animal} {verb} the {rng.choice(['mat', 'tree'])} .")
        found.append("\n".join(sentences))
    return "\n\n".join(found) + "\n"


@pytest.fixture(scope="module")
def texts(tmp_path_factory, make_tokenizer):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "train.txt").write_text(documents(40, 0))
    (folder / "more.txt").write_text(documents(200, 2))
    (folder / "held.txt").write_text(documents(10, 1))
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    make_tokenizer(tokenizer, WORDS)
    ending = folder / "ending"  # with an end-of-text token
    ending.mkdir()
    make_tokenizer(ending, WORDS)
    named = json.loads((ending / "tokenizer_config.json").read_text()) | {"eos_token": "[SEP]"}
    (ending / "tokenizer_config.json").write_text(json.dumps(named))
    return SimpleNamespace(
        ending=ending, train=folder / "train.txt", held=folder / "held.txt", tokenizer=tokenizer, folder=folder
    )


@pytest.fixture(scope="module")
def values(texts) -> dict:
    return {
        "corpus": [str(texts.train)],
        "eval_corpus": [str(texts.held)],
        "documents": "blank-line",
        "tokenizer": str(texts.tokenizer),
        "shape": TINY,
        "max_length": 16,
        "batch_size": 16,
        "steps": 4,
        "learning_rate": 0.01,
        "dropout": 0.0,
        "log_every": 2,
        "length_buckets": 1,
        "devices": 1,
    }


@pytest.fixture(scope="module")
def pre_train(values, quickly):
    """A function: (out, **changed values) -> the result, and what was said."""

    def run(out, **changes) -> SimpleNamespace:
        said: list[str] = []
        merged = {key: value for key, value in (values | {"out": str(out)} | changes).items() if value is not None}
        with quickly():
            result = pretrain.run(settings.build(pretrain.Config, merged), say=said.append)
        return SimpleNamespace(**result._asdict(), said="\n".join(said))

    return run


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, pre_train, texts):
    """A run large and long enough to have learnt which verb goes with which animal."""
    shape = TINY | {"width": 64, "mlp_width": 128}
    options = {"steps": 300, "batch_size": 32, "learning_rate": 0.003, "evaluate_every": 100, "log_every": 50}
    out = tmp_path_factory.mktemp("runs") / "mlm"
    return pre_train(out, corpus=[str(texts.folder / "more.txt")], shape=shape, **options)


CASES = {
    "mlm": ("bert", "BertForMaskedLM", {"masked_lm/loss", "masked_lm/accuracy", "masked_lm/perplexity"}),
    "mlm+nsp": ("bert", "BertForPreTraining", {"masked_lm/loss", "next_sentence/loss", "next_sentence/accuracy"}),
    "mlm+sop": ("albert", "AlbertForPreTraining", {"masked_lm/loss", "sentence_order/accuracy"}),
    "nsp": ("bert", "BertForNextSentencePrediction", {"next_sentence/loss", "next_sentence/accuracy"}),
    "clm": ("gpt2", "GPT2LMHeadModel", {"next_token/loss", "next_token/perplexity", "next_token/accuracy"}),
    "rtd": ("electra", "ElectraForPreTraining", {"generator/loss", "generator/perplexity", "discriminator/loss"}),
    "simclr": ("bert", "BertModel", {"simclr/loss", "simclr/alignment", "simclr/uniformity"}),
}


EVERY_DAY = ("mlm", "clm")


@pytest.mark.parametrize(
    "objective", [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow) for name in CASES]
)
def test_each_objective_leaves_a_model_that_transformers_loads_whole(objective, pre_train, texts, tmp_path):
    family, architecture, expected = CASES[objective]
    tokenizer = texts.ending if objective == "clm" else texts.tokenizer
    dropout = {"dropout": 0.1} if objective == "simclr" else {}
    result = pre_train(tmp_path / "run", objective=objective, tokenizer=str(tokenizer), **dropout)
    assert f"model: {family} from scratch" in result.said
    assert expected | {"pretraining/loss"} <= result.metrics.keys()
    assert all(np.isfinite(value) for value in result.metrics.values())
    model, info = getattr(transformers, architecture).from_pretrained(tmp_path / "run/model", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert type(model).__name__ == architecture
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "run/model").get_vocab().keys() == set(WORDS)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["metrics"] == result.metrics
    if objective == "rtd":
        generator, info = transformers.ElectraForMaskedLM.from_pretrained(
            tmp_path / "run/generator", output_loading_info=True
        )
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        one, other = (each.get_input_embeddings().weight for each in (generator, model))
        assert torch.equal(one, other)  # shared, as in the paper's section 3.2


def test_what_masked_language_modelling_learns_is_what_torch_then_predicts(learnt):
    model = transformers.BertForMaskedLM.from_pretrained(learnt.out / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(learnt.out / "model")
    inputs = tokenizer("The cat [MASK] on the mat . The dog [MASK] under the tree .", return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id].argmax(-1)
    assert tokenizer.convert_ids_to_tokens(found.tolist()) == ["sat", "ran"]
    assert learnt.metrics["masked_lm/accuracy"] > 0.6  # the article and the last word are coin tosses


@pytest.mark.slow
def test_texts_told_apart_by_two_passes_spread_and_the_last_model_is_kept(learnt, pre_train, texts, tmp_path):
    changes = {"model": str(learnt.out), "tokenizer": None, "shape": None, "corpus": [str(texts.folder / "more.txt")]}
    changes |= {"documents": "line", "rows": "documents", "dropout": 0.1, "learning_rate": 0.001, "evaluate_every": 10}
    contrast = {"temperature": 0.2, "pooling": "mean", "projection": [24, 8]}
    result = pre_train(tmp_path / "run", objective="simclr", steps=40, contrast=contrast, **changes)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    spread = [line["simclr/uniformity"] for line in lines if line["kind"] == "evaluation"]
    assert len(spread) == 4
    assert spread[-1] < spread[0] - 0.1, spread  # Wang and Isola 2020: the lower, the more evenly over the sphere
    assert result.best_step == result.steps == 40
    assert set(convert.load(tmp_path / "run/model", heads=(), allow_missing=("pooler.*",)).params) == {"backbone"}


@pytest.mark.slow
def test_packed_and_unpacked_rows_give_one_validation_loss(pre_train, tmp_path):
    """Short documents: the masks are those of the examples, however they share rows."""
    options = {"rows": "documents", "documents": "line", "max_length": 24, "learning_rate": 1e-9, "steps": 1}
    one = pre_train(tmp_path / "unpacked", **options)
    other = pre_train(tmp_path / "packed", pack=True, **options)
    assert one.metrics["masked_lm/loss"] == pytest.approx(other.metrics["masked_lm/loss"], rel=1e-5)
    padding = {
        name: json.loads((tmp_path / name / "report.json").read_text())["padding"]["train"]
        for name in ("unpacked", "packed")
    }
    assert padding["packed"] < padding["unpacked"]


def test_fine_tuning_goes_on_from_a_pre_training_run(learnt, fine_tune, files, tmp_path):
    result = fine_tune(tmp_path / "run", model=str(learnt.out), freeze="backbone/{embeddings,layer_*}/**", steps=2)
    assert "heads of other tasks are dropped: cls.predictions.bias, cls.predictions.transform" in result.said
    assert "lacks backbone/pooler: fresh" in result.said
    kept = convert.load(learnt.out / "model").params["backbone"]
    tuned = convert.load(tmp_path / "run/model").params
    assert sorted(tuned) == ["backbone", "classifier"]
    for piece in ("embeddings", "layer_0", "layer_1"):
        for one, other in zip(jax.tree.leaves(kept[piece]), jax.tree.leaves(tuned["backbone"][piece]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_encoder_goes_on_with_a_fresh_head_and_keeps_its_pooler(encoder, pre_train, tmp_path, texts):
    before = convert.load(encoder).params["backbone"]
    result = pre_train(tmp_path / "run", model=str(encoder), tokenizer=None, shape={}, corpus=[str(texts.train)])
    assert f"{encoder} lacks mlm: fresh" in result.said
    after = convert.load(tmp_path / "run/model").params
    np.testing.assert_array_equal(after["backbone"]["pooler"]["kernel"], before["pooler"]["kernel"])
    name = ("layer_0", "mlp", "up", "kernel")
    one, other = before, after["backbone"]
    for key in name:
        one, other = one[key], other[key]
    assert not np.array_equal(one, other)


@pytest.mark.slow
def test_a_finished_run_goes_on_for_longer(pre_train, tmp_path, lines_of):
    """At a constant rate 4 steps and then 4 more are the 8 steps of a run that was never ended."""
    constant = {"optimizer": {"schedule": "constant", "warmup": 0.0}, "dropout": 0.1, "evaluate_every": 4}
    whole = pre_train(tmp_path / "whole", steps=8, **constant)
    pre_train(tmp_path / "parts", steps=4, **constant)
    longer = pre_train(tmp_path / "parts", steps=8, resume=True, **constant)
    assert "was planned for 4 steps and goes on to 8" in longer.said
    assert longer.metrics == whole.metrics
    assert lines_of(tmp_path / "parts", "train") == lines_of(tmp_path / "whole", "train")
    one, other = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == other
    with pytest.raises(ValueError, match="has done 8 steps already, and 4 are asked for"):
        pre_train(tmp_path / "parts", steps=4, resume=True, **constant)


def test_a_share_of_the_documents_is_held_out_where_no_text_is(pre_train, tmp_path):
    result = pre_train(tmp_path / "run", eval_corpus=None, eval_share=0.25, steps=1)
    report = json.loads((tmp_path / "run/report.json").read_text())
    counts = report["documents"]
    assert counts["train"] + counts["eval"] == 40
    assert 2 <= counts["eval"] <= 18
    assert "from 25% of the documents" in result.said


WRONG = {
    "empty corpus": ({"corpus": ["EMPTY"]}, r"empty\.txt"),
    "no such corpus": ({"corpus": ["ABSENT"]}, r"absent\.txt"),
    "one sentence a document": ({"objective": "nsp", "documents": "line"}, "one sentence"),
    "no mask token": ({"tokenizer": "MASKLESS"}, "mask token"),
    "vocabulary": ({"tokenizer": None, "model": "ENCODER", "shape": {}, "tokenizer_of": "LARGE"}, "embedding"),
    "positions": ({"max_length": 32}, "max_length is 32, but the model has 24 positions"),
    "no tokenizer": ({"tokenizer": None}, "from scratch there must be a tokenizer"),
    "pairs are not packed": ({"objective": "mlm+nsp", "pack": True}, "pack does not go with"),
    "family of a checkpoint": (
        {"model": "ENCODER", "family": "bert", "shape": {}},
        "family is the checkpoint's own; leave it out",
    ),
    "a task the family lacks": ({"objective": "clm", "family": "bert"}, "causal_lm"),
    "heads no class holds": ({"objective": "rtd", "family": "bert"}, "bert has no architecture for objective rtd"),
    "a pair the family lacks": ({"objective": "mlm+sop", "family": "bert"}, "bert has no architecture for .*mlm.sop"),
    "size of a checkpoint": ({"model": "ENCODER", "size": "tiny", "shape": {}}, "size is the checkpoint's own"),
    "shape of a checkpoint": ({"model": "ENCODER"}, "shape is the checkpoint's own"),
    "frozen from scratch": ({"freeze": "backbone"}, "freeze keeps what was imported, and nothing was"),
    "masking nothing": ({"objective": "clm", "masking": {"rate": 0.2}}, "masking is for mlm and rtd"),
    "documents as rows": ({"objective": "nsp", "rows": "documents"}, "rows is for mlm, rtd and simclr"),
    "rows of several texts": ({"objective": "simclr", "pack": True}, "pack does not go with simclr"),
    "nothing tells passes apart": ({"objective": "simclr"}, "simclr tells two passes of a text by their dropout"),
    "a pooler that never learns": (
        {"objective": "simclr", "dropout": 0.1, "contrast": {"pooling": "mean"}},
        "would leave the pooler that bert has as it is drawn",
    ),
    "nothing contrasted": ({"contrast": {"temperature": 0.1}}, "contrast is for simclr"),
    "no accuracy": ({"objective": "simclr", "dropout": 0.1, "monitor": "accuracy"}, "monitor is loss or last"),
    "no generator": ({"generator": {"share": 0.5}}, "generator is for rtd"),
    "shares": ({"masking": {"mask_share": 0.95}}, r"0\.95 and masking\.random_share 0\.1 .* add up to more than 1"),
    "another language": ({"corpus": ["CHINESE"]}, r"every token is a special one, \[UNK\] for instance"),
    "one held-out document": (
        {"objective": "nsp", "eval_corpus": None, "eval_share": 0.001},
        "eval text, 0% of the documents: .*raise --eval-share",
    ),
    "factors": ({"shape": {**TINY, "embedding_width": 8}}, "family bert cannot express BertConfig.embedding_width 8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_refused_before_the_folder_is_taken(case, pre_train, encoder, make_tokenizer, tmp_path):
    changes, message = WRONG[case]
    changes = dict(changes)
    (tmp_path / "empty.txt").write_text("")
    for name, words in (("MASKLESS", [word for word in WORDS if word != "[MASK]"]), ("LARGE", [*WORDS, *"abcdefgh"])):
        (tmp_path / name).mkdir()
        make_tokenizer(tmp_path / name, words)
        if name == "MASKLESS":
            config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
            del config["mask_token"]
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chinese.txt").write_text("却说曹操引兵。玄德大喜。\n\n诸葛亮曰。\n")
    places = {
        "EMPTY": "empty.txt",
        "CHINESE": "chinese.txt",
        "ABSENT": "absent.txt",
        "MASKLESS": "MASKLESS",
        "LARGE": "LARGE",
    }
    places = {name: str(tmp_path / place) for name, place in places.items()} | {"ENCODER": str(encoder)}
    if "tokenizer_of" in changes:
        changes["tokenizer"] = changes.pop("tokenizer_of")
    for key, value in changes.items():
        listed = [places.get(each, each) for each in value] if isinstance(value, list) else value
        changes[key] = places.get(value, value) if isinstance(value, str) else listed
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pre_train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_the_command_line_pre_trains_and_shows_what_was_learnt(command, learnt, texts, tmp_path):
    line = ["--corpus", texts.train, "--tokenizer", texts.tokenizer, "--documents", "blank-line", "--steps", 2]
    line += ["--shape.layers", 1, "--shape.width", 16, "--shape.heads", 2, "--max-length", 16, "--devices", 1]
    told = command("pretrain", *line, "--out", tmp_path / "run")
    assert told.status == 0, told.err
    assert "best step" in told.out
    told = command("fill-mask", learnt.out, "the cat [MASK] on the mat .")
    assert told.status == 0, told.err
    assert told.out.splitlines()[0].endswith("  sat")  # the likeliest comes first
