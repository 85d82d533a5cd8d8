"""Tiny random models as functions that can be exported, and inputs for them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxptft import export, models

POSITIONS, VOCAB = 32, 40
SHAPE = {"vocab_size": VOCAB, "width": 16, "layers": 1, "heads": 2}
CONFIGS = {
    "bert": models.BertConfig(**SHAPE, mlp_width=24, positions=POSITIONS),
    "modernbert": models.ModernBertConfig(**SHAPE, mlp_width=24, positions=POSITIONS, pad_id=0, local_attention=4),
    "gpt2": models.Gpt2Config(**SHAPE, positions=POSITIONS),
    "vit": models.VitConfig(image_size=8, patch_size=4, channels=3, width=16, layers=1, heads=2, mlp_width=24),
    "beit": models.BeitConfig(image_size=8, patch_size=4, channels=3, width=16, layers=1, heads=2, mlp_width=24),
    "resnet": models.ResNetConfig(channels=3, stem_width=4, widths=(4, 8), depths=(1, 1), block="basic"),
    "conv": models.ConvConfig(image_size=(8, 8), channels=3),
}


@pytest.fixture(scope="session")
def exportable():
    """A function: (family, task) -> function, params, inputs, limits and `draw`, which makes inputs of given sizes."""

    def make(family: str, task: str = "classification") -> SimpleNamespace:
        config, random = CONFIGS[family], np.random.default_rng(0)
        images = models.reads_images(config)
        sized = task not in ("question_answering", "multiple_choice")
        head = task if task in ("token_classification", "question_answering", "multiple_choice") else "classification"
        network = models.build(config, head, classes=3 if sized else None)
        types = bool(getattr(config, "token_types", 0))
        inputs = export.image_inputs((8, 8), 3) if images else export.text_inputs(task, token_types=types)

        def draw(sizes):
            found = {}
            for name, one in inputs.items():
                shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in one.axes)
                most = {"image": 256, "input_ids": VOCAB, "token_type_ids": 2}.get(name, 2)
                found[name] = random.integers(0, most, shape).astype(one.dtype)
                if name == "attention_mask":  # the first text is shorter than the others
                    found[name] = np.ones(shape, one.dtype)
                    found[name][0, ..., shape[-1] // 2 :] = 0
            return found

        row = draw({"batch": 1, "length": 4, "choices": 2})
        row = {"image": row["image"].astype(np.float32)} if images else row

        def drawn(path, leaf):
            around = 1.0 if path[-1].key in ("scale", "running_var") else 0.0
            return (around + 0.4 * random.uniform(-1, 1, leaf.shape)).astype(np.float32)

        params = jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(network.init, jax.random.key(0), row))
        view = (lambda image: image.astype(np.float32) / 255) if images else None
        limits = {} if images else {"length": POSITIONS}
        function = export.scores(network, task, view=view)
        return SimpleNamespace(function=jax.jit(function), params=params, inputs=inputs, limits=limits, draw=draw)

    return make


@pytest.fixture(scope="session")
def artifact(exportable, tmp_path_factory):
    """The folder of an exported BERT classifier, with the description that `jaxptft export` writes, and the model."""
    import json

    model, folder = exportable("bert"), tmp_path_factory.mktemp("exported")
    about = export.write_program(folder, model.function, model.params, model.inputs, limits=model.limits)
    description = {
        "format": "stablehlo",
        "version": 1,
        "task": "classification",
        "labels": ["a", "b", "c"],
        "inputs": {name: one._asdict() for name, one in model.inputs.items()},
        "limits": model.limits,
        "vocab_size": VOCAB,
        "text": {"max_length": 16, "pad_id": 0, "truncation_side": "right"},
        "program": about,
    }
    (folder / "model.json").write_text(json.dumps(description))
    export.write_sums(folder)
    return folder, model
