"""
SKD, structured knowledge distillation: L. Zhang, K. Ma, "Structured Knowledge Distillation for
Accurate and Efficient Object Detection", IEEE TPAMI 2023, doi 10.1109/TPAMI.2023.3300470.

    distiller.py        the method: a preset, and a level for each pair of maps
    settings.py         keys and presets
    level.py            its three losses, an equation a function
    non_local.py        the non-local block

    The losses without keeping a map for backward; read in this order:
    fused_residual.py   the norm of a difference of maps and its gradients, chunk by chunk
    fused_attention.py  attention transfer and the masked feature loss
    fused_non_local.py  the non-local loss: its four steps
    fused_blocks.py     what is small of the blocks, left to autograd
    fused_block_map.py  what is large of them, chunk by chunk
    precision.py        TF32 on GPUs

docs/method.md leads from each equation to its line here.
"""

from .distiller import StructuredDistiller
from .settings import PRESETS

__all__ = ["PRESETS", "StructuredDistiller"]
