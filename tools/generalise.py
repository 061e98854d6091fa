#!/usr/bin/env python
"""
How well do models do on data sets they never saw? Classes are matched by name, and by a mapping
file for the rest; AP counts the matched classes only.

    python tools/generalise.py --model baseline CONFIG WEIGHTS --model distilled CONFIG WEIGHTS \\
        --dataset cityscapes_fine_instance_seg_val --classes mapping.yaml

The mapping file has the data set's class on the left and the model's on the right, like "rider:
person"; an empty right side leaves the class out.
"""

import argparse
import json
import os
from typing import Dict, List

from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset

from skd.config.safe_yaml import read_yaml
from skd.data import thing_classes
from skd.evaluation import match_classes, register_as
from skd.study.models import Model, add_arguments, load_models
from skd.study.runs import TASKS, markdown_table, print_table


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--dataset", nargs="+", required=True, help="registered data sets")
    parser.add_argument("--classes", help="YAML file: the data set's class to the model's class")
    parser.add_argument("--output", default=os.path.join("output", "generalise"))
    args = parser.parse_args()
    mapping = {}
    if args.classes:
        mapping = {str(k): str(v or "") for k, v in (read_yaml(args.classes) or {}).items()}
    models = load_models(args)
    classes = {name for dataset in args.dataset for name in classes_of(dataset)}
    if set(mapping) - classes:
        raise ValueError(
            f"{args.classes} maps {sorted(set(mapping) - classes)}, which no data set has; on the "
            f"left must be one of {', '.join(sorted(classes))}."
        )
    os.makedirs(args.output, exist_ok=True)
    rows = []
    for dataset in args.dataset:
        for model in models:
            rows.append(evaluate(model, dataset, mapping, args.output))
            with open(os.path.join(args.output, "results.json"), "w") as f:
                f.write(json.dumps(rows, indent=2) + "\n")
    header = ["data set", "model", "classes", *TASKS.values()]
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
            f"The classes of data set '{dataset}' are not known: it is not registered, or its "
            "files are not where DETECTRON2_DATASETS says."
        )
    return list(classes)


def evaluate(model: Model, dataset: str, mapping: Dict[str, str], output: str) -> Dict:
    """AP by task of one model on one data set, and the classes that were matched."""
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


if __name__ == "__main__":
    main()
