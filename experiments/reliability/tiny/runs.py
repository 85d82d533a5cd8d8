"""Command lines of tiny runs: every pre-training objective, fine-tunings of several kinds, and a distillation."""

from pathlib import Path
from typing import Any

from tiny import material

Flags = dict[str, Any]

SHORT: Flags = {
    "steps": 12,
    "evaluate-every": 4,
    "checkpoint-every": 3,
    "log-every": 1,
    "devices": 1,
}
TEXT_SHAPE: Flags = {"layers": 1, "width": 16, "heads": 2, "mlp-width": 24, "positions": 24}
TEXT_OBJECTIVES = ("mlm", "nsp", "mlm+nsp", "mlm+sop", "clm", "rtd", "simclr")
IMAGE_OBJECTIVES: dict[str, Flags] = {
    "simclr": {},
    "moco": {"contrast.queue": 24, "views.kind": "crop_flip"},
    "moco_v3": {},
    "byol": {},
    "mae": {"masked.decoder-width": 8, "masked.decoder-layers": 1},
    "beit": {"masked.tokens": 5, "masked.tokenizer-steps": 4},
    "rotation": {},
    "patch_position": {"image-size": 16, "backbone": "vit"},
    "autoencoder": {"code.size": 6},
    "denoising": {"code.size": 6},
    "sparse": {"code.size": 6},
    "vae": {"code.size": 6},
    "gan": {"code.size": 6},
}
VIT: Flags = {"shape.patch-size": 2, "shape.layers": 1, "shape.width": 8, "shape.heads": 2, "shape.mlp-width": 16}
CONV: Flags = {"backbone": "conv", "shape.widths": 4}
HEADS: Flags = {"projection.hidden": 8, "projection.outputs": 4}


def command(arguments: list[str]) -> int:
    """A command line of `jaxptft`, in a process of its own: what it compiles is kept, however quick that was."""
    import jax

    from jaxptft.cli import main
    from jaxptft.recipes import runtime

    keep = runtime.keep_compiled_programs

    def keep_all() -> None:
        keep()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    runtime.keep_compiled_programs = keep_all
    return main(arguments)


def line(words: str, flags: Flags, out: Path) -> list[str]:
    """As a command line takes them; a flag whose value is None stands alone."""
    pairs = [(f"--{name}", value) for name, value in {**flags, "out": out}.items()]
    return [*words.split(), *(str(part) for pair in pairs for part in pair if part is not None)]


class Runs:
    """The command lines, by name; `make` makes what they read, models of one step among it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lines: dict[str, tuple[str, Flags]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        corpus = material.write_corpus(folder / "corpus.txt", documents=40, seed=0)
        self.tokenizers = {
            name: material.write_tokenizer(folder / f"tokenizer-{name}", corpus, family=name)
            for name in ("bert", "gpt2")
        }
        self._text: Flags = {
            **SHORT,
            "corpus": corpus,
            "documents": "blank-line",
            "max-length": 16,
            "batch-size": 8,
            "learning-rate": 0.01,
            "dropout": 0.1,
            "length-buckets": 1,
        }
        self._pretraining()
        self._images(material.write_digits(folder / "digits"))
        self._fine_tuning(corpus)

    @property
    def models(self) -> dict[str, tuple[str, Flags]]:
        """What the others read: to be run first, in this order."""
        shape = {f"shape.{name}": value for name, value in TEXT_SHAPE.items()}
        encoder = {**self._text, **shape, "steps": 2, "tokenizer": self.tokenizers["bert"], "seed": 1}
        return {"encoder": ("pretrain", encoder), "teacher": ("finetune", {**self._classes, "steps": 2})}

    def _pretraining(self) -> None:
        shape = {f"shape.{name}": value for name, value in TEXT_SHAPE.items()}
        for objective in TEXT_OBJECTIVES:
            flags = {**self._text, **shape, "objective": objective}
            if objective == "clm":
                flags["tokenizer"] = self.tokenizers["gpt2"]
            else:
                flags["tokenizer"] = self.tokenizers["bert"]
            if objective in ("rtd", "mlm+sop"):
                flags["shape.embedding-width"] = 8
            if objective == "simclr":
                flags |= {"rows": "documents"}
            self.lines[objective] = ("pretrain", flags)
        frozen = {"model": self.folder / "encoder", "pack": None, "freeze": "backbone/embeddings/position/**"}
        self.lines["mlm, packed, frozen"] = ("pretrain", {**self._text, **frozen})

    def _images(self, digits: Path) -> None:
        for objective, own in IMAGE_OBJECTIVES.items():
            flags = {**SHORT, "data": digits, "objective": objective, "batch-size": 8, "learning-rate": 0.003, **own}
            flags |= VIT if objective in ("mae", "beit", "patch_position") else CONV
            flags |= HEADS if objective in ("simclr", "moco", "moco_v3", "byol") else {}
            flags |= {"no-pictures": None}
            self.lines[f"images {objective}"] = ("pretrain images", flags)

    def _fine_tuning(self, corpus: Path) -> None:
        def files(write: Any, ending: str) -> Flags:
            name = write.__name__
            made = {part: self.folder / f"{name}-{part}.{ending}" for part in ("train", "eval")}
            for seed, (part, path) in enumerate(made.items()):
                write(path, rows=40 if part == "train" else 12, seed=seed)
            return made

        base: Flags = {
            **SHORT,
            "model": self.folder / "encoder",
            "max-length": 16,
            "batch-size": 8,
            "learning-rate": 0.01,
            "dropout": 0.1,
            "length-buckets": 1,
        }
        self._classes = classes = {**base, **files(material.write_classes, "csv")}
        ways: dict[str, Flags] = {
            "frozen, unfrozen by layer": {
                "freeze": "backbone/embeddings/position/**",
                "unfreeze.every": 3,
                "layer-decay": 0.9,
            },
            "l2_to_pretrained": {"l2-to-pretrained": 0.01, "l2.new": 0.01},
            "mixout": {"mixout": 0.3},
            "lora": {"lora.rank": 2},
            "pruned": {"pruning.method": "movement", "pruning.sparsity": 0.6},
            "auxiliary": {"auxiliary.weight": 0.5, "auxiliary.corpus": corpus, "auxiliary.documents": "blank-line"},
        }
        for name, flags in ways.items():
            self.lines[f"finetune {name}"] = ("finetune", {**classes, **flags})
        tags = {**base, **files(material.write_tags, "jsonl"), "task": "token_classification"}
        self.lines["finetune token_classification"] = ("finetune", tags)
        scores = {**base, **files(material.write_scores, "csv"), "task": "regression", "columns.label": "score"}
        self.lines["finetune regression"] = ("finetune", scores)
        distilled = {**classes, "teacher": self.folder / "teacher", "student": "layers:0"}
        del distilled["model"]
        self.lines["distill"] = ("distill", distilled)
