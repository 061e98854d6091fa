"""What tools/visualize_attention.py does."""

import argparse
import os
from typing import Dict, List, Tuple

import cv2
import matplotlib
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from matplotlib import pyplot as plt
from torch.utils.tensorboard import SummaryWriter

from ..data.unlabelled import ENDINGS
from ..distillers.attention import channel_attention
from ..modeling.features import FeatureTap
from ..modeling.partial_forward import output_shapes
from ..runtime.torch_files import load_tensors
from ..visualization.attention import (
    attention_over_image,
    heat,
    non_local_blocks,
    non_local_response,
)
from .common.models import Model, load_models
from .common.pictures import as_label
from .common.result_files import make_output


def visualize(args: argparse.Namespace) -> None:
    """
    Write the pictures, to files and TensorBoard.

    Raises:
        ValueError: no image, or a pixel or level that is not there.
    """
    paths = find_images(args.input)
    models = load_models(args)
    blocks = find_blocks(args)
    make_output(args.output)
    if not args.click:
        matplotlib.use("Agg")
    with SummaryWriter(args.output) as writer:
        for step, path in enumerate(paths):
            rgb = read_image(path, "RGB")
            maps = {model.name: features_of(model, rgb, args.features) for model in models}
            levels = common_levels(maps, args.levels)
            pixel = (
                click(rgb) if args.click else args.pixel or (rgb.shape[1] // 2, rgb.shape[0] // 2)
            )
            if not (0 <= pixel[0] < rgb.shape[1] and 0 <= pixel[1] < rgb.shape[0]):
                raise ValueError(
                    f"--pixel {pixel[0]} {pixel[1]} is not in '{path}', which has "
                    f"{rgb.shape[1]} x {rgb.shape[0]} pixels."
                )
            figures = {
                "spatial": draw_spatial(rgb, maps, levels),
                "channel": draw_channels(maps, levels),
                "non_local": draw_response(rgb, maps, levels, pixel, blocks),
            }
            stem = os.path.splitext(os.path.basename(path))[0]
            for kind, figure in figures.items():
                out = os.path.join(args.output, f"{stem}_{kind}.png")
                figure.savefig(out, dpi=80)
                plt.close(figure)
                picture = cv2.imread(out)[:, :, ::-1]
                writer.add_image(f"{kind} attention", picture.copy(), step, dataformats="HWC")
            print(f"{stem}: {', '.join(figures)}", flush=True)
    print(f"Pictures are in {args.output}.")


def find_images(path: str) -> List[str]:
    """
    An image, or those in a folder, sorted by name.

    Raises:
        ValueError: there is none.
    """
    if os.path.isdir(path):
        found = [
            os.path.join(path, name)
            for name in sorted(os.listdir(path))
            if name.lower().endswith(ENDINGS)
        ]
    else:
        found = [path] if os.path.exists(path) else []
    if not found:
        raise ValueError(f"--input {path}: no image there.")
    return found


def find_blocks(args: argparse.Namespace) -> Dict[str, Dict]:
    """
    The embeddings of each model's non-local blocks by level, where they are known.

    Raises:
        ValueError: ``--blocks`` would have no effect.
    """
    blocks = {}
    names = [name for name, *_ in args.model]
    if args.blocks and args.teacher not in names:
        raise ValueError(
            f"--blocks needs --teacher to be one of the models' names ({', '.join(names)}), and it "
            f"is '{args.teacher}'."
        )
    for name, _, weights in args.model:
        if weights.endswith(".pth") and os.path.exists(weights):
            state = load_tensors(weights)
            blocks[name] = non_local_blocks(state.get("model", state)).get("student", {})
    if args.blocks:
        state = load_tensors(args.blocks)
        blocks[args.teacher] = non_local_blocks(state.get("model", state)).get("teacher", {})
        if not blocks[args.teacher]:
            raise ValueError(f"--blocks is {args.blocks}, which has no blocks of a teacher.")
    return blocks


def features_of(model: Model, rgb: np.ndarray, features: str) -> Dict[str, torch.Tensor]:
    """A model's maps of an image at its test size, cropped to the image: (1, C, H, W) by level."""
    cfg = model.cfg.INPUT
    resize = T.ResizeShortestEdge([cfg.MIN_SIZE_TEST] * 2, cfg.MAX_SIZE_TEST)
    image = resize.get_transform(rgb).apply_image(rgb)
    image = image[:, :, ::-1] if cfg.FORMAT == "BGR" else image
    tensor = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
    shapes = output_shapes(model.model, features, "--features")
    module = model.model.get_submodule(features)
    with torch.no_grad(), FeatureTap(module, "--features") as tap:
        model.model([{"image": tensor}])
    out = {}
    for name, shape in shapes.items():
        h, w = (max(-(-side // shape.stride), 1) for side in tensor.shape[1:])
        out[name] = tap.features[name][..., :h, :w].float().cpu()
    return out


def common_levels(maps: Dict[str, Dict], wanted: List[str]) -> List[str]:
    """
    Names of the maps that all models have; of those wanted, if any are.

    Raises:
        ValueError: there is none, or one that is wanted is not among them.
    """
    first, *rest = maps.values()
    common = [name for name in first if all(name in other for other in rest)]
    unknown = [name for name in wanted or [] if name not in common]
    if unknown or not common:
        raise ValueError(f"--levels {unknown}: the models have these levels in common: {common}.")
    return wanted or common


def click(rgb: np.ndarray) -> Tuple[int, int]:
    """The pixel (x, y) that the user clicks, in a window."""
    figure = plt.figure()
    plt.imshow(rgb)
    plt.title("click a pixel")
    points = figure.ginput(1, timeout=0)
    plt.close(figure)
    return int(points[0][0]), int(points[0][1])


def _axes(rows: List[str], columns: List[str], width: float = 2.6, height: float = 2.0):
    figure, axes = plt.subplots(
        len(rows), len(columns), squeeze=False,
        figsize=(width * len(columns) + 0.4, height * len(rows) + 0.4),
    )  # fmt: skip
    for ax, title in zip(axes[0], columns):
        ax.set_title(as_label(title), fontsize=10)
    for ax, title in zip(axes[:, 0], rows):
        ax.set_ylabel(as_label(title), fontsize=10)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    return figure, axes


def draw_spatial(rgb: np.ndarray, maps: Dict[str, Dict], levels: List[str]) -> plt.Figure:
    """Mean of absolute features over channels: a row a level, a column a model."""
    figure, axes = _axes(levels, ["image", *maps])
    for level, row in zip(levels, axes):
        row[0].imshow(rgb)
        for ax, by_level in zip(row[1:], maps.values()):
            # cropped already, so that it covers the whole image: a stride of 1 crops no more
            ax.imshow(attention_over_image(by_level[level], 1, rgb))
    figure.tight_layout()
    return figure


def draw_channels(maps: Dict[str, Dict], levels: List[str]) -> plt.Figure:
    """Mean of absolute features over positions, one bar a channel."""
    figure, axes = _axes(levels, list(maps), width=3.2, height=1.4)
    for level, row in zip(levels, axes):
        for ax, by_level in zip(row, maps.values()):
            values = channel_attention(by_level[level])[0].numpy()
            ax.bar(np.arange(len(values)), values, width=1.0)
            ax.set_xlim(-0.5, len(values) - 0.5)
            ax.set_yticks([0, float(values.max())], ["0", f"{values.max():.2g}"], fontsize=7)
    figure.tight_layout()
    return figure


def draw_response(
    rgb: np.ndarray, maps: Dict[str, Dict], levels: List[str], pixel: Tuple[int, int], blocks: Dict
) -> plt.Figure:
    """What the pixel (a cross) draws from the others, from least (blue) to most (red)."""
    figure, axes = _axes(levels, list(maps))
    for level, row in zip(levels, axes):
        for ax, (name, by_level) in zip(row, maps.items()):
            features = by_level[level]
            h, w = features.shape[-2:]
            position = pixel[1] * h // rgb.shape[0], pixel[0] * w // rgb.shape[1]
            block = blocks.get(name, {}).get(level)
            ax.imshow(heat(non_local_response(features, position, block), rgb))
            ax.plot(*pixel, "w+", markersize=10, markeredgewidth=2)
            ax.set_xlabel("learned block" if block else "features' product", fontsize=7)
    figure.tight_layout()
    return figure
