"""A tiny BERT, texts whose class one word tells, and short ways to run a recipe or a command line."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxptft.cli import main
from jaxptft.recipes import finetune, settings

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FILLER = ["the", "a", "film", "book", "was", "is", "very", "so", "it", "and", "one", "##s"]
WORDS = [*SPECIAL, *FILLER, "good", "bad"]
POSITIONS = 20  # no multiple of 8, which widths of batches are


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """One cache folder for these tests, so that programs and tokens are made once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("JAXPTFT_CACHE", str(folder))
        yield folder


@contextmanager
def quick_compiles():
    """Compiling is most of the time that a tiny run takes."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def write_tokenizer(folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def make_tokenizer():
    """A function: (folder, words) -> a WordPiece tokenizer of these words there."""
    return write_tokenizer


@pytest.fixture(scope="session")
def quickly():
    """A context in which compiling takes little time."""
    return quick_compiles


@pytest.fixture(scope="session")
def make_model():
    """A function: folder -> a Hugging Face folder there, every tensor random, written by torch itself."""

    def make(folder: Path, architecture: str = "BertModel", *, dtype=torch.float32, words=WORDS, **changes) -> Path:
        torch.manual_seed(0)
        fields = {
            "vocab_size": len(WORDS),
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": POSITIONS,
        }
        model = getattr(transformers, architecture)(transformers.BertConfig(**(fields | changes)))
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.copy_(torch.randn_like(tensor) * 0.2 + (1.0 if name.endswith("LayerNorm.weight") else 0.0))
        model.to(dtype).save_pretrained(folder)
        write_tokenizer(folder, words)
        return folder

    return make


@pytest.fixture(scope="session")
def encoder(tmp_path_factory, make_model) -> Path:
    """A BERT without a head."""
    return make_model(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory, make_model) -> Path:
    """A BERT with a head that tells neg and pos apart."""
    labels = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    return make_model(tmp_path_factory.mktemp("models") / "classifier", "BertForSequenceClassification", **labels)


def sentences(rows: int, seed: int) -> list[tuple[str, str]]:
    """Texts of 4 words, one of them good or bad, and the class it makes them."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rows):
        word = str(rng.choice(["good", "bad"]))
        words = [*(str(word) for word in rng.choice(FILLER[:-1], 3)), word]
        found.append((" ".join(str(word) for word in rng.permutation(words)), "pos" if word == "good" else "neg"))
    return found


def write_csv(path: Path, rows: list[tuple[str, str]], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("data")
    return SimpleNamespace(
        train=write_csv(folder / "train.csv", sentences(64, 0)),
        dev=write_csv(folder / "dev.csv", sentences(24, 1)),
        test=write_csv(folder / "test.csv", sentences(30, 2)),
    )


@pytest.fixture(scope="session")
def base(encoder, files) -> dict:
    """The values that the runs of these tests share: short, on one device, without dropout."""
    return {
        "model": str(encoder),
        "train": str(files.train),
        "eval": str(files.dev),
        "max_length": 16,
        "batch_size": 16,
        "steps": 6,
        "learning_rate": 0.01,
        "dropout": 0.0,
        "log_every": 2,
        "evaluate_every": 3,
        "keep_checkpoints": 1,
        "devices": 1,
    }


@pytest.fixture(scope="session")
def fine_tune(base):
    """A function: (out, **changed values) -> the result, and what was said as its last field."""

    def run(out: Path, **changes) -> SimpleNamespace:
        said: list[str] = []
        config = settings.build(finetune.Config, base | {"out": str(out)} | changes)
        with quick_compiles():
            result = finetune.run(config, say=said.append)
        return SimpleNamespace(**result._asdict(), said="\n".join(said), config=config)

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, fine_tune, files) -> SimpleNamespace:
    """A run that has learnt the rule, reported on test rows too."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return fine_tune(out, steps=60, evaluate_every=20, test=str(files.test))


@pytest.fixture
def flags(base, tmp_path) -> list[str]:
    """The command line of a run into `tmp_path / "run"`."""
    values = base | {"out": tmp_path / "run"}
    return [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value))]


@pytest.fixture
def command(capsys):
    """A function: a command line -> status, standard output and standard error, in this process."""

    def run(*arguments) -> SimpleNamespace:
        capsys.readouterr()
        with quick_compiles():
            status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def refused(command):
    """A function: a command line -> its complaint, which must be the only line on standard error, with status 2."""

    def run(*arguments) -> str:
        told = command(*arguments)
        assert (told.status, told.err.count("\n")) == (2, 1), told.err
        assert told.err.startswith("jaxptft: error: ")
        return told.err.removeprefix("jaxptft: error: ").rstrip("\n")

    return run


@pytest.fixture(scope="session")
def process(own_cache):
    """A function: a command line -> a started process of its own, whose number of threads is pinned."""

    def start(*arguments, **options) -> subprocess.Popen:
        one_device = {"NPROC": "1", "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
        one_device |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        line = [sys.executable, "-m", "jaxptft.cli", *(str(argument) for argument in arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, env={**os.environ, **one_device}, **(pipes | options))

    return start


@pytest.fixture(scope="session")
def lines_of():
    """A function: a run folder -> the lines of its metrics.jsonl of one kind."""

    def read(out: Path, kind: str) -> list[dict]:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]

    return read


@pytest.fixture(scope="session")
def tensors_of():
    """A function: a model folder -> its tensors by name."""
    return lambda folder: load_file(folder / "model.safetensors")


@pytest.fixture(scope="session")
def csv_file():
    return write_csv
