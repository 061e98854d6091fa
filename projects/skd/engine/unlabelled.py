"""Images without labels in a run: found, checked, and put into the loader."""

import logging
import math
from typing import Any, Optional

from detectron2.utils import comm
from torch import nn

from ..data.unlabelled import find_images, images_of_test_set
from ..modeling.state import distilled_iterations, expect_unlabelled
from ..modeling.unlabelled import check_needs_no_boxes
from ..runtime.loader import TrainLoader
from ..runtime.unlabelled import JoinedLoader, unlabelled_loader
from .run import Run

logger = logging.getLogger(__name__)


class UnlabelledImages:
    """
    What ``DATASETS.UNLABELLED`` names.

    Attributes:
        records: of the images.
    """

    def __init__(self, run: Run):
        """
        Args:
            run: its values are checked each by itself.

        Raises:
            ValueError: images that processes and parts of a batch cannot share equally, a source
                without images, or fewer images than processes.
        """
        self.run, self.key = run, run.keys["unlabelled"]
        _check_share(run)
        self.records = find_images(run.unlabelled, self.key)
        world = comm.get_world_size()
        if len(self.records) < world:
            raise ValueError(
                f"{self.key} has {len(self.records)} images, fewer than there are processes, "
                f"{world}."
            )
        logger.info(f"{len(self.records)} images without labels: {', '.join(run.unlabelled)}.")
        if comm.is_main_process():
            self._warn_of_test_images()

    def _warn_of_test_images(self) -> None:
        for name in dict.fromkeys(self.run.test_sets or ()):
            words = self._shared_with(name)
            if words:
                logger.warning(
                    f"{self.key} {words}: the student sees them in training, so its AP does not "
                    "tell how well it understands others."
                )

    def _shared_with(self, name: str) -> str:
        """That a test set's images are among these, in words; "" if none is."""
        if name in self.run.unlabelled:
            return f"names the test set '{name}'"
        shared = images_of_test_set(self.records, name)
        return (
            f"has {len(shared)} images of the test set '{name}', as '{shared[0]}'" if shared else ""
        )

    def check_model(self, model: nn.Module) -> None:
        """
        Raises:
            ValueError: it does not distil, or its method cannot learn from such images.
        """
        distiller = getattr(model, "distiller", None)
        if distiller is None:
            raise ValueError(
                f"{self.key} is {self.run.unlabelled}, and the model does not distil: only a "
                "teacher can say something of images without labels. Name it with --teacher."
            )
        check_needs_no_boxes(distiller, self.key)

    def join(self, loader: Any, model: nn.Module) -> JoinedLoader:
        """
        A loader of batches of both kinds, in the iterations in which a model distils.

        Raises:
            ValueError: the loader of the labelled images is not this project's.
        """
        if not isinstance(loader, TrainLoader):
            raise ValueError(
                f"{self.key} needs the loader of this project, and this run's is a "
                f"{type(loader).__name__}. Another one can put such images into its batches "
                "itself, each as a dict with 'image' and 'unlabelled': see docs/unlabelled.md."
            )
        skip, images = self.run.unlabelled_skip, self.run.unlabelled_per_batch
        key = self.run.keys["unlabelled_skip"]
        unlabelled = unlabelled_loader(
            loader, self.records, images or loader.images_per_batch, skip, key
        )
        every, end = distilled_iterations(model)
        if end < self.run.max_iter:
            logger.info(f"Images without labels: none from iteration {math.ceil(end)} on.")
        expect_unlabelled(model)
        return JoinedLoader(loader, unlabelled, skip, key, every, end)


def find_unlabelled(run: Run) -> Optional[UnlabelledImages]:
    """The images of ``DATASETS.UNLABELLED``, checked; None where the run names none."""
    return UnlabelledImages(run) if run.unlabelled else None


def _check_share(run: Run) -> None:
    world = comm.get_world_size()
    if run.unlabelled_per_batch % (world * run.accumulate):
        raise ValueError(
            f"{run.keys['unlabelled_per_batch']} is {run.unlabelled_per_batch}; it must be a "
            f"multiple of {world * run.accumulate}, the processes ({world}) times the gradient "
            f"accumulation steps ({run.accumulate}), or 0 for as many as there are labelled images."
        )
