"""Pictures of finished runs: predictions, attention, curves."""

import logging
import os
import time
from typing import Dict, List, Optional, Sequence, Tuple

import cv2
import matplotlib
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import nn

from ...config import read_config, student_config
from ...config.keys import fetch_no_timm_weights
from ...modeling.features import FeatureTap, feature_modules
from ...modeling.partial_forward import output_shapes
from ...visualization.attention import attention_over_image
from .metrics import TASKS, read_metrics
from .models import load_predictor

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

IMAGES = 4  # of the validation set
STRIDE = 8  # of the map whose attention is shown, where there is one: P3
SCALE = 3  # enlargement of the small images
MIN_SCORE = 0.4  # of predictions shown
PROPOSALS = 20  # shown, of a network that has nothing else


def load_config(folder: str) -> CfgNode:
    """The plain config of a finished run, with its final weights."""
    cfg = student_config(read_config(os.path.join(folder, "config.yaml")))
    cfg.MODEL.WEIGHTS = os.path.join(folder, "model_final.pth")
    fetch_no_timm_weights(cfg)
    return cfg


def draw_all(output: str, folders: Dict[str, str]) -> Dict[str, float]:
    """
    Write predictions.png, attention.png and curves.png.

    Args:
        output: folder to write to.
        folders: of the runs "teacher", "baseline" and "distilled".

    Returns:
        The seconds that each takes for an image.
    """
    logging.getLogger("fvcore").setLevel(logging.ERROR)  # that stock models ignore "distiller."
    configs = {name: load_config(folder) for name, folder in folders.items()}
    dataset = configs["baseline"].DATASETS.TEST[0]
    records = DatasetCatalog.get(dataset)[:IMAGES]
    predictors = {name: load_predictor(cfg) for name, cfg in configs.items()}
    draw_predictions(os.path.join(output, "predictions.png"), predictors, records, dataset)
    models = {name: predictor.model for name, predictor in predictors.items()}
    save_attention(os.path.join(output, "attention.png"), models, records)
    students = {n: f for n, f in folders.items() if n != "teacher"}
    draw_curves(os.path.join(output, "curves.png"), students)
    images = [read_image(record["file_name"], "BGR") for record in records]
    return {name: seconds(predictor, images) for name, predictor in predictors.items()}


def seconds(predictor: DefaultPredictor, images: Sequence[np.ndarray]) -> float:
    """The median over some images, one at a time, after one to warm up."""
    taken = []
    for image in [images[0], *images]:
        start = time.perf_counter()
        predictor(image)["instances"].to("cpu")  # waits for a GPU
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def as_label(name: str) -> str:
    """A name for matplotlib: no formula between "$", and not left out for its first letter."""
    return " " + name.replace("$", r"\$")


def _grid(path: str, columns: List[str], rows: List[List[np.ndarray]]) -> None:
    fig, axes = plt.subplots(
        len(rows), len(columns), figsize=(2.4 * len(columns), 2.4 * len(rows) + 0.5), squeeze=False
    )
    for line, images in zip(axes, rows):
        for ax, image in zip(line, images):
            ax.imshow(image)
            ax.axis("off")
    for ax, title in zip(axes[0], columns):
        ax.set_title(title, fontsize=11)
    fig.tight_layout(pad=0.4)
    fig.savefig(path, dpi=80)
    plt.close(fig)


class _ByClass(Visualizer):
    """Detectron2's, in which a class has the same color in every picture."""

    def __init__(self, rgb: np.ndarray, metadata):
        super().__init__(rgb, _with_colors(metadata), SCALE, ColorMode.SEGMENTATION)

    def _jitter(self, color: Sequence[float]) -> Sequence[float]:
        return color  # there it varies for each object


def _with_colors(metadata) -> Metadata:
    """A copy that has ``thing_colors``, the dataset's own where it has some."""
    given = metadata.as_dict()
    palette = plt.get_cmap("tab20").colors
    number = len(given.get("thing_classes", ()))
    colors = [[int(255 * part) for part in palette[i % len(palette)]] for i in range(number)]
    return Metadata(**{"thing_colors": colors, **given})


def ground_truth(record: Dict, rgb: np.ndarray, metadata) -> np.ndarray:
    return _ByClass(rgb, metadata).draw_dataset_dict(record).get_image()


def predictions(predictor: DefaultPredictor, bgr: np.ndarray, metadata) -> np.ndarray:
    """
    What a model finds in an image, drawn over it, RGB, ``SCALE`` times as large: a panoptic
    segmentation, objects, proposals or a semantic segmentation, the first of these that it has.
    """
    found = predictor(bgr)
    visualizer = _ByClass(bgr_to_rgb(bgr), metadata)
    if "panoptic_seg" in found:
        segments, info = found["panoptic_seg"]
        drawn = visualizer.draw_panoptic_seg(segments.to("cpu"), info)
    elif "instances" in found:
        instances = found["instances"].to("cpu")
        drawn = visualizer.draw_instance_predictions(instances[instances.scores > MIN_SCORE])
    elif "proposals" in found:
        boxes = found["proposals"].to("cpu").proposal_boxes[:PROPOSALS]
        drawn = visualizer.overlay_instances(boxes=boxes)
    elif "sem_seg" in found:
        drawn = visualizer.draw_sem_seg(found["sem_seg"].argmax(0).to("cpu"))
    else:
        drawn = visualizer.output
    return drawn.get_image()


def shown_map(model: nn.Module) -> Optional[Tuple[nn.Module, str, int]]:
    """
    The map whose attention is shown: the module that returns it, its name and stride. Of the
    backbone, if that has maps: the finest of ``STRIDE`` or above, or else the coarsest. None for a
    model without any.
    """
    modules = feature_modules(model)
    has_backbone = "backbone" in dict(model.named_children())
    which = "backbone" if has_backbone else next(iter(modules), "")
    try:
        shapes = output_shapes(model, which, "the map that is shown")
    except ValueError:  # there is none
        return None
    module = model.get_submodule(which)
    strides = {name: shape.stride for name, shape in shapes.items()}
    coarse = {name: stride for name, stride in strides.items() if stride >= STRIDE}
    name = min(coarse, key=coarse.get) if coarse else max(strides, key=strides.get)
    return module, name, strides[name]


def attention(model: nn.Module, bgr: np.ndarray) -> np.ndarray:
    """
    Spatial attention of :func:`shown_map` over an image, RGB, ``SCALE`` times as large. The image
    alone where there is none.
    """
    over, shown = bgr_to_rgb(bgr), shown_map(model)
    if shown is not None:
        module, name, stride = shown
        image = torch.as_tensor(np.ascontiguousarray(bgr.transpose(2, 0, 1)))
        size = {"height": bgr.shape[0], "width": bgr.shape[1]}
        with torch.no_grad(), FeatureTap(module) as tap:
            model([{"image": image, **size}])
        over = attention_over_image(tap.features[name], stride, over)
    return cv2.resize(over, None, fx=SCALE, fy=SCALE)


def bgr_to_rgb(bgr: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bgr[:, :, ::-1])


def draw_predictions(
    path: str, predictors: Dict[str, DefaultPredictor], records, dataset: str
) -> None:
    metadata = MetadataCatalog.get(dataset)
    rows = []
    for record in records:
        bgr = read_image(record["file_name"], "BGR")
        row = [ground_truth(record, bgr_to_rgb(bgr), metadata)]
        rows.append(row + [predictions(p, bgr, metadata) for p in predictors.values()])
    _grid(path, ["ground truth", *predictors], rows)


def save_attention(path: str, models: Dict[str, nn.Module], records) -> None:
    rows = []
    for record in records:
        bgr = read_image(record["file_name"], "BGR")
        row = [cv2.resize(bgr_to_rgb(bgr), None, fx=SCALE, fy=SCALE)]
        rows.append(row + [attention(model, bgr) for model in models.values()])
    _grid(path, ["input", *(f"{n}, {map_name(model)}" for n, model in models.items())], rows)


def map_name(model: nn.Module) -> str:
    """The name of :func:`shown_map` for a title, "no map" where there is none."""
    shown = shown_map(model)
    return shown[1].upper() if shown else "no map"


def draw_curves(path: str, folders: Dict[str, str]) -> None:
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, folder in folders.items():
        rows = read_metrics(folder)
        steps = [row for row in rows if "total_loss" in row]
        detection = [
            sum(v for k, v in row.items() if k.startswith("loss_") and "distill" not in k)
            for row in steps
        ]
        left.plot([row["iteration"] + 1 for row in steps], detection, label=name)
        color = left.lines[-1].get_color()
        for (task, title), style in zip(TASKS.items(), ("o-", "s--")):
            points = [
                (row["iteration"] + 1, row[f"{task}/AP"]) for row in rows if f"{task}/AP" in row
            ]
            if points:
                right.plot(*zip(*points), style, color=color, label=f"{name}, {title}")
    left.set(xlabel="iteration", ylabel="detector's own loss", yscale="log")
    right.set(xlabel="iteration", ylabel="AP on the validation split", ylim=(0, None))
    for ax in (left, right):
        ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)
