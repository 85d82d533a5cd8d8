"""Whole jobs: a frozen Config and a run(config). They are also the command line's sub-commands."""

from typing import NamedTuple


class Command(NamedTuple):
    """Where a sub-command's Config and function are, and what it says of itself."""

    module: str
    config: str
    run: str
    help: str


COMMANDS = {
    "demo": Command("jaxptft.recipes.demo", "Config", "run", "four ways to train on real film reviews, one table"),
    "pretrain": Command(
        "jaxptft.recipes.pretrain", "Config", "run", "pre-train on raw text, from scratch or on from a checkpoint"
    ),
    "finetune": Command("jaxptft.recipes.finetune", "Config", "run", "fine-tune a classifier"),
    "evaluate": Command("jaxptft.recipes.evaluate", "Config", "run", "evaluate a classifier on labelled rows"),
    "predict": Command("jaxptft.recipes.predict", "Config", "run", "predict the class of each row of a file"),
    "fill-mask": Command("jaxptft.recipes.fill_mask", "Config", "run", "guess the masked words of a text"),
    "generate": Command("jaxptft.recipes.generate", "Config", "run", "continue a prompt with a causal language model"),
    "tokenizer train": Command("jaxptft.recipes.tokenizer_train", "Config", "run", "learn a vocabulary from raw text"),
    "convert import": Command(
        "jaxptft.recipes.conversion", "Import", "import_source", "Hugging Face folder -> Flax parameters"
    ),
    "convert export": Command(
        "jaxptft.recipes.conversion", "Export", "export_source", "Flax parameters -> Hugging Face folder"
    ),
    "convert inspect": Command(
        "jaxptft.recipes.conversion", "Inspect", "inspect_source", "what an import would use, leave and miss"
    ),
}

__all__ = ["COMMANDS", "Command"]
