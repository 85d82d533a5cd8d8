"""Hugging Face checkpoints <-> parameters, both ways, without torch; every tensor accounted for."""

from jaxptft.convert.checkpoint import Checkpoint, Extras, new_checkpoint
from jaxptft.convert.engine import complete
from jaxptft.convert.folder import export_folder, import_folder, inspect, load, save
from jaxptft.convert.manifest import Entry, Manifest
from jaxptft.convert.native import read_native, write_native
from jaxptft.convert.staging import tokenizer_files

__all__ = [
    "Checkpoint",
    "Entry",
    "Extras",
    "Manifest",
    "complete",
    "export_folder",
    "import_folder",
    "inspect",
    "load",
    "new_checkpoint",
    "read_native",
    "save",
    "tokenizer_files",
    "write_native",
]
