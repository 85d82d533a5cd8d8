"""ResNet's conversion table: stem, stages, classifier and config.json as Hugging Face has them.

Their convolutions hold kernels as [outputs, inputs, height, width], ours as [height, width, inputs, outputs]. Running
statistics are parameters like any other; how many batches went into them (`num_batches_tracked`), which nothing reads
here, is kept from a source and 0 in a new model.

A ResNet with the stem for small images is no architecture of theirs: it is written alike under a `model_type` of our
own, "jaxptft_resnet", which `transformers` does not load.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import CONVOLUTION, IDENTITY, Family, Head, Rule, dense
from jaxptft.models import ResNetConfig

SMALL = "jaxptft_resnet"


def _to_ours(values: dict[str, Any]) -> dict[str, Any]:
    listed = {name: values[name] for name in ("widths", "depths")}
    return {**values, **{name: tuple(value) if isinstance(value, list) else value for name, value in listed.items()}}


def _to_theirs(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "widths": list(values["widths"]), "depths": list(values["depths"])}


_CONFIG = ConfigTable(
    model_type="resnet",
    config=ResNetConfig,
    fields={
        "num_channels": "channels",
        "embedding_size": "stem_width",
        "hidden_sizes": "widths",
        "depths": "depths",
        "layer_type": "block",
        "hidden_act": "activation",
        "downsample_in_first_stage": "downsample_first",
        "downsample_in_bottleneck": "stride_first",
    },
    # Which feature maps their backbone class hands to a detector.
    harmless={"out_features", "out_indices", "stage_names"},
    to_ours=_to_ours,
    to_theirs=_to_theirs,
)


_SMALL_CONFIG = replace(_CONFIG, model_type=SMALL, fields={**_CONFIG.fields, "stem": "stem"})


def _writer(table: ConfigTable) -> Callable[[ResNetConfig, Mapping[str, Any]], dict[str, Any]]:
    def write(config: ResNetConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
        # How a model starts and how it renews its statistics is no property of a checkpoint.
        if isinstance(config, ResNetConfig):
            config = replace(config, norm_momentum=ResNetConfig.norm_momentum, zero_last_scale=False)
        return table.write(config, fields)

    return write


def _unit(theirs: str, ours: str, inputs: int, outputs: int, size: int) -> list[Rule]:
    kernel = Rule(f"{theirs}.convolution.weight", f"{ours}/conv/kernel", CONVOLUTION, (outputs, inputs, size, size))
    leaves = {"weight": "scale", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}
    return [
        kernel,
        *(
            Rule(f"{theirs}.normalization.{one}", f"{ours}/norm/{other}", IDENTITY, (outputs,))
            for one, other in leaves.items()
        ),
    ]


def backbone_rules(config: ResNetConfig) -> list[Rule]:
    """The stem, and the units of each block with their statistics."""
    size = 7 if config.stem == "imagenet" else 3
    rules = _unit("embedder.embedder", "backbone/stem", config.channels, config.stem_width, size)
    for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        inner = width if config.block == "basic" else width // 4
        sizes = (3, 3) if config.block == "basic" else (1, 3, 1)
        for layer in range(depth):
            theirs, ours = f"encoder.stages.{stage}.layers.{layer}", f"backbone/stage_{stage}/layer_{layer}"
            inputs = config.inputs(stage, layer)
            if config.has_shortcut(stage, layer):
                rules += _unit(f"{theirs}.shortcut", f"{ours}/shortcut", inputs, width, 1)
            widths = (inputs, *(inner,) * (len(sizes) - 1), width)
            for index, kernel in enumerate(sizes):
                rules += _unit(
                    f"{theirs}.layer.{index}", f"{ours}/unit_{index}", widths[index], widths[index + 1], kernel
                )
    return rules


def _new_buffers(config: ResNetConfig) -> dict[str, np.ndarray]:
    variances = [rule.hf_name for rule in backbone_rules(config) if rule.hf_name.endswith(".running_var")]
    return {f"{name.removesuffix('running_var')}num_batches_tracked": np.zeros((), np.int64) for name in variances}


RESNET = Family(
    name="resnet",
    config=ResNetConfig,
    prefix="resnet.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(
            lambda config, classes: dense("classifier.1", "classifier", config.width, classes), sized=True
        )
    },
    architectures={"ResNetModel": (), "ResNetForImageClassification": ("classifier",)},
    read_config=_CONFIG.read,
    write_config=_writer(_CONFIG),
    buffers=("*.normalization.num_batches_tracked",),
    other_heads=("classifier.*",),
    new_buffers=_new_buffers,
)
SMALL_RESNET = RESNET._replace(name=SMALL, read_config=_SMALL_CONFIG.read, write_config=_writer(_SMALL_CONFIG))
