"""Architectures in Flax Linen, one a file, handed out as `Model` pairs of pure functions."""

from jaxptft.models.bert import Bert, BertClassifier, BertConfig, classifier, encoder, features
from jaxptft.models.model import Model, Params

__all__ = ["Bert", "BertClassifier", "BertConfig", "Model", "Params", "classifier", "encoder", "features"]
