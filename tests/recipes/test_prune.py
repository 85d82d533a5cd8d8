"""What `prune` keeps is what matters, its folder is a model like any other, and its table tells what it cost."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, models, optim
from jaxptft.recipes import prune, pruned
from jaxptft.recipes.exported import open_any


@pytest.fixture(scope="module")
def wide(fine_tune, make_model, tmp_path_factory, files):
    """A run of two layers with four heads that has learnt the rule."""
    folder = tmp_path_factory.mktemp("wide")
    source = make_model(folder / "source", num_hidden_layers=2, num_attention_heads=4)
    return fine_tune(folder / "run", model=str(source), steps=60, evaluate_every=60, test=str(files.test)).out


@pytest.fixture(scope="module")
def small(wide, tmp_path_factory, quickly):
    out, said = tmp_path_factory.mktemp("pruned") / "small", []
    with quickly():
        prune.run(prune.Config(model=str(wide), out=out, heads=2, neurons=10, calls=1), say=said.append)
    return out, "\n".join(said)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_importance_is_torchs_gradient_of_head_gates(wide, files):
    """Gates on what each head hands on, as hooks on torch's own modules; the loss of each row by itself."""
    opened = open_any(wide)
    from jaxptft.recipes import evaluate

    request = evaluate.Config(model=str(wide), data=str(files.dev))
    heads, neurons = pruned.by_gradient(opened.checkpoint, opened, request, heads=True, neurons=True, rows=7)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(wide / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(wide / "model")
    gates = [torch.ones(4, requires_grad=True) for _ in range(2)]
    others = [torch.ones(24, requires_grad=True) for _ in range(2)]

    def gated(gate):
        return lambda module, given: ((given[0].unflatten(-1, (len(gate), -1)) * gate[:, None]).flatten(-2),)

    for layer, gate, other in zip(model.bert.encoder.layer, gates, others, strict=True):
        layer.attention.output.dense.register_forward_pre_hook(gated(gate))
        layer.output.dense.register_forward_pre_hook(gated(other))
    expected = [torch.zeros(4), torch.zeros(4), torch.zeros(24), torch.zeros(24)]
    rows = [line.rsplit(",", 1) for line in files.dev.read_text().splitlines()[1:8]]
    for text, label in rows:
        found = model(**tokenizer(text, return_tensors="pt")).logits
        loss = torch.nn.functional.cross_entropy(found, torch.tensor([["neg", "pos"].index(label)]))
        for total, gradient in zip(expected, torch.autograd.grad(loss, [*gates, *others]), strict=True):
            total += gradient.abs() / len(rows)
    for ours, theirs in zip([*heads, *neurons], expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-6)


def test_the_most_important_stay(wide, small):
    out, said = small
    record = json.loads((out / "pruning.json").read_text())
    for values, kept in zip(record["head_importance"], record["heads"], strict=True):
        assert set(kept) == set(np.argsort(values)[-2:].tolist())
    assert "heads left in each layer: 2, 2" in said
    made, source = convert.load(out), convert.load(wide / "model")
    assert (made.config.kept_heads, made.config.mlp_width) == ((2, 2), 10)
    parameters = lambda checkpoint: sum(leaf.size for leaf in jax.tree.leaves(checkpoint.params))  # noqa: E731
    assert record["after"]["parameters"] == parameters(made) < parameters(source) == record["before"]["parameters"]
    for word in ("folder, MB", "classification/accuracy", "equal answers"):
        assert word in said


def test_shares_are_of_all_layers_and_each_keeps_one():
    values = [np.array([3.0, 4.0]), np.array([0.0, 0.0]), np.array([1.0, 1000.0, 900.0])]
    # In units of each layer's norm: .6, .8; 0, 0; .0007, .74, .67
    assert pruned._share(values, 4 / 7) == [[1], [0], [1, 2]]
    assert pruned._share(values, 0.1) == [[1], [0], [1]]
    assert pruned._best([np.array([1.0, 3.0, 3.0, 2.0])], 2) == [[1, 2]]


def test_weights_alone_can_say(wide, tmp_path, command, files):
    line = ("prune", wide, "--heads-share", "0.5", "--neurons", 6, "--importance", "weights", "--calls", 1)
    assert command(*line, "--out", tmp_path / "out", "--data", files.dev).status == 0
    source, made = convert.load(wide / "model"), convert.load(tmp_path / "out")
    assert sum(made.config.kept_heads) == 4
    mlp = source.params["backbone"]["layer_0"]["mlp"]
    norms = np.linalg.norm(mlp["up"]["kernel"], axis=0) * np.linalg.norm(mlp["down"]["kernel"], axis=1)
    kept = sorted(np.argsort(norms)[-6:])
    np.testing.assert_array_equal(
        made.params["backbone"]["layer_0"]["mlp"]["down"]["kernel"], mlp["down"]["kernel"][kept]
    )


@pytest.mark.slow
def test_it_is_trained_on_quantized_exported_and_asked_like_any_model(small, fine_tune, command, files, tmp_path):
    out, _ = small
    run = fine_tune(tmp_path / "run", model=str(out), steps=4)
    assert convert.load(run.out / "model").config.kept_heads == (2, 2)
    told = command("predict", run.out, "--data", files.test, "--out", tmp_path / "p.jsonl")
    assert told.status == 0, told.err
    quantized = ("quantize", out, "--mode", "weights", "--data", files.dev, "--calls", 1, "--out", tmp_path / "int8")
    assert command(*quantized).status == 0
    program = ("export", out, "--format", "stablehlo", "--data", files.dev, "--out", tmp_path / "program")
    assert command(*program).status == 0
    for name, folder in (("a", out), ("b", tmp_path / "program")):
        assert command("predict", folder, "--data", files.test, "--out", tmp_path / f"{name}.jsonl").status == 0
    for one, other in zip(lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl"), strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    teacher = ("distill", "--teacher", run.out, "--student", "layers:1", "--train", files.train, "--steps", 1)
    assert command(*teacher, "--out", tmp_path / "student", "--max-length", 16).status == 0
    assert convert.load(tmp_path / "student/model").config.kept_heads == (2,)


def test_layers_and_zeros(wide, command, files, tmp_path):
    line = ("prune", wide, "--layers", "top:1", "--sparsity", "0.5", "--calls", 1, "--data", files.dev)
    assert command(*line, "--out", tmp_path / "out").status == 0
    made, source = convert.load(tmp_path / "out"), convert.load(wide / "model")
    assert made.config.layers == 1
    found = optim.zeros_by_path(made.params, "backbone/layer_*/**/kernel")
    zeros, sizes = (sum(part) for part in zip(*found.values(), strict=True))
    assert zeros == round(0.5 * sizes)
    kernel = np.asarray(made.params["backbone"]["layer_0"]["mlp"]["up"]["kernel"])
    own = np.asarray(source.params["backbone"]["layer_1"]["mlp"]["up"]["kernel"])
    np.testing.assert_array_equal(kernel[kernel != 0], own[kernel != 0])
    assert json.loads((tmp_path / "out/pruning.json").read_text())["sparsity"] == zeros / sizes


@pytest.mark.slow
def test_images_lose_neurons_too(tmp_path, command, digits):
    torch.manual_seed(0)
    names = sorted(folder.name for folder in (digits / "train").iterdir() if folder.is_dir())
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, **labels)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    means = {"image_mean": [0.5], "image_std": [0.5], "size": {"height": 8, "width": 8}, "resample": 2}
    told = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps({**told, **means, "rescale_factor": 1 / 255}))
    line = ("prune", tmp_path / "vit", "--data", digits / "test", "--calls", 1)
    told = command(*line, "--neurons", 10, "--out", tmp_path / "out")
    assert told.status == 0, told.err
    assert open_any(tmp_path / "out").config.mlp_width == 10
    told = command(*line, "--heads", 1, "--out", tmp_path / "heads")
    assert (told.status, "heads are removed from BERT and its kin" in told.err) == (2, True)
    assert not (tmp_path / "heads").exists()


def test_what_cannot_be_is_refused_in_a_line(wide, small, files, refused, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "nothing is to go" in refused("prune", wide, *out)
    assert "heads and heads_share are both given" in refused("prune", wide, "--heads", 1, "--heads-share", 0.5, *out)
    assert "heads is 5, and a layer has 4; give fewer" in refused("prune", wide, "--heads", 5, *out)
    assert "neurons is 99, and a layer has 24" in refused("prune", wide, "--neurons", 99, *out)
    assert "expected 0,2,4, or top:K" in refused("prune", wide, "--layers", "middle:1", *out)
    assert "scope is that of sparsity" in refused("prune", wide, "--heads", 1, "--scope", "layer", *out)
    assert "exists and is not empty" in refused("prune", wide, "--heads", 1, "--out", small[0])
    assert "no evaluation rows of" in refused("prune", small[0], "--heads", 1, *out)
    others = tmp_path / "others.csv"
    others.write_text("text,label\nthe film,good\na book,bad\n")
    assert "has the labels bad, good" in refused("prune", wide, "--heads", 1, "--data", others, *out)
    assert not (tmp_path / "out").exists()


def test_gates_of_one_change_nothing(wide):
    opened = open_any(wide)
    network = models.build(opened.config, "classification", classes=2)
    batch = {"input_ids": np.array([[2, 5, 6, 3]], np.int32), "attention_mask": np.ones((1, 4), np.int32)}
    gates = {f"backbone/layer_{layer}/attention/output/kernel": np.ones(4, np.float32) for layer in range(2)}
    found = models.with_gates(network.apply, gates)(opened.params, batch)
    np.testing.assert_allclose(found, network.apply(opened.params, batch), atol=1e-6)
    gates["backbone/layer_2/attention/output/kernel"] = np.ones(4, np.float32)  # it has two layers
    with pytest.raises(ValueError, match=r"no projection of the model has the path backbone/layer_2/att.*gates"):
        models.with_gates(network.apply, gates)(opened.params, batch)
