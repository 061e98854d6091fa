"""The evaluator that belongs to a data set, and where its results go."""

import os
from typing import Any, Dict

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

# from the data set's metadata to what evaluates it, each called with (dataset_name, output_dir)
_EVALUATORS = {
    "coco": [lambda name, out: COCOEvaluator(name, output_dir=out)],
    "coco_panoptic_seg": [
        lambda name, out: SemSegEvaluator(name, distributed=True, output_dir=out),
        lambda name, out: COCOEvaluator(name, output_dir=out),
        lambda name, out: COCOPanopticEvaluator(name, out),
    ],
    "sem_seg": [lambda name, out: SemSegEvaluator(name, distributed=True, output_dir=out)],
    "lvis": [lambda name, out: LVISEvaluator(name, output_dir=out)],
    "pascal_voc": [lambda name, out: PascalVOCDetectionEvaluator(name)],
    "cityscapes_instance": [lambda name, out: CityscapesInstanceEvaluator(name)],
    "cityscapes_sem_seg": [lambda name, out: CityscapesSemSegEvaluator(name)],
}


def build_evaluator(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """
    Choose by the metadata's ``evaluator_type``, as Detectron2's own training script does.

    Args:
        dataset_name: a registered data set.
        output_dir: of the run; results go to its folder ``inference``.

    Raises:
        NotImplementedError: a type without an evaluator.
    """
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    if kind not in _EVALUATORS:
        raise NotImplementedError(
            f"No evaluator for data set '{dataset_name}' of type '{kind}'. "
            f"Types with one: {', '.join(_EVALUATORS)}."
        )
    folder = os.path.join(output_dir, "inference")
    evaluators = [build(dataset_name, folder) for build in _EVALUATORS[kind]]
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
