"""How far a converted model is from the one it was converted from: every family under every head.

    python experiments/benchmarks/conversion_parity.py                 # all, about a minute on one core
    python experiments/benchmarks/conversion_parity.py --family albert --out /tmp/parity.json

For each architecture a tiny torch model with an odd config and every tensor drawn from normal(0, 0.5), norms, biases
and running means too (running variances from 0.5 to 2), is saved by transformers and loaded here. Compared are the
outputs, and the gradient of every parameter of the sum of their mean squares (padding left out), our gradient tree
being exported through the same table as weights are. An error is relative to the largest magnitude of what it is
compared with: the outputs together, each gradient tensor for itself (floored at a thousandth of the largest gradient).
Two more columns: whether saving the import unmodified gives each tensor back byte for byte, and whether fresh
parameters, saved with a config made here, are loaded by the transformers Auto class without a missing tensor; their
outputs' error is the last column.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from jaxptft import convert, models, objectives
from jaxptft.convert.engine import export_tensors
from jaxptft.convert.families import FAMILIES

RESULTS = Path(__file__).parent / "results" / "conversion_parity.json"
CLASSES = 3
LENGTHS = (9, 4, 1, 6)

_BERT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-3,
    "pad_token_id": 2,
}
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_BERT, "hidden_act": "silu"},
    "roberta": {**_BERT, "hidden_act": "relu", "pad_token_id": 1},
    "distilbert": {
        "vocab_size": 50,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 24,
        "max_position_embeddings": 20,
        "activation": "silu",
        "pad_token_id": 2,
    },
    "albert": {
        **_BERT,
        "hidden_act": "relu",
        "embedding_size": 12,
        "num_hidden_layers": 3,
        "num_hidden_groups": 2,
    },
    "electra": {**_BERT, "hidden_act": "silu", "embedding_size": 12},
    "modernbert": {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 20,
        "hidden_activation": "silu",
        "classifier_activation": "relu",
        "classifier_pooling": "mean",
        "local_attention": 4,
        "norm_eps": 1e-3,
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True),
        "pad_token_id": 2,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 3),
    },
    "gpt2": {
        "vocab_size": 50,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 24,
        "n_positions": 20,
        "activation_function": "silu",
        "layer_norm_epsilon": 1e-3,
        "scale_attn_by_inverse_layer_idx": True,
        "pad_token_id": 2,
        "bos_token_id": 3,
        "eos_token_id": 3,
    },
    "resnet": {
        "num_channels": 2,
        "embedding_size": 6,
        "hidden_sizes": [12, 20],
        "depths": [2, 1],
        "hidden_act": "silu",
        "downsample_in_first_stage": True,
    },
    "vit": {**_VIT, "image_size": [8, 12], "patch_size": [4, 3]},
    "vit_mae": {
        **_VIT,
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "qkv_bias": False,
        "decoder_hidden_size": 12,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 20,
        "mask_ratio": 0.5,  # as many patches as the other sees, which saves compiling
    },
    "beit": {
        **_VIT,
        "vocab_size": 30,
        "image_size": [8, 12],
        "patch_size": 4,
        "use_mask_token": True,
        "use_relative_position_bias": True,
    },
}
TASKS = {
    (): "encoder",
    ("classifier",): "classification",
    ("token_classifier",): "token_classification",
    ("question_answering",): "question_answering",
    ("multiple_choice",): "multiple_choice",
    ("mlm",): "masked_lm",
    ("nsp",): "next_sentence",
    ("mlm", "nsp"): "pretraining",
    ("mlm", "sop"): "pretraining",
    ("discriminator",): "replaced_token",
    ("decoder",): "pretraining",
    ("mim",): "masked_image",
}
"""What our model is built for, by the heads of an architecture (a language model has none of its own)."""

AUTO = {
    "encoder": "AutoModel",
    "classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "multiple_choice": "AutoModelForMultipleChoice",
    "masked_lm": "AutoModelForMaskedLM",
    "next_sentence": "AutoModelForNextSentencePrediction",
    "pretraining": "AutoModelForPreTraining",
    "replaced_token": "AutoModelForPreTraining",
    "causal_lm": "AutoModelForCausalLM",
}
# transformers has no model to compare those with that are of our own.
CASES = [
    (name, architecture)
    for name, family in FAMILIES.items()
    if not name.startswith("jaxptft_")
    for architecture in family.architectures
]


class Parity(NamedTuple):
    """Relative errors of one architecture, and what came of saving it."""

    family: str
    architecture: str
    task: str
    outputs: float
    gradients: float
    identical: bool
    missing: int
    fresh: float


def task_of(family: str, architecture: str) -> str:
    """What our model of an architecture is built for."""
    return "causal_lm" if "LMHead" in architecture else TASKS[FAMILIES[family].architectures[architecture]]


def reference(family: str, architecture: str) -> Any:
    """A tiny torch model with every tensor random."""
    torch.manual_seed(0)
    sized = task_of(family, architecture) in ("classification", "token_classification")
    config = transformers.AutoConfig.for_model(
        family, **CONFIGS[family], **({"num_labels": CLASSES} if sized else {}), attn_implementation="eager"
    )
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.5)
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_(std=0.5)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
    return model


def make_batch(family: str, task: str) -> dict[str, np.ndarray]:
    """Rows of 9, 4, 1 and 6 tokens, the padding id among the real tokens as well; or two examples of two choices.

    Three images for a model that has channels, of which a masked autoencoder sees some patches only.
    """
    rng = np.random.default_rng(1)
    if channels := _channels(family):
        height, width = np.broadcast_to(CONFIGS[family].get("image_size", 20), 2)
        images: dict[str, np.ndarray] = {"image": rng.normal(size=(3, height, width, channels)).astype(np.float32)}
        if "mask_ratio" in CONFIGS[family]:
            noise = rng.random((3, 16)).astype(np.float32)
            visible = objectives.visible_patches(jnp.asarray(noise), CONFIGS[family]["mask_ratio"])
            images |= {"noise": noise, "keep": np.asarray(visible.keep), "restore": np.asarray(visible.restore)}
        if family == "beit" and task != "classification":
            images["masked"] = rng.random((3, 6)) < 0.5
        return images
    pad = CONFIGS[family]["pad_token_id"]
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int32)
    ids = np.where(mask, rng.integers(3, CONFIGS[family]["vocab_size"], mask.shape), pad).astype(np.int32)
    ids[0, 3] = pad
    batch = {"input_ids": ids, "attention_mask": mask}
    types = CONFIGS[family].get("type_vocab_size", 0)
    if types:
        batch["token_type_ids"] = (rng.integers(0, types, mask.shape) * mask).astype(np.int32)
    return {k: v.reshape(2, 2, -1) for k, v in batch.items()} if task == "multiple_choice" else batch


def _channels(family: str) -> int:
    return CONFIGS[family].get("num_channels", 3 if "patch_size" in CONFIGS[family] else 0)


def torch_outputs(model: Any, task: str, batch: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
    """What the torch model computes for a task, in the order and the shapes of ours."""
    if "image" in batch:
        theirs = {"noise": "noise", "masked": "bool_masked_pos"}
        hiding = {theirs[name]: torch.tensor(batch[name]) for name in theirs if name in batch}
        out = model(torch.tensor(batch["image"]).permute(0, 3, 1, 2), **hiding)
        if task in ("classification", "pretraining", "masked_image"):
            return [out.logits]
        hidden = out.last_hidden_state
        return [hidden.permute(0, 2, 3, 1) if hidden.ndim == 4 else hidden]
    inputs = {name: torch.tensor(value).long() for name, value in batch.items()}
    if task == "multiple_choice" and model.config.model_type == "gpt2":
        ends = inputs["attention_mask"].sum(-1) - 1
        return [model(**inputs, mc_token_ids=ends).mc_logits]
    out = model(**inputs)
    match task:
        case "encoder":
            return [out.last_hidden_state]
        case "question_answering":
            return [torch.stack([out.start_logits, out.end_logits], -1)]
        case "pretraining":
            return [out.prediction_logits, out[1]]
        case _:
            return [out.logits]


def _weights(task: str, batch: Mapping[str, np.ndarray], outputs: list) -> list[np.ndarray]:
    """1 for the outputs that count: not those of padding."""
    if "image" in batch:
        return [np.ones(output.shape, np.float32) for output in outputs]
    mask, per_row = batch["attention_mask"], ("classification", "multiple_choice", "next_sentence")
    return [
        np.ones(output.shape, np.float32)
        if task in per_row or (task == "pretraining" and index == 1)
        else np.broadcast_to(mask.reshape(*mask.shape, *(1,) * (len(output.shape) - 2)), output.shape)
        for index, output in enumerate(outputs)
    ]


def measure(family: str, architecture: str, folder: Path) -> Parity:
    """Compares one architecture with ours, writing to an empty folder."""
    task, table = task_of(family, architecture), FAMILIES[family]
    model, batch = reference(family, architecture), make_batch(family, task_of(family, architecture))
    model.save_pretrained(folder / "source")
    checkpoint = convert.load(folder / "source")
    ours = models.build(checkpoint.config, task, classes=CLASSES if checkpoint.labels else None)

    theirs = torch_outputs(model, task, batch)
    weights = _weights(task, batch, theirs)
    squares = [(torch.tensor(w) * x).square().mean() for w, x in zip(weights, theirs, strict=True)]
    torch.stack(squares).sum().backward()

    def loss(params):
        out = ours.apply(params, batch)
        out = list(out.values()) if isinstance(out, dict) else [out]
        return sum(jnp.square(w * x).mean() for w, x in zip(weights, out, strict=True)), out

    # Not under jit: to compile each of these models takes longer than to run it once, operation by operation.
    gradients, outputs = jax.grad(loss, has_aux=True)(checkpoint.params)
    exported = export_tensors(table, checkpoint.config, jax.device_get(gradients), checkpoint.extras)

    convert.save(folder / "back", checkpoint)
    source, back = (load_file(folder / name / "model.safetensors") for name in ("source", "back"))
    same = source.keys() == back.keys() and all(source[name].tobytes() == back[name].tobytes() for name in source)

    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), batch)
    fresh = jax.tree_util.tree_map_with_path(lambda path, leaf: _drawn(rng, str(path[-1]), leaf.shape), shapes)
    new = convert.new_checkpoint(checkpoint.config, family=family)
    convert.save(folder / "fresh", new, params=fresh)
    auto: Any = getattr(transformers, _auto(task, architecture, batch))
    loaded, report = auto.from_pretrained(folder / "fresh", output_loading_info=True, attn_implementation="eager")
    with torch.no_grad():
        expected = torch_outputs(loaded.eval(), task, batch)
    _, made = loss(fresh)
    return Parity(
        family,
        architecture,
        task,
        outputs=_output_error(outputs, theirs, weights),
        gradients=_gradient_error(exported, _torch_gradients(model, folder / "gradients")),
        identical=same,
        missing=len(report["missing_keys"]) + len(report["mismatched_keys"]) + len(report["unexpected_keys"]),
        fresh=_output_error(made, expected, weights),
    )


def _auto(task: str, architecture: str, batch: Mapping[str, np.ndarray]) -> str:
    if architecture in ("GPT2DoubleHeadsModel", "BeitForMaskedImageModeling"):  # no Auto class has them
        return architecture
    return "AutoModelForImageClassification" if task == "classification" and "image" in batch else AUTO[task]


def _drawn(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.uniform(0.5, 2.0, shape) if "running_var" in name else rng.normal(0, 0.5, shape)
    return values.astype(np.float32)


def _output_error(ours: list, theirs: list[torch.Tensor], weights: list[np.ndarray]) -> float:
    pairs = [(np.asarray(x) * w, y.detach().numpy() * w) for x, y, w in zip(ours, theirs, weights, strict=True)]
    return float(max(np.abs(x - y).max() / np.abs(y).max() for x, y in pairs))


def _torch_gradients(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """The gradient of each of the torch model's parameters, by its name in files; what is none is 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        for tensor in model.buffers():
            tensor.zero_()
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def _gradient_error(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """Over all of the torch model's parameters; raises KeyError where ours has none for one."""
    floor = 1e-3 * max(np.abs(gradient).max() for gradient in theirs.values())
    errors = [
        np.abs(ours[name] - gradient).max() / max(np.abs(gradient).max(), floor) for name, gradient in theirs.items()
    ]
    return float(max(errors))


def main() -> None:
    """Measures, prints the table and records it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(FAMILIES), help="one family only")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    print(f"{'architecture':40} {'task':22} {'outputs':>8} {'gradients':>9} identical missing {'fresh':>8}")
    for family, architecture in CASES:
        if arguments.family in (None, family):
            with tempfile.TemporaryDirectory() as folder:
                row = measure(family, architecture, Path(folder))
            rows.append(row._asdict())
            print(
                f"{row.architecture:40} {row.task:22} {row.outputs:8.1e} {row.gradients:9.1e} "
                f"{'yes' if row.identical else 'NO':>9} {row.missing:7} {row.fresh:8.1e}",
                flush=True,
            )
    versions = {module.__name__: module.__version__ for module in (jax, torch, transformers)}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
