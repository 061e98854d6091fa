"""Evaluation on a dataset that a model never saw, with classes of its own."""

from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog


def match_classes(
    source: Sequence[str], target: Sequence[str], mapping: Mapping[str, str] = {}
) -> Dict[int, int]:
    """
    Match classes by name, whatever their case and whether words are parted by spaces, "-" or "_".

    Args:
        source: the model's class names.
        target: the dataset's.
        mapping: for the rest: the model's class by the dataset's class, "" to leave one out.

    Returns:
        The model's class index by the dataset's, for those that match.

    Raises:
        ValueError: the mapping names a class that is not there, nothing matches, or a name is
            like several of the model's and exactly as none of them.
    """
    for what, names, known in (
        ("dataset's", mapping, target),
        ("model's", [name for name in mapping.values() if name], source),
    ):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(
                f"The mapping has {unknown}, none of the {what} classes: {', '.join(known)}."
            )
    matched = {}
    for j, name in enumerate(target):
        i = _find(mapping.get(name, name), source)
        if i is not None:
            matched[j] = i
    if not matched:
        raise ValueError(
            f"No class in common. The model has {', '.join(source)}; the dataset has "
            f"{', '.join(target)}. Give a mapping file."
        )
    return matched


def _find(name: str, source: Sequence[str]) -> Optional[int]:
    """The index of a class among the model's: of exactly its name, else of one like it; or None."""
    if name in source:
        return source.index(name)
    plain = plain_name(name)
    like = [i for i, other in enumerate(source) if plain and plain_name(other) == plain]
    if len(like) > 1:
        raise ValueError(
            f"'{name}' is like several of the model's classes: "
            f"{', '.join(source[i] for i in like)}. Give a mapping file that says which."
        )
    return like[0] if like else None


def plain_name(name: str) -> str:
    """A class's name without case, spaces, "-" and "_"."""
    return "".join(c for c in name.lower() if c.isalnum())


def register_as(
    dataset: str, classes: Sequence[str], matched: Mapping[int, int]
) -> Tuple[str, List[str]]:
    """
    Register a dataset once more, with the objects of the matched classes only, under the model's
    classes. Classes without objects do not count in COCO's AP, so neither the model's own nor the
    dataset's own change the mean.

    Args:
        dataset: a registered dataset.
        classes: the model's class names.
        matched: see :func:`match_classes`.

    Returns:
        The new dataset's name, and the tasks it can be evaluated for: "bbox", and "segm" if its
        objects have masks.
    """
    records = []
    masks = True
    for record in DatasetCatalog.get(dataset):
        kept = []
        for annotation in record.get("annotations", []):
            if annotation["category_id"] in matched:
                kept.append({**annotation, "category_id": matched[annotation["category_id"]]})
                masks &= "segmentation" in annotation
        records.append({**record, "annotations": kept})
    if not any(record["annotations"] for record in records):
        raise ValueError(f"No object of the matched classes in dataset '{dataset}'.")
    name = f"{dataset}_as_{'_'.join(map(str, sorted(matched.items())))}_of_{len(classes)}"
    name = "".join(c if c.isalnum() else "_" for c in name)
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="coco")
    return name, ["bbox", "segm"] if masks else ["bbox"]
