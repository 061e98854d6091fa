"""
Runs of which it is known whether something is wrong with them: faults that are planted, each for
two detectors, and sound ones that differ in data, detector, width, start, method and seed. On the
built-in dataset; some also on photographs, where there is a teacher for them.
"""

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

from detectron2.config import CfgNode

from ...config import distill, read_config
from ...distillers.balance import SHARE
from ..common.paths import find_file
from . import planted  # noqa: F401, its names in the registries

SHAPES = "configs/shapes"
TEACHER = (f"{SHAPES}/teacher.yaml", f"{SHAPES}/teacher.pth")
# a small student that the command trains: a start for others, and a teacher that is too weak
TRAINED = "trained student"
# the config and the checkpoint of --other-teacher
OTHERS = ("other teacher", "other teacher")
LIGHT_STUDENT = "configs/real/Base-Light-Mask-RCNN.yaml"
DETECTORS: Dict[str, Tuple[str, List]] = {
    "Mask R-CNN": (f"{SHAPES}/student.yaml", []),
    "Faster R-CNN": (f"{SHAPES}/student.yaml", ["MODEL.MASK_ON", False]),
    "RetinaNet": (f"{SHAPES}/retinanet_student.yaml", []),
    "FCOS": (f"{SHAPES}/retinanet_student.yaml", ["MODEL.META_ARCHITECTURE", "ShapesFCOS"]),
    "the teacher's own": (TEACHER[0], []),
    "light Mask R-CNN": (LIGHT_STUDENT, []),
    "light Faster R-CNN": (LIGHT_STUDENT, ["MODEL.MASK_ON", False]),
    "light RetinaNet": (LIGHT_STUDENT, [
        "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.MASK_ON", False,
        "MODEL.BACKBONE.NAME", "build_retinanet_timm_fpn_backbone",
        "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
    ]),
}  # fmt: skip
FROZEN = {"Mask R-CNN": "FrozenBackboneRCNN", "RetinaNet": "FrozenBackboneRetinaNet"}


@dataclass
class Case:
    """
    Attributes:
        name: what is planted; for a sound run what is special about it.
        cause: the finding that names the fault; "" for a sound run.
        seed: of the run, to which the command adds its own.
        detector: a key of ``DETECTORS``, the student.
        teacher: config and checkpoint; the latter may be ``TRAINED``, or both ``OTHERS``.
        student: KEY, VALUE, ... of the student's config.
        distillation: the same, of the config that distils.
        start: the student's weights: "" for random ones, ``TRAINED``, or a file.
        compared: the checkpoint given as --student-weights, likewise.
        other: whether the student is trained on the other dataset.
    """

    name: str
    cause: str
    seed: int
    detector: str
    teacher: Tuple[str, str] = TEACHER
    student: List = field(default_factory=list)
    distillation: List = field(default_factory=list)
    start: str = ""
    compared: str = ""
    other: bool = False

    def config(self, trained: str, seed: int, split: str, other: Optional["Other"]) -> CfgNode:
        """
        Args:
            trained: the checkpoint that ``TRAINED`` stands for.
            seed: added to the case's own.
            split: of the built-in dataset, to try teachers on.
            other: the dataset of those with ``other``.
        """
        path, changes = DETECTORS[self.detector]
        cfg = read_config(find_file(path))
        cfg.merge_from_list([*LIGHT, "DATASETS.TEST", (split,), *changes, *self.student])
        cfg.MODEL.WEIGHTS = self.start.replace(TRAINED, trained)
        cfg.SEED = self.seed + seed
        if self.other:
            cfg.merge_from_list(other.options())
        config, weights = other.teacher if self.teacher == OTHERS else self.teacher
        distill(cfg, find_file(config), find_file(weights.replace(TRAINED, trained)))
        cfg.merge_from_list(self.distillation)
        return cfg


@dataclass
class Other:
    """
    A dataset that is not shapes: its registered name, how many classes it has, and config and
    checkpoint of a teacher that was trained on it, if there is one.
    """

    name: str
    classes: int
    teacher: Optional[Tuple[str, str]] = None

    def options(self) -> List:
        names = (self.name,)
        heads = ["MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"]
        options = [value for key in heads for value in (key, self.classes)]
        return [*options, "DATASETS.TRAIN", names, "DATASETS.TEST", names]


# For one core: few images a step.
LIGHT = ["SOLVER.IMS_PER_BATCH", 4, "MODEL.DEVICE", "cpu"]


def faults() -> List[Case]:
    """The ten, each for two detectors, and on photographs those that are of the images."""
    found = []
    for i, detector in enumerate(FROZEN):
        seed = 10 * i + 1
        found += [
            Case("wrong color order", "color order", seed, detector,
                 distillation=_teacher("INPUT.FORMAT", "RGB")),
            Case("wrong normalization", "normalization", seed + 1, detector,
                 distillation=_teacher("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]")),
            Case("untrained teacher", "untrained teacher", seed + 2, detector, (TEACHER[0], ""),
                 distillation=["MODEL.TEACHER.RANDOM_WEIGHTS", True]),
            _weak_teacher(seed + 3, detector),
            Case("teacher of other data", "other data", seed + 4, detector, other=True),
            Case("weight x1000", "weight", seed + 5, detector, distillation=_weights(i, 1000)),
            Case("weight /1000", "weight", seed + 6, detector, distillation=_weights(i, 1e-3)),
            Case("frozen student", "frozen student", seed + 7, detector,
                 student=["MODEL.META_ARCHITECTURE", FROZEN[detector]]),
            Case("maps shifted by one position", "shifted maps", seed + 8, detector,
                 distillation=_teacher("MODEL.BACKBONE.NAME", "build_fpn_with_shifted_maps")),
            Case("levels swapped", "levels", seed + 9, detector,
                 distillation=_teacher("MODEL.BACKBONE.NAME", "build_fpn_with_swapped_levels")),
        ]  # fmt: skip
    on_photographs = [
        ("wrong color order", "color order", _teacher("INPUT.FORMAT", "BGR")),
        ("wrong normalization", "normalization", _teacher("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]")),
        ("maps shifted by one position", "shifted maps",
         _teacher("MODEL.BACKBONE.NAME", "build_timm_fpn_with_shifted_maps")),
    ]  # fmt: skip
    return found + [
        Case(name, cause, 31 + i, "light Mask R-CNN", OTHERS, distillation=changes, other=True)
        for i, (name, cause, changes) in enumerate(on_photographs)
    ]


def _teacher(key: str, value: str) -> List:
    return ["MODEL.TEACHER.OPTS", [key, value]]


def _weights(i: int, factor: float) -> List:
    """The share of a balanced run; for the second detector the weights of one that is not."""
    if i == 0:
        return ["MODEL.DISTILLER.BALANCE.SHARE", SHARE * factor]
    chosen = {"AM": 1.05e-3, "AT": 1.6e-3, "NL": 4.5e-3}  # study.yaml's, for RetinaNet
    pairs = {f"MODEL.DISTILLER.STRUCTURED.WEIGHT_{k}": v * factor for k, v in chosen.items()}
    options = [part for pair in pairs.items() for part in pair]
    return ["MODEL.DISTILLER.BALANCE.ENABLED", False, *options]


def _weak_teacher(seed: int, detector: str) -> Case:
    """
    A student with the large teacher's weights, of which it is known how good it is, and the small
    trained one as its teacher; and one that is to learn from what is as good as itself.
    """
    if detector == "Mask R-CNN":
        return Case("teacher weaker than the student", "weak teacher", seed, "the teacher's own",
                    (f"{SHAPES}/student.yaml", TRAINED), start=TEACHER[1],
                    compared=TEACHER[1])  # fmt: skip
    return Case("teacher no better than the student", "weak teacher", seed, "Mask R-CNN",
                (f"{SHAPES}/student.yaml", TRAINED), start=TRAINED, compared=TRAINED)  # fmt: skip


def sound() -> List[Case]:
    """Twenty without a fault, and four on photographs."""
    seeds = iter(range(101, 200))

    def case(name: str, detector: str, **given) -> Case:
        return Case(name, "", next(seeds), detector, **given)

    found = [case("as it comes", name) for name in list(DETECTORS)[:4]]
    found += [case("half the width", name, student=_width(4, 32)) for name in list(DETECTORS)[:4]]
    found += [case("twice the width", "Mask R-CNN", student=_width(16, 64))]
    found += [case("images of 96 px", name, student=_size(96)) for name in ("Mask R-CNN", "FCOS")]
    found += [
        case("images of 160 px", name, student=_size(160)) for name in ("Faster R-CNN", "RetinaNet")
    ]
    found += [
        case("trained on the small split", "RetinaNet",
             student=["DATASETS.TRAIN", ("skd_shapes_tune",)]),
        case("from a trained student", "Mask R-CNN", start=TRAINED, compared=TRAINED),
        case("from a trained student's backbone", "Faster R-CNN", start=TRAINED,
             student=["DATASETS.TRAIN", ("skd_shapes_tune",)]),
        case("from the teacher's weights", "the teacher's own", start=TEACHER[1]),
        case("by FGD", "Mask R-CNN", distillation=["MODEL.DISTILLER.NAME", "FGD"]),
        case("by CWD", "RetinaNet", distillation=["MODEL.DISTILLER.NAME", "CWD"]),
        case("share 10, decaying", "Faster R-CNN",
             distillation=["MODEL.DISTILLER.BALANCE.SHARE", 10.0,
                           "MODEL.DISTILLER.BALANCE.DECAY", "cosine"]),
    ]  # fmt: skip
    light = {"teacher": OTHERS, "other": True}
    found += [
        case("photographs", name, **light)
        for name in ("light Mask R-CNN", "light Faster R-CNN", "light RetinaNet")
    ]
    found += [case("photographs of 160 px", "light Mask R-CNN", student=_size(160), **light)]
    return found


def _width(bottleneck: int, fpn: int) -> List:
    return [
        "MODEL.RESNETS.WIDTH_PER_GROUP", bottleneck,
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 4 * bottleneck, "MODEL.FPN.OUT_CHANNELS", fpn,
    ]  # fmt: skip


def _size(side: int) -> List:
    return [
        "INPUT.MIN_SIZE_TRAIN", (side,), "INPUT.MAX_SIZE_TRAIN", side,
        "INPUT.MIN_SIZE_TEST", side, "INPUT.MAX_SIZE_TEST", side,
    ]  # fmt: skip
