"""What tools/generalize.py does."""

import argparse
import json
import os
from typing import Dict, List

from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict

from ..config.safe_yaml import read_yaml
from ..data import thing_classes
from ..data.fit import yaml_model
from ..engine.run import check_registered
from ..evaluation import match_classes, register_as
from ..modeling.classes import classes_of_run
from ..runtime.loader import NamedErrors
from .common.metrics import TASKS, scores
from .common.models import Model, load_models
from .common.result_files import make_output, write_text
from .common.tables import markdown_table, print_table


def generalize(args: argparse.Namespace) -> None:
    """
    Evaluate all models on all datasets; write results.json and README.md.

    Raises:
        ValueError: a dataset or a class that is not known, or no class in common; before anything
            is evaluated.
    """
    mapping = read_mapping(args.classes) if args.classes else {}
    models = load_models(args)
    check_registered("--dataset", args.dataset)
    classes = {name for dataset in args.dataset for name in classes_of(dataset)}
    if set(mapping) - classes:
        raise ValueError(
            f"{args.classes} maps {sorted(set(mapping) - classes)}, which no dataset has; on the "
            f"left must be one of {', '.join(sorted(classes))}."
        )
    for dataset in args.dataset:
        for model in models:
            matched_classes(model, dataset, mapping)
    make_output(args.output)
    refuse_overwriting(os.path.join(args.output, "results.json"), args, models)
    rows = []
    for dataset in args.dataset:
        for model in models:
            rows.append(evaluate(model, dataset, mapping, args.output))
            path = os.path.join(args.output, "results.json")
            write_text(path, json.dumps(rows, indent=2) + "\n")
    header = ["dataset", "model", "classes", *TASKS.values()]
    table = [
        [r["dataset"], r["model"], str(len(r["classes"]))]
        + [f"{r['ap'][t]:.1f}" if t in r["ap"] else "-" for t in TASKS]
        for r in rows
    ]
    text = "# Domain generalization\n\n" + markdown_table(header, table)
    write_text(os.path.join(args.output, "README.md"), text)
    print_table("domain generalization", header, table)


def refuse_overwriting(path: str, args: argparse.Namespace, models: List[Model]) -> None:
    """
    Raises:
        ValueError: the file has results of other models or datasets, which would be overwritten.
    """
    if not os.path.exists(path):
        return
    with open(path) as f:
        rows = json.load(f)
    names = [model.name for model in models]
    lost = [r for r in rows if r["dataset"] not in args.dataset or r["model"] not in names]
    if lost:
        raise ValueError(
            f"{path} has results that would be overwritten, as those of '{lost[0]['model']}' on "
            f"'{lost[0]['dataset']}': name all models and datasets again, or choose another "
            "--output."
        )


def classes_of(dataset: str) -> List[str]:
    """
    Names of a dataset's classes.

    Raises:
        ValueError: they are not known.
    """
    classes = thing_classes(dataset)
    if classes is None:
        raise ValueError(
            f"The classes of dataset '{dataset}' are not known: it is not registered, or its "
            "files are not where DETECTRON2_DATASETS says."
        )
    return list(classes)


def read_mapping(path: str) -> Dict[str, str]:
    """
    The model's class by the dataset's, "" to leave one out.

    Raises:
        ValueError: it is no file of names.
    """
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"--classes {path}: its lines must be like 'dataset class: model class'.")
    mapping = {key: "" if value is None else value for key, value in content.items()}
    strange = [name for pair in mapping.items() for name in pair if not isinstance(name, str)]
    if strange:
        raise ValueError(
            f"--classes {path} has {strange[0]!r} for a class; it must be text, in quotes where "
            "YAML takes it for something else."
        )
    return mapping


def matched_classes(model: Model, dataset: str, mapping: Dict[str, str]) -> Dict[int, int]:
    """See :func:`skd.evaluation.match_classes`; errors say of which model and dataset."""
    target = classes_of(dataset)
    own = {k: v for k, v in mapping.items() if k in target}
    try:
        return match_classes(model_classes(model), target, own)
    except ValueError as error:
        raise ValueError(f"--model {model.name}, --dataset {dataset}: {error}") from None


def model_classes(model: Model) -> List[str]:
    """
    Names of the classes a model was trained on: as its run has written them, else those that its
    dataset has here.

    Raises:
        ValueError: they are not known, or not as many as the model has.
    """
    named = model.cfg.DATASETS.TRAIN
    classes = classes_of_run(model.weights)
    if not classes and not named:
        raise ValueError(
            f"--model {model.name}: DATASETS.TRAIN of its config is empty; it must name the "
            "dataset whose classes the model knows."
        )
    classes = classes or classes_of(named[0])
    for key, number in yaml_model(model.cfg).heads:
        if number != len(classes):
            raise ValueError(
                f"--model {model.name} has {key} {number}, but what it was trained on, by its run "
                f"or DATASETS.TRAIN of its config, {list(named)}, has {len(classes)} classes."
            )
    return classes


def evaluate(model: Model, dataset: str, mapping: Dict[str, str], output: str) -> Dict:
    """AP by task of one model on one dataset, and the classes that were matched."""
    source, target = model_classes(model), classes_of(dataset)
    matched = matched_classes(model, dataset, mapping)
    name, tasks = register_as(dataset, source, matched)
    # a cached file could be of another mapping
    evaluator = COCOEvaluator(name, tasks, output_dir=output, allow_cached_coco=False)
    mapper = NamedErrors(DatasetMapper(model.cfg, False))
    loader = build_detection_test_loader(model.cfg, name, mapper=mapper)
    found = scores(flatten_results_dict(inference_on_dataset(model.model, loader, evaluator)))
    return {
        "dataset": dataset,
        "model": model.name,
        "classes": {target[j]: source[i] for j, i in matched.items()},
        "ap": {task: found[f"{task}/AP"] for task in TASKS if f"{task}/AP" in found},
    }
