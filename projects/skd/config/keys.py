"""
The keys of a YAML config that the project adds to Detectron2's, each declared once:
``MODEL.STUDENT``, ``MODEL.TEACHER`` and ``MODEL.TIMM`` here, ``MODEL.DISTILLER`` in :mod:`methods`
and the ``Settings`` of each method, and a run's in :mod:`run_settings`.
"""

from typing import List

from detectron2.config import CfgNode as CN

from . import run_settings
from .methods import distiller_node

META_ARCHITECTURE = "DistillRCNN"
# set on this class, and on a Trainer of skd.distilling, so that subclasses are known without it
DISTILS = "_skd_distils"
# the nodes below MODEL of which the student knows nothing
NODES = ("STUDENT", "TEACHER", "DISTILLER")
# a key that the node has here, and in other projects' configs has not
_OWN_KEY = {"STUDENT": "INHERIT", "TEACHER": "RANDOM_WEIGHTS", "DISTILLER": "BALANCE"}
# MODEL.TIMM has no such key: it is known by having these, and no others but WEIGHTS
_TIMM_KEYS = {"NAME", "PRETRAINED", "NORM"}


def _is_own(cfg: CN, node: str) -> bool:
    return isinstance(cfg.MODEL.get(node), dict) and _OWN_KEY[node] in cfg.MODEL[node]


def own_nodes(cfg: CN) -> List[str]:
    """The nodes below MODEL that are this project's, of which the student knows nothing."""
    return [node for node in NODES if _is_own(cfg, node)]


def has_timm(cfg: CN) -> bool:
    """Whether ``MODEL.TIMM`` is this project's: other projects have a node of that name too."""
    keys = set(cfg.MODEL.get("TIMM") or ())
    return _TIMM_KEYS <= keys <= {*_TIMM_KEYS, "WEIGHTS"}


def fetch_no_timm_weights(cfg: CN) -> None:
    """Leave the backbone's own weights alone, in place: all are in ``MODEL.WEIGHTS``."""
    if has_timm(cfg):
        cfg.MODEL.TIMM.PRETRAINED = False
        cfg.MODEL.TIMM.WEIGHTS = ""


def check_nodes(cfg: CN) -> None:
    """
    Raises:
        ValueError: another project's keys have the place of this project's; whichever came first.
    """
    _refuse([f"MODEL.{node}" for node in NODES if node in cfg.MODEL and not _is_own(cfg, node)])


def _refuse(taken: List[str]) -> None:
    if taken:
        raise ValueError(
            f"{', '.join(taken)} in this config is another project's, and this project's keys need "
            "the name. Leave skd.add_skd_config and --teacher out and distil with your project's "
            "own Trainer: Trainer = skd.distilling(Trainer, teacher=...). See docs/your_project.md."
        )


def add_skd_config(cfg: CN) -> None:
    """
    Add the project's keys to a Detectron2 config, in place. Calling it twice does no harm. Where
    another project has a ``MODEL.TIMM`` of its own, that stays as it is.

    The student is the model the config describes anyway; a config distils when
    ``MODEL.META_ARCHITECTURE`` is ``DistillRCNN`` (see :func:`distill`).

    Raises:
        ValueError: the config has a ``MODEL.STUDENT``, ``TEACHER`` or ``DISTILLER`` of another
            project, or a key of SOLVER or DATASETS like ``SOLVER.EMA_DECAY``.
    """
    check_nodes(cfg)
    if set(own_nodes(cfg)) == set(NODES):
        return
    _refuse([] if own_nodes(cfg) else run_settings.declared(cfg))
    # ---------------------------------------------------------------------------- the student
    cfg.MODEL.STUDENT = CN()
    # The student's own meta-architecture: any name in Detectron2's META_ARCH_REGISTRY.
    cfg.MODEL.STUDENT.META_ARCHITECTURE = "GeneralizedRCNN"
    # Name of the module whose dict of feature maps is distilled, e.g. "backbone.bottom_up".
    cfg.MODEL.STUDENT.FEATURES = "backbone"
    # What these maps are, as [[name, stride, channels], ...]. Empty: as the module's output_shape()
    # says, or where it has none, as measured on an image.
    cfg.MODEL.STUDENT.FEATURE_SHAPES = []
    # Start the student's FPN and heads as copies of the teacher's, each where all its shapes agree
    # with the teacher's (as FGD and ICD do). What MODEL.WEIGHTS holds is loaded over them.
    cfg.MODEL.STUDENT.INHERIT = False
    # Other projects whose packages the student's config needs, as MODULE:FUNCTION; train_net.py
    # notes here what it was given as --project. A YAML file may name only what the user names too.
    cfg.MODEL.STUDENT.PROJECTS = []

    if "TIMM" not in cfg.MODEL:
        _add_timm(cfg)

    # ---------------------------------------------------------------------------- the teacher
    cfg.MODEL.TEACHER = CN()
    # A YAML file, a LazyConfig .py file, or a name in Detectron2's model zoo.
    cfg.MODEL.TEACHER.CONFIG_FILE = ""
    # Checkpoint, path or URL. Empty: the zoo's own checkpoint for the zoo name above.
    cfg.MODEL.TEACHER.WEIGHTS = ""
    # Changes to the teacher's config, as on the command line: ["KEY", "VALUE", ...] for YAML and
    # ["key=value", ...] for LazyConfig.
    cfg.MODEL.TEACHER.OPTS = []
    # Other projects whose packages the teacher alone needs; see MODEL.STUDENT.PROJECTS.
    cfg.MODEL.TEACHER.PROJECTS = []
    # Like STUDENT.FEATURES: any of its modules that returns a map, or a list or dict of maps. What
    # comes behind it does not run.
    cfg.MODEL.TEACHER.FEATURES = "backbone"
    # Like STUDENT.FEATURE_SHAPES.
    cfg.MODEL.TEACHER.FEATURE_SHAPES = []
    # What prepares its images in place of its own preprocess_image or forward: MODULE:FUNCTION, a
    # function(detector, batched_inputs) that returns an ImageList or (N, C, H, W), for the module
    # FEATURES. A YAML file may name only one of a project that the user names too.
    cfg.MODEL.TEACHER.PREPROCESS = ""
    # What makes its forward cheaper; docs/performance.md has the measurements.
    # Numbers it computes in: "fp32", "bf16" or "fp16". The losses are computed in fp32 anyway.
    cfg.MODEL.TEACHER.PRECISION = "fp32"
    # Fold its batch norms, which are fixed, into the convolutions before them.
    cfg.MODEL.TEACHER.FOLD_BN = True
    # Lay its maps out with channels last.
    cfg.MODEL.TEACHER.CHANNELS_LAST = True
    # Compile its backbone with torch.compile, which takes half a minute and more at the start.
    cfg.MODEL.TEACHER.COMPILE = False
    # Run it on a CUDA stream of its own, beside the student's forward.
    cfg.MODEL.TEACHER.SIDE_STREAM = False
    # Show it each image at half the width and height, for a quarter of its forward; the student's
    # stay as they are. Its maps' strides count twice then: the student's p3 learns from its p2, and
    # the student's p2 from no map. Not together with DISTILLER.HEADS.
    cfg.MODEL.TEACHER.HALF_SIZE = False
    # Distil from an untrained teacher. Teaches nothing: for tests and dry runs only.
    cfg.MODEL.TEACHER.RANDOM_WEIGHTS = False

    # ------------------------- the run: SOLVER.ACCUMULATE and others, declared in run_settings.py
    run_settings.declare(cfg)

    # -------------------------------------------------------------------------- the distiller
    # MODEL.DISTILLER.NAME, EVERY and others are declared in methods.py, MODEL.DISTILLER.<METHOD>.*
    # in the Settings of distillers/<method>.py, BALANCE in distillers/balance.py and HEADS in
    # distillers/heads/settings.py.
    cfg.MODEL.DISTILLER = distiller_node()


def _add_timm(cfg: CN) -> None:
    # A backbone from timm below an FPN, for light students: see skd/modeling/timm_backbone.py. Used
    # by the MODEL.BACKBONE.NAMEs build_timm_fpn_backbone and build_retinanet_timm_fpn_backbone.
    cfg.MODEL.TIMM = CN()
    # A name in timm.list_models() that gives feature maps of the strides 4 (8) to 32.
    cfg.MODEL.TIMM.NAME = "mobilenetv3_large_100"
    # Start from timm's ImageNet weights, fetched by timm. MODEL.WEIGHTS is loaded over them.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Start from a checkpoint of that timm model instead, a file of your own (.pth, timm's names).
    cfg.MODEL.TIMM.WEIGHTS = ""
    # "BN", "SyncBN" (GPUs only) or "FrozenBN" (for few images per GPU).
    cfg.MODEL.TIMM.NORM = "BN"
