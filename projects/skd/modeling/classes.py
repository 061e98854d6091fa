"""Names of what detectors tell apart."""

import os
from contextlib import suppress
from typing import Any, List, Optional, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from ..runtime.record import read_records


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


def classes_of_run(folder: str, datasets: Sequence[str]) -> List[str]:
    """
    Args:
        folder: of a training of this project.
        datasets: that its config says it was trained on; what its command said is not in there.

    Returns:
        Names of the classes of the first of them, as that run has written them, or of all datasets
        that it used, where these agree; empty if it has not, or is not on this machine.
    """
    for record in reversed(read_records(folder) if os.path.isdir(folder) else []):
        used = {name: x.get("classes") for name, x in record.get("datasets", {}).items()}
        named = [used[name] for name in datasets if used.get(name)][:1]
        found = named or [names for names in used.values() if names]
        if found and found.count(found[0]) == len(found) and _are_names(found[0]):
            return found[0]
    return []


def _are_names(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(name, str) for name in x)


def num_classes(detector: nn.Module) -> Optional[int]:
    """How many classes an R-CNN or a dense detector tells apart; None if it does not say."""
    count = getattr(getattr(detector, "roi_heads", detector), "num_classes", None)
    return count if isinstance(count, int) else None
