"""What leaves: a fine-tuned model as a program that others run, without this package."""

from jaxptft.export.flax_file import read_flax, write_flax
from jaxptft.export.onnx_graph import Graph, require_onnx, write_onnx
from jaxptft.export.program import PLATFORMS, lower, write_program
from jaxptft.export.quantization import Clip, dequantize, quantize, quantize_matrix
from jaxptft.export.runner import Artifact, verify
from jaxptft.export.scoring import TASKS, Input, Scores, image_inputs, scores, text_inputs
from jaxptft.export.sums import write_sums

__all__ = [
    "PLATFORMS",
    "TASKS",
    "Artifact",
    "Clip",
    "Graph",
    "Input",
    "Scores",
    "dequantize",
    "image_inputs",
    "lower",
    "quantize",
    "quantize_matrix",
    "read_flax",
    "require_onnx",
    "scores",
    "text_inputs",
    "verify",
    "write_flax",
    "write_onnx",
    "write_program",
    "write_sums",
]
