"""What the terms of a distiller do to the student where no balance sets their weights."""

import logging
from typing import Dict, List, Optional

import torch

from .balance import Terms, short_name
from .gradient_norms import DETECTOR, GradientNorms

logger = logging.getLogger(__name__)


# Measurements at fp16 maps until the scale of their gradients is known, that of huge ones, too.
SETTLING = 6


class GradientShares(GradientNorms):
    """
    Shares and cosines of the last measurement, to be shown beside the losses. They change nothing
    and are in no checkpoint: a run that resumes has them from its next measurement on.
    """

    def __init__(self) -> None:
        super().__init__(momentum=0.0, per_level=False)
        self._fails = False
        self._first: Optional[int] = None  # iteration of this run
        self._settling = 0  # measurements that are not to be shown

    def due(self, iteration: int, every: int, period: int, half: bool) -> bool:
        """
        Whether to measure. The same in all processes.

        Args:
            iteration: of the training.
            every: iterations from one that distils to the next.
            period: iterations that distil from one measurement to the next.
            half: whether the maps are in fp16, whose scale the first measurements of a process
                find: it measures in each of its first iterations, too.
        """
        if self._first is None:
            self._first = iteration
        settles = half and iteration < self._first + SETTLING * every
        return settles or iteration % (period * every) == 0

    def observe(self, detector: torch.Tensor, maps: List[torch.Tensor], terms: Terms) -> None:
        """
        Args:
            detector: the sum of its own losses, a scalar.
            maps: L feature maps (N, C, H, W) of the student, of which all losses were made.
            terms: scalars by term and level, with their weights.

        Raises:
            RuntimeError: the losses' graph allows one backward pass alone, as with reentrant
                checkpointing.
        """
        if self._fails:
            return
        if self.scale.device != detector.device:
            self.to(detector.device)
        totals = {short_name(name): sum(levels.values()) for name, levels in terms.items()}
        self.measure(detector, maps, totals, maps)
        self._settling = self._settling + 1 if self._half else SETTLING

    def give_up(self, error: RuntimeError) -> None:
        """Measure no more, after an :meth:`observe` that raised: the training does without."""
        self._fails = True
        first_line = str(error).partition("\n")[0]
        logger.warning(
            "The log has no shares of the detector's gradient: a second backward pass through the "
            f"student's graph is not possible ({first_line})"
        )

    def _over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """Each process shows its own, so that none waits for one that fails."""
        return values

    def scalars(self) -> Dict[str, torch.Tensor]:
        """
        What there is to see, by name: ``share_<term>``, the term's part of the detector's gradient
        with the weight that it has, 0 where there is no such gradient; ``cosine_<term>``; and
        ``norm_detector``.
        """
        if self._fails or self._settling < SETTLING:
            return {}
        norms = self.norms()
        own = norms[DETECTOR]
        found = {f"norm_{DETECTOR}": own}
        for name, cosine in self.cosines.items():
            found[f"share_{name}"] = torch.where(own > 0, norms[name] / own, 0.0)
            found[f"cosine_{name}"] = cosine
        return found
