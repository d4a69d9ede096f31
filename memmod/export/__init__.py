"""Modulated models as files that other programs run: ONNX, `torch.export` programs, and weights for the base's code."""

from memmod.export.aten import decompositions
from memmod.export.card import Exported
from memmod.export.onnx_file import onnx
from memmod.export.program_file import program
from memmod.export.weights import safetensors

__all__ = ["Exported", "decompositions", "onnx", "program", "safetensors"]
