"""Fine-tuning with several texts in a row: the same run as with one in each, and who cannot have it."""

from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxptft import data, objectives
from jaxptft.recipes.tasks import splits


@pytest.fixture(scope="module")
def texts(csv_file, tmp_path_factory):
    """Texts of 1 to 12 words, one of them good or bad: 70 to learn from, so that the last batch is not full."""
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(70):
        word = str(rng.choice(["good", "bad"]))
        words = [*map(str, rng.choice(["the", "a", "film", "book", "was", "very"], rng.integers(0, 12))), word]
        rows.append((" ".join(map(str, rng.permutation(words))), "pos" if word == "good" else "neg"))
    return csv_file(tmp_path_factory.mktemp("texts") / "train.csv", rows)


@pytest.fixture
def in_mixed_batches(monkeypatch):
    """Unpacked batches hold the examples that packed ones do: of mixed lengths."""
    monkeypatch.setattr(splits.data, "Batches", partial(data.Batches, window=1))


def losses_of(lines):
    return [line["loss"] for line in lines]


def assert_close(out, other):
    one, two = load_file(out / "model/model.safetensors"), load_file(other / "model/model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=2e-5, err_msg=name)


OPTIONS = {"epochs": 2, "steps": None, "log_every": 1, "evaluate_every": 5, "optimizer": {"eps": 1e-3}}


@pytest.fixture(scope="module")
def packed(fine_tune, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "packed"
    return fine_tune(out, train=str(texts), packing="on", **OPTIONS)


def test_the_run_is_that_of_one_text_a_row(packed, in_mixed_batches, fine_tune, texts, lines_of, tmp_path):
    plain = fine_tune(tmp_path / "plain", train=str(texts), packing="off", **OPTIONS)
    one, other = (losses_of(lines_of(out, "train")) for out in (tmp_path / "plain", packed.out))
    assert len(one) == 10
    assert one[-1] < 0.95 * one[0]
    np.testing.assert_allclose(other, one, rtol=1e-4)
    assert_close(tmp_path / "plain", packed.out)
    for metric, value in plain.reports["eval"].metrics.items():
        assert packed.reports["eval"].metrics[metric] == pytest.approx(value, rel=1e-4)
    assert "train: packed, " in packed.said
    assert "rows of 64 tokens a batch" in packed.said
    assert "packed" not in plain.said


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"devices": 8}, {"devices": 2, "parallel": "pmap"}, {"accumulate": 2}])
def test_devices_and_micro_steps_change_nothing(changes, packed, fine_tune, texts, tmp_path):
    fine_tune(tmp_path / "other", train=str(texts), packing="on", **OPTIONS, **changes)
    assert_close(packed.out, tmp_path / "other")


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_same_bits(fine_tune, texts, tmp_path):
    options = {"train": str(texts), "packing": "on", "dropout": 0.1, "log_every": 1, "evaluate_every": 3}
    options["optimizer"] = {"schedule": "constant", "warmup": 0}
    fine_tune(tmp_path / "whole", **options | {"steps": 6})
    fine_tune(tmp_path / "cut", **options | {"steps": 3})
    fine_tune(tmp_path / "cut", **options | {"steps": 6, "resume": True})
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_steps_together_are_the_same_steps(packed, fine_tune, texts, tmp_path):
    fine_tune(tmp_path / "together", train=str(texts), packing="on", steps_per_dispatch=4, **OPTIONS)
    name = "model/model.safetensors"
    one, two = load_file(tmp_path / "together" / name), load_file(packed.out / name)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_packing_is_part_of_what_a_run_goes_on_with(packed, fine_tune, texts):
    with pytest.raises(ValueError, match="packing is 'off'"):
        fine_tune(packed.out, train=str(texts), packing="off", resume=True, **OPTIONS)


def first_loss_of(run, rng):
    """The terms of a run's first batch, in training."""
    batch = run.batches["train"].batch_at(0)
    objective = run.training.objective
    context = objectives.Context(objective.start(run.params, batch), objective.constants, rng, True, None)
    return {name: float(term.value()) for name, term in objective.loss(run.params, batch, context)[0].items()}


@pytest.fixture(scope="module")
def answered(texts, tmp_path_factory):
    """The texts, with answers for every task over texts and words."""
    rng, folder = np.random.default_rng(6), tmp_path_factory.mktemp("answered")
    rows = [line.rpartition(",")[0] for line in texts.read_text().splitlines()[1:]]
    columns = {
        "regression": ("text,label", lambda text: f"{text},{rng.normal():.3f}"),
        "multi_label": ("text,x,y", lambda text: f"{text},{rng.integers(2)},{rng.integers(2)}"),
    }
    for task, (header, line) in columns.items():
        (folder / f"{task}.csv").write_text("\n".join([header, *map(line, rows)]) + "\n")
    tagged = "\n\n".join("\n".join(f"{word} {rng.choice(['O', 'B-PER'])}" for word in text.split()) for text in rows)
    (folder / "token_classification.txt").write_text(tagged + "\n")
    (folder / "corpus.txt").write_text("\n".join(rows) + "\n")
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"task": "regression"}, marks=pytest.mark.slow),
        pytest.param({"task": "multi_label", "labels": {"columns": ["x", "y"]}}, marks=pytest.mark.slow),
        pytest.param({"task": "token_classification"}, marks=pytest.mark.slow),
        {"sampling": "balanced", "lora": {"rank": 2}, "freeze": "backbone/embeddings/**"},
        pytest.param(
            {"auxiliary": {"weight": 0.1, "documents": "line", "masking": {"rate": 0.5}}}, marks=pytest.mark.slow
        ),
    ],
    ids=lambda changes: next(iter(changes.values())) if "task" in changes else next(iter(changes)),
)
def test_the_first_loss_is_the_same_whatever_is_minimised(
    changes, in_mixed_batches, built, texts, answered, monkeypatch, tmp_path
):
    if changes.get("task") == "token_classification":
        from jaxptft.recipes.tasks import token_classification

        monkeypatch.setattr(token_classification.data, "TaggedBatches", partial(data.TaggedBatches, window=1))
    source = answered.get(changes.get("task", ""), str(texts))
    if "auxiliary" in changes:
        changes = {"auxiliary": changes["auxiliary"] | {"corpus": [answered["corpus"]]}}
    options = {"train": source, "eval": None} | changes
    one, other = (built(tmp_path / packing, packing=packing, **options) for packing in ("off", "on"))
    rng = jax.random.key(1)
    plain, packed = first_loss_of(one, rng), first_loss_of(other, rng)
    assert plain.keys() == packed.keys()
    assert packed == pytest.approx(plain, rel=1e-5)


def test_auto_packs_where_less_is_padded(built, texts, files, tmp_path):
    run = built(tmp_path / "short", train=str(texts), packing="auto")
    assert isinstance(run.batches["train"], data.PackedRows)
    assert not isinstance(run.batches["eval"], data.PackedRows)
    # Texts of one length, in rows of which a quarter stays empty.
    run = built(tmp_path / "alike", packing="auto", batch_size=3)
    assert not isinstance(run.batches["train"], data.PackedRows)
    assert run.batches["train"].window == 50


CANNOT = {
    "a teacher": (["distill", "--teacher", "classifier", "--student", "layers:0"], "does not go with a teacher"),
    "other tasks": (["--task", "multiple_choice"], "packing is for classification, multi_label, regression"),
    "changed texts": (["--augment.deletion", "0.1"], "packing does not go with augment"),
    "another domain": (["--adaptation.target", "train", "--adaptation.mmd", "1"], "does not go with adaptation.target"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_be_packed_is_refused(case, refused, flags, files, classifier):
    (first, *rest), said = CANNOT[case]
    rest = [{"classifier": classifier, "train": files.train}.get(part, part) for part in rest]
    line = [part for part in flags]
    if first == "distill":
        at = line.index("--model")
        line = ["distill", *line[:at], *line[at + 2 :], *rest]
    else:
        line = ["finetune", *line, first, *rest]
    assert said in refused(*line, "--packing", "on")


def test_a_model_that_reads_from_left_to_right_is_refused_and_auto_leaves_it(built, texts, make_tokenizer, tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path / "gpt2"
    config = transformers.GPT2Config(vocab_size=19, n_embd=16, n_layer=1, n_head=2, n_positions=20)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "film", "book", "was", "very", "good", "bad"]
    make_tokenizer(folder, words)
    options = {"model": str(folder), "train": str(texts)}
    with pytest.raises(ValueError, match="packing is for encoders whose tokens can be given their positions"):
        built(tmp_path / "on", **options, packing="on")
    run = built(tmp_path / "auto", **options, packing="auto")
    assert not isinstance(run.batches["train"], data.PackedRows)


def test_by_itself_it_packs_where_less_is_padded(built, texts, csv_file, tmp_path):
    """Texts of one length that fill their batches gain nothing; those above frozen layers are kept one by one."""
    short = built(tmp_path / "short", train=str(texts))
    assert short.config.packing == "auto"
    assert "segment_ids" in short.batches["train"].batch_at(0)
    rows = [(" ".join(["good"] * 14), ("neg", "pos")[place % 2]) for place in range(32)]
    wide = csv_file(tmp_path / "wide.csv", rows)
    assert "segment_ids" not in built(tmp_path / "wide", train=str(wide)).batches["train"].batch_at(0)
    frozen = built(tmp_path / "frozen", train=str(texts), freeze="backbone")
    assert "segment_ids" not in frozen.batches["train"].batch_at(0)


def test_how_many_devices_there_are_does_not_decide_whether_rows_are_shared(built, texts, tmp_path):
    found = [built(tmp_path / str(devices), train=str(texts), devices=devices) for devices in (1, 8)]
    assert len({run.batches["train"].fingerprint for run in found}) == 1
