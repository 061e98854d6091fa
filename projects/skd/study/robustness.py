"""What tools/robustness.py does."""

import argparse
import hashlib
import json
import os
from importlib import metadata
from typing import Any, Dict, List, Optional, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from rich.progress import track
from torch import nn

from ..config.naming import YAML, written_as
from ..data.fit import check_fit, yaml_model
from ..engine.run import check_registered
from ..evaluation import CorruptedMapper, build_evaluator, mean_performance
from ..runtime.loader import NamedErrors
from ..runtime.record import file_sha256
from .common.metrics import METRICS, main_metrics, scores
from .common.models import Model, load_models
from .common.pictures import as_label, plt
from .common.result_files import RESULTS, Row, add_line, make_output, read_lines, write_text
from .common.tables import markdown_table, print_table

TITLES = {key.split("/")[0]: title for key, title in METRICS.items()}  # of tasks


def robustness(args: argparse.Namespace) -> None:
    """
    Evaluate what results.jsonl does not hold yet; write README.md and pictures.

    Raises:
        ValueError: no dataset to evaluate on, or one that does not fit a model.
    """
    models = load_models(args)
    for model in models:
        name = dataset_of(model, args)
        if not args.dataset and len(model.cfg.DATASETS.TEST) > 1:
            print(f"{model.name}: of DATASETS.TEST only '{name}' is used; see --dataset.")
        check_registered("--dataset" if args.dataset else "DATASETS.TEST", [name])
        trained_on = [n for n in model.cfg.DATASETS.TRAIN if n in DatasetCatalog]
        with written_as(YAML):
            check_fit(trained_on, [name], yaml_model(model.cfg), eval_only=True)
    make_output(args.output)
    path = os.path.join(args.output, RESULTS)
    known = read_lines(path)
    conditions = [(None, 0)] + [(c, s) for c in args.corruptions for s in args.severities]
    contents = [{"model": model.name, **content_of(model, args)} for model in models]
    keys = [{**own, "corruption": c, "severity": s} for c, s in conditions for own in contents]
    rows = [next((row for row in known if _same(row, key)), None) for key in keys]
    rows = [row and {**row, "model": key["model"]} for row, key in zip(rows, keys)]
    by_name = {model.name: model for model in models}
    waiting = _together(keys, rows)
    for together in track(waiting, "evaluating", disable=not waiting):
        seen = [by_name[keys[i]["model"]] for i in together]
        key = keys[together[0]]
        for i, ap in zip(together, evaluate(seen, key, args, key["dataset"])):
            rows[i] = {**keys[i], "ap": ap}
            add_line(path, rows[i])  # each evaluation is kept as soon as it is done
    report(rows, list(by_name), args)


def _together(keys: List[Row], rows: List[Optional[Row]]) -> List[List[int]]:
    """The evaluations that are not known yet, by what is the same images to all their models."""
    groups: Dict[Tuple, List[int]] = {}
    for i, (key, row) in enumerate(zip(keys, rows)):
        if row is None:
            images = key["dataset"], key["corruption"], key["severity"]
            groups.setdefault(images, []).append(i)
    return list(groups.values())


def dataset_of(model: Model, args: argparse.Namespace) -> str:
    """The one dataset a model is evaluated on."""
    if args.dataset:
        return args.dataset
    named = model.cfg.DATASETS.TEST
    if not named:
        raise ValueError(
            f"--model {model.name}: DATASETS.TEST of its config is empty; say by --dataset what to "
            "evaluate on."
        )
    return named[0]


def content_of(model: Model, args: argparse.Namespace) -> Row:
    """
    What a result depends on, by content: a file that was written anew or a name that was
    registered for other data does not get numbers that are kept of another.
    """
    dataset = dataset_of(model, args)
    cfg = model.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""  # that file is not the one that was loaded
    try:
        version = metadata.version("imagecorruptions-imaug")
    except metadata.PackageNotFoundError:
        version = ""
    return {
        "dataset": dataset,
        "weights": file_sha256(model.weights),
        "config": _hash(cfg.dump().encode()),
        "data": hash_dataset(dataset),
        "seed": args.seed,
        "corruptions_version": version,
    }


def hash_dataset(name: str) -> str:
    """SHA-256 of a dataset's records and its images' content."""
    records = DatasetCatalog.get(name)
    digest = hashlib.sha256(json.dumps(records, sort_keys=True, default=str).encode())
    for record in records:
        digest.update(file_sha256(record["file_name"]).encode())
    return digest.hexdigest()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _same(row: Row, key: Row) -> bool:
    return all(row.get(k, "") == v for k, v in key.items() if k != "model") and _is_result(row)


def _is_result(row: Row) -> bool:
    """Whether it has results of tasks; a line that somebody has edited may have anything."""
    ap = row.get("ap")
    return isinstance(ap, dict) and all(isinstance(x, (int, float)) for x in ap.values())


def evaluate(
    models: List[Model], key: Row, args: argparse.Namespace, dataset: str
) -> List[Dict[str, float]]:
    """
    The main metric of each model by task, 0 to 100; 0 where a model finds nothing. The images are
    corrupted once for all of them.
    """
    cfgs = [model.cfg for model in models]
    if key["corruption"]:
        mapper = CorruptedMapper(cfgs, key["corruption"], key["severity"], args.seed)
    else:
        mapper = _CleanMapper(cfgs)
    loader = build_detection_test_loader(
        cfgs[0], dataset, mapper=NamedErrors(mapper), num_workers=args.workers
    )
    nets = _EachModel([model.model for model in models]).eval()
    evaluators = _EachEvaluator([_evaluator(cfg, args, dataset) for cfg in cfgs])
    by_model = inference_on_dataset(nets, loader, evaluators)
    found = []
    for results in map(flatten_results_dict, by_model):
        ap = scores(results)
        found.append({metric.split("/")[0]: ap[metric] for metric in main_metrics(results)})
    return found


def _evaluator(cfg: CfgNode, args: argparse.Namespace, dataset: str) -> DatasetEvaluator:
    sigmas, ignore = cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    return build_evaluator(dataset, args.output, sigmas, ignore_value=ignore)


class _CleanMapper:
    """An image as each model takes it, uncorrupted."""

    def __init__(self, cfgs: List[CfgNode]):
        self.mappers = [DatasetMapper(cfg, False) for cfg in cfgs]

    def __call__(self, record: Dict[str, Any]) -> List[Dict[str, Any]]:
        return [mapper(record) for mapper in self.mappers]


class _EachModel(nn.Module):
    """Several models as one, for Detectron2's loop: each gets its own view of the images."""

    def __init__(self, models: List[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: List[List[Dict[str, Any]]]) -> List[List[Dict[str, Any]]]:
        return [model(list(own)) for model, own in zip(self.models, zip(*images))]


class _EachEvaluator(DatasetEvaluator):
    """Their evaluators as one; the result is a list of theirs."""

    def __init__(self, evaluators: List[DatasetEvaluator]):
        self.evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self.evaluators:
            evaluator.reset()

    def process(self, inputs: List[List[Dict[str, Any]]], outputs: List[Any]) -> None:
        for evaluator, own, found in zip(self.evaluators, zip(*inputs), outputs):
            evaluator.process(list(own), found)

    def evaluate(self) -> List[Dict[str, Any]]:
        return [evaluator.evaluate() for evaluator in self.evaluators]


def summary(rows: List[Row], names: List[str]) -> List[List[str]]:
    """Clean AP, mPC and rPC of each task and model."""
    table = []
    for task, title in TITLES.items():
        for name in names:
            clean, corrupted = _select(rows, name, task)
            if clean is None or not corrupted:
                continue
            means = mean_performance(clean, corrupted)
            table.append([f"{name}, {title}", *(f"{v:.1f}" for v in (clean, *means.values()))])
    return table


def _select(rows: List[Row], name: str, task: str):
    clean: Optional[float] = None
    corrupted: Dict[str, Dict[int, float]] = {}
    for row in rows:
        if row["model"] == name and task in row["ap"]:
            if row["corruption"] is None:
                clean = row["ap"][task]
            else:
                corrupted.setdefault(row["corruption"], {})[row["severity"]] = row["ap"][task]
    return clean, corrupted


def report(rows: List[Row], names: List[str], args: argparse.Namespace) -> None:
    header = ["model", "clean AP", "mPC", "rPC"]
    table = summary(rows, names)
    lines = ["# Robustness against image corruptions\n", markdown_table(header, table)]
    for task, title in TITLES.items():
        selected = {name: _select(rows, name, task)[1] for name in names}
        if not all(selected.values()):
            continue
        means = [
            [c, *(f"{sum(s[c].values()) / len(s[c]):.1f}" for s in selected.values())]
            for c in args.corruptions
        ]
        lines += [
            f"## {title}, mean over severities {' '.join(map(str, args.severities))}\n",
            markdown_table(["corruption", *names], means),
        ]
        draw(os.path.join(args.output, f"{task}.png"), selected, rows, task)
        lines.append(f"![{title} by severity]({task}.png)\n")
    write_text(os.path.join(args.output, "README.md"), "\n".join(lines))
    print_table("mean performance under corruption", header, table)


def draw(path: str, selected: Dict[str, Dict], rows: List[Row], task: str) -> None:
    """AP over severity, a panel for each corruption."""
    corruptions = list(next(iter(selected.values())))
    columns = min(5, len(corruptions))
    lines = -(-len(corruptions) // columns)
    fig, axes = plt.subplots(
        lines, columns, figsize=(2.6 * columns, 2.2 * lines), squeeze=False, sharey=True
    )
    for ax in axes.flat[len(corruptions) :]:
        ax.axis("off")
    for ax, corruption in zip(axes.flat, corruptions):
        for name, by in selected.items():
            clean, _ = _select(rows, name, task)
            points = {0: clean, **dict(sorted(by[corruption].items()))}
            ax.plot(list(points), list(points.values()), "o-", markersize=3, label=as_label(name))
        ax.set_title(corruption.replace("_", " "), fontsize=9)
        ax.set_ylim(0, None)
        ax.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    fig.supxlabel("severity", fontsize=9)
    fig.supylabel(TITLES[task], fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=90)
    plt.close(fig)
