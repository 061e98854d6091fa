"""What the terms of a distiller do to the student where no balance sets their weights."""

import logging
import math
from typing import Dict, List

import torch

from .balance import Terms, short_name
from .gradient_norms import DETECTOR, GradientNorms

logger = logging.getLogger(__name__)


class GradientShares(GradientNorms):
    """
    Shares and cosines of the last measurement, to be shown beside the losses. They change nothing
    and are in no checkpoint: a run that resumes has them from its next measurement on.
    """

    def __init__(self) -> None:
        super().__init__(momentum=0.0, per_level=False)
        self._fails = False

    def observe(self, detector: torch.Tensor, maps: List[torch.Tensor], terms: Terms) -> None:
        """
        Args:
            detector: the sum of its own losses, a scalar.
            maps: L feature maps (N, C, H, W) of the student, of which all losses were made.
            terms: scalars by term and level, with their weights.
        """
        if self.scale.device != detector.device:
            self.to(detector.device)
        totals = {short_name(name): sum(levels.values()) for name, levels in terms.items()}
        self.measure(detector, maps, totals, maps)

    def _gradients(self, loss: torch.Tensor, maps: List[torch.Tensor]) -> List[torch.Tensor]:
        """Not finite where they cannot be had: the training does without, and goes on."""
        try:
            if not self._fails:
                return super()._gradients(loss, maps)
        except RuntimeError as error:  # of reentrant checkpointing or a compiled student
            self._fails = True
            logger.warning(
                "The log has no shares of the detector's gradient: a second backward pass through "
                f"the student's graph is not possible ({str(error).splitlines()[0]})"
            )
        return [torch.full_like(x, math.nan, dtype=torch.float32) for x in maps]

    def _over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """Each process shows its own, so that none waits for one that fails."""
        return values

    def scalars(self) -> Dict[str, torch.Tensor]:
        """
        By name, as of :meth:`GradientBalance.scalars`: ``share_<term>`` of the detector's gradient,
        ``cosine_<term>``, and ``norm_<term>`` and ``norm_detector``. All with the term's weight.
        """
        if self._fails:
            return {}
        norms = self.norms()
        found = {f"norm_{name}": norm for name, norm in norms.items()}
        for name, cosine in self.cosines.items():
            found[f"share_{name}"] = norms[name] / norms[DETECTOR].clamp_min(1e-30)
            found[f"cosine_{name}"] = cosine
        return found
