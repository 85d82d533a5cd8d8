"""What keeps a fine-tuning near the imported model, from the command line's values to the folder that is left."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxptft import convert, models, objectives, optim, train
from jaxptft.recipes import finetune, keeping, settings
from jaxptft.recipes.finetune_run import FinetuneRun
from jaxptft.recipes.tasks import classification


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents in the words that the tiny tokenizer knows."""
    rng = np.random.default_rng(0)
    words = ["the", "a", "film", "book", "was", "is", "very", "good", "bad"]
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join(" ".join(rng.choice(words, 14)) for _ in range(24)) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def masked(tmp_path_factory, make_model):
    """A BERT with the head that predicts words, and so without a pooler; two layers."""
    return make_model(tmp_path_factory.mktemp("models") / "masked", "BertForMaskedLM", num_hidden_layers=2)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, fine_tune, masked, corpus):
    """Adapters in the second layer, beside masked tokens, L2 towards the imported model, and EWC by masked tokens."""
    return fine_tune(
        tmp_path_factory.mktemp("runs") / "adapted",
        model=str(masked),
        allow_missing=["pooler.*"],
        freeze="all-but-top-1",
        lora={"rank": 2, "alpha": 6.0},
        l2_to_pretrained=0.1,
        ewc={"weight": 10.0, "corpus": [corpus], "documents": "line", "rows": 10},
        auxiliary={"weight": 0.25, "corpus": [corpus], "documents": "line", "batch_size": 4},
        steps=3,
        log_every=1,
        evaluate_every=3,
    )


def test_adapters_of_what_freeze_leaves_train_and_the_model_is_saved_with_them_merged(adapted, masked):
    before, after = (load_file(folder / "model.safetensors") for folder in (masked, adapted.out / "model"))
    adapter = load_file(adapted.out / "adapter" / "adapter_model.safetensors")
    layer = "bert.encoder.layer.1.attention.self"
    changed = {name for name, array in after.items() if name in before and not np.array_equal(array, before[name])}
    assert changed == {f"{layer}.query.weight", f"{layer}.value.weight"}
    for name in changed:
        a, b = (adapter[f"base_model.model.{name.removesuffix('weight')}lora_{side}.weight"] for side in "AB")
        np.testing.assert_allclose(after[name], before[name] + 3.0 * b @ a, rtol=1e-4, atol=1e-6)  # 6 / 2

    width, head = 16, 16 * 2 + 2
    trainable = 2 * 2 * (width + width) * 1 + head + (width * width + width) + (width * width + 3 * width + 19)
    facts = json.loads((adapted.out / "report.json").read_text())
    assert facts["trainable_parameters"] == adapted.trainable
    # Two adapters, the head, the pooler that is fresh, and the head of masked tokens: dense, norm and a bias a word.
    assert adapted.trainable == trainable


def test_peft_puts_the_adapters_on_the_model_that_the_run_began_with(adapted, masked):
    fields = json.loads((adapted.out / "adapter" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(masked)
    assert fields["lora_dropout"] == 0.0  # which is what was trained
    base = transformers.AutoModelForSequenceClassification.from_pretrained(masked, num_labels=2)
    loaded = peft.PeftModel.from_pretrained(base, adapted.out / "adapter").eval()
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(adapted.out / "model").eval()
    ids = torch.tensor(np.random.default_rng(0).integers(5, 19, (4, 9)))
    with torch.no_grad():
        np.testing.assert_allclose(loaded(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-6)


def test_adapters_on_a_run_are_for_the_model_in_its_folder(adapted, tmp_path):
    checkpoint = convert.load(adapted.out / "model")
    targets = optim.mask(checkpoint.params, "backbone/layer_0/mlp/up/kernel")
    params = checkpoint.params | {"lora": objectives.init_lora(jax.random.key(0), checkpoint.params, targets, rank=2)}
    config = adapted.config.model_copy(update={"model": str(adapted.out)})
    nothing = jax.tree.map(lambda _: False, params)
    keeping.save_adapter(tmp_path / "adapter", config, params, nothing, checkpoint=checkpoint)
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(adapted.out / "model")


def test_the_loss_is_the_sum_of_its_parts_and_penalties_see_the_adapted_kernels(adapted, lines_of):
    lines = lines_of(adapted.out, "train")
    parts = ("task/classification", "mlm/masked_lm", "l2_to_pretrained", "elastic_weight")
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line[f"{part}/loss"] for part in parts), rel=1e-5)
    assert lines[0]["l2_to_pretrained/loss"] == lines[0]["elastic_weight/loss"] == 0.0
    assert min(lines[-1]["l2_to_pretrained/loss"], lines[-1]["elastic_weight/loss"]) > 0.0


@pytest.fixture(scope="module")
def noisy(base, classifier, files, tmp_path_factory):
    """A run, built and not begun, with mixing, two passes, and EWC by rows that the imported head knows."""
    said = []
    values = base | {
        "model": str(classifier),
        "out": str(tmp_path_factory.mktemp("runs") / "noisy"),
        "dropout": 0.1,
        "freeze": "backbone/embeddings/**",
        "mixout": 0.5,
        "r_drop": 0.5,
        "label_smoothing": 0.1,
        "ewc": {"weight": 2.0, "data": str(files.dev), "rows": 20},
    }
    config = settings.build(finetune.Config, values)
    with train.StopFlag() as stop:
        return SimpleNamespace(work=FinetuneRun(config, name="noisy", say=said.append, stop=stop), said=said)


def test_mixing_is_with_the_imported_kernels_that_train(noisy):
    mixed = noisy.work.training.objective.constants["objectives"]["task"]["transform"]
    imported = noisy.work.checkpoint.params
    names = optim.paths(mixed)
    assert set(names) == {
        path for path in optim.paths(imported) if path.endswith("/kernel") and path.startswith("backbone/")
    }
    for path, leaf in zip(names, jax.tree.leaves(mixed), strict=True):
        own = imported
        for name in path.split("/"):
            own = own[name]
        np.testing.assert_array_equal(leaf, own)


def test_the_importance_is_the_fisher_information_of_the_imported_model(noisy):
    """Against squared gradients of the rows one by one, of the imported head and of what of the backbone trains."""
    work = noisy.work
    constants = work.training.objective.constants["penalties"]["elastic_weight"]
    importance, reference = constants["importance"], constants["reference"]
    assert not jax.tree.leaves(importance["backbone"]["embeddings"])
    assert optim.paths(importance) == optim.paths(reference)
    assert any(line.startswith("ewc, train: 24 rows") for line in noisy.said)
    model = models.build(work.checkpoint.config, "classification", classes=2)
    gradient = jax.jit(jax.grad(lambda params, row: -jax.nn.log_softmax(model.apply(params, row))[0, row["label"][0]]))
    config = work.config.model_copy(update={"train": work.config.ewc.data, "eval": work.config.ewc.data})
    task = classification.read(
        config,
        tokenizer=work.tokenizer,
        architecture=work.checkpoint.config,
        devices=1,
        checkpoint_names=["neg", "pos"],
        say=lambda line: None,
    )
    rows = []
    for step in (0, 1):
        batch = task.batches["train"].batch_at(step)
        rows += [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch) for i in np.flatnonzero(batch["valid"])]
    squares = [jax.tree.map(np.square, gradient(work.checkpoint.params, row)) for row in rows[:20]]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *squares)
    for own, expected in (("classifier", mean["classifier"]), ("layer_0", mean["backbone"]["layer_0"])):
        found = importance.get(own) or importance["backbone"][own]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-7), found, expected)


def test_noise_trains_and_evaluation_is_free_of_it(noisy, quickly, lines_of):
    with quickly():
        work = noisy.work
        objective, batch = work.training.objective, work.batches["train"].batch_at(0)
        state = objective.start(work.params, batch)
        context = objectives.Context(state, objective.constants, jax.random.key(0), True, None)
        loss = jax.jit(
            lambda params, rng, train: objective.loss(params, batch, context._replace(rng=rng, train=train))[0],
            static_argnums=2,
        )
        moved = jax.tree.map(lambda leaf: leaf * 1.1, work.params)
        one, other = (loss(moved, jax.random.key(seed), True) for seed in (0, 1))
        assert set(one) == {"classification", "r_drop", "elastic_weight"}
        assert float(one["r_drop"].total) > 0.0
        assert float(one["classification"].total) != float(other["classification"].total)
        assert float(one["elastic_weight"].total) == float(other["elastic_weight"].total)
        still = [loss(moved, jax.random.key(seed), False) for seed in (0, 1)]
        assert set(still[0]) == {"classification"}
        assert float(still[0]["classification"].total) == float(still[1]["classification"].total)


def test_r_drop_reads_labelled_tokens_and_places_of_answers(quickly):
    config = settings.build(finetune.Config, {"model": "m", "train": "t", "out": "o", "r_drop": 1.0})
    architecture = models.BertConfig(vocab_size=9, width=4, layers=1, heads=1, mlp_width=4, positions=4)
    logits = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    model = SimpleNamespace(init=None, apply=lambda params, batch, *, rng, train: params["scale"] * logits)

    def term_of(task, **batch):
        batch |= {"ids": np.arange(2), "valid": np.array([True, False]), "input_ids": np.zeros((2, 3), np.int32)}
        chosen = config.model_copy(update={"task": task})
        wrapped = keeping.r_drop(chosen, getattr(objectives, task)(model), model, architecture)
        context = objectives.Context({}, None, jax.random.key(0), True, None)
        with quickly():
            return jax.jit(lambda params: wrapped.loss(params, batch, context)[0]["r_drop"])({"scale": 1.0})

    labels = np.array([[1, -100, 0], [1, 1, 1]], np.int32)
    assert float(term_of("token_classification", labels=labels).count) == 2.0
    places = np.zeros(2, np.int32)
    inside = np.array([[1, 1, 0], [0, 0, 0]], np.int32)
    term = term_of("question_answering", start=places, end=places, attention_mask=inside, context=inside > 0)
    assert (float(term.total), float(term.count)) == (0.0, 2.0)  # start and end of the row that is valid
    with pytest.raises(ValueError, match=r"r_drop is for .*question_answering, and task is multi_label"):
        term_of("multi_label")


def test_what_does_not_go_together_is_refused_in_one_line(refused, flags, files, corpus):
    def complaint(*more):
        return refused("finetune", *flags, *more)

    assert "lora has no rank, so there are no adapters; give lora.rank" in complaint("--lora.alpha", "4")
    assert "bitfit trains the backbone's biases, and lora" in complaint("--lora.rank", "1", "--bitfit")
    assert "freeze='backbone' leaves none of it to train" in complaint("--lora.rank", "1", "--freeze", "backbone")
    assert "lora adapts imported kernels, and nothing is" in complaint("--lora.rank", "1", "--from-scratch")
    assert "matches nothing" in complaint("--lora.rank", "1", "--lora.targets", "backbone/layer_7/**/kernel")
    assert "mixout needs imported kernels that train" in complaint("--lora.rank", "1", "--mixout", "0.5")
    assert "r_drop compares two passes that differ in their dropout" in complaint("--r-drop", "1")
    assert "ewc needs a weight, and a corpus or data" in complaint("--ewc.weight", "1")
    both = ("--ewc.weight", "1", "--ewc.corpus", corpus, "--ewc.data", files.dev)
    assert "both ewc.corpus and ewc.data are given" in complaint(*both)
    assert "lacks the head mlm" in complaint("--ewc.weight", "1", "--ewc.corpus", corpus)
    of_rows = ("--ewc.weight", "1", "--ewc.data", files.dev)
    assert "has no head for classification" in complaint(*of_rows)
    assert "ewc keeps imported parameters, and nothing is" in complaint(*of_rows, "--from-scratch")
    assert "ewc.labels are of the rows of ewc.data" in complaint(*both[:4], "--ewc.labels", "drawn")


def test_labels_are_drawn_for_one_choice_a_row_alone():
    drawn = {"weight": 1.0, "data": "d", "labels": "drawn"}
    config = settings.build(
        finetune.Config, {"model": "m", "train": "t", "out": "o", "task": "regression", "ewc": drawn}
    )
    nothing: Any = dict.fromkeys(
        ("checkpoint", "architecture", "tokenizer", "kept", "moves", "mesh", "say", "stop", "measured")
    )
    with pytest.raises(
        ValueError, match=r"ewc\.labels are drawn for classification, multiple_choice, and task is regr"
    ):
        keeping.elastic_weight(config, **nothing)
