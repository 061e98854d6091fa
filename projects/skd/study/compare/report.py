"""The HTML report of tools/compare.py: one file, nothing fetched."""

import base64
import io
import logging
import os
from typing import Dict, List, Tuple

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ...config import is_lazy_file
from ..common import pictures
from ..common.models import load_predictor
from ..common.pictures import as_label, plt
from ..common.result_files import write_text
from .design import Comparison, Study, StudyRun
from .page import TEMPLATE
from .results import (
    ALIKE_TITLE,
    TERMS_HEADER,
    alike_table,
    groups,
    header,
    mean_ap,
    table,
    terms_table,
)

SIZES = {"AP": "all", "APs": "small", "APm": "medium", "APl": "large"}
SIDE = 240  # pixels of a picture's longer side
WEBP_QUALITY = 60


def write_report(study: Study, output: str, command: str, images: int) -> None:
    """Write ``report.html`` of what is finished; ``images`` of the test set are shown."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)  # that stock models ignore "distiller."
    comparisons = [
        {
            "name": comparison.name,
            "tables": _tables(comparison),
            "curves": Markup(_curves(comparison)),  # matplotlib escapes what it draws
        }
        for comparison in study.comparisons
    ]
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE)
    shown = _pictures(study, images)
    text = page.render(comparisons=comparisons, command=command, pictures=shown)
    write_text(os.path.join(output, "report.html"), text)


def _tables(comparison: Comparison) -> List[Tuple[str, List[str], List[List[str]]]]:
    """Title, header and rows of each."""
    tables = [("", header(comparison), table(comparison))]
    by_size = _by_size(comparison)
    if any(cell != "-" for row in by_size for cell in row[1:]):  # else detectors without boxes
        tables.append(("Box AP by object size", ["method", *SIZES.values()], by_size))
    terms = terms_table(comparison)
    if terms:
        tables.append(
            (
                "What the terms did while there was a teacher, in shares of the detector's "
                "gradient: means over the seeds; losses, norms and weights are its last ones",
                TERMS_HEADER,
                terms,
            )
        )
    levels, alike = alike_table(comparison)
    if alike:
        tables.append((ALIKE_TITLE, levels, alike))
    return tables


def _finished(comparison: Comparison) -> Dict[str, List[StudyRun]]:
    done = {name: [r for r in runs if r.done()] for name, runs in groups(comparison).items()}
    return {name: runs for name, runs in done.items() if runs}


def _by_size(comparison: Comparison) -> List[List[str]]:
    rows = []
    for name, runs in _finished(comparison).items():
        means = [mean_ap(runs, f"bbox/{size}") for size in SIZES]
        rows.append([name, *("-" if np.isnan(mean) else f"{mean:.1f}" for mean in means)])
    return rows


def _curves(comparison: Comparison) -> str:
    """Mean over the seeds, as an SVG in the page."""
    fig, ax = plt.subplots(figsize=(9, 4))
    colors = plt.get_cmap("tab20").colors
    for i, (name, runs) in enumerate(_finished(comparison).items()):
        curves = [dict(run.result()["curve"]) for run in runs]
        iterations = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [np.mean([curve[it] for curve in curves]) for it in iterations]
        ax.plot(iterations, means, "o-", label=as_label(name), color=colors[i % 20], markersize=3)
    ax.set(xlabel="iteration", ylabel="AP", ylim=(0, None))
    ax.grid(alpha=0.3)
    if ax.lines:
        ax.legend(fontsize=7, ncol=2, loc="center left", bbox_to_anchor=(1, 0.5))
    with io.StringIO() as svg:
        fig.savefig(svg, format="svg", bbox_inches="tight")
        plt.close(fig)
        return svg.getvalue()[svg.getvalue().index("<svg") :]


def _pictures(study: Study, images: int) -> Dict:
    """
    Titles of the models, the names of the maps whose attention is shown, and for each image of the
    first student's test set a picture of each model's predictions and attention.
    """
    shown = {"models": ["ground truth"], "maps": ["image"], "images": []}
    runs = _runs_to_show(study) if images else []
    configs = {run.folder: _config(run) for run in runs}
    if not runs:
        return shown
    first = next((run for run in runs if run.method != "teacher"), runs[0])
    dataset = configs[first.folder].DATASETS.TEST[0]
    records, metadata = DatasetCatalog.get(dataset)[:images], MetadataCatalog.get(dataset)
    pixels = [read_image(record["file_name"], "BGR") for record in records]
    for record, bgr in zip(records, pixels):
        rgb = pictures.bgr_to_rgb(bgr)
        shown["images"].append(
            [[_encode(pictures.ground_truth(record, rgb, metadata)), _encode(rgb)]]
        )
    for run in runs:
        predictor = load_predictor(configs[run.folder])
        shown["models"].append(run.name)
        shown["maps"].append(pictures.map_name(predictor.model))
        for row, bgr in zip(shown["images"], pixels):
            found = pictures.predictions(predictor, bgr, metadata)
            row.append([_encode(found), _encode(pictures.attention(predictor.model, bgr))])
    return shown


def _runs_to_show(study: Study) -> List[StudyRun]:
    """Teachers and the first seed of each method, each once; of YAML configs, as yet."""
    runs = list(study.teachers.values())
    for comparison in study.comparisons:
        runs += [group[0] for group in _finished(comparison).values()]
    finished = {run.folder: run for run in runs if run.finished()}.values()
    return [r for r in finished if not is_lazy_file(os.path.join(r.folder, "config.yaml"))]


def _config(run: StudyRun) -> CfgNode:
    cfg = pictures.load_config(run.folder)
    if not run.iterations and "MODEL.WEIGHTS" in run.opts:  # evaluated only
        cfg.MODEL.WEIGHTS = run.opts[run.opts.index("MODEL.WEIGHTS") + 1]
    return cfg


def _encode(rgb: np.ndarray) -> str:
    scale = SIDE / max(rgb.shape[:2])
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".webp", small[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    return "data:image/webp;base64," + base64.b64encode(data).decode()
