"""Small image models as folders: an architecture of our own, so the tensors are the parameters as they are.

The names are the parameters' paths with dots, in safetensors beside a config.json of `model_type` "jaxptft_conv". These
folders go through everything that Hugging Face's go through here; `transformers` has no such model and cannot load
them. The heads that draw travel along, so that pictures can be made of an autoencoder, or of a generator, years later.
"""

from functools import cache
from typing import Any

import jax
import numpy as np

from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import IDENTITY, Family, Head, Rule
from jaxptft.models import ConvConfig, build

MODEL_TYPE = "jaxptft_conv"

_DRAWN = ("decoder", "generator", "discriminator", "latent_mean", "latent_log_variance")
_VARIATIONAL = ("latent_mean", "latent_log_variance", "decoder")


def _to_ours(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _to_theirs(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "image_size": list(values["image_size"]), "widths": list(values["widths"])}


_CONFIG = ConfigTable(
    model_type=MODEL_TYPE,
    config=ConvConfig,
    fields={
        "kind": "kind",
        "image_size": "image_size",
        "num_channels": "channels",
        "hidden_sizes": "widths",
        "feature_size": "features",
        "latent_size": "latent",
        "hidden_act": "activation",
        "feature_act": "features_activation",
        "norm": "norm",
        "norm_eps": "norm_epsilon",
        "norm_momentum": "norm_momentum",
    },
    to_ours=_to_ours,
    to_theirs=_to_theirs,
)


@cache
def _rules(config: ConvConfig, task: str, part: str, classes: int | None = None) -> list[Rule]:
    """One rule for each parameter that a model of the task has in one part, the backbone or a head."""
    batch = {
        "image": np.zeros((1, *config.image_shape)),
        **dict.fromkeys(("features", "noise"), np.zeros((1, config.code))),
    }
    shapes = jax.eval_shape(lambda: build(config, task, classes=classes).init(jax.random.key(0), batch))
    leaves, _ = jax.tree_util.tree_flatten_with_path({part: shapes[part]})
    paths = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape) for path, leaf in leaves]
    return [Rule(path.replace("/", "."), path, IDENTITY, shape) for path, shape in paths]


def backbone_rules(config: ConvConfig) -> list[Rule]:
    """The stem and the layers, with their norms' statistics."""
    return _rules(config, "encoder", "backbone")


def _drawn(head: str) -> Head:
    return Head(lambda config, classes: _rules(config, head, head))


CONV = Family(
    name=MODEL_TYPE,
    config=ConvConfig,
    prefix="",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(lambda config, classes: _rules(config, "classification", "classifier", classes), sized=True),
        **{head: _drawn(head) for head in _DRAWN},
        # What an autoencoder has learnt of its pixels' variance, the same for all of them.
        "likelihood": Head(
            lambda config, classes: [Rule("likelihood.log_variance", "likelihood/log_variance", IDENTITY, (1,))]
        ),
    },
    architectures={
        "ConvModel": (),
        "ConvForImageClassification": ("classifier",),
        "ConvAutoencoder": ("decoder",),
        "ConvVariationalAutoencoder": _VARIATIONAL,
        "ConvVariationalAutoencoderWithVariance": (*_VARIATIONAL, "likelihood"),
        "ConvDiscriminator": ("discriminator",),
        "ConvAdversarialNetworks": ("discriminator", "generator"),
    },
    read_config=_CONFIG.read,
    write_config=_CONFIG.write,
    other_heads=("classifier.*", "likelihood.*", *(f"{head}.*" for head in _DRAWN)),
)
