"""What a fine-tuning forgets: numbers of torch and numpy, and what a run makes of them."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxptft import data, objectives
from jaxptft.recipes.drift import Drift
from jaxptft.recipes.forgetting_report import Comparison, Layer, freeze_depth
from jaxptft.recipes.model_source import can_have

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "film", "book", "was", "is", "very", "so", "it"]
WORDS += ["and", "one", "##s", "good", "bad"]
PLAIN = [word for word in WORDS[5:] if word != "##s"]
LENGTH = 16
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FAMILIES = {  # model, its fields, where the pieces' tensors are, and the piece that changes
    "bert": (
        "BertForMaskedLM",
        SIZES | {"max_position_embeddings": 20},
        {"embeddings": "bert.embeddings.", "layer_0": "bert.encoder.layer.0.", "layer_1": "bert.encoder.layer.1."},
        "layer_1",
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        SIZES
        | {"max_position_embeddings": 20, "local_attention": 8}
        | {"cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0},
        {
            "embeddings": "model.embeddings.",
            "layer_0": "model.layers.0.",
            "layer_1": "model.layers.1.",
            "final_norm": "model.final_norm.",
        },
        "layer_1",
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20, "bos_token_id": 3, "eos_token_id": 3},
        {
            "embeddings": "transformer.w",
            "layer_0": "transformer.h.0.",
            "layer_1": "transformer.h.1.",
            "final_norm": "transformer.ln_f.",
        },
        "embeddings",
    ),
}


@jax.jit
def corrupted(batch, table):
    """What every evaluation hides, and which tokens are chosen."""
    return objectives.corrupt(jax.random.split(jax.random.key(0))[0], batch, table, objectives.Masking())


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Documents of a line each, all shorter than a row."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("held") / "held.txt"
    path.write_text("\n".join(" ".join(rng.choice(PLAIN, rng.integers(8, 13))) for _ in range(24)) + "\n")
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory, make_tokenizer):
    """A function: family -> folders written by torch, before and after one piece has changed; made once."""
    made = {}

    def make(family):
        if family in made:
            return made[family]
        architecture, fields, prefixes, changed = FAMILIES[family]
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, vocab_size=len(WORDS), **fields)
        model = getattr(transformers, architecture)(config).eval()
        for step, name in enumerate(("before", "after")):
            with torch.no_grad():
                for path, tensor in model.named_parameters():
                    if step == 0:
                        tensor.copy_(torch.randn_like(tensor) * 0.3 + (1.0 if "norm.weight" in path.lower() else 0.0))
                    elif path.startswith(prefixes[changed]):
                        tensor.add_(torch.randn_like(tensor) * 0.3)
            model.save_pretrained(folder / name)
            make_tokenizer(folder / name, WORDS)
            settings = json.loads((folder / name / "tokenizer_config.json").read_text()) | {"eos_token": "[SEP]"}
            (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
        made[family] = SimpleNamespace(before=folder / "before", after=folder / "after")
        return made[family]

    return make


def rows_of(folder, held, causal) -> dict[str, np.ndarray]:
    """Each document as the model reads it."""
    tokenizer = data.load_tokenizer(folder)
    texts = held.read_text().splitlines()
    ids = [tokenizer(text, add_special_tokens=not causal)["input_ids"] + [3] * causal for text in texts]
    mask = np.array([[int(place < len(row)) for place in range(LENGTH)] for row in ids], np.int32)
    padded = np.array([row + [0] * (LENGTH - len(row)) for row in ids], np.int32)
    return {"input_ids": padded, "attention_mask": mask}


def by_torch(folder, held, family):
    """The mean of each layer's hidden states over the tokens of a text, and the pre-training loss on our masks."""
    batch = rows_of(folder, held, family == "gpt2")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    hidden, labels = ids, np.where(mask > 0, ids, -100)
    if family != "gpt2":
        table = objectives.TokenTable(*data.token_table(data.load_tokenizer(folder), len(WORDS)))
        numbered = batch | {"ids": np.arange(len(ids), dtype=np.int32), "valid": np.ones(len(ids), bool)}
        hidden, chosen = corrupted(numbered, table)
        labels = np.where(chosen, ids, -100)
    model = getattr(transformers, FAMILIES[family][0]).from_pretrained(folder).eval()
    attention = torch.tensor(mask).long()
    with torch.no_grad():
        read = model(torch.tensor(ids).long(), attention_mask=attention, output_hidden_states=True).hidden_states
        given = torch.tensor(np.asarray(hidden)).long()
        loss = model(given, attention_mask=attention, labels=torch.tensor(labels).long()).loss
    states, seen = np.stack(read).astype(np.float64), mask[None, :, :, None]
    return (states * seen).sum(2) / seen.sum(2), loss.item()


def by_gram(x, y):
    """Linear CKA from centred Gram matrices."""
    h = np.eye(len(x)) - 1 / len(x)
    k, le = h @ x @ x.T @ h, h @ y @ y.T @ h
    return np.trace(k @ le) / np.sqrt(np.trace(k @ k) * np.trace(le @ le))


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_folders_are_compared_as_torch_and_numpy_do(family, pair, held, command, tmp_path):
    folders, prefixes, changed = pair(family), *FAMILIES[family][2:]
    flags = ("--corpus", held, "--documents", "line", "--max-length", LENGTH, "--threshold", 0.999)
    told = command("forgetting", folders.before, folders.after, *flags, "--out", tmp_path / "out")
    assert told.status == 0, told.err
    found = json.loads((tmp_path / "out/forgetting.json").read_text())
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert [*layers] == [*prefixes]

    tensors = [load_file(folder / "model.safetensors") for folder in (folders.before, folders.after)]
    for name, prefix in prefixes.items():
        old, new = (
            np.concatenate([own[path].ravel() for path in sorted(own) if path.startswith(prefix)]).astype(np.float64)
            for own in tensors
        )
        assert layers[name]["drift"] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-6)
        assert layers[name]["drift_cosine"] == pytest.approx(cosine(new, old), rel=1e-6)
        if name != changed:
            assert (layers[name]["drift"], layers[name]["drift_cosine"]) == (0.0, 1.0)

    (then, loss_before), (now, loss_after) = (by_torch(own, held, family) for own in (folders.before, folders.after))
    for place, name in enumerate(("embeddings", "layer_0", "layer_1")):
        assert layers[name]["cka"] == pytest.approx(by_gram(then[place], now[place]), abs=1e-4)
        assert layers[name]["cosine"] == pytest.approx(cosine(then[place], now[place]).mean(), abs=1e-4)
    loss = found["pretraining_loss"]
    assert loss["objective"] == ("next_token" if family == "gpt2" else "masked_lm")
    assert loss["before"] == pytest.approx(loss_before, rel=1e-4)
    assert loss["after"] == pytest.approx(loss_after, rel=1e-4)
    assert abs(loss_after - loss_before) > 1e-3

    if changed == "layer_1":
        assert [layers[name][cka] for name in ("embeddings", "layer_0") for cka in ("cka", "cka_debiased")] == (
            pytest.approx([1.0] * 4, abs=1e-6)
        )
        assert (found["freeze_depth"], found["freeze"]) == (1, "all-but-top-1")
        assert "suggested freeze: all-but-top-1; the embeddings and 1 of 2 layers keep a CKA of 0.999" in told.out
    else:
        assert (found["freeze_depth"], found["freeze"]) == (None, "none")
        assert "suggested freeze: none; the embeddings' CKA is" in told.out
    assert (tmp_path / "out/forgetting.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "similarities, shared, depth, freeze",
    [
        ([0.99, 0.98, 0.96, 0.9], False, 2, "all-but-top-1"),
        ([0.99, 0.9, 0.99, 0.99], False, 0, "all-but-top-3"),  # a layer above one that changed does not count
        ([0.94, 0.99, 0.99, 0.99], False, None, "none"),
        ([0.95, 0.95, 0.95, 0.95], False, 3, "all-but-top-0"),
        ([float("nan"), 1.0, 1.0, 1.0], False, None, "none"),
        ([0.99, 0.98, 0.96, 0.9], True, 0, "all-but-top-1"),  # ALBERT's three layers are one
        ([0.99, 0.98, 0.96, 0.95], True, 3, "all-but-top-0"),
    ],
)
def test_the_suggested_depth(similarities, shared, depth, freeze):
    assert freeze_depth(similarities, 0.95, shared=shared) == depth
    still = Drift(0.0, 1.0)
    layers = [Layer(str(place), 0.0, value, 1.0, still) for place, value in enumerate(similarities)]
    layers.append(Layer("pooler", None, None, None, Drift(None, None)))
    found = Comparison("model", 5, 50, tuple(layers), 1 if shared else 3, still, 0.95)
    assert (found.freeze_depth, found.freeze) == (depth, freeze)
    assert found.suggestion.startswith(f"suggested freeze: {freeze}; the embeddings")


def test_a_layer_that_is_not_a_number_is_the_lowest():
    still = Drift(0.0, 1.0)
    layers = [Layer(name, 0.0, value, 1.0, still) for name, value in (("embeddings", 1.0), ("layer_0", float("nan")))]
    assert np.isnan(Comparison("model", 5, 50, tuple(layers), 1, still, 0.95).lowest_cka)


def test_a_model_beside_itself_has_forgotten_nothing_and_without_a_head_there_is_no_loss(encoder, held, command):
    told = command("forgetting", encoder, encoder, "--corpus", held, "--documents", "line", "--max-length", LENGTH)
    assert told.status == 0, told.err
    assert f"24 held texts from {held}; {encoder} has no head of masked tokens, so CKA and drift alone" in told.out
    assert "has no head of masked tokens, and so no pre-training loss" in told.out
    assert "suggested freeze: all-but-top-0; the embeddings and 1 of 1 layers keep a CKA of 0.95 or more" in told.out
    assert "pooler" in told.out


@pytest.fixture(scope="module")
def tuning(pair, held):
    """The values of a fine-tuning of the upper layer alone, at one rate whatever its length."""
    return {
        "model": str(pair("bert").before),
        "allow_missing": ["pooler.*"],
        "freeze": "backbone/embeddings/**,backbone/layer_0/**",
        "optimizer": {"schedule": "constant", "warmup": 0.0},
        "log_every": 3,
    }


@pytest.fixture(scope="module")
def asked(held):
    return {"corpus": [str(held)], "documents": "line", "rows": 20}


@pytest.fixture(scope="module")
def watched(tuning, asked, fine_tune, tmp_path_factory):
    return fine_tune(tmp_path_factory.mktemp("runs") / "watched", forgetting=asked, **tuning, pictures=True)


def test_a_run_measures_at_each_evaluation_and_reports_on_the_best_model(watched, lines_of):
    said = watched.said.splitlines()
    assert any(line.startswith("forgetting: 20 held texts from") for line in said)
    assert any(line.startswith("suggested freeze: all-but-top-") for line in said)
    report = json.loads((watched.out / "report.json").read_text())
    found = report["forgetting"]
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert [*layers] == ["embeddings", "layer_0", "layer_1"]  # the pooler is fresh
    for name in ("embeddings", "layer_0"):
        assert (layers[name]["drift"], layers[name]["cka"]) == (0.0, pytest.approx(1.0, abs=1e-6))
    assert layers["layer_1"]["drift"] > 0
    assert layers["layer_1"]["cka_debiased"] < 1 - 1e-4
    assert found["lowest_cka"] == layers["layer_1"]["cka_debiased"]
    best = next(line for line in lines_of(watched.out, "evaluation") if line["step"] == report["best_step"])
    assert best["forgetting/pretraining_loss"] == found["pretraining_loss"]["after"]
    assert best["forgetting/lowest_cka"] == found["lowest_cka"]
    assert best["forgetting/drift"] == found["drift"]
    assert [line["step"] for line in lines_of(watched.out, "evaluation")] == [3, 6]
    assert "pre-training loss (masked_lm): " in (watched.out / "report.txt").read_text()
    assert (watched.out / "forgetting.png").read_bytes().startswith(b"\x89PNG")


def test_the_folders_compared_afterwards_give_the_same(watched, tuning, held, command, tmp_path):
    flags = ("--corpus", held, "--documents", "line", "--rows", 20, "--max-length", LENGTH, "--out", tmp_path)
    assert command("forgetting", tuning["model"], watched.out, *flags).status == 0
    after = json.loads((tmp_path / "forgetting.json").read_text())
    during = json.loads((watched.out / "report.json").read_text())["forgetting"]
    for mine, theirs in zip(after["layers"], during["layers"], strict=True):
        assert mine.pop("name") == theirs.pop("name")
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for moment in ("before", "after"):
        assert after["pretraining_loss"][moment] == pytest.approx(during["pretraining_loss"][moment], rel=1e-5)


def test_measuring_changes_nothing_else_and_may_wait_for_the_end(watched, tuning, asked, fine_tune, lines_of, tmp_path):
    plain = fine_tune(tmp_path / "plain", steps=3, forgetting=asked | {"every": "run"}, **tuning)
    (line,), lines = lines_of(plain.out, "evaluation"), lines_of(watched.out, "evaluation")
    assert line == {name: value for name, value in lines[0].items() if not name.startswith("forgetting/")}
    report = json.loads((plain.out / "report.json").read_text())
    assert report["best_step"] == 3
    assert report["forgetting"]["pretraining_loss"]["after"] == lines[0]["forgetting/pretraining_loss"]
    assert (plain.out / "forgetting.png").exists()


def test_a_resumed_run_logs_the_same_lines(watched, tuning, asked, fine_tune, command, tmp_path):
    out = tmp_path / "run"
    fine_tune(out, steps=3, forgetting=asked, **tuning)
    told = command("finetune", "--resume", "--out", out, "--steps", 6)
    assert told.status == 0, told.err
    assert (out / "metrics.jsonl").read_bytes() == (watched.out / "metrics.jsonl").read_bytes()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (out, watched.out)]
    assert reports[0]["forgetting"] == reports[1]["forgetting"]


def test_other_held_text_on_resume_is_refused(watched, held, refused, tmp_path):
    out, text = tmp_path / "run", held.read_text()
    shutil.copytree(watched.out, out)
    held.write_text("the film was good and the book was bad\n" + text)
    try:
        assert "was trained with another held text (" in refused("finetune", "--resume", "--out", out)
    finally:
        held.write_text(text)


def test_a_causal_model_needs_no_head(pair, flags, refused, tmp_path):
    folder, empty = pair("gpt2").before, tmp_path / "empty.txt"
    assert (can_have(folder, "mlm"), can_have(pair("bert").before, "mlm")) == (False, True)
    empty.write_text("")
    complaint = refused("finetune", *flags, "--model", folder, "--forgetting.corpus", empty)
    assert "empty.txt: there is no text in the corpus" in complaint


def test_other_architectures_are_refused(pair, encoder, held, refused):
    complaint = refused("forgetting", pair("bert").before, encoder, "--corpus", held)
    assert "is bert with 2 layers, 2 heads, width 16 and 19 words, and" in complaint
    assert "only models of one architecture can be compared" in complaint


@pytest.mark.parametrize(
    "text, flags, expected",
    [
        ("", (), "there is no text in the corpus"),
        ("good\nbad\nfilm\n", (), "3 texts of at most 16 tokens; expected at least 4"),
        ("zzz\n" * 5, (), "the tokenizer knows nothing of it; give text that the model can read"),
        ("good\n" * 5, ("--max-length", 64), "max_length is 64, but the model has 20 positions; lower it"),
        ("good\n" * 5, ("--rows", 3), "rows"),
    ],
)
def test_text_that_will_not_do_is_refused(text, flags, expected, encoder, refused, tmp_path):
    corpus = tmp_path / "held.txt"
    corpus.write_text(text)
    line = ("forgetting", encoder, encoder, "--corpus", corpus, "--documents", "line", "--max-length", LENGTH)
    assert expected in refused(*line, *flags)


def test_broken_weights_are_refused(encoder, held, refused, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    for folders in ((broken, encoder), (encoder, broken)):
        complaint = refused("forgetting", *folders, "--corpus", held, "--documents", "line", "--max-length", LENGTH)
        assert f"{broken} gives NaN or infinity on the held text; its weights are broken" in complaint


def test_settings_that_make_no_sense_are_refused(flags, encoder, held, refused, tmp_path):
    needs = "forgetting is measured on held text; give forgetting.corpus"
    assert needs in refused("finetune", *flags, "--forgetting.rows", "8")
    asked = ("--forgetting.corpus", held, "--forgetting.documents", "line")
    complaint = refused("finetune", *flags, *asked, "--from-scratch")
    assert "forgetting compares with what was imported, and nothing is; leave out from_scratch" in complaint
    assert "corpus" in refused("forgetting", encoder, encoder)

    gap = tmp_path / "gap"
    shutil.copytree(encoder, gap)
    tensors = load_file(gap / "model.safetensors")
    del tensors["embeddings.LayerNorm.bias"]
    save_file(tensors, gap / "model.safetensors", metadata={"format": "pt"})
    lacking = ("--model", gap, "--allow-missing", "embeddings.LayerNorm.bias")
    complaint = refused("finetune", *flags, *asked, *lacking)
    assert "lacks backbone/embeddings/norm/bias, so there is nothing to compare with; leave out forgetting" in complaint


def test_text_without_a_masked_token_is_refused(pair, refused, tmp_path):
    corpus, folder = tmp_path / "held.txt", pair("bert").before
    batch = {"input_ids": np.full((4, LENGTH), WORDS.index("good")), "attention_mask": np.ones((4, LENGTH), int)}
    batch |= {"ids": np.arange(4), "valid": np.ones(4, bool)}
    table = objectives.TokenTable(*data.token_table(data.load_tokenizer(folder), len(WORDS)))
    chosen = corrupted(batch, table)[1]
    free = int(np.flatnonzero(~np.asarray(chosen).any(0)[1:-1])[0])  # words before a place that no text has masked
    corpus.write_text(("zzz " * free + "good\n") * 4)
    complaint = refused("forgetting", folder, folder, "--corpus", corpus, "--documents", "line", "--max-length", LENGTH)
    assert "no token of the held text is to be predicted; give more text" in complaint
