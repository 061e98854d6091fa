"""The same random numbers, and the same images, whether a run was interrupted or not."""

from contextlib import ExitStack
from typing import Any, Dict

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from .loader import TrainLoader, seed_everything


class ReproducibleSteps(HookBase):
    """
    Seeds the global generators before each step by seed, process and iteration, so that a step's
    random numbers do not depend on what ran before. Its state in checkpoints is the seed and how
    many images were taken, from which the loader goes on.

    On CPUs functions in TorchScript (the focal loss of RetinaNet and FCOS) run as they are written.
    Otherwise PyTorch watches the first call of a process and computes the gradient of later ones in
    another way: after a resume in a new process it would differ in the last digits.
    """

    def __init__(self, loader: Any, seed: int):
        """
        Args:
            loader: a :class:`TrainLoader`; another one starts anew when training resumes.
            seed: the same in all processes.
        """
        self.loader = loader
        self.seed = seed
        # images taken up to the end of an iteration; batches may have had other sizes before
        self._images, self._iteration = 0, -1
        self._as_written = ExitStack()

    def before_train(self) -> None:
        # on GPUs, where no bits are promised, PyTorch may fuse them
        if next(self.trainer.model.parameters()).device.type == "cpu":
            self._as_written.enter_context(torch.jit.optimized_execution(False))

    def after_train(self) -> None:
        self._as_written.close()

    def before_step(self) -> None:
        seed_everything(self.seed, comm.get_rank(), self.trainer.iter)

    def state_dict(self) -> Dict[str, int]:
        if not isinstance(self.loader, TrainLoader):
            return {"seed": self.seed}
        iteration = self.trainer.iter
        images = self._images + (iteration - self._iteration) * self.loader.images_per_batch
        return {
            "seed": self.seed,
            "order": self.loader.seed,
            "images": images,
            "iteration": iteration,
        }

    def load_state_dict(self, state: Dict[str, int]) -> None:
        self.seed = state["seed"]
        if isinstance(self.loader, TrainLoader) and "images" in state:
            self._images = state["images"]
            # checkpoints of before had one size of batches all along, and no iteration
            iterations = state["images"] // self.loader.images_per_batch
            self._iteration = state.get("iteration", iterations - 1)
            self.loader.resume(state["order"], state["images"], self._iteration + 1)


def shared_seed(seed: int) -> int:
    """A config's seed, or for a negative one a number that all processes draw together."""
    return seed if seed >= 0 else comm.shared_random_seed()
