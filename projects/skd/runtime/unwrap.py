"""The model inside a data-parallel wrapper."""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """
    Args:
        model: in a data-parallel wrapper or not. An attribute ``module`` alone makes no wrapper: a
            detector may have one.

    Returns:
        The model itself.
    """
    return model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model
