"""The HTML report of tools/compare.py: one file, nothing fetched."""

import base64
import html
import io
import json
import logging
import os
from typing import Dict, List

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor

from skd.config import is_lazy_file

from . import pictures
from .design import Cell, Comparison, Study
from .pictures import plt
from .tables import HEADER, mean_ap, table

SIZES = {"AP": "all", "APs": "small", "APm": "medium", "APl": "large"}
SIDE = 240  # pixels of a picture's longer side
WEBP_QUALITY = 60


def write_report(study: Study, output: str, command: str, images: int) -> None:
    """Write ``report.html`` of what is finished; ``images`` of the test set are shown."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)  # that stock models ignore "distiller."
    parts = []
    for comparison in study.comparisons:
        parts.append(f"<h2>{html.escape(comparison.name)}</h2>")
        parts.append(_table(HEADER, table(comparison)))
        parts.append("<h3>Box AP by object size</h3>")
        parts.append(_table(["method", *SIZES.values()], _by_size(comparison)))
        parts.append("<h3>Box AP over the iterations</h3>" + _curves(comparison))
    shown = _pictures(study, images)
    page = TEMPLATE.replace("@TABLES@", "\n".join(parts))
    page = page.replace("@COMMAND@", html.escape(command))
    # "</" would end the script
    page = page.replace("@PICTURES@", json.dumps(shown).replace("</", "<\\/"))
    with open(os.path.join(output, "report.html"), "w") as f:
        f.write(page)


def _table(header: List[str], rows: List[List[str]]) -> str:
    def line(tag, cells):
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"


def _groups(comparison: Comparison) -> Dict[str, List[Cell]]:
    """Finished cells by method, with the teacher where there are several."""
    several = len({cell.teacher for cell in comparison.cells if cell.teacher}) > 1
    groups: Dict[str, List[Cell]] = {}
    for cell in comparison.cells:
        if cell.finished():
            name = f"{cell.method}, {cell.teacher}" if several and cell.teacher else cell.method
            groups.setdefault(name, []).append(cell)
    return groups


def _by_size(comparison: Comparison) -> List[List[str]]:
    rows = []
    for name, cells in _groups(comparison).items():
        means = [mean_ap(cells, f"bbox/{size}") for size in SIZES]
        rows.append([name, *("-" if np.isnan(mean) else f"{mean:.1f}" for mean in means)])
    return rows


def _curves(comparison: Comparison) -> str:
    """Mean over the seeds, as an SVG in the page."""
    fig, ax = plt.subplots(figsize=(9, 4))
    colors = plt.get_cmap("tab20").colors
    for i, (name, cells) in enumerate(_groups(comparison).items()):
        curves = [dict(cell.result()["curve"]) for cell in cells]
        iterations = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [np.mean([curve[it] for curve in curves]) for it in iterations]
        ax.plot(iterations, means, "o-", label=name, color=colors[i % 20], markersize=3)
    ax.set(xlabel="iteration", ylabel="box AP", ylim=(0, None))
    ax.grid(alpha=0.3)
    if ax.lines:
        ax.legend(fontsize=7, ncol=2, loc="center left", bbox_to_anchor=(1, 0.5))
    with io.StringIO() as svg:
        fig.savefig(svg, format="svg", bbox_inches="tight")
        plt.close(fig)
        return svg.getvalue()[svg.getvalue().index("<svg") :]


def _pictures(study: Study, images: int) -> Dict:
    """Titles of the models, and for each image a picture of each model's boxes and attention."""
    cells = [study.teachers[name] for name in study.teachers]
    for comparison in study.comparisons:
        for group in _groups(comparison).values():
            cells.append(group[0])
    unique = {
        cell.folder: cell
        for cell in cells
        if cell.finished() and not is_lazy_file(os.path.join(cell.folder, "config.yaml"))
    }
    shown = {"models": ["ground truth"], "images": []}
    for cell in unique.values():
        cfg = pictures.load_config(cell.folder)
        if not cell.iterations:
            cfg.MODEL.WEIGHTS = cell.opts[cell.opts.index("MODEL.WEIGHTS") + 1]
        predictor = DefaultPredictor(cfg)
        records = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:images]
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        shown["models"].append(cell.name)
        for i, record in enumerate(records):
            bgr = cv2.imread(record["file_name"])
            if len(shown["images"]) <= i:
                rgb = pictures.to_rgb(bgr)
                truth = pictures.ground_truth(record, rgb, metadata)
                shown["images"].append([[_encode(truth), _encode(rgb)]])
            shown["images"][i].append(
                [
                    _encode(pictures.predictions(predictor, bgr, metadata)),
                    _encode(pictures.attention(predictor.model, bgr)),
                ]
            )
    return shown


def _encode(rgb: np.ndarray) -> str:
    scale = SIDE / max(rgb.shape[:2])
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".webp", small[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    return "data:image/webp;base64," + base64.b64encode(data).decode()


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Comparison of distillation methods</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
#grid { display: flex; flex-wrap: wrap; gap: 8px }
figure { margin: 0; width: 160px; font-size: 12px }
figure img { width: 100%; display: block }
input[type=range] { width: 320px; vertical-align: middle }
pre { background: #f5f5f5; padding: .6em; overflow-x: auto }
</style>
</head>
<body>
<h1>Comparison of distillation methods</h1>
<p>Mean and 95% confidence interval (Student's t) over the seeds; differences are paired by
seed.</p>
@TABLES@
<h2>Image by image</h2>
<p>
<label>image <input id="image" type="range" min="0" value="0"></label> <output id="number"></output>
&nbsp; <label><input type="radio" name="show" value="0" checked> predictions</label>
<label><input type="radio" name="show" value="1"> spatial attention</label>
</p>
<div id="grid"></div>
<p>The first seed of each method. Predictions with a score above 0.4; attention is the mean of
absolute features over the channels, from blue (least) to red (most).</p>
<h2>Made by</h2>
<pre>@COMMAND@</pre>
<script>
const pictures = @PICTURES@;
const slider = document.getElementById("image");
const radios = [...document.getElementsByName("show")];
slider.max = pictures.images.length - 1;
const grid = document.getElementById("grid");
for (const model of pictures.models) {
  const figure = document.createElement("figure");
  const image = figure.appendChild(document.createElement("img"));
  image.alt = model;
  figure.appendChild(document.createElement("figcaption")).textContent = model;
  grid.appendChild(figure);
}
function render() {
  const models = pictures.images[slider.value] || [];
  const show = radios.findIndex((radio) => radio.checked);
  grid.querySelectorAll("img").forEach((img, i) => { if (models[i]) img.src = models[i][show]; });
  document.getElementById("number").textContent =
    `${Number(slider.value) + 1} of ${pictures.images.length}`;
}
// report.html#image=2&show=1 opens at the third image's attention
const wanted = new URLSearchParams(location.hash.slice(1));
if (wanted.has("image")) slider.value = wanted.get("image");
if (radios[wanted.get("show")]) radios[wanted.get("show")].checked = true;
slider.addEventListener("input", render);
radios.forEach((radio) => radio.addEventListener("change", render));
render();
</script>
</body>
</html>
"""
