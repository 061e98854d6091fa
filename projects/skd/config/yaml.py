"""Every configuration key of the project, and the way between a plain and a distilling config."""

import importlib

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager

from .safe_yaml import check_yaml

META_ARCHITECTURE = "DistillRCNN"
_NODES = ("STUDENT", "TEACHER", "DISTILLER")
# what SKDTrainer knows beyond DefaultTrainer, and when it does as DefaultTrainer
SOLVER_KEYS = {"ACCUMULATE": 1, "SKIP_NON_FINITE": 0}
# Keys of Detectron2's own projects: a node below MODEL, and the function that declares it.
_PROJECTS = {"POINT_HEAD": ("detectron2.projects.point_rend", "add_pointrend_config")}


def add_skd_config(cfg: CN) -> None:
    """
    Add the project's keys to a Detectron2 config, in place. Calling it twice does no harm.

    The student is the model the config describes anyway; a config distils when
    ``MODEL.META_ARCHITECTURE`` is ``DistillRCNN`` (see :func:`distill`).
    """
    if "TEACHER" in cfg.MODEL:
        return
    # ---------------------------------------------------------------------------- the student
    cfg.MODEL.STUDENT = CN()
    # The student's own meta-architecture: any name in Detectron2's META_ARCH_REGISTRY.
    cfg.MODEL.STUDENT.META_ARCHITECTURE = "GeneralizedRCNN"
    # Name of the module whose dict of feature maps is distilled, e.g. "backbone.bottom_up".
    cfg.MODEL.STUDENT.FEATURES = "backbone"
    # Start the student's FPN and heads as copies of the teacher's, each where all its shapes agree
    # with the teacher's (as FGD and ICD do). What MODEL.WEIGHTS holds is loaded over them.
    cfg.MODEL.STUDENT.INHERIT = False

    # A backbone from timm below an FPN, for light students: see skd/timm_backbone.py. Used by the
    # MODEL.BACKBONE.NAMEs build_timm_fpn_backbone and build_retinanet_timm_fpn_backbone.
    cfg.MODEL.TIMM = CN()
    # A name in timm.list_models() that gives feature maps of the strides 4 (8) to 32.
    cfg.MODEL.TIMM.NAME = "mobilenetv3_large_100"
    # Start from timm's ImageNet weights, fetched by timm. MODEL.WEIGHTS is loaded over them.
    cfg.MODEL.TIMM.PRETRAINED = False
    # "BN", "SyncBN" (GPUs only) or "FrozenBN" (for few images per GPU).
    cfg.MODEL.TIMM.NORM = "BN"

    # ---------------------------------------------------------------------------- the teacher
    cfg.MODEL.TEACHER = CN()
    # A YAML file, a LazyConfig .py file, or a name in Detectron2's model zoo.
    # Empty: train_net.py trains the plain student.
    cfg.MODEL.TEACHER.CONFIG_FILE = ""
    # Checkpoint, path or URL. Empty: the zoo's own checkpoint for the zoo name above.
    cfg.MODEL.TEACHER.WEIGHTS = ""
    # Changes to the teacher's config, as on the command line: ["KEY", "VALUE", ...] for YAML and
    # ["key=value", ...] for LazyConfig.
    cfg.MODEL.TEACHER.OPTS = []
    # Like STUDENT.FEATURES; a module of the teacher's backbone, because nothing else of it runs.
    cfg.MODEL.TEACHER.FEATURES = "backbone"
    # What makes its forward cheaper; docs/performance.md has the measurements.
    # Numbers it computes in: "fp32", "bf16" or "fp16". The losses are computed in fp32 anyway.
    cfg.MODEL.TEACHER.PRECISION = "fp32"
    # Fold its batch norms, which are fixed, into the convolutions before them.
    cfg.MODEL.TEACHER.FOLD_BN = True
    # Lay its maps out with channels last.
    cfg.MODEL.TEACHER.CHANNELS_LAST = True
    # Compile its backbone with torch.compile, which takes minutes at the start.
    cfg.MODEL.TEACHER.COMPILE = False
    # Run it on a CUDA stream of its own, beside the student's forward.
    cfg.MODEL.TEACHER.SIDE_STREAM = False
    # Distil from an untrained teacher. Teaches nothing: for tests and dry runs only.
    cfg.MODEL.TEACHER.RANDOM_WEIGHTS = False

    # Take each batch in that many parts, one after the other, for one optimizer step: for GPUs
    # that do not hold SOLVER.IMS_PER_BATCH images. Must divide a process's share of them. Done by
    # train_net.py's SKDTrainer; other trainers do not know the key.
    cfg.SOLVER.ACCUMULATE = 1
    # Leave out up to so many batches whose loss is not finite, instead of stopping at the first.
    # Done by SKDTrainer too.
    cfg.SOLVER.SKIP_NON_FINITE = 0

    # -------------------------------------------------------------------------- the distiller
    cfg.MODEL.DISTILLER = CN()
    # The method: a name in skd.DISTILLER_REGISTRY; docs/comparison.md lists them.
    cfg.MODEL.DISTILLER.NAME = "StructuredDistiller"
    # Several methods in place of NAME, the losses of each multiplied by a weight:
    # [["StructuredDistiller", 1.0], ["PKD", 0.5]].
    cfg.MODEL.DISTILLER.COMBINE = []
    # The student's feature maps to distil, e.g. ["p3", "p4"]. Empty: all that have a teacher's
    # map of the same stride.
    cfg.MODEL.DISTILLER.LEVELS = []

    # Structured knowledge distillation (docs/method.md explains each key). None: by the preset.
    s = cfg.MODEL.DISTILLER.STRUCTURED = CN()
    # "two_stage" and "one_stage" are the released code's settings, "two_stage_paper" and
    # "one_stage_paper" the paper's text. "auto": "two_stage" if the finest level distilled has
    # stride 4 or less (P2-P6), else "one_stage" (P3-P7).
    s.PRESET = "auto"
    # Softmax temperature of the attention masks.
    s.TEMPERATURE = None
    # Weights of the attention-masked feature loss, attention transfer, and non-local loss.
    # A term of weight 0 is not computed and has no parameters.
    s.WEIGHT_AM = None
    s.WEIGHT_AT = None
    s.WEIGHT_NL = None
    # "mean_of_softmaxes" (released code) or "softmax_of_sum" (paper).
    s.MASK_FUSION = None
    # Whether the feature loss is weighted by the channel mask too.
    s.CHANNEL_MASK = None
    # What attention transfer compares: "mean" or "abs" (mean of absolute values).
    s.POOL = None
    # Whether attention transfer sends the student's side through a learnt layer.
    s.ADAPTER = None
    # "sum": the paper's norms over the whole batch, which grow with batch and image size.
    # "mean": independent of both, and equal to "sum" for two images of 800x1344.
    s.REDUCTION = "sum"

    s.NON_LOCAL = CN()
    # "dot_product" (released code) or "embedded_gaussian" (softmax attention).
    s.NON_LOCAL.AFFINITY = "dot_product"
    # Norm at the end of the block: "BN", "SyncBN", "naiveSyncBN" (for CPUs), "GN", "" for none.
    s.NON_LOCAL.NORM = "BN"
    # Width of the embeddings: list of [stride, channels]. Other strides: half the channels.
    s.NON_LOCAL.WIDTHS = None
    # Max-pooling of keys and values: list of [stride, pool]. Other strides: 2.
    s.NON_LOCAL.KEY_STRIDES = None

    _add_comparison_methods(cfg.MODEL.DISTILLER)


def _add_comparison_methods(node: CN) -> None:
    """
    The settings of the twelve other methods; a file each in skd/distillers explains them. Weights
    multiply a term at each level. None: the authors', by one- or two-stage detector.
    """
    node.FITNETS = CN({"WEIGHT": 1.0})
    node.AT = CN({"WEIGHT": 1000.0})
    node.SP = CN({"WEIGHT": 3000.0})
    node.OFD = CN({"WEIGHT": 1.0})
    node.FGFI = CN({"WEIGHT": 0.01})
    # An anchor's overlap with an object, as a share of the object's best, to imitate around it.
    node.FGFI.THRESHOLD = 0.5
    # Side of the anchors in strides of their level, and their height / width.
    node.FGFI.ANCHOR_SCALE = 8.0
    node.FGFI.ASPECT_RATIOS = [0.5, 1.0, 2.0]
    node.DEFEAT = CN({"WEIGHT_OBJECT": 3.0, "WEIGHT_BACKGROUND": 12.0})
    # Boxes of this side, in pixels, belong to stride 16 (as in MODEL.ROI_BOX_HEAD's pooler).
    node.DEFEAT.CANONICAL_BOX_SIZE = 224
    node.FGD = CN({"WEIGHT_OBJECT": None, "WEIGHT_BACKGROUND": None})
    node.FGD.WEIGHT_ATTENTION = None
    node.FGD.WEIGHT_GLOBAL = None
    node.FGD.TEMPERATURE = 0.5
    node.CWD = CN({"WEIGHT": 5.0, "TEMPERATURE": 1.0})
    # MASKED: the share of positions hidden from the student.
    node.MGD = CN({"WEIGHT": None, "MASKED": None})
    node.PKD = CN({"WEIGHT": None})
    node.SSIM = CN({"WEIGHT": 1.0})
    node.REVIEWKD = CN({"WEIGHT": 1.0})


def merge_file(cfg: CN, path: str) -> None:
    """
    Merge a YAML file into a config, in place. If it has keys of PointRend they are declared
    first, as that project's own script does.

    Raises:
        ImportError: such a file, and a Detectron2 without that project.
        UnsafeConfigError: it, or one it is based on, would run code.
    """
    check_yaml(path)
    model = CN.load_yaml_with_base(path, allow_unsafe=True).get("MODEL", {})
    for node, (module, function) in _PROJECTS.items():
        if node not in model or node in cfg.MODEL:
            continue
        try:
            declare = getattr(importlib.import_module(module), function)
        except ImportError as error:
            raise ImportError(
                f"'{path}' has MODEL.{node}, which belongs to {module}, and this installation of "
                f"Detectron2 has no such module: {error}"
            ) from error
        declare(cfg)
    cfg.merge_from_file(path)


def read_config(path: str) -> CN:
    """A YAML file on Detectron2's defaults and the keys of :func:`add_skd_config`."""
    cfg = get_cfg()
    add_skd_config(cfg)
    merge_file(cfg, path)
    return cfg


def is_lazy_file(path: str) -> bool:
    """
    Whether a config file is a LazyConfig: a .py, or the .yaml that a LazyConfig run saves, which
    has ``model:`` where others have ``MODEL:``.
    """
    if path.endswith(".py"):
        return True
    with PathManager.open(path, "r") as f:
        return any(line.startswith("model:") for line in f)


def is_distilling(cfg: CN) -> bool:
    """Whether a YAML config describes a student with a teacher."""
    return cfg.MODEL.META_ARCHITECTURE == META_ARCHITECTURE


def distill(cfg: CN, teacher: str, weights: str = "") -> None:
    """
    Turn a plain config into one that distils, in place: what ``--teacher`` does.

    Args:
        cfg: any Detectron2 config with the keys of :func:`add_skd_config`.
        teacher: see ``MODEL.TEACHER.CONFIG_FILE``.
        weights: see ``MODEL.TEACHER.WEIGHTS``.
    """
    if not is_distilling(cfg):
        cfg.MODEL.STUDENT.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE
        cfg.MODEL.META_ARCHITECTURE = META_ARCHITECTURE
    cfg.MODEL.TEACHER.CONFIG_FILE = teacher
    cfg.MODEL.TEACHER.WEIGHTS = weights


def student_config(cfg: CN) -> CN:
    """
    The student's own config: a copy for stock Detectron2, without any key of this project unless
    the student itself needs it (``MODEL.TIMM``, where its backbone is timm's).
    """
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    if is_distilling(cfg):
        cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.STUDENT.META_ARCHITECTURE
    for node in _NODES:
        cfg.MODEL.pop(node, None)
    for key in SOLVER_KEYS:
        cfg.SOLVER.pop(key, None)
    if "timm" not in cfg.MODEL.BACKBONE.NAME:
        cfg.MODEL.pop("TIMM", None)
    if frozen:
        cfg.freeze()
    return cfg
