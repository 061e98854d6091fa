"""What tools/export.py does: a trained detector in one file, compared with the detector."""

import argparse
import inspect
import os
from dataclasses import replace
from typing import Any, Callable, List, Sequence

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.export import TracingAdapter
from detectron2.export.flatten import DictSchema, InstancesSchema, ListSchema, Schema
from detectron2.utils.logger import setup_logger
from torch import nn

from ..config import Config, form_of, read_config, run_settings, student_config
from ..engine import describe
from ..engine.run import Run, check
from ..modeling.load import load_in_full
from .common.command import RunError, set_up
from .common.paths import find_file
from .common.result_files import make_output

OPSET = 16  # the first that has the ROIAlign of today's detectors (aligned)
TOLERANCE = 0.01  # of a detection, for boxes in pixels
SAME = 0.95  # of the detections; which are the last to be kept may be decided by rounding
PACKAGES = "pip install onnx onnxruntime 'ml_dtypes<0.6'"  # later ones would bring NumPy 2

Outputs = List[np.ndarray]


def export(args: argparse.Namespace) -> None:
    """
    Write ``model.ts`` or ``model.onnx``, and say what it takes and gives.

    Raises:
        ImportError: ONNX without its package.
        RunError: the file gives other results than the model.
        ValueError: no weights, or no image to trace with.
    """
    setup_logger(name="skd")
    set_up(args)
    cfg = _config(args)
    run = describe(cfg)
    check(replace(run, test_sets=None) if args.sample_image else run, training=False)
    weights = find_file(args.weights or run.weights)
    if not weights:
        raise ValueError(f"--weights is missing, and {run.keys['weights']} is empty.")
    image = _sample(cfg, run, args.sample_image)
    make_output(args.output)  # not after the model is built
    model = run.build_model().eval()
    load_in_full(model, weights, "--weights", args.config_file)
    adapter = traceable(model, image)
    name, write, load = FORMATS[args.format]
    path = os.path.join(args.output, name)
    write(adapter, image, path)
    print(f"{path}, {os.path.getsize(path) / 1e6:.1f} MB")
    colors = form_of(cfg).image_format(cfg) or "colors as in training"
    print(f"  takes   image: float32, (3, height, width), {colors}, 0 to 255")
    print(f"  gives   {', '.join(output_names(adapter.outputs_schema))}")
    print(f"  {compare(adapter, load(path), images_like(image))}")


def _config(args: argparse.Namespace) -> Config:
    """The student's own config; an ONNX file has no device, so it is made where all is exact."""
    cfg = read_config(find_file(args.config_file))
    cfg = student_config(form_of(cfg).override(cfg, args.opts))
    if args.format == "onnx":
        run_settings.put(cfg, "device", "cpu")
    return cfg


def _sample(cfg: Config, run: Run, path: str) -> torch.Tensor:
    """(3, H, W): an image as in a test, given or the first of the test set."""
    if not path:
        if not run.test_sets:
            raise ValueError(f"--sample-image is missing, and {run.keys['test_sets']} is empty.")
        path = DatasetCatalog.get(run.test_sets[0])[0]["file_name"]
    return form_of(cfg).test_mapper(cfg)({"file_name": path})["image"].float()


def traceable(model: nn.Module, image: torch.Tensor) -> TracingAdapter:
    """
    The model with tensors in and out, as Detectron2's tools/deploy/export_model.py makes it. Boxes
    are in pixels of the image that goes in; masks of an R-CNN are (N, 1, M, M) in their boxes, as
    its head gives them.

    Args:
        model: in eval mode.
        image: (3, H, W).

    Raises:
        ValueError: it needs more than an image.
    """
    inference = getattr(model, "inference", None)
    raw = inference and "do_postprocess" in inspect.signature(inference).parameters
    adapter = TracingAdapter(model, [{"image": image}], _without_postprocessing if raw else None)
    try:
        adapter.eval()(image)  # now it knows its outputs
    except KeyError as error:
        raise ValueError(
            f"A {type(model).__name__} looks for {error} in its input, and there is 'image' alone, "
            "as Detectron2's own export has it: let it use the image's size without the others."
        ) from error
    return adapter


def _without_postprocessing(model: nn.Module, inputs: List[Any]) -> Any:
    return model.inference(inputs, do_postprocess=False)


def output_names(schema: Schema) -> List[str]:
    """The outputs' names in order: fields of ``Instances``, keys of dicts, else ``output``."""
    names = _names(schema, "output")
    earlier = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name}_{n}" if n else name for name, n in zip(names, earlier)]


def _names(schema: Schema, name: str) -> List[str]:
    if not isinstance(schema, ListSchema):
        return [name]
    keys = schema.keys if isinstance(schema, DictSchema) else [name] * len(schema.schemas)
    names = [n for key, inner in zip(keys, schema.schemas) for n in _names(inner, key)]
    return names + ["image_size"] * isinstance(schema, InstancesSchema)


def _write_torchscript(adapter: TracingAdapter, image: torch.Tensor, path: str) -> None:
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(adapter, (image,)), path)


def _write_onnx(adapter: TracingAdapter, image: torch.Tensor, path: str) -> None:
    try:
        import onnx  # noqa: F401  torch looks for it late
    except ImportError as error:
        raise ImportError(f"--format onnx needs {error.name}: {PACKAGES}.") from error
    with torch.no_grad():
        torch.onnx.export(
            adapter, (image,), path, opset_version=OPSET, dynamo=False, input_names=["image"],
            output_names=output_names(adapter.outputs_schema),
            dynamic_axes={"image": {1: "height", 2: "width"}},
        )  # fmt: skip


def _load_torchscript(path: str) -> Callable[[torch.Tensor], Outputs]:
    model = torch.jit.load(path)
    return lambda image: _arrays(model(image))


def _load_onnx(path: str) -> Any:
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        return None
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image.numpy()})


FORMATS = {
    "torchscript": ("model.ts", _write_torchscript, _load_torchscript),
    "onnx": ("model.onnx", _write_onnx, _load_onnx),
}


def _arrays(tensors: Sequence[torch.Tensor]) -> Outputs:
    return [tensor.detach().cpu().numpy() for tensor in tensors]


def images_like(image: torch.Tensor) -> List[torch.Tensor]:
    """The image it was traced with, and one of another size and content."""
    return [image, image[:, : image.shape[1] * 3 // 4].flip(2).contiguous()]


def compare(adapter: TracingAdapter, loaded: Any, images: List[torch.Tensor]) -> str:
    """
    Run the file beside the model.

    Args:
        loaded: of an image (3, H, W) gives arrays; None if it cannot be run here.

    Returns:
        What came out, for people.

    Raises:
        RunError: other detections.
    """
    if loaded is None:
        return f"not checked: onnxruntime is not installed ({PACKAGES})"
    pairs = [(_arrays(adapter(image)), loaded(image)) for image in images]
    numbers = [len(expected[0]) for expected, _ in pairs]
    if not any(numbers):
        return "not checked: no detections; give a --sample-image that has some"
    found = [matches(expected, given) for expected, given in pairs]
    same = sum(found)
    counts = f"{' and '.join(map(str, numbers))} detections in two images of different size"
    if same < SAME * sum(numbers):
        raise RunError(
            f"of the model's {counts}, the file gives only {' and '.join(map(str, found))}. Where "
            "it fails in the second image alone, it holds the size of the first: the model "
            "computes with sizes as numbers of Python."
        )
    return f"checked: {counts}, {same} of them as the model's"


def matches(expected: Outputs, given: Outputs) -> int:
    """
    How many detections of a model are among those of a file, in whatever order: of nearly equal
    scores, rounding decides which is first.

    Args:
        expected, given: arrays of detections (N, ...), and others.
    """
    number, others = len(expected[0]), len(given[0])
    if [a.shape[1:] for a in expected] != [b.shape[1:] for b in given] or not others:
        return 0
    rows = [len(a) == number and len(b) == others for a, b in zip(expected, given)]
    rest = [(a, b) for a, b, row in zip(expected, given, rows) if not row]
    if not all(a.shape == b.shape and np.allclose(a, b, atol=TOLERANCE) for a, b in rest):
        return 0
    a, b = (
        np.concatenate([np.reshape(x, (len(x), -1)) for x, row in zip(arrays, rows) if row], 1)
        for arrays in (expected, given)
    )
    return sum(bool((np.abs(b - one).max(1) <= TOLERANCE).any()) for one in a)
