"""Whether the teacher is better than the student, said before the training costs days."""

import itertools
import logging
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch import nn

from ..evaluation import Quality, class_agnostic_quality, detect, unseen_classes
from ..modeling.build_detector import Detector
from ..modeling.student_class import balance_of
from ..runtime.unwrap import unwrapped

logger = logging.getLogger(__name__)


@dataclass
class TeacherEvaluation:
    """
    Attributes:
        images: of the validation set, to look at (``MODEL.TEACHER.EVALUATE``).
        dataset: its name.
        build: makes the whole teacher; only its backbone is kept otherwise.
        build_loader: makes the loader of the validation set.
        image_format: color order of its images.
    """

    images: int
    dataset: str
    build: Callable[[], Detector]
    build_loader: Callable[[], Iterable[List[Dict[str, Any]]]]
    image_format: str


def teacher_evaluation(
    images: Any, datasets: Optional[Sequence[str]], keys: Dict[str, str], **given: Any
) -> Optional[TeacherEvaluation]:
    """
    Args:
        images: what the config says; checked with the other settings of the run.
        datasets: the validation sets.
        keys: the user's words, see :class:`Run`.
        given: the other fields of :class:`TeacherEvaluation`.

    Returns:
        None for no images.

    Raises:
        ValueError: no validation set.
    """
    key = keys["evaluate_teacher"]
    if not images:
        return None
    if not datasets:
        raise ValueError(
            f"{key} is {images}, and {keys['test_sets']} names no validation set: name one, or set "
            "the former to 0."
        )
    return TeacherEvaluation(images=images, dataset=datasets[0], **given)


class TeacherQuality(HookBase):
    """
    A comparison, before the training and at each evaluation: what part of the validation set's
    objects teacher and student find, whatever class they give them. Warns, once, if the teacher is
    not better while it teaches, and of classes that it never saw. The training is unaffected.
    """

    def __init__(self, evaluation: TeacherEvaluation, period: int):
        """
        Args:
            evaluation: what to look at.
            period: iterations from one evaluation to the next; 0 for the first and last only.
        """
        self._what, self._period = evaluation, period
        self._warned = False
        self._images = evaluation.images  # or all there are, if these are fewer

    def before_train(self) -> None:
        if comm.is_main_process():
            self._teacher = self._look_at_teacher()
            self._compare()
        comm.synchronize()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        due = done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0)
        if due and comm.is_main_process():
            self._compare()

    def _warn_of_no_objects(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                f"The {self._images} images of {self._what.dataset} have no object that counts: "
                "teacher and student cannot be compared on them."
            )

    def _look_at_teacher(self) -> Quality:
        what = self._what
        teacher = what.build()
        device = next(self.trainer.model.parameters()).device
        seen = self._evaluate(teacher.model.to(device), teacher.input_format != what.image_format)
        unseen = unseen_classes(what.dataset, teacher.datasets)
        if unseen:
            classes = MetadataCatalog.get(what.dataset).thing_classes
            logger.warning(
                f"The teacher never saw {len(unseen)} of the {len(classes)} classes: "
                f"{', '.join(unseen)}."
            )
        return seen

    def _evaluate(self, model: nn.Module, flip: bool = False) -> Quality:
        looked_at = set()

        def images() -> Iterator[Dict[str, Any]]:
            batches = itertools.chain.from_iterable(self._what.build_loader())
            for x in itertools.islice(batches, self._what.images):
                looked_at.add(x["image_id"])
                yield x

        with inference_context(model):
            found = detect(model, images(), flip)
        self._images = len(looked_at)
        records = DatasetCatalog.get(self._what.dataset)
        return class_agnostic_quality(found, [r for r in records if r["image_id"] in looked_at])

    def _compare(self) -> None:
        if math.isnan(self._teacher.ap50):
            self._warn_of_no_objects()
            return
        model = unwrapped(self.trainer.model)
        teacher, student = self._teacher.ap50, self._evaluate(model).ap50
        self.trainer.storage.put_scalar("distill/teacher_AP50", teacher)
        self.trainer.storage.put_scalar("distill/student_AP50", student)
        logger.info(
            f"On {self._images} images of {self._what.dataset}, whatever the class: teacher's "
            f"box AP50 {teacher:.1f}, student's {student:.1f}."
        )
        balance = balance_of(self.trainer.model)
        over = balance is not None and balance.is_over(self.trainer.iter)
        if student >= teacher and not (self._warned or over):
            self._warned = True
            logger.warning(
                f"This teacher is not better than your student (AP50 {teacher:.1f} against "
                f"{student:.1f}): do not expect it to help. Train it longer, or choose another; "
                "tools/doctor.py looks for what may be wrong with it."
            )
