"""What tools/generalise.py does."""

import argparse
import json
import os
from typing import Dict, List

from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset

from ..config.safe_yaml import read_yaml
from ..data import thing_classes
from ..evaluation import match_classes, register_as
from .common.metrics import TASKS
from .common.models import Model, load_models
from .common.tables import markdown_table, print_table


def generalise(args: argparse.Namespace) -> None:
    """
    Evaluate all models on all datasets; write results.json and README.md.

    Raises:
        ValueError: a dataset or a class that is not known.
    """
    mapping = {}
    if args.classes:
        mapping = {str(k): str(v or "") for k, v in (read_yaml(args.classes) or {}).items()}
    models = load_models(args)
    classes = {name for dataset in args.dataset for name in classes_of(dataset)}
    if set(mapping) - classes:
        raise ValueError(
            f"{args.classes} maps {sorted(set(mapping) - classes)}, which no dataset has; on the "
            f"left must be one of {', '.join(sorted(classes))}."
        )
    os.makedirs(args.output, exist_ok=True)
    rows = []
    for dataset in args.dataset:
        for model in models:
            rows.append(evaluate(model, dataset, mapping, args.output))
            with open(os.path.join(args.output, "results.json"), "w") as f:
                f.write(json.dumps(rows, indent=2) + "\n")
    header = ["dataset", "model", "classes", *TASKS.values()]
    table = [
        [r["dataset"], r["model"], str(len(r["classes"]))]
        + [f"{r['ap'][t]:.1f}" if t in r["ap"] else "-" for t in TASKS]
        for r in rows
    ]
    with open(os.path.join(args.output, "README.md"), "w") as f:
        f.write("# Domain generalisation\n\n" + markdown_table(header, table))
    print_table("domain generalisation", header, table)


def classes_of(dataset: str) -> List[str]:
    classes = thing_classes(dataset)
    if classes is None:
        raise ValueError(
            f"The classes of dataset '{dataset}' are not known: it is not registered, or its "
            "files are not where DETECTRON2_DATASETS says."
        )
    return list(classes)


def evaluate(model: Model, dataset: str, mapping: Dict[str, str], output: str) -> Dict:
    """AP by task of one model on one dataset, and the classes that were matched."""
    source, target = classes_of(model.cfg.DATASETS.TRAIN[0]), classes_of(dataset)
    matched = match_classes(source, target, {k: v for k, v in mapping.items() if k in target})
    name, tasks = register_as(dataset, source, matched)
    # a cached file could be of another mapping
    evaluator = COCOEvaluator(name, tasks, output_dir=output, allow_cached_coco=False)
    loader = build_detection_test_loader(model.cfg, name)
    results = inference_on_dataset(model.model, loader, evaluator)
    return {
        "dataset": dataset,
        "model": model.name,
        "classes": {target[j]: source[i] for j, i in matched.items()},
        "ap": {task: results[task]["AP"] for task in TASKS if task in results},
    }
