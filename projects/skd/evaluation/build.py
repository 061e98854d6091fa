"""The evaluator that belongs to a dataset, and where its results go."""

import importlib.util
import os
from typing import Any, Dict, Optional, Sequence

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, JSONWriter, TensorboardXWriter


def _coco(name: str, folder: str, sigmas: Sequence[float], *_: Any) -> COCOEvaluator:
    # what there are annotations for (check_datasets knows), else what the predictions have
    tasks = MetadataCatalog.get(name).get("evaluated")
    return COCOEvaluator(name, tasks, output_dir=folder, kpt_oks_sigmas=sigmas)


def _sem_seg(name: str, folder: str, _: Any, ignore_value: Optional[int]) -> SemSegEvaluator:
    if ignore_value == MetadataCatalog.get(name).get("ignore_label"):
        ignore_value = None  # Detectron2 warns of one that is given
    return SemSegEvaluator(name, distributed=True, output_dir=folder, ignore_label=ignore_value)


# from the dataset's metadata to what evaluates it: called with name, folder, keypoints' sigmas and
# the value of pixels to ignore
_EVALUATORS = {
    "coco": [_coco],
    "coco_panoptic_seg": [_sem_seg, _coco, lambda name, out, *_: COCOPanopticEvaluator(name, out)],
    "sem_seg": [_sem_seg],
    "lvis": [lambda name, out, *_: LVISEvaluator(name, output_dir=out)],
    "pascal_voc": [lambda name, out, *_: PascalVOCDetectionEvaluator(name)],
    "cityscapes_instance": [lambda name, out, *_: CityscapesInstanceEvaluator(name)],
    "cityscapes_sem_seg": [lambda name, out, *_: CityscapesSemSegEvaluator(name)],
}

# what Detectron2's evaluators import once the predictions are there
_PACKAGES = {
    "coco_panoptic_seg": "panopticapi",
    "lvis": "lvis",
    "cityscapes_instance": "cityscapesscripts",
    "cityscapes_sem_seg": "cityscapesscripts",
}


def check_evaluator(dataset_name: str) -> None:
    """
    Raises:
        NotImplementedError: a dataset of a type without an evaluator, or that says none.
        ImportError: the evaluator needs a package, which it would miss only when all is done.
    """
    kind = _kind(dataset_name)
    package = _PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        raise ImportError(
            f"Dataset '{dataset_name}' is evaluated as {kind}, by the package '{package}', which "
            "is not installed."
        )


def _kind(dataset_name: str) -> str:
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _EVALUATORS:
        raise NotImplementedError(
            f"No evaluator for dataset '{dataset_name}': evaluator_type of its metadata is "
            f"{kind!r}; it must be one of {', '.join(_EVALUATORS)}. Or give the Trainer a "
            "build_evaluator of your own."
        )
    return kind


def build_evaluator(
    dataset_name: str,
    output_dir: str,
    keypoint_sigmas: Sequence[float] = (),
    folder: Optional[str] = None,
    ignore_value: Optional[int] = None,
) -> DatasetEvaluator:
    """
    Choose by the metadata's ``evaluator_type``, as Detectron2's own training script does.

    Args:
        dataset_name: a registered dataset.
        output_dir: of the run; results go to its folder ``inference``.
        keypoint_sigmas: see ``TEST.KEYPOINT_OKS_SIGMAS``; empty for COCO's own.
        folder: where results go in place of that, as an evaluator overwrites another's files.
        ignore_value: see ``MODEL.SEM_SEG_HEAD.IGNORE_VALUE``; by default the dataset's.

    Raises:
        NotImplementedError: a type without an evaluator.
    """
    kind = _kind(dataset_name)
    folder = folder or os.path.join(output_dir, "inference")
    given = dataset_name, folder, keypoint_sigmas, ignore_value
    evaluators = [build(*given) for build in _EVALUATORS[kind]]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def write_results(results: Dict[str, Any], output_dir: str, iteration: int = 0) -> None:
    """
    Write what an evaluation returned as training does: to metrics.json and TensorBoard.

    Args:
        results: of ``inference_on_dataset`` or ``DefaultTrainer.test``.
        output_dir: of the run.
        iteration: of the checkpoint.
    """
    if not comm.is_main_process():
        return
    with EventStorage(iteration) as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        path = os.path.join(output_dir, "metrics.json")
        for writer in (JSONWriter(path), TensorboardXWriter(output_dir)):
            writer.write()
            writer.close()
