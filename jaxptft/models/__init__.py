"""Architectures in Flax Linen, one a file, handed out as `Model` pairs of pure functions."""

from jaxptft.models.bert import classifier, encoder
from jaxptft.models.bert_config import BertConfig
from jaxptft.models.build import build, features
from jaxptft.models.decoding import Decoder, Generated, generate
from jaxptft.models.gpt2 import decoder
from jaxptft.models.gpt2_config import Gpt2Config
from jaxptft.models.mlp import mlp
from jaxptft.models.model import Model, Params
from jaxptft.models.modernbert_config import ModernBertConfig
from jaxptft.models.outputs import OUTPUTS
from jaxptft.models.pooling import pooled
from jaxptft.models.sampling import Sampling

__all__ = [
    "BertConfig",
    "Decoder",
    "Generated",
    "Gpt2Config",
    "Model",
    "ModernBertConfig",
    "OUTPUTS",
    "Params",
    "Sampling",
    "build",
    "classifier",
    "decoder",
    "encoder",
    "features",
    "generate",
    "mlp",
    "pooled",
]
