"""A tiny BERT, texts whose class one word tells, and short ways to run a recipe or a command line."""

import json
from contextlib import contextmanager, nullcontext
from importlib.util import module_from_spec, spec_from_file_location
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


@contextmanager
def unpainted():
    """Pictures are files that hold nothing; drawing them takes a tenth of the time of a tiny run."""
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).write_bytes(b""))
        yield


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
    """A function: (out, **changed values) -> the result, and what was said; pictures are drawn where asked for."""

    def run(out: Path, *, pictures: bool = False, **changes) -> SimpleNamespace:
        said: list[str] = []
        config = settings.build(finetune.Config, base | {"out": str(out)} | changes)
        with quick_compiles(), nullcontext() if pictures else unpainted():
            result = finetune.run(config, say=said.append)
        return SimpleNamespace(**result._asdict(), said="\n".join(said), config=config)

    return run


@pytest.fixture(scope="session")
def built(base):
    """A function: (out, **changed values) -> a fine-tuning put together and not begun; what it says is in `said`."""
    from jaxptft import train
    from jaxptft.recipes.finetune_run import FinetuneRun

    def make(out: Path, **changes) -> FinetuneRun:
        said: list[str] = []
        config = settings.build(finetune.Config, base | {"out": str(out)} | changes)
        with quick_compiles(), train.StopFlag() as stop:
            run = FinetuneRun(config, name="", say=said.append, stop=stop)
        run.said = said  # pyright: ignore[reportAttributeAccessIssue]
        return run

    return make


@pytest.fixture(scope="session")
def first_loss():
    """A function: a fine-tuning that was put together -> the terms of its first batch, with what it predicts there."""
    from jaxptft import objectives

    def compute(run):
        objective, batch = run.training.objective, run.batches["train"].batch_at(0)
        state = objective.start(run.params, batch)
        context = objectives.Context(state, objective.constants, jax.random.key(0), True, None)
        with quick_compiles():
            both = jax.jit(
                lambda params: (objective.loss(params, batch, context)[0], objective.predict(params, batch, context))
            )
            terms, predictions = both(run.params)
        return {name: float(term.value()) for name, term in terms.items()}, predictions, batch

    return compute


@pytest.fixture(scope="session")
def finished(tmp_path_factory, fine_tune, files) -> SimpleNamespace:
    """A run that has learnt the rule, reported on test rows too."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return fine_tune(out, steps=60, evaluate_every=20, test=str(files.test), pictures=True)


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
    """A function: a command line -> a started process of its own, whose number of threads is pinned.

    It is forked from one that has imported everything and computed nothing, since importing takes most of the time.
    """
    path = Path(__file__).parents[2] / "experiments" / "reliability" / "forked" / "processes.py"
    spec = spec_from_file_location("processes", path)
    processes = module_from_spec(spec)
    spec.loader.exec_module(processes)
    with processes.forking(processes.QUICK_COMPILES) as server:
        yield server.command


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


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """PNG files of scikit-learn's digits 0, 1 and 4, 8 x 8 grey: 24, 12 and 12 to train on, 6 of each to test on."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("images") / "digits"
    flat, classes = load_digits(return_X_y=True)
    for digit, count in ((0, 24), (1, 12), (4, 12)):
        pictures = (np.asarray(flat)[classes == digit].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        for number, picture in enumerate(pictures[: count + 6]):
            place = folder / ("train" if number < count else "test") / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def resnet(tmp_path_factory) -> Path:
    """A ResNet of two blocks on grey images, every tensor random, its running statistics too."""
    from jaxptft import convert, models

    config = models.ResNetConfig(channels=1, stem_width=4, widths=(4, 8), depths=(1, 1), block="basic")
    empty, rng = convert.new_checkpoint(config, family="resnet"), np.random.default_rng(0)
    shapes = jax.eval_shape(models.build(config, "encoder").init, jax.random.key(0), {"image": np.zeros((1, 8, 8, 1))})

    def drawn(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "running_var") else 0.0
        return (around + 0.2 * rng.uniform(-1, 1, leaf.shape)).astype(np.float32)

    folder = tmp_path_factory.mktemp("models") / "resnet"
    convert.save(folder, empty, params=jax.tree_util.tree_map_with_path(drawn, shapes))
    fields = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "image_mean": [0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields | {"image_std": [0.5]}))
    return folder


@pytest.fixture(scope="session")
def pretrain_images(digits):
    """A function: (out, **changed values) -> the result, and what was said; short, on one device."""
    from jaxptft.recipes import pretrain_images

    values = {
        "data": str(digits),
        "steps": 6,
        "batch_size": 16,
        "learning_rate": 0.003,
        "evaluate_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
        "keep_checkpoints": 1,
        "devices": 1,
    }

    def run(out: Path, *, pictures: bool = True, **changes) -> SimpleNamespace:
        said: list[str] = []
        config = settings.build(pretrain_images.Config, values | {"out": str(out), "pictures": pictures} | changes)
        with quick_compiles():
            result = pretrain_images.run(config, say=said.append)
        return SimpleNamespace(**result._asdict(), said="\n".join(said), config=config)

    return run


MOCO = {
    "objective": "moco",
    "monitor": "neighbours",
    "projection": {"hidden": 8, "outputs": 4},
    "contrast": {"queue": 24},
    "views": {"kind": "crop_flip", "mirrored": False},
}
VIT = {"patch_size": 2, "layers": 1, "width": 8, "heads": 2, "mlp_width": 16}


@pytest.fixture(scope="session")
def moco_values(resnet) -> dict:
    return MOCO | {"model": str(resnet)}


@pytest.fixture(scope="session")
def moco(tmp_path_factory, pretrain_images, moco_values) -> SimpleNamespace:
    """A ResNet pre-trained on the digits: a moving average, a queue and the statistics of batches."""
    return pretrain_images(tmp_path_factory.mktemp("runs") / "moco", **moco_values)


@pytest.fixture(scope="session")
def mae(tmp_path_factory, pretrain_images) -> SimpleNamespace:
    """A ViT pre-trained on the digits, from nothing."""
    values = {"objective": "mae", "shape": VIT, "masked": {"decoder_width": 8, "decoder_layers": 1}}
    return pretrain_images(tmp_path_factory.mktemp("runs") / "mae", **values)
