"""The families of models that can be converted, by the `model_type` of their config.json."""

from reprlib import repr as shown
from typing import Any

from jaxptft.convert.albert import ALBERT
from jaxptft.convert.beit import BEIT
from jaxptft.convert.bert import BERT
from jaxptft.convert.conv import CONV
from jaxptft.convert.distilbert import DISTILBERT
from jaxptft.convert.electra import ELECTRA
from jaxptft.convert.gpt2 import GPT2
from jaxptft.convert.modernbert import MODERNBERT
from jaxptft.convert.resnet import RESNET, SMALL_RESNET
from jaxptft.convert.roberta import ROBERTA
from jaxptft.convert.rules import Family
from jaxptft.convert.vit import VIT
from jaxptft.convert.vit_mae import VIT_MAE

_TEXT = (BERT, ROBERTA, DISTILBERT, ALBERT, ELECTRA, MODERNBERT, GPT2)
_IMAGES = (RESNET, SMALL_RESNET, CONV, VIT, VIT_MAE, BEIT)
FAMILIES: dict[str, Family] = {family.name: family for family in (*_TEXT, *_IMAGES)}


def find_family(name: Any) -> Family:
    """The family of a `model_type`; ValueError naming the supported ones."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"model_type {shown(name)} is not supported: expected one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
