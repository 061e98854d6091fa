"""Names of what detectors tell apart."""

from typing import List, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog


def class_names(datasets: Sequence[str]) -> List[str]:
    """Those of the first dataset that is registered here; empty if none is, or it has none."""
    found = [MetadataCatalog.get(x).get("thing_classes") for x in datasets if x in DatasetCatalog]
    return list(found[0] or ()) if found else []
