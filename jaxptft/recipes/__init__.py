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
    "selftest": Command("jaxptft.recipes.selftest", "Config", "run", "does this machine compute, save and resume?"),
    "pretrain": Command(
        "jaxptft.recipes.pretrain", "Config", "run", "pre-train on raw text, from scratch or on from a checkpoint"
    ),
    "pretrain images": Command(
        "jaxptft.recipes.pretrain_images", "Config", "run", "pre-train on images without labels"
    ),
    "finetune": Command("jaxptft.recipes.finetune", "Config", "run", "fine-tune a model for a task"),
    "distill": Command("jaxptft.recipes.distill", "Config", "run", "distil a fine-tuned model into a smaller one"),
    "launch": Command("jaxptft.recipes.launch", "Config", "run", "run a training in several processes, as one run"),
    "sweep": Command("jaxptft.recipes.sweep", "Config", "run", "search a recipe's values, and run the best again"),
    "plan": Command("jaxptft.recipes.plan", "Config", "run", "what of a model would train, by layer and stage"),
    "checkpoints": Command("jaxptft.recipes.checkpoints", "Config", "run", "list a run's checkpoints, and verify them"),
    "evaluate": Command("jaxptft.recipes.evaluate", "Config", "run", "evaluate a fine-tuned model on labelled rows"),
    "predict": Command("jaxptft.recipes.predict", "Config", "run", "predict each row of a file"),
    "export": Command(
        "jaxptft.recipes.export",
        "Config",
        "run",
        "a model as a program, an ONNX graph, a Hugging Face folder or msgpack",
    ),
    "quantize": Command(
        "jaxptft.recipes.quantize",
        "Config",
        "run",
        "int8 weights: size, accuracy and speed, before and after",
    ),
    "prune": Command(
        "jaxptft.recipes.prune", "Config", "run", "fewer layers, heads and neurons, or zeros: size, accuracy and speed"
    ),
    "compare": Command(
        "jaxptft.recipes.compare", "Config", "run", "models of one task: size, quality, latency and throughput"
    ),
    "serve": Command("jaxptft.recipes.serve", "Config", "run", "answer rows over HTTP, with a page to try it"),
    "embed": Command("jaxptft.recipes.embed", "Config", "run", "the vector of each row, text or image, in a file"),
    "probe": Command(
        "jaxptft.recipes.probe", "Config", "run", "linear probe and nearest neighbours on frozen features"
    ),
    "forgetting": Command(
        "jaxptft.recipes.forgetting", "Config", "run", "how far a model is from what it was, layer by layer"
    ),
    "fill-mask": Command("jaxptft.recipes.fill_mask", "Config", "run", "guess the masked words of a text"),
    "generate": Command("jaxptft.recipes.generate", "Config", "run", "continue a prompt with a causal language model"),
    "data check": Command(
        "jaxptft.recipes.data_check", "Config", "run", "duplicates, leaks, balance and lengths of a data set"
    ),
    "augment": Command("jaxptft.recipes.augment", "Config", "run", "more training rows, some words guessed anew"),
    "glue": Command("jaxptft.recipes.glue", "Config", "run", "fine-tune on GLUE's tasks by name, one table"),
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
    "convert change": Command(
        "jaxptft.recipes.conversion", "Change", "change_source", "other layers, vocabulary or head -> another model"
    ),
}

__all__ = ["COMMANDS", "Command"]
