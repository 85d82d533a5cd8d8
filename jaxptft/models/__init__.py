"""Architectures in Flax Linen, one a file, handed out as `Model` pairs of pure functions."""

from jaxptft.models.beit_config import BeitConfig
from jaxptft.models.bert import classifier, encoder
from jaxptft.models.bert_config import BertConfig
from jaxptft.models.build import build, features
from jaxptft.models.conv_config import ConvConfig
from jaxptft.models.decoding import Decoder, Generated, generate
from jaxptft.models.dvae import DvaeConfig, dvae
from jaxptft.models.gates import with_gates
from jaxptft.models.gpt2 import decoder
from jaxptft.models.gpt2_config import Gpt2Config
from jaxptft.models.int8 import (
    INT8_MODES,
    dequantize_matrix,
    input_ranges,
    int8_paths,
    is_int8,
    with_int8,
)
from jaxptft.models.mae_config import MaeConfig
from jaxptft.models.mlp import mlp
from jaxptft.models.model import Model, Params
from jaxptft.models.modernbert_config import ModernBertConfig
from jaxptft.models.outputs import OUTPUTS
from jaxptft.models.pooling import pooled, reads_images, usual_pooling
from jaxptft.models.resnet_config import ResNetConfig, resnet_config
from jaxptft.models.sampling import Sampling
from jaxptft.models.stack import stack
from jaxptft.models.vit_config import VitConfig

__all__ = [
    "BeitConfig",
    "BertConfig",
    "ConvConfig",
    "Decoder",
    "DvaeConfig",
    "Generated",
    "Gpt2Config",
    "INT8_MODES",
    "MaeConfig",
    "Model",
    "ModernBertConfig",
    "OUTPUTS",
    "Params",
    "ResNetConfig",
    "Sampling",
    "VitConfig",
    "build",
    "classifier",
    "decoder",
    "dequantize_matrix",
    "dvae",
    "encoder",
    "features",
    "generate",
    "input_ranges",
    "int8_paths",
    "is_int8",
    "mlp",
    "pooled",
    "reads_images",
    "resnet_config",
    "stack",
    "usual_pooling",
    "with_gates",
    "with_int8",
]
