"""Names of what detectors tell apart."""

from contextlib import suppress
from typing import List, Optional, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn


def class_names(datasets: Sequence[str]) -> List[str]:
    """
    Names of the classes of the first dataset that is registered here; empty if none is, or it has
    none. A COCO file's are known once it is read, and are read here if need be.
    """
    name = next((x for x in datasets if x in DatasetCatalog), None)
    if name is None:
        return []
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        with suppress(Exception):  # one that cannot be read: who needs its images says why
            DatasetCatalog.get(name)
    return list(metadata.get("thing_classes") or ())


def num_classes(detector: nn.Module) -> Optional[int]:
    """How many classes an R-CNN or a dense detector tells apart; None if it does not say."""
    count = getattr(getattr(detector, "roi_heads", detector), "num_classes", None)
    return count if isinstance(count, int) else None
