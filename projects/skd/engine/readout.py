"""What distillation does, said in the log in words."""

import logging
import math
import statistics
from typing import Dict, List

from detectron2.engine import HookBase

from ..config.naming import called
from ..modeling.student_class import balance_of, distilling_in

logger = logging.getLogger(__name__)

# A cosine below this, of the last measurement, says that a term works against the detector.
AGAINST = -0.2
# Of the way from the first CKA to 1, on average over the levels: pairs that gained went 0.5 to 0.9
# of it, a RetinaNet that lost 0.1 (docs/results/default/PROTOCOL.md, round 12).
FOLLOWED, ALIKE = 0.4, 0.9  # above the latter there is no way left to speak of


class DistillationLog(HookBase):
    """
    Says every ``period`` iterations, and in the last one with a teacher if it is the first to be
    said, what share each term has of the detector's gradient, whether it pulls the same way, and
    how alike the maps are; warns, once, of what cannot help; and says where the teacher stops.
    Reads the event storage: in a training that does not distil it says nothing.
    """

    def __init__(self, period: int = 100):
        self.period = period
        self.warned = set()
        self.end = math.inf  # the iteration from which on there is no teacher
        self.last = math.inf  # the last one with a teacher, in a training that is short of a period
        self.first: Dict[str, float] = {}  # how alike the maps were at the start, by level

    def before_train(self) -> None:
        balance, max_iter = balance_of(self.trainer.model), self.trainer.max_iter
        end = math.inf if balance is None else balance.end()
        end = end if end == math.inf else math.ceil(end)
        if min(end, max_iter) < self.period:
            self.last = min(end, max_iter) - 1
        if end >= max_iter:
            return
        self.end = end
        stops = "has stopped" if self.trainer.start_iter > self.end else "stops"
        logger.info(
            f"The teacher {stops} at iteration {self.end} of {max_iter} "
            f"({balance.called('until')})."
        )

    def before_step(self) -> None:
        if self.trainer.iter == self.end:
            logger.info(
                f"The teacher stops here, at iteration {self.end}: from now on the training is "
                "the student's own." + self._followed()
            )

    def _followed(self) -> str:
        """How far the student's maps came like the teacher's, in words."""
        last = _starting_with(self._latest(), "distill/cka_")
        way = {
            k: max(last[k] - x, 0.0) / (1 - x)
            for k, x in self.first.items()
            if k in last and x < ALIKE
        }
        if not way:
            return ""
        mean = statistics.mean(way.values())
        levels = ", ".join(f"{k} {self.first[k]:.2f} to {last[k]:.2f}" for k in way)
        words = f" The maps have come {mean:.0%} of the way to the teacher's (CKA {levels})"
        distiller = distilling_in(self.trainer.model).distiller
        if mean >= FOLLOWED or not any(m.compares_maps for m in distiller.methods_in_use()):
            return f"{words}."
        share = distiller.balance.called("share")
        return (
            f"{words}, so the student hardly follows it, which can cost AP: a larger {share}, or "
            f"{called('MODEL.DISTILLER.LEVELS')} without those of few positions, draws it nearer "
            "(docs/weights.md)."
        )

    def _latest(self) -> Dict[str, float]:
        """Scalars of the last period: what is older has ended."""
        begin = self.trainer.iter - self.period
        return {k: v for k, (v, i) in self.trainer.storage.latest().items() if i > begin}

    def after_step(self) -> None:
        # said where the teacher stops; a run that resumes has not seen how it began
        wanted = self.end < math.inf and self.trainer.start_iter == 0
        if wanted and not self.first and self.trainer.iter < self.end:
            self.first = dict(_starting_with(self._latest(), "distill/cka_"))
        due = (self.trainer.iter + 1) % self.period == 0 or self.trainer.iter == self.last
        if not due or self.trainer.iter >= self.end:
            return
        latest = self._latest()
        shares = _starting_with(latest, "distill/share_")
        if not shares and not _starting_with(latest, "distill/cka_"):
            return
        logger.info(f"Distillation at iteration {self.trainer.iter}: {_words(latest, shares)}")
        for warning in _warnings(latest, shares):
            cause = warning.partition(" (cosine")[0]  # the number changes
            if cause not in self.warned:
                self.warned.add(cause)
                logger.warning(warning)


def _starting_with(scalars: Dict[str, float], prefix: str) -> Dict[str, float]:
    return {k.removeprefix(prefix): v for k, v in scalars.items() if k.startswith(prefix)}


def _words(latest: Dict[str, float], shares: Dict[str, float]) -> str:
    cosines = _starting_with(latest, "distill/cosine_")
    terms = [
        f"{name} {share:.1%} of the detector's gradient (cosine {cosines.get(name, 0):+.2f})"
        for name, share in shares.items()
    ]
    levels = [f"{k} {value:.2f}" for k, value in _starting_with(latest, "distill/cka_").items()]
    alike = f"student's and teacher's maps alike (CKA): {', '.join(levels)}" if levels else ""
    losses = f"detector's losses {latest['detector_loss']:.4g}" if "detector_loss" in latest else ""
    return "; ".join(filter(None, [*terms, alike, losses]))


def _warnings(latest: Dict[str, float], shares: Dict[str, float]) -> List[str]:
    if latest.get("distill/norm_detector") == 0:
        balanced = any(_starting_with(latest, "distill/weight_"))
        so = ", so distillation has weight 0" if balanced else ""
        return [
            f"The detector's losses have no gradient at the student's feature maps{so}: the maps "
            f"are frozen, or {called('MODEL.STUDENT.FEATURES')} names a module whose output the "
            "detector does not use."
        ]
    cosines = _starting_with(latest, "distill/cosine_")
    norms = _starting_with(latest, "distill/norm_")  # of the terms with a balance only
    found = [
        f"The term {name} has no gradient at the student's feature maps: it teaches nothing."
        for name, share in shares.items()
        if norms.get(name, share) == 0
    ]
    found += [
        f"The term {name} works against the detector's own losses (cosine {cosine:+.2f}). Check "
        "that the teacher sees the images it was trained for: tools/doctor.py."
        for name, cosine in cosines.items()
        if cosine < AGAINST
    ]
    return found
