"""Pictures of attention while a model distils."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..modeling.state import AlignedMaps, watch_maps
from ..modeling.student_class import balance_of, distilling_in
from ..visualization.attention import draw_attention

logger = logging.getLogger(__name__)
NAME = "attention: input, student, teacher"


class AttentionPictures(HookBase):
    """
    Puts a picture of the student's and the teacher's attention over the batch's first image into
    the event storage, in the main process, for the writers (TensorBoard) to write. Works in any of
    Detectron2's trainers, and does nothing in a training that does not distil. Where the teacher
    stops it says so and ends.
    """

    def __init__(self, period: int):
        """
        Args:
            period: iterations from one picture to the next (``VIS_PERIOD``); 0 for none.
        """
        self._period = period

    def before_step(self) -> None:
        due = self._period > 0 and self.trainer.iter % self._period == 0
        model = distilling_in(self.trainer.model) if due and comm.is_main_process() else None
        if model is None:
            return
        balance = balance_of(model)
        if balance is not None and balance.is_over(self.trainer.iter):
            logger.info("The teacher has stopped, so there are no more pictures of attention.")
            self._period = 0
            return
        watch_maps(model, self._draw)

    def _draw(self, maps: AlignedMaps) -> None:
        self.trainer.storage.put_image(NAME, draw_attention(*maps))
