"""TF32 on GPUs: the fused losses' matrix products follow the switch of convolutions."""

from contextlib import contextmanager
from typing import Iterator, Optional

import torch


@contextmanager
def products_like_convolutions(device: torch.device) -> Iterator[None]:
    """
    Let matrix products in the block, which stand for 1x1 convolutions, round their inputs to TF32
    where convolutions do (``torch.backends.cudnn.allow_tf32``, True by default), not where other
    products do (``torch.backends.cuda.matmul``, False by default). Sums are in fp32 either way.
    """
    matmul = torch.backends.cuda.matmul
    if device.type != "cuda" or _tf32_convolutions() == _tf32_products():
        yield
        return
    # Since torch 2.9 there are two interfaces, and what reads one (the profiler, say) refuses a
    # mix. The old one's setter keeps both alike, but forgets "medium" and "none".
    old, new = _old_interface(), getattr(matmul, "fp32_precision", None)
    if old is None:
        matmul.fp32_precision = "tf32" if _tf32_convolutions() else "ieee"
    else:
        matmul.allow_tf32 = _tf32_convolutions()
    try:
        yield
    finally:
        if old == "medium":
            torch.set_float32_matmul_precision(old)
        elif old is not None:
            matmul.allow_tf32 = old == "high"
        if new is not None:
            matmul.fp32_precision = new


def _old_interface() -> Optional[str]:
    """None where the user has set products by the new one, of which it refuses to say anything."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _tf32_convolutions() -> bool:
    conv = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(conv, "fp32_precision"):
        return conv.fp32_precision == "tf32"
    return torch.backends.cudnn.allow_tf32


def _tf32_products() -> bool:
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32
