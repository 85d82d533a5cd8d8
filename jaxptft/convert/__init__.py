"""Hugging Face checkpoints <-> parameters, both ways, without torch; every tensor accounted for."""

from jaxptft.convert.as_vit import as_vit
from jaxptft.convert.checkpoint import Checkpoint, Extras, new_checkpoint
from jaxptft.convert.engine import complete
from jaxptft.convert.folder import export_folder, import_folder, inspect, load, save
from jaxptft.convert.manifest import Entry, Manifest
from jaxptft.convert.native import read_native, write_native
from jaxptft.convert.peft import Adapter, load_adapter, save_adapter
from jaxptft.convert.slimming import head_count, keep_heads, keep_neurons, neuron_count
from jaxptft.convert.staging import tokenizer_files
from jaxptft.convert.surgery import (
    add_layers,
    drop_heads,
    drop_layers,
    keep_layers,
    reinitialize,
    resize_vocabulary,
    swap_head,
)

__all__ = [
    "Adapter",
    "Checkpoint",
    "Entry",
    "Extras",
    "Manifest",
    "add_layers",
    "as_vit",
    "complete",
    "drop_heads",
    "drop_layers",
    "export_folder",
    "head_count",
    "import_folder",
    "inspect",
    "keep_heads",
    "keep_layers",
    "keep_neurons",
    "load",
    "load_adapter",
    "neuron_count",
    "new_checkpoint",
    "read_native",
    "reinitialize",
    "resize_vocabulary",
    "save",
    "save_adapter",
    "swap_head",
    "tokenizer_files",
    "write_native",
]
