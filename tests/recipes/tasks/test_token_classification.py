"""A tagger from CoNLL files to the exact characters of its entities, in made sentences that a tiny model learns."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from jaxptft import data
from jaxptft.recipes import finetune, settings
from jaxptft.recipes.tasks import token_classification

PEOPLE, FILLER = ["ann", "bob", "eve"], ["saw", "in", "the", "slowly", "zebra", ","]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PEOPLE, "rome", "york", "par", "##is", "saw", "in"]
WORDS += ["the", "slow", "##ly", "new", ","]


def sentences(count, seed, longest=15):
    """People are PER, places LOC, of which `new york` has two words."""
    rng = np.random.default_rng(seed)
    found = []
    for length in rng.integers(3, longest, count):
        words, tags = [], []
        while len(words) < length:
            kind = rng.choice(["person", "rome", "paris", "new york", "other"], p=[0.2, 0.1, 0.1, 0.1, 0.5])
            if kind == "other":
                words, tags = [*words, str(rng.choice(FILLER))], [*tags, "O"]
            elif kind == "person":
                words, tags = [*words, str(rng.choice(PEOPLE))], [*tags, "B-PER"]
            else:
                name = str(kind).split()
                words, tags = words + name, tags + ["B-LOC", "I-LOC"][: len(name)]
        found.append((words, tags))
    return found


def write_conll(path, rows, scheme="IOB2"):
    blocks = []
    for words, tags in rows:
        tags = data.convert_tags(tags, "IOB2", scheme)
        blocks.append("".join(f"{word} X {tag}\n" for word, tag in zip(words, tags, strict=True)))
    path.write_text("-DOCSTART- X O\n\n" + "\n".join(blocks))
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_model):
    folder = tmp_path_factory.mktemp("tagging")
    rows = {
        name: sentences(count, seed) for seed, (name, count) in enumerate({"train": 300, "dev": 40, "test": 50}.items())
    }
    paths = {name: write_conll(folder / f"{name}.txt", part) for name, part in rows.items()}
    model = make_model(folder / "model", vocab_size=len(WORDS), words=WORDS, max_position_embeddings=32)
    return SimpleNamespace(folder=folder, rows=rows, model=str(model), **paths)


@pytest.fixture(scope="module")
def values(made):
    return {
        "task": "token_classification",
        "model": made.model,
        "train": made.train,
        "eval": made.dev,
        "max_length": 24,
        "length_buckets": 1,
    }


@pytest.fixture(scope="module")
def tagger(made, values, tmp_path_factory, fine_tune):
    """A run that has learnt the rule."""
    out = tmp_path_factory.mktemp("runs") / "tagger"
    return fine_tune(out, **values, test=made.test, steps=160, evaluate_every=80, learning_rate=0.01)


def test_it_learns_reports_and_says_what_it_read(tagger, made):
    report = tagger.reports["test"]
    assert report.metrics["token_classification/f1"] > 0.95
    assert "train: 300 sentences from" in tagger.said
    assert "tags (IOB2): O, B-LOC, I-LOC, B-PER, I-PER" in tagger.said
    saved = json.loads((tagger.out / "report.json").read_text())
    assert saved["test"]["metrics"] == report.metrics
    truth = [span.type for _, tags in made.rows["test"] for span in data.spans(tags, "IOB2")]
    assert {kind: score["support"] for kind, score in saved["test"]["types"].items()} == {
        kind: truth.count(kind) for kind in ("LOC", "PER")
    }
    assert saved["words"]["test"] == sum(len(words) for words, _ in made.rows["test"])
    config = json.loads((tagger.out / "model/config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert list(config["id2label"].values()) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert saved["settled"] == {"scheme": "IOB2"}


@pytest.mark.parametrize("scheme", ["IOB2", "IOB1", "IOBES"])
def test_evaluation_gives_the_runs_numbers_whatever_the_files_scheme(tagger, made, command, tmp_path, scheme):
    path = write_conll(tmp_path / "test.conll", made.rows["test"], scheme)
    told = command("evaluate", tagger.out, "--data", path, "--out", tmp_path / "e.json", "--batch-size", 64)
    assert told.status == 0, told.err
    assert json.loads((tmp_path / "e.json").read_text())["metrics"] == tagger.reports["test"].metrics


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_are_those_of_transformers(tagger, made, command, tmp_path):
    told = command("predict", tagger.out, "--data", made.test, "--out", tmp_path / "p.jsonl")
    assert told.status == 0, told.err
    lines = read_lines(tmp_path / "p.jsonl")
    assert [line["words"] for line in lines] == [words for words, _ in made.rows["test"]]
    model, info = transformers.AutoModelForTokenClassification.from_pretrained(
        tagger.out / "model", output_loading_info=True
    )
    assert not info["missing_keys"], info
    tokenizer = transformers.AutoTokenizer.from_pretrained(tagger.out / "model")
    for line in lines:
        inputs = tokenizer(line["words"], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            probabilities = model.eval()(**inputs).logits[0].softmax(-1).numpy()
        owners = inputs.word_ids()
        first = [owners.index(word) for word in range(len(line["words"]))]
        assert line["tags"] == [model.config.id2label[int(place)] for place in probabilities[first].argmax(-1)]
        assert [(e["type"], e["start"], e["end"]) for e in line["entities"]] == data.spans(line["tags"], "IOB2")
        for entity in line["entities"]:
            inside = slice(entity["start"], entity["end"])
            assert entity["text"] == " ".join(line["words"][inside])
            assert entity["score"] == pytest.approx(probabilities[first][inside].max(-1).mean(), abs=2e-6)


TEXT = "  Ann\u00a0saw\tNew  York, in—slowly—BOB's PARIS.\u200b"


def test_entities_of_texts_are_their_exact_characters(tagger, command, tmp_path):
    rows = [{"text": TEXT, "key": "a"}, {"text": "in the", "key": "b"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = command("predict", tagger.out, "--data", tmp_path / "t.jsonl", "--id", "key", "--out", tmp_path / "p.jsonl")
    assert told.status == 0, told.err
    first, second = read_lines(tmp_path / "p.jsonl")
    assert (first["row"], first["id"], first["text"]) == (1, "a", TEXT)
    found = [(entity["type"], entity["text"], entity["start"]) for entity in first["entities"]]
    assert found == [
        ("PER", "Ann", 2),
        ("LOC", "New  York", TEXT.index("New")),
        ("PER", "BOB", TEXT.index("BOB")),
        ("LOC", "PARIS", TEXT.index("PARIS")),
    ]
    assert all(TEXT[entity["start"] : entity["end"]] == entity["text"] for entity in first["entities"])
    assert len(first["words"]) == len(first["tags"])
    assert first["words"][-1] == "\u200b"  # of which the tokenizer makes nothing
    assert first["tags"][-1] == "O"
    assert (second["row"], second["id"], second["entities"]) == (2, "b", [])


def test_long_sentences_are_tagged_whole(tagger, command, tmp_path):
    rows = sentences(12, 7, longest=40)
    told = command("evaluate", tagger.out, "--data", write_conll(tmp_path / "long.conll", rows), "--max-length", 12)
    assert told.status == 0, told.err
    assert "sentences are longer than 12 tokens: in windows" in told.out
    # Were the words behind the cut lost, most of the entities would be.
    assert float(told.out.split("micro avg")[1].split()[2]) > 0.9
    support = sum(len(data.spans(tags, "IOB2")) for _, tags in rows)
    assert told.out.split("micro avg")[1].split()[3] == str(support)


@pytest.fixture(scope="module")
def read_task(made, values, tmp_path_factory):
    """A function: changed values -> the task, and what was said of it."""
    tokenizer = data.load_tokenizer(made.model)

    def read(checkpoint_names=None, **changes):
        said = []
        config = settings.build(finetune.Config, values | {"out": "runs/x"} | changes)
        task = token_classification.read(
            config,
            tokenizer=tokenizer,
            architecture=None,
            devices=1,
            checkpoint_names=checkpoint_names,
            say=said.append,
        )
        return task, "\n".join(said)

    return read


def test_class_weights(read_task, made):
    task, _ = read_task(class_weights="balanced")
    tags = [tag for _, row in made.rows["train"] for tag in row]
    counts = np.array([tags.count(name) for name in task.names])
    np.testing.assert_allclose(task._weights, counts.sum() / (5 * np.maximum(counts, 1)))  # scikit-learn's definition
    task, _ = read_task(weights_by_class={"O": 0.2})
    assert task._weights == [0.2, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="weights_by_class names 'PER'; expected tags: O, B-LOC"):
        read_task(weights_by_class={"PER": 2.0})
    with pytest.raises(ValueError, match="both class_weights and weights_by_class are given; give one"):
        read_task(weights_by_class={"O": 2.0}, class_weights="balanced")


def test_another_scheme_is_learnt(read_task, made):
    task, said = read_task(tags={"learn": "IOBES"})
    assert "tags (IOBES): O, B-LOC, I-LOC, E-LOC, S-LOC, B-PER, I-PER, E-PER, S-PER" in said
    right = {"tags": np.zeros((len(task.tagged["eval"].tokenized), 24), np.int32)}
    for row, (_, tags) in enumerate(made.rows["dev"]):
        tags = data.convert_tags(tags, "IOB2", "IOBES")
        places = task.tagged["eval"].positions[slice(*task.tagged["eval"].sentences[row : row + 2])]
        right["tags"][row, places] = [task.names.index(tag) for tag in tags]
    assert set(task.metrics(right, "eval").values()) == {1.0}
    assert task.settle(right) == {"scheme": "IOBES"}


def test_a_heads_order_is_kept(read_task):
    order = ["I-PER", "B-PER", "O", "I-LOC", "B-LOC"]
    assert read_task(checkpoint_names=order)[0].names == tuple(order)
    assert read_task(checkpoint_names=["neg", "pos"])[0].names == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_rows_are_cut_from_training_where_no_others_are_given(read_task, made):
    task, said = read_task(eval=None)
    assert "eval: 30 sentences from 30 rows cut from" in said
    assert task.facts["rows"] == {"train": 270, "eval": 30}


def test_parts_of_speech(read_task, tmp_path):
    path = tmp_path / "t.conll"
    path.write_text("ann NOUN\nsaw VERB\n\nrome NOUN\n")
    task, said = read_task(train=str(path), eval=str(path), tags={"scheme": "none"})
    assert "tags (no entities): NOUN, VERB" in said
    assert list(task.monitors) == ["accuracy", "loss"]
    assert task.settle({}) == {"scheme": "none"}


def test_bad_words_are_counted_and_unknown_tags_refused(read_task, made, tmp_path):
    (tmp_path / "bad.conll").write_text("ann X B-PER\nsaw O\n\nbob X B-PER\nin X I-PER\nthe X I-LOC\n")
    with pytest.raises(ValueError, match=r"bad\.conll, row 2: has 2 columns where the file's first word has 3"):
        read_task(eval=str(tmp_path / "bad.conll"))
    _, said = read_task(eval=str(tmp_path / "bad.conll"), on_bad_row="skip", tags={"scheme": "IOB2"})
    assert "1 bad rows skipped, 1 words with a tag of no whole entity" in said
    (tmp_path / "other.conll").write_text("ann X B-ORG\n")
    with pytest.raises(ValueError, match=r"other\.conll, row 1, column '3': tag 'B-ORG' is not known; known are: O"):
        read_task(eval=str(tmp_path / "other.conll"))


@pytest.mark.parametrize("asked", [{"sampling": "balanced"}, {"augment": {"swap": 0.1}}])
def test_options_it_has_no_use_for(read_task, asked):
    with pytest.raises(ValueError, match=f"{next(iter(asked))} is .*, and token_classification has no use for it"):
        read_task(**asked)
