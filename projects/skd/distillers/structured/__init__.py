"""
SKD, structured knowledge distillation: L. Zhang, K. Ma, "Structured Knowledge Distillation for
Accurate and Efficient Object Detection", IEEE TPAMI 2023, doi 10.1109/TPAMI.2023.3300470.

``settings``: keys and presets. ``distiller``: the method. ``level``: its three losses, an equation
a function. ``non_local``: the block. ``fused_*``: the losses computed without keeping a map for
backward. docs/method.md leads from each equation to its line here.
"""

from .distiller import StructuredDistiller
from .settings import PRESETS

__all__ = ["PRESETS", "StructuredDistiller"]
