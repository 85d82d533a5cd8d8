"""Files and hubs -> numpy batches. Every row is checked, and a batch is a pure function of (data, seed, step)."""

from jaxptft.data.assets import Asset, AssetUnavailable, bbc_news, fetch, hutto_sentences, minilm_folder
from jaxptft.data.batches import Batches, fitted_buckets, length_buckets
from jaxptft.data.cache import cache_folder
from jaxptft.data.columns import Columns, infer_columns
from jaxptft.data.labels import Labels
from jaxptft.data.sources import split_names
from jaxptft.data.split import TrainingData, choose_evaluation_split, pick_split, read_training_data, split
from jaxptft.data.tables import Table, make_table, read_table
from jaxptft.data.tokenized import (
    Tokenized,
    check_tokens,
    check_vocabulary,
    load_tokenizer,
    tokenize,
    tokenizer_fingerprint,
)
from jaxptft.data.validate import Report

__all__ = [
    "Asset",
    "AssetUnavailable",
    "Batches",
    "Columns",
    "Labels",
    "Report",
    "Table",
    "Tokenized",
    "TrainingData",
    "bbc_news",
    "cache_folder",
    "check_tokens",
    "check_vocabulary",
    "choose_evaluation_split",
    "fetch",
    "fitted_buckets",
    "hutto_sentences",
    "infer_columns",
    "length_buckets",
    "load_tokenizer",
    "make_table",
    "minilm_folder",
    "pick_split",
    "read_table",
    "read_training_data",
    "split",
    "split_names",
    "tokenize",
    "tokenizer_fingerprint",
]
