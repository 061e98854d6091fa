"""Pictures of attention while a model distils."""

from typing import Optional

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ..modeling.meta_arch import DistillRCNN
from ..modeling.state import AlignedMaps, watch_maps
from ..visualization.attention import draw_attention

NAME = "attention: input, student, teacher"


class AttentionPictures(HookBase):
    """
    Puts a picture of the student's and the teacher's attention over the batch's first image into
    the event storage, in the main process, for the writers (TensorBoard) to write. Works in any of
    Detectron2's trainers, and does nothing in a training that does not distil.
    """

    def __init__(self, period: int):
        """
        Args:
            period: iterations from one picture to the next (``VIS_PERIOD``); 0 for none.
        """
        self._period = period

    def before_step(self) -> None:
        due = self._period > 0 and self.trainer.iter % self._period == 0
        if not due or not comm.is_main_process():
            return
        model = _distilling_in(self.trainer.model)
        if model is not None:
            watch_maps(model, self._draw)

    def _draw(self, maps: AlignedMaps) -> None:
        self.trainer.storage.put_image(NAME, draw_attention(*maps))


def _distilling_in(model: nn.Module) -> Optional[DistillRCNN]:
    """The distilling model, whatever wraps it (data-parallel wrappers, torch.compile)."""
    return next((m for m in model.modules() if isinstance(m, DistillRCNN)), None)
