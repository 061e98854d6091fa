"""Names of what detectors tell apart."""

import os
from contextlib import suppress
from typing import Any, List, Optional, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from ..config.run_settings import LAZY, YAML, keys_of
from ..runtime.record import read_records

TRAINED_ON = [keys_of(form)["train_sets"] for form in (YAML, LAZY)]


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


def classes_of_run(weights: str) -> List[str]:
    """
    Args:
        weights: a file.

    Returns:
        Names of the classes of the first dataset that the training in its folder had, as that has
        written them; empty if it was none of this project's, or is not on this machine.
    """
    folder = os.path.dirname(weights) or os.curdir
    records = read_records(folder) if weights and os.path.isdir(folder) else []
    for record in reversed(records):
        if "run" not in record:  # an evaluation, maybe on other data
            continue
        trained_on = next((x for k in TRAINED_ON if (x := record.get("config", {}).get(k))), [])
        name = trained_on if isinstance(trained_on, str) else [*trained_on, ""][0]
        names = record.get("datasets", {}).get(name, {}).get("classes")
        if _are_names(names):
            return names
    return []


def _are_names(x: Any) -> bool:
    return isinstance(x, list) and bool(x) and all(isinstance(name, str) for name in x)


def num_classes(detector: nn.Module) -> Optional[int]:
    """How many classes an R-CNN or a dense detector tells apart; None if it does not say."""
    count = getattr(getattr(detector, "roi_heads", detector), "num_classes", None)
    return count if isinstance(count, int) else None
