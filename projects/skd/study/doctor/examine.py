"""
Looks at a distillation before it costs days: what its teacher finds on the student's images, and
what its terms do to the student in a few iterations.
"""

from ...config import Config
from ...config.naming import written_as
from ...config.run_settings import form_name
from .teacher import examine_teacher
from .training import examine_training
from .verdict import Verdict

# With one of these the teacher's heads get maps of another kind: what it finds says nothing.
MAPS = {"levels", "shifted maps"}


def examine(
    cfg: Config, *, iterations: int = 30, images: int = 30, student_weights: str = ""
) -> Verdict:
    """
    Args:
        cfg: a YAML config or a LazyConfig that distils.
        iterations: to train, at most ``SOLVER.MAX_ITER``; nothing is written.
        images: of ``DATASETS.TEST`` (or of TRAIN where there is none) to try the teacher on; 0
            leaves that out. What a LazyConfig's dataset is, Detectron2's loaders say.
        student_weights: checkpoint of a student that was trained without a teacher, to compare.

    Raises:
        ValueError: the config does not distil, or cannot.
    """
    verdict = Verdict()
    with written_as(form_name(cfg)):
        if iterations:
            examine_training(cfg, iterations, verdict)
        if images and not MAPS & {finding.name for finding in verdict.findings}:
            examine_teacher(cfg, images, student_weights, verdict)
    if not images:
        verdict.notes.append("the teacher was not tried on your images.")
    return verdict
